"""Rasters: windows, reading, georeference, resampling, mosaics, COG, VRT, polygons. Only here is rasterio imported."""
