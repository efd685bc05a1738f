"""Small data sets in exactly the layouts of their downloads."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

PATCH_PX = 32
GSD_M = 0.2
DOMAIN, ROI = "D012-2019", "AF-S1-27"


def write_tiff(path: Path, pixels: np.ndarray, *, x: float, y: float, crs="EPSG:2154", gsd: float = GSD_M, **options):
    """A georeferenced GeoTIFF of (bands, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    where = {"crs": crs, "transform": rasterio.Affine(gsd, 0, x, 0, -gsd, y)}
    with rasterio.open(path, "w", driver="GTiff", **shape, **where, **options) as dst:
        dst.write(pixels)


def flair_paths(place: str, domain: str = DOMAIN, roi: str = ROI) -> tuple[str, str]:
    """Image and label of a patch, relative to the root."""
    kinds = "AERIAL_RGBI", "AERIAL_LABEL-COSIA"
    image, label = (f"{domain}_{kind}/{roi}/{domain}_{kind}_{roi}_{place}.tif" for kind in kinds)
    return image, label


def make_flair_hub(
    root: Path,
    image: np.ndarray,
    label: np.ndarray,
    *,
    holes: Iterable[tuple[int, int]] = (),
    domain: str = DOMAIN,
    roi: str = ROI,
    patch_px: int = PATCH_PX,
    x: float = 700_000,
) -> list[str]:
    """Cut (4, H, W) and (1, H, W) into patches whose names say nothing of their place; their patch ids.

    The second number of a name runs down the rows, backwards: only the geotransform is right.
    """
    ids = []
    rows, cols = image.shape[1] // patch_px, image.shape[2] // patch_px
    for row in range(rows):
        for col in range(cols):
            if (row, col) in holes:
                continue
            place = f"{col + 3}-{rows - row}"
            cut = np.s_[:, row * patch_px : (row + 1) * patch_px, col * patch_px : (col + 1) * patch_px]
            where = {"x": x + col * patch_px * GSD_M, "y": 6_600_000 - row * patch_px * GSD_M}
            for path, pixels in zip(flair_paths(place, domain, roi), (image[cut], label[cut]), strict=True):
                write_tiff(root / path, pixels, **where)
            ids.append(f"{domain}_{roi}_{place}")
    return ids


def write_flair_csv(file: Path, patch_ids: Iterable[str]) -> None:
    """A table like those of the toy set, with paths relative to another folder."""
    columns = ["patch_id", "AERIAL-RLT_PAN", "AERIAL_LABEL-COSIA", "AERIAL_RGBI", "DEM_ELEV"]
    with file.open("w", newline="") as lines:
        rows = csv.DictWriter(lines, columns, restval="")
        rows.writeheader()
        for patch_id in patch_ids:
            domain, rest = patch_id.split("_", 1)
            image, label = flair_paths(rest.rsplit("_", 1)[1], domain, rest.rsplit("_", 1)[0])
            rows.writerow({"patch_id": patch_id, "AERIAL_RGBI": f"../{image}", "AERIAL_LABEL-COSIA": f"../{label}"})


def write_flair_geopackage(file: Path, splits: dict[str, str]) -> None:
    """GLOBAL_ALL_MTD_SPLIT.gpkg with the columns patch_id and split_flairhub."""
    import pyogrio

    file.parent.mkdir(parents=True, exist_ok=True)
    columns = [np.array(list(splits), object), np.array(list(splits.values()), object)]
    pyogrio.raw.write(
        file,
        geometry=None,
        field_data=columns,
        fields=np.array(["patch_id", "split_flairhub"]),
        driver="GPKG",
        layer="GLOBAL_ALL_MTD_SPLIT",
        geometry_type=None,
    )


def write_dataset(file: Path, **content) -> Path:
    """A dataset.yaml."""
    import yaml

    file.write_text(yaml.safe_dump({"name": "small", **content}))
    return file


def save_picture(path: Path, pixels: np.ndarray, **options) -> None:
    """A picture without georeference of (H, W) or (H, W, 3), in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def disc(height: int, width: int) -> np.ndarray:
    """(height, width) bool: a disc in the middle."""
    rows, cols = np.indices((height, width))
    return np.hypot(rows - height / 2, cols - width / 2) < 0.35 * min(height, width)


def make_inria(root: Path, image: np.ndarray, names: Iterable[str], tests: Iterable[str] = ()) -> None:
    """AerialImageDataset with masks of 0 and 255; ``image`` is (3, H, W)."""
    mask = np.where(disc(*image.shape[1:]), 255, 0).astype(np.uint8)[None]
    where = {"x": 620_000, "y": 3_350_000, "crs": "EPSG:26914", "gsd": 0.3}
    for name in names:
        write_tiff(root / "AerialImageDataset/train/images" / f"{name}.tif", image, **where)
        write_tiff(root / "AerialImageDataset/train/gt" / f"{name}.tif", mask, **where)
    for name in tests:
        write_tiff(root / "AerialImageDataset/test/images" / f"{name}.tif", image, **where)


def make_deepglobe(root: Path, image: np.ndarray, numbers: Iterable[str], *, unlabelled: Iterable[str] = ()) -> None:
    """land-train and land-val; values of masks are off by up to 4, as some of the published ones are."""
    height, width = image.shape[1:]
    classes = (np.indices((height, width)).sum(0) * 7 // (height + width)).astype(int)
    rgb = np.array(
        [(0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)], np.uint8
    )[classes]
    off = np.random.default_rng(0).integers(0, 5, rgb.shape, dtype=np.uint8)
    mask = np.where(rgb > 127, 255 - off, off)
    for number in numbers:
        save_picture(root / "land-train" / f"{number}_sat.jpg", np.moveaxis(image, 0, -1), quality=95)
        save_picture(root / "land-train" / f"{number}_mask.png", mask)
    for number in unlabelled:
        save_picture(root / "land-val" / f"{number}_sat.jpg", np.moveaxis(image, 0, -1), quality=95)


def make_isic(root: Path, images: Mapping[str, np.ndarray], word: str = "Training") -> None:
    """Pictures of any size by number, with masks of 0 and 255."""
    for number, image in images.items():
        mask = np.where(disc(*image.shape[1:]), 255, 0).astype(np.uint8)
        name = f"ISIC_{number}"
        save_picture(root / f"ISIC2018_Task1-2_{word}_Input" / f"{name}.jpg", np.moveaxis(image, 0, -1), quality=95)
        save_picture(root / f"ISIC2018_Task1_{word}_GroundTruth" / f"{name}_segmentation.png", mask)


def make_crag(root: Path, image: np.ndarray, trains: int, tests: int) -> None:
    """Masks number the glands, some beyond 255."""
    glands = np.zeros(image.shape[1:], np.uint16)
    glands[5:20, 5:20], glands[30:, 40:50], glands[25:28, 3:9] = 1, 2, 300
    for folder, word, count in (("train", "train", trains), ("valid", "test", tests)):
        for number in range(1, count + 1):
            save_picture(root / "CRAG" / folder / "Images" / f"{word}_{number}.png", np.moveaxis(image, 0, -1))
            save_picture(root / "CRAG" / folder / "Annotation" / f"{word}_{number}.png", glands)
