"""The plan of a map: images, model, ground sizes, bands, overlap and blocks, resolved once, before the first block.

Whatever computes, stores, writes or shows the map reads the plan. Ground sizes are told apart by name: ``source_gsd_m``
is that of the image's pixels, ``read_gsd_m`` of those that the model sees, ``trained_gsd_m`` of those it learned from.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from caswit.config import MapRunConfig, OutputConfig, PredictConfig, RunPrecision, TileConfig
from caswit.config.checks import check, map_settings
from caswit.config.inference import Fill
from caswit.data.classes import ClassTable
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.errors import ConfigError, DataError
from caswit.mapping.blending import blending
from caswit.raster.blanks import Blanks, find_blanks
from caswit.raster.georef import Grid
from caswit.raster.image_files import describe, files_behind
from caswit.raster.memory import shown_name
from caswit.raster.mosaic import Source, build_mosaic, open_image
from caswit.raster.reader import PixelEncoding
from caswit.raster.resample import Axis, reading_ratio
from caswit.raster.stack import Bands, Further, Ranges, own_ranges
from caswit.raster.stretch import usual_range
from caswit.raster.windows import Window, block_windows, count_blocks
from caswit.weights.image_bands import bands_to_read, parse_also
from caswit.weights.int8 import int8_of
from caswit.weights.model_folder import LoadedModel, ModelInfo, load_model
from caswit.weights.zoo import choose

if TYPE_CHECKING:
    from caswit.mapping.journal import Begun
    from caswit.raster.aoi import AreaOfInterest  # needs the extra vector

log = logging.getLogger(__name__)

_GSD_OFF = 1.5
"""Ground sizes of a pixel that differ by more than this factor are worth a warning."""


class ImageState(NamedTuple):
    """Fingerprints of the images and of the files behind them, by which a change is noticed."""

    images: str
    sidecars_and_sources: str

    @staticmethod
    def of(images: Sequence[str]) -> "ImageState":
        """Look at the files as they are now."""
        own = {Path(name).resolve() for name in images}
        behind = [describe(file) for file in files_behind(images) if file not in own]
        return ImageState(fingerprint(images), _digest([text for text in behind if text]))


class PartBands(NamedTuple):
    """Bands of a part beside that of class ids."""

    confidence: bool = False
    probabilities: bool = False

    def count(self, classes: int) -> int:
        """Return how many bands a part has."""
        return 1 + self.confidence + self.probabilities * classes


class PlannedBlock(NamedTuple):
    """A block of the plan."""

    number: int
    """Its place in the order of all blocks, row by row, and the name of its part."""
    window: Window
    """In pixels that are read."""
    native: Window
    """The pixels of the map it fills."""


class BlockLayout(NamedTuple):
    """The layout of a map's blocks. The journal stores it, so a viewer finds them without the image and the model."""

    height: int
    width: int
    """In native pixels, those of the image and of its map, as is the height."""
    ratio: float
    """Native pixels in one that is read, along a side."""
    tile_px: int
    overlap_px: int
    block_px: int
    """Largest side of a block, like the other two in pixels that are read."""

    @staticmethod
    def of(
        grid: Grid, source_gsd_m: float | None, read_gsd_m: float | None, tile_px: int, overlap_px: int, block_px: int
    ) -> "BlockLayout":
        """Lay out blocks of at most ``block_px`` native pixels; where a ground size is unknown, these are read."""
        ratio = reading_ratio(source_gsd_m, read_gsd_m) if source_gsd_m and read_gsd_m else 1.0
        return BlockLayout(grid.height, grid.width, ratio, tile_px, overlap_px, max(1, round(block_px / ratio)))

    def number_of_blocks(self) -> int:
        """Return the number of blocks."""
        rows, cols = Axis(self.height, self.ratio), Axis(self.width, self.ratio)
        return count_blocks(rows.length, cols.length, self.tile_px, self.overlap_px, self.block_px)

    def blocks(self) -> list[PlannedBlock]:
        """Return every block, row by row."""
        rows, cols = Axis(self.height, self.ratio), Axis(self.width, self.ratio)

        def native(read: Window) -> Window:
            top, bottom = rows.owned(read.row, read.row + read.height)
            left, right = cols.owned(read.col, read.col + read.width)
            return Window(top, left, bottom - top, right - left)

        windows = block_windows(rows.length, cols.length, self.tile_px, self.overlap_px, self.block_px)
        return [PlannedBlock(number, window, native(window)) for number, window in enumerate(windows)]


