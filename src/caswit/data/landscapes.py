"""The synthetic landscapes as files: a dataset to learn from, in a minute and without a download."""

from pathlib import Path

import yaml

from caswit.data.scene import Dataset, load_dataset
from caswit.data.synthetic import CLASSES, landscape
from caswit.files import atomic_path, atomic_write_bytes
from caswit.raster.io import write_raster

SCENE_PX, MAP_PX = 1024, 1536
GSD_M = 0.2
SPLITS = {"train": 8, "test": 4}
"""Landscapes of ``SCENE_PX`` in each split; one more of ``MAP_PX`` is mapped."""
CRS = "EPSG:2154"


def write_landscapes(folder: Path, seed: int) -> Dataset:
    """Write landscapes, labels and a dataset.yaml; landscapes of different seeds never coincide."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for split, count in SPLITS.items():
        for number in range(count):
            name = f"{split}{number}"
            _write_scene(folder, name, (seed, len(rows)), SCENE_PX)
            rows.append({"image": f"{name}.tif", "label": f"{name}_label.tif", "split": split})
    _write_scene(folder, "map", (seed, len(rows)), MAP_PX)
    rows.append({"image": "map.tif", "label": "map_label.tif", "split": "map"})
    content = {
        "name": "synthetic landscapes",
        "note": "Drawn by caswit; the georeference is fictitious.",
        "classes": [{"id": i, "name": name, "color": color} for i, name, color in CLASSES],
        "scenes": rows,
    }
    file = folder / "dataset.yaml"
    atomic_write_bytes(file, yaml.safe_dump(content, sort_keys=False).encode())
    return load_dataset(file)


def _write_scene(folder: Path, name: str, seed: tuple[int, int], side_px: int) -> None:
    drawn = landscape(1000 * seed[0] + seed[1], side_px, side_px)
    for file, pixels in ((f"{name}.tif", drawn.image), (f"{name}_label.tif", drawn.label[None])):
        with atomic_path(folder / file) as partial:
            write_raster(partial, pixels, crs=CRS, gsd_m=GSD_M)
