"""Generated data in FLAIR-HUB's layout, for the benchmarks of indexing and reading."""

from pathlib import Path

import numpy as np
import rasterio

GSD_M = 0.2
IMAGES, LABELS = "AERIAL_RGBI", "AERIAL_LABEL-COSIA"
LAYOUTS = {
    "tiled": {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"},
    "strips": {"compress": "lzw"},
    "raw": {},
}


def landscape(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw (4, H, W) uint8 that compress like an orthophoto: smooth shapes with noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 220, (4, height // 32 + 2, width // 32 + 2)).astype(np.float32)
    image = coarse.repeat(32, 1).repeat(32, 2)[:, :height, :width]
    image += 6 * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, x: float, y: float, **options: object) -> None:
    """Write a georeferenced GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    where = {"crs": "EPSG:2154", "transform": rasterio.Affine(GSD_M, 0, x, 0, -GSD_M, y)}
    shape = {"count": count, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **where, **options) as dst:
        dst.write(pixels)


def region(
    root: Path,
    roi: str,
    rows: int,
    cols: int,
    patch_px: int,
    options: dict,
    domain: str = "D001-2020",
    first_px: int = 0,
) -> None:
    """Write rows x cols patches with labels, and a line for each in the table of the training split."""
    image = landscape(rows * patch_px, cols * patch_px)
    label = (image[:1] // 17 % 15).astype(np.uint8)
    for row in range(rows):
        for col in range(cols):
            cut = np.s_[:, row * patch_px : (row + 1) * patch_px, col * patch_px : (col + 1) * patch_px]
            x, y = 700_000 + (first_px + col * patch_px) * GSD_M, 6_600_000 - row * patch_px * GSD_M
            for kind, pixels in ((IMAGES, image[cut]), (LABELS, label[cut])):
                write(root / patch(kind, roi, row, col, domain), pixels, x, y, **options)
    _list(root, roi, rows, cols, domain)


def same_region(root: Path, roi: str, rows: int, cols: int, like: str, domain: str = "D001-2020") -> None:
    """Write another region of the same files under other names."""
    for kind in (IMAGES, LABELS):
        for row in range(rows):
            for col in range(cols):
                path = root / patch(kind, roi, row, col, domain)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.hardlink_to(root / patch(kind, like, row, col, domain))
    _list(root, roi, rows, cols, domain)


def patch(kind: str, roi: str, row: int, col: int, domain: str = "D001-2020") -> str:
    """Return the path of a patch relative to the root."""
    return f"{domain}_{kind}/{roi}/{domain}_{kind}_{roi}_{row}-{col}.tif"


def _list(root: Path, roi: str, rows: int, cols: int, domain: str) -> None:
    table = root / "GENERATED_TRAIN.csv"
    lines = [] if table.exists() else ["patch_id,AERIAL_RGBI,AERIAL_LABEL-COSIA\n"]
    for row in range(rows):
        for col in range(cols):
            image, label = (patch(kind, roi, row, col, domain) for kind in (IMAGES, LABELS))
            lines.append(f"{domain}_{roi}_{row}-{col},../{image},../{label}\n")
    with table.open("a") as file:
        file.writelines(lines)