@dataclass(frozen=True, kw_only=True)
class MapPlan:
    """Everything a process needs to map blocks. It can be sent to other machines that see the same files."""

    sources: tuple[Source, ...]
    """The images, in the order in which they were given."""
    state: ImageState
    """The images as they were before the first of them was opened."""
    grid: Grid
    """The grid of the images and of the map."""
    model: str
    """Model folder or name."""
    settings: PredictConfig
    """The user's settings, with bands and overlap filled in, and the precision once an engine has started."""
    outputs: OutputConfig
    run: MapRunConfig
    source_gsd_m: float | None
    """Ground size of the image's pixels in metres: what the user says, else the file; None where unknown."""
    read_gsd_m: float | None
    """Ground size of the pixels that are read, in metres; None: native pixels."""
    trained_gsd_m: float | None
    """Ground size of the pixels that the model was trained on, in metres; None where unknown."""
    tile: TileConfig
    """Geometry of the model's input."""
    layout: BlockLayout
    read_bands: Bands = (1, 2, 3)
    """What the model reads: numbers of the image's bands, and names of rasters beside it."""
    ranges: Ranges = ()
    """Of each band the values that become 0 and 255, None for uint8; (): all are."""
    further: tuple[Further, ...] = ()
    """The rasters beside the image."""
    area: "AreaOfInterest | None" = None
    """Area of interest; None: the whole image."""
    blank: int | None = None
    """White (255) or black (0), where a look at the images took its areas for missing data (``--nodata auto``)."""
    vector_classes: tuple[int, ...] | None = None
    """Values in the map of the classes whose polygons are written; None: all."""
    separated_classes: tuple[int, ...] = ()
    """Values in the map of the classes whose touching polygons are cut apart."""
    confidence_in_parts: bool | None = None
    """Whether the parts that an earlier run left have confidence; None where there are none."""

    @property
    def bands(self) -> PartBands:
        """The bands of a part that the outputs need."""
        # Polygons carry confidence wherever it costs no block that is finished: older parts go on as they were begun.
        wanted = self.outputs.vector is not None if self.confidence_in_parts is None else self.confidence_in_parts
        return PartBands(self.outputs.confidence is not None or wanted, self.outputs.probabilities is not None)

    @property
    def sieve_px(self) -> int:
        """Pixels of the smallest area of the map that ``--sieve`` keeps; 0: all are kept."""
        # Without a ground size nothing is sieved: ``make_plan`` has refused it. An exact multiple of a pixel's area,
        # but for rounding, is that many pixels.
        return ceil(self.outputs.sieve / (self.source_gsd_m or 1.0) ** 2 * (1 - 1e-9))

    @property
    def title(self) -> str:
        """The first image's path, and how many more there are."""
        more = len(self.sources) - 1
        return f"{self.sources[0].path}{f' and {more} more' if more else ''}"

    def open(self) -> SceneReader:
        """Open the images, as one, to be read as the model sees them."""
        own = own_ranges(self.read_bands, self.ranges, self.further)
        # An image of unknown ground size counts as one of the size the model sees: make_plan has said so once.
        gsd_m = self.source_gsd_m or self.read_gsd_m
        return SceneReader(
            Scene(image=Path(self.sources[0].path), also=self.further, gsd_m=gsd_m),
            bands=self.read_bands,
            read_gsd_m=self.read_gsd_m,
            image=open_image(self.sources, self.grid, _encoding(self.settings, own, self.blank)),
            ranges=self.ranges,
        )

    def blocks(self) -> list[PlannedBlock]:
        """Return the blocks that the area touches. Numbers count all blocks, so they do not depend on the area."""
        return [b for b in self.layout.blocks() if self.area is None or self.area.touches(b.native)]

    @property
    def read_px(self) -> int:
        """Number of pixels that are read for the map, without overlap."""
        return sum(block.window.height * block.window.width for block in self.blocks())

    def computed_in(self, precision: str) -> "MapPlan":
        """Return the plan with the precision that an engine found its device to have: int8, bf16 or fp32."""
        # Each rounds differently. The manifest records which, so that a map is finished as it was begun.
        return replace(self, settings=replace(self.settings, precision=cast("RunPrecision", precision)))

    def going_on(self, begun: "Begun", asked: PredictConfig) -> "MapPlan":
        """Return the plan with what an earlier run of this output settled and the user leaves open."""
        fill = begun.fill if asked.fill is None and begun.fill in get_args(Fill) else self.settings.fill
        blend = self.settings.blend if asked.blend is not None or begun.blend is None else begun.blend
        settings = replace(self.settings, fill=cast("Fill | None", fill), blend=blend)
        return replace(self, settings=settings, confidence_in_parts=begun.confidence)

    def facts(self) -> dict[str, Any]:
        """Return every setting that changes the map, as it was resolved, by name; None where it does nothing."""
        return self._facts_of_parts() | {"sieve": self.outputs.sieve or None}

    def _facts_of_parts(self) -> dict[str, Any]:
        tile = {"tile_px": self.tile.tile_px, "context_factor": self.tile.context_factor}
        facts = map_settings(self.settings) | {"read_gsd_m": self.read_gsd_m} | tile
        if self.settings.nodata == "auto":
            facts["nodata"] = f"auto {'none' if self.blank is None else self.blank}"
        if self.further:
            beside = ", ".join(f"{each.name}={each.path}" for each in self.further)
            facts["also"] = f"{beside} ({fingerprint([each.path for each in self.further])})"
        return facts

    def manifest(self, loaded: LoadedModel) -> dict[str, Any]:
        """Return all on which a part depends, by names that a user understands, and where the blocks lie."""
        aoi = self.run.aoi
        facts = {
            "images": f"{self.title} ({self.state.images})",
            "sidecars_and_sources": self.state.sidecars_and_sources,
            "model": f"{loaded.name} ({loaded.digest})",
            "model_config": loaded.config_digest,
            # Made again on other tiles, they give other labels.
            **({"int8_weights": int8_of(loaded).digest} if self.settings.precision == "int8" else {}),
            **self._facts_of_parts(),
            **map_settings(self.run),
            **map_settings(self.outputs),
            # Parts have these bands or not; the names of the files that are made of them do not matter.
            **self.bands._asdict(),
            "aoi": "none" if aoi is None else f"{aoi} ({fingerprint([aoi])})",
        }
        return {name: str(value) for name, value in facts.items()} | {"layout": self.layout._asdict()}

    def digest(self, loaded: LoadedModel) -> str:
        """Return digits by which a finished map is known to be that of the same call: all that any file depends on."""
        texts = [f"{name}: {value}" for name, value in {**self.manifest(loaded), **asdict(self.outputs)}.items()]
        return _digest(texts)


