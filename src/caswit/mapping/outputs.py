"""The files made of finished parts: the map, those beside it, polygons. Each appears under its name when complete."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from caswit.config import OutputConfig
from caswit.data.classes import ClassTable
from caswit.errors import ConfigError
from caswit.files import atomic_path, atomic_write_bytes, try_writing
from caswit.mapping.blocks import CONFIDENCE
from caswit.mapping.disk import saying_what_is_needed
from caswit.mapping.journal import SUFFIX, Journal
from caswit.mapping.own_files import may_replace
from caswit.mapping.plan import MapPlan, PlannedBlock
from caswit.mapping.sidecars import class_band, stac_item, tags
from caswit.mapping.styles import confidence_style, map_style, polygon_style, style_file
from caswit.mapping.summary import confidence_of
from caswit.raster.cog import PlacedPart, assemble, read_part, read_tags
from caswit.raster.georef import Grid
from caswit.raster.image_files import files_behind
from caswit.raster.reader import is_remote
from caswit.raster.vrt import Band
from caswit.weights.model_folder import LoadedModel

_DIGEST = "CASWIT_CALL"
"""Tag of a map that is complete: ``MapPlan.digest``."""


class Targets(NamedTuple):
    """Files to write; links are followed, so that what they point to is replaced and not the link."""

    map: Path
    confidence: Path | None
    probabilities: Path | None
    vector: Path | None

    @staticmethod
    def of(out: Path, outputs: OutputConfig, images: Sequence[str], *, overwrite: bool = False) -> "Targets":
        """Collect all files to write.

        Args:
            out: The map.
            outputs: The files that were asked for beside it.
            images: The images; neither they nor the files behind them are ever overwritten.
            overwrite: Files that caswit did not write may be overwritten.

        Raises:
            ConfigError: One cannot be written, or would overwrite an image, another output or somebody's file.
        """
        if out.suffix.lower() not in (".tif", ".tiff"):
            raise ConfigError(f"{out}: maps are GeoTIFFs; give a name that ends in .tif")
        given = [out, *(Path(f) if f else None for f in (outputs.confidence, outputs.probabilities, outputs.vector))]
        for file in given:
            if file is not None:
                _check_place(file)
        # Compare resolved paths: two names may be the same file.
        real = [None if file is None else file.resolve() for file in given]
        for number, file in enumerate(real):
            if file is not None and file in real[:number]:
                raise ConfigError(f"{given[number]}: two outputs have this name; give each its own")
        assert real[0] is not None
        targets = Targets(real[0], *real[1:])
        targets.check_replaced(images, overwrite=overwrite)
        for file in (targets.map, *targets.beside()):
            try_writing(file)
        return targets

    def check_replaced(self, images: Sequence[str], *, overwrite: bool) -> None:
        """Raise ConfigError if a file that would be replaced is an image, or caswit did not write it."""
        there = [file for file in (self.map, *self.beside()) if file.exists()]
        # Files behind the images are looked for only if one of them could be replaced.
        behind = files_behind(images) if there else []
        for file in there:
            if not file.is_file():
                raise ConfigError(f"{file}: is in the way of a file beside the map; move it")
            if any(image.exists() and file.samefile(image) for image in behind):
                raise ConfigError(f"{file}: is {'an' if len(behind) > 1 else 'the'} input image; give another name")
            if not overwrite and not may_replace(file, self.map):
                raise ConfigError(
                    f"{file}: exists, and caswit did not write it; give another name for the map (the last one on the "
                    "command line) or the file, or replace it with --overwrite"
                )

    def styles(self, table: ClassTable) -> dict[Path, bytes]:
        """Return the QGIS styles to write, content by file: one that layers of the same name share draws all of them.

        A GeoPackage carries its style. It is beside it too where another layer has its name, whose style it would take.
        """
        parts = {self._style(self.map): map_style(table)}
        if self.confidence is not None:
            parts.setdefault(self._style(self.confidence), confidence_style())
        if self.vector is not None and (self.vector.suffix.lower() != ".gpkg" or self._style(self.vector) in parts):
            parts[self._style(self.vector)] = parts.get(self._style(self.vector), "") + polygon_style(table)
        return {file: style_file(part) for file, part in parts.items()}

    @staticmethod
    def _style(layer: Path) -> Path:
        return layer.with_suffix(".qml")

    @property
    def item(self) -> Path:
        """The STAC item of the map."""
        return self.map.with_suffix(".stac.json")

    def beside(self) -> list[Path]:
        """Return every file but the map."""
        return [*self.styles(ClassTable(())), self.item, *self.others().values()]

    def others(self) -> dict[str, Path]:
        """Return the files that were asked for beside the map, by kind."""
        return {name: file for name, file in self._asdict().items() if name != "map" and file is not None}


def _check_place(file: Path) -> None:
    if is_remote(str(file)):
        raise ConfigError(f"{file}: maps can only be written to local files; copy the map there afterwards")
    if not file.resolve().parent.is_dir():
        raise ConfigError(f"{file}: its folder does not exist; create it first")
    # A finished file is renamed to its final name, which would replace a device or a pipe.
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file}: is {'a folder' if file.is_dir() else 'not a plain file'}; give another name")


def is_finished(targets: Targets, digest: str) -> bool:
    """Return whether all files are there, and the map says that the call of this ``MapPlan.digest`` finished it."""
    parts = targets.map.with_name(targets.map.name + SUFFIX)
    there = all(file.is_file() for file in (targets.map, *targets.beside())) and not parts.exists()
    return there and read_tags(targets.map).get(_DIGEST) == digest


def write_outputs(
    targets: Targets, plan: MapPlan, blocks: Sequence[PlannedBlock], journal: Journal, loaded: LoadedModel
) -> None:
    """Make everything that was asked for out of the parts. The map comes last: when it is there, all is."""
    parts = [PlacedPart(block.native, file) for block in blocks if (file := journal.part(block.number)) is not None]
    if not plan.sieve_px:
        _write_all(targets, plan, parts, parts, journal, loaded)
        return
    from caswit.raster.sieve import sieved_parts

    with sieved_parts(journal.folder, *plan.grid[:2], parts, plan.sieve_px) as sieved:
        _write_all(targets, plan, parts, sieved, journal, loaded)


def _write_all(
    targets: Targets,
    plan: MapPlan,
    parts: Sequence[PlacedPart],
    classes: Sequence[PlacedPart],
    journal: Journal,
    loaded: LoadedModel,
) -> None:
    """Write every file; ``classes`` are parts with the classes of the map, side by side with those of the network."""
    table = loaded.info.classes
    confidence = confidence_of(parts, len(table))
    about = tags(plan, loaded) | ({} if confidence is None else {CONFIDENCE: confidence.text()})
    if not journal.skipped:
        about[_DIGEST] = plan.digest(loaded)
    place = journal.folder, plan.grid
    if targets.vector is not None:
        _write_polygons(targets.vector, plan, parts, classes, journal.folder, table)
    # Bands of a part: 1 class ids, 2 confidence if asked for, then the probabilities (``mapping.blocks``).
    if targets.confidence is not None:
        _write_raster(targets.confidence, *place, parts, [Band(source=2, name="confidence, percent")], about)
    if targets.probabilities is not None:
        # A TIFF says of its first band only that it is grey; said of others, GDAL writes it into a file beside it.
        first = 2 + plan.bands.confidence
        colors = ["Gray", *["Undefined"] * (len(table.names) - 1)]
        bands = [
            Band(source=i, name=n, color=c) for i, (n, c) in enumerate(zip(table.names, colors, strict=True), first)
        ]
        _write_raster(targets.probabilities, *place, parts, bands, about)
    for file, style in targets.styles(table).items():
        atomic_write_bytes(file, style)
    atomic_write_bytes(targets.item, stac_item(targets.map, plan, loaded, targets.others()))
    _write_raster(targets.map, *place, classes, [class_band(table)], about)


def _bytes_of(files: Sequence[Path]) -> int:
    """Return the size of the parts, which a file made of them has at most, more or less."""
    return sum(file.stat().st_size for file in files)


def _write_raster(
    file: Path, folder: Path, grid: Grid, parts: Sequence[PlacedPart], bands: Sequence[Band], about: dict[str, str]
) -> None:
    needed = partial(_bytes_of, [part.file for part in parts])
    with saying_what_is_needed(file, needed), atomic_path(file) as unfinished:
        assemble(unfinished, folder, grid, parts, bands, about)


def _write_polygons(
    file: Path,
    plan: MapPlan,
    parts: Sequence[PlacedPart],
    classes: Sequence[PlacedPart],
    folder: Path,
    table: ClassTable,
) -> None:
    from caswit.raster.polygons import ClassPolygon, Merger, fragments
    from caswit.raster.separate import separated
    from caswit.raster.vector_files import Ground, PolygonWriter, embed_style

    names = {c.id: c.name for c in table.mapped}
    # Without a ground size there is nothing to simplify: ``make_plan`` has refused it.
    simplify_px = plan.outputs.simplify / (plan.source_gsd_m or 1.0)
    ground, wanted = Ground(plan.grid, plan.source_gsd_m), plan.vector_classes

    def polygons() -> Iterator[ClassPolygon]:
        # In the folder of parts, which has room; a system's temporary folder may be in memory.
        with TemporaryFile(dir=folder) as waiting:
            merger = Merger(waiting, plan.grid.height, plan.grid.width)
            for (window, of_classes), (_, part) in zip(classes, parts, strict=True):
                confidence = read_part(part, 2) if plan.bands.confidence else None
                found = fragments(read_part(of_classes), window, simplify_px, confidence)
                # Left out only now: simplifying needs the neighbours too.
                yield from merger.add(window, found if wanted is None else found.only(wanted))
            yield from merger.finish()

    kind = file.suffix.lower()
    with atomic_path(file) as unfinished:
        with PolygonWriter(
            unfinished, kind, ground, names, plan.outputs.min_area, confidence=plan.bands.confidence
        ) as writer:
            for polygon in polygons():
                # Of a whole polygon, so that blocks leave no trace.
                apart = separated(polygon.shape) if polygon.class_id in plan.separated_classes else [polygon.shape]
                for shape in apart:
                    writer.add(polygon._replace(shape=shape))
        if kind == ".gpkg":
            embed_style(unfinished, style_file([polygon_style(table)]).decode())
