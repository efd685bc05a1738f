"""Windows of rasters, and the one module that reads and writes them."""