def make_plan(
    images: Sequence[str],
    model: str | LoadedModel | None,
    settings: PredictConfig,
    outputs: OutputConfig,
    run: MapRunConfig,
    load: Callable[[str], LoadedModel] = load_model,
) -> tuple[MapPlan, LoadedModel]:
    """Read the headers of images and model (None: one of the zoo), and resolve all that the settings leave open.

    A model that is loaded already can be run in this process only: the plan knows it by its name. ``load`` loads one by
    its folder or name; a function that remembers loads it once for many maps.

    Raises:
        CaswitError: Images, model and settings cannot be used, or not together.
    """
    # Before anything is opened: what is rewritten from here on is noticed at the end.
    state = ImageState.of(images)
    loaded = load(model) if isinstance(model, str) else model
    # A model of the zoo is chosen by what the headers say, so they are read with the usual bands before it is known.
    further = parse_also(settings.also)
    read_bands: Bands = settings.bands or (1, 2, 3)
    ranges: Ranges = ()
    if loaded is not None:
        read_bands = bands_to_read(images[0], loaded.info, settings.bands, further)
        ranges = loaded.info.model.ranges
    bands = tuple(band for band in read_bands if isinstance(band, int)) or (1,)
    own = own_ranges(read_bands, ranges, further)
    sources, grid = build_mosaic(images, bands, _encoding(settings, own))
    if settings.rescale == "auto":
        # One range for the whole image: blocks that are stretched each for itself would have borders.
        settings = replace(settings, rescale=usual_range(sources, grid, bands, _encoding(settings, own)))
    blank = _look(sources, grid, bands, settings, own)
    # The user knows better than the file, which may lack its ground size or have a wrong one: here, and so everywhere.
    source_gsd_m = settings.gsd_m or grid.source_gsd_m
    if loaded is None:
        chosen, reason = choose(source_gsd_m, Path(images[0]).name)
        where = chosen.learned.where(grid.degrees)
        log.info("model: %s (%s%s)", chosen.name, reason, where and f"; {where}")
        model = loaded = load(chosen.name)
    # A network met black beside a tile seldom in training, and half of a context never: it reads buildings out of it
    # (docs/log.md has what was measured). Scores are computed with black around the image, as the paper has it.
    fill, blend = settings.fill or "mirror", blending(loaded, settings).blend
    info = loaded.info
    overlap_px, read_gsd_m = _overlap_px(settings, info.tile.tile_px), _read_gsd_m(info, settings, source_gsd_m)
    plan = MapPlan(
        sources=sources,
        state=state,
        grid=grid,
        model=model if isinstance(model, str) else loaded.name,
        settings=replace(settings, bands=bands, overlap_px=overlap_px, blend=blend, fill=fill),
        outputs=outputs,
        run=run,
        source_gsd_m=source_gsd_m,
        read_gsd_m=read_gsd_m,
        trained_gsd_m=info.trained_gsd_m,
        tile=info.tile,
        layout=BlockLayout.of(grid, source_gsd_m, read_gsd_m, info.tile.tile_px, overlap_px, settings.block_px),
        read_bands=read_bands,
        ranges=ranges,
        further=further,
        area=_area(run, grid),
        blank=blank,
        vector_classes=_vector_classes(outputs, info.classes),
        separated_classes=() if outputs.separate is None else info.classes.named(outputs.separate),
    )
    _warn_of_ground_sizes(plan)
    _check_outputs(outputs, source_gsd_m)
    return plan, loaded


