"""The label files of docs/labels.md, made from an image and a mask of its buildings: for its pictures and its tests.

python docs/images/label_files.py IMAGE MASK FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.transform import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject

ROADS = ([(0, 0.72), (0.27, 0.79), (0.73, 0.91), (1, 0.96)], [(0.235, 0), (0.14, 0.14), (0.06, 0.3), (0.02, 0.42)])
TREES = [(0.41, 0.55), (0.48, 0.54), (0.57, 0.72), (0.54, 0.78), (0.66, 0.15), (0.84, 0.34), (0.9, 0.36)]
AREA = [(0.1, 0.1), (0.64, 0.1), (0.62, 0.52), (0.1, 0.52)]
"""Places (x, y) as shares of the image's sides."""


def write_label_files(folder: Path, image: Path, mask: NDArray[np.bool_]) -> None:
    """Write a file for each case of the page.

    Args:
        folder: Where to.
        image: The image that the labels belong to.
        mask: (H, W), True where there is a building.
    """
    with rasterio.open(image) as src:
        crs, transform = src.crs, src.transform
    where = {"crs": crs, "transform": transform}
    ids = mask.astype(np.uint8)
    write_raster(folder / "north_utm.tif", *in_utm(ids, where))
    write_raster(folder / "north_mask.tif", ids * 255, where)
    pieces = [(shapely.geometry.shape(outline), int(value)) for outline, value in shapes(ids, transform=transform)]
    buildings = [outline for outline, value in pieces if value == 1]
    kinds = ids.copy()
    usual = np.median([b.area for b in buildings])
    for building in buildings:
        kind = 1 if building.area > 1.4 * usual else 2 if building.area > 0.7 * usual else 5
        kinds[rasterio.features.rasterize([building], mask.shape, transform=transform).astype(bool)] = kind
    write_raster(folder / "north_kinds.tif", kinds, where)
    words = np.array(["house" if b.area > 0.7 * usual else "shed" for b in buildings], object)
    write_shapes(folder / "buildings.gpkg", buildings, crs, kind=words)
    area = shapely.Polygon([placed(p, mask.shape, transform) for p in AREA])
    write_shapes(folder / "area.gpkg", [area], crs)
    lines = [shapely.LineString([placed(p, mask.shape, transform) for p in road]) for road in ROADS]
    trees = [shapely.Point(placed(p, mask.shape, transform)) for p in TREES]
    names = np.array(["road"] * len(lines) + ["tree"] * len(trees), object)
    write_shapes(folder / "streets.gpkg", [*lines, *trees], crs, what=names)


def placed(share: tuple[float, float], shape: tuple[int, ...], transform: Affine) -> tuple[float, float]:
    """Return the ground coordinate of a place."""
    found: tuple[float, float] = transform * (share[0] * shape[1], share[1] * shape[0])
    return found


def in_utm(ids: NDArray[np.uint8], where: dict[str, Any]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return the labels in another CRS, on pixels of 1.5 times the side, and where they lie."""
    height, width = ids.shape
    bounds = rasterio.transform.array_bounds(height, width, where["transform"])
    lon = rasterio.warp.transform_bounds(where["crs"], "OGC:CRS84", *bounds)[0]
    crs = f"EPSG:326{int(lon // 6) + 31:02}"
    transform, columns, rows = calculate_default_transform(where["crs"], crs, width, height, *bounds)
    transform, columns, rows = transform * Affine.scale(1.5), int(columns / 1.5) + 1, int(rows / 1.5) + 1
    warped = np.full((rows, columns), 255, np.uint8)
    source = {"src_transform": where["transform"], "src_crs": where["crs"]}
    to = {"dst_transform": transform, "dst_crs": crs, "dst_nodata": 255}
    reproject(ids, warped, **source, **to, resampling=Resampling.nearest)
    return warped, {"crs": crs, "transform": transform, "nodata": 255}


def write_raster(file: Path, ids: NDArray[np.uint8], where: dict[str, Any]) -> None:
    """Write one band."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": ids.shape[0], "width": ids.shape[1]}
    with rasterio.open(file, "w", **profile, **where, compress="deflate") as out:
        out.write(ids, 1)


def write_shapes(file: Path, geometries: list[Any], crs: Any, **columns: NDArray[Any]) -> None:
    """Write shapes with their columns."""
    file.unlink(missing_ok=True)
    kinds = {g.geom_type for g in geometries}
    geometry = shapely.to_wkb(np.array(geometries, object))
    options = {"geometry_type": kinds.pop() if len(kinds) == 1 else "Unknown", "crs": crs.to_string(), "driver": "GPKG"}
    pyogrio.raw.write(file, geometry, list(columns.values()), list(columns), **options)


if __name__ == "__main__":
    with rasterio.open(sys.argv[2]) as labels:
        write_label_files(Path(sys.argv[3]), Path(sys.argv[1]), labels.read(1) > 0)
