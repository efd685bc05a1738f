"""What ``caswit finetune`` and ``caswit recipe`` look at in a dataset: what is labelled, sides and ground size."""

from typing import NamedTuple

from caswit.data.dataset import Dataset
from caswit.data.label_counts import count_labels
from caswit.data.reader import SceneReaders, open_dataset_scene
from caswit.errors import DataError
from caswit.raster.stack import Bands
from caswit.raster.windows import area_tiles
from caswit.weights.model_folder import ModelInfo, PretrainedInfo

_COARSE = 3.0
"""Times the model's ground size from which on images are read as they are: enlarged, they would be mostly guessed."""
_MOST_SCENES = 100
"""Scenes that are opened and whose labels are counted."""
_SPARSE = 0.5
"""Share of the pixels with a label below which labels lie here and there."""
_FEW_SCENES = 5
"""Scenes below which each gives a part of itself for validation."""


class LabelledData(NamedTuple):
    """The training scenes of a dataset, in pixels that are read."""

    scenes: int
    pixels: int
    """Of the training scenes, with a label."""
    opened: SceneReaders
    """Those whose labels were counted."""
    counts: tuple[int, ...]
    """Pixels of each class in their labels."""
    labelled: float
    """Their share of what could have one, 0..1."""
    shortest_px: int
    """Shorter side of the smallest scene, or of its areas."""
    image_px: int
    """Shorter side of the smallest image."""
    validates: bool
    """There is a split ``val`` with labels."""
    read_gsd_m: float | None
    why: str
    """Of ``read_gsd_m``."""

    @property
    def sparse(self) -> bool:
        """Labels lie here and there, so that most windows have none."""
        return self.labelled < _SPARSE


class Ground(NamedTuple):
    """The ground size of pixels that are read."""

    read_gsd_m: float | None
    """None: as they are."""
    why: str


def ground_of(data: Dataset, info: ModelInfo | PretrainedInfo) -> Ground:
    """Choose the ground size at which a model reads a dataset: its own, unless images are much coarser."""
    wanted, source = info.tile.read_gsd_m, source_gsd_m(data, info.bands)
    if wanted is None or source is None:
        return Ground(None, "as they are" if wanted is None else "as they are: the images do not say their ground size")
    if source > _COARSE * wanted:
        return Ground(source, f"of {source:.2g} m as they are: too coarse to be enlarged to the model's {wanted:g} m")
    return Ground(wanted, f"of {wanted:g} m, which the model knows")


def source_gsd_m(data: Dataset, bands: Bands | None) -> float | None:
    """Return the ground size of the first training image's pixels; None: its file does not say."""
    with open_dataset_scene(data.read_at(None, bands), data.split("train")[0]) as first:
        return first.source_gsd_m


def look(data: Dataset, bands: Bands | None, tile_px: int, ground: Ground) -> LabelledData:
    """Open the training scenes, or some of them, and count their labels.

    Raises:
        DataError: No label counts, or a file is broken.
    """
    scenes = data.split("train")
    validates = any(s.split == "val" for s in data.scenes) and all(
        s.label is not None for s in data.scenes if s.split == "val"
    )
    some = scenes[:: -(-len(scenes) // _MOST_SCENES)]
    opened = SceneReaders(data.read_at(ground.read_gsd_m, bands), some)
    images, areas, tiles = [], [], []
    for i in range(len(some)):
        images.append(opened[i].raster)
        areas.append(opened[i].areas)
        tiles += [(i, tile.owned) for tile in area_tiles(areas[-1], tile_px)]
    counts = count_labels(opened, tiles).sum(0).tolist()
    labelled = sum(counts)
    if not labelled:
        raise DataError(
            f"{data.path}: no pixel of split train has a label that counts; look at them with caswit inspect"
        )
    whole = sum(area.height * area.width for each in areas for area in each)
    return LabelledData(
        scenes=len(scenes),
        pixels=labelled * len(scenes) // len(some),
        opened=opened,
        counts=tuple(counts),
        labelled=labelled / whole,
        shortest_px=min(min(area.height, area.width) for each in areas for area in each),
        image_px=min(min(image.height, image.width) for image in images),
        validates=validates,
        read_gsd_m=ground.read_gsd_m,
        why=ground.why,
    )


def hold_out(data: LabelledData) -> float:
    """Return the share of the training scenes that is to validate: none where a split ``val`` does."""
    if data.validates:
        return 0.0
    if data.scenes >= _FEW_SCENES:
        return 0.2
    # The end of a scene that is labelled here and there may have no label at all.
    return 0.0 if data.sparse else 0.25