def _vector_classes(outputs: OutputConfig, table: ClassTable) -> tuple[int, ...] | None:
    """Return the values in the map of the classes whose polygons are written; None: all."""
    if outputs.classes is not None:
        return table.named(outputs.classes)
    return None if outputs.background else tuple(c.id for c in table.mapped if not c.is_background)


def _check_outputs(outputs: OutputConfig, source_gsd_m: float | None) -> None:
    """Raise ConfigError unless these files can be made of pixels of this ground size."""
    for name in ("simplify", "min_area", "sieve"):
        if getattr(outputs, name) > 0 and source_gsd_m is None:
            raise ConfigError(
                "the ground size of the image's pixels is unknown; add --gsd-m METRES (1 makes metres pixels), or "
                f"leave out --{name.replace('_', '-')}"
            )
    if outputs.vector is not None:
        from caswit.raster.vector_files import check_vector

        check_vector(Path(outputs.vector))


def _encoding(settings: PredictConfig, ranges: Ranges = (), blank: int | None = None) -> PixelEncoding:
    nodata = None if settings.nodata == "auto" else settings.nodata
    # Where the range is still to be found, any will do to look at headers.
    rescale = (0.0, 1.0) if settings.rescale == "auto" else settings.rescale
    return PixelEncoding(rescale, nodata, blank, settings.ignore_alpha, ranges)


def _look(
    sources: Sequence[Source], grid: Grid, bands: tuple[int, ...], settings: PredictConfig, ranges: Ranges
) -> int | None:
    """Look at a sample of the images; warn of what they do not declare, and return what ``--nodata auto`` finds."""
    name = shown_name(sources[0].path) if len(sources) == 1 else f"{sources[0].path} and {len(sources) - 1} more"
    with open_image(sources, grid, _encoding(settings, ranges)) as image:
        try:
            blanks = find_blanks(image, bands)
        except DataError:  # a block that cannot be read is the run's business: it may be told to skip it
            return None
    # Where no pixel is transparent there is nothing to lose.
    if blanks.half_transparent > _MOST_HALF_TRANSPARENT and blanks.transparent:
        log.warning(
            "%s: %.0f %% of the values of its alpha band lie between transparent and opaque, as near infrared does; "
            "where it is 0 (%.2g %% of the pixels), the map is nodata: add --ignore-alpha if it is a band of colour",
            name, 100 * blanks.half_transparent, 100 * blanks.transparent,
        )  # fmt: skip
    found = next(iter(blanks.shares), None) if settings.nodata == "auto" else None
    if settings.nodata == "auto":
        say = "no white or black areas" if found is None else f"{_BLANKS[found]} areas ({_percent(blanks, found)})"
        log.info("nodata: %s", say)
    for value in blanks.shares:
        if value != found:
            log.warning(
                "%s: about %s of its pixels are in %s areas (%d in all bands) that it does not declare as nodata; they "
                "are mapped like all others: add --nodata auto, or --nodata %d for each such pixel",
                name, _percent(blanks, value), _BLANKS[value], value, value,
            )  # fmt: skip
    return found


_BLANKS = {255: "white", 0: "black"}
_MOST_HALF_TRANSPARENT = 0.05
"""Share of half transparent pixels beyond which an alpha band is doubted: soft edges have few."""


def _percent(blanks: Blanks, value: int) -> str:
    percent = 100 * blanks.shares[value]
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _overlap_px(settings: PredictConfig, tile_px: int) -> int:
    """Return the overlap of tiles: unless set, a quarter of them, or half where they are blended."""
    # Where tiles overlap by half, the Hann weights that blend two neighbours add up to 1. Blending that nobody asked
    # for takes the tiles of a map without: lines fade as well (docs/log.md), for hardly more time.
    default, overlap_px = tile_px // 2 if settings.blend else tile_px // 4, settings.overlap_px
    check((overlap_px or 0) < tile_px,
          f"overlap_px must be below the model's tile_px={tile_px}, got {overlap_px}; try {tile_px // 4}")  # fmt: skip
    return default if overlap_px is None else overlap_px


def _read_gsd_m(info: ModelInfo, settings: PredictConfig, source_gsd_m: float | None) -> float | None:
    """Return the ground size to read at: that for which the model is made, or on request that of its training."""
    # A fixed ground size is part of the model (docs/decisions/0006); match_gsd is for models without one.
    if info.tile.read_gsd_m is not None or not settings.match_gsd:
        return info.tile.read_gsd_m
    if info.trained_gsd_m is None or source_gsd_m is None:
        whose, hint = "model's training", "leave match_gsd out"
        if info.trained_gsd_m is not None:
            whose, hint = "image", "add --gsd-m METRES, or leave match_gsd out"
        raise ConfigError(f"match_gsd: the ground size of the pixels of the {whose} is unknown; {hint}")
    return info.trained_gsd_m


def _warn_of_ground_sizes(plan: MapPlan) -> None:
    """Warn where ground sizes contradict each other or promise a poor map."""
    file_m, source_m, models_m = plan.grid.source_gsd_m, plan.source_gsd_m, plan.tile.read_gsd_m
    if file_m and source_m and _differ(file_m, source_m):
        log.warning("the image says its pixels are %.3g m; --gsd-m %g is used instead", file_m, source_m)
    if models_m and source_m is None:
        log.warning(
            "%s: the ground size of its pixels is unknown; read as if it were %g m", shown_name(plan.title), models_m
        )
    # Finer images are averaged down without harm. Coarser ones lack the detail that the model learned to see.
    elif models_m and source_m and source_m > 2 * _GSD_OFF * models_m:
        log.warning("the image has pixels of %.3g m, the model reads %g m: expect a poor map", source_m, models_m)
    elif plan.read_gsd_m is None and plan.trained_gsd_m and source_m and _differ(source_m, plan.trained_gsd_m):
        log.warning(
            "the image has pixels of %.3g m, the model was trained on %.3g m: expect a poor map; --match-gsd "
            "resamples while reading", source_m, plan.trained_gsd_m,
        )  # fmt: skip


def _differ(one_m: float, other_m: float) -> bool:
    return max(one_m / other_m, other_m / one_m) > _GSD_OFF


def _area(run: MapRunConfig, grid: Grid) -> "AreaOfInterest | None":
    if run.aoi is None:
        return None
    from caswit.raster.aoi import read_aoi

    return read_aoi(Path(run.aoi), grid)


def fingerprint(names: Sequence[str]) -> str:
    """Return 16 hexadecimal digits that change when an image does: of names, sizes and times of change."""
    # Contents are left out: hashing the images of a country takes hours. For an address only the name is known.
    return _digest([describe(Path(name).resolve()) or name for name in names])


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
