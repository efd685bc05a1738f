"""caswit explain: from an image, a place and a model to a figure."""

from collections.abc import Mapping
from pathlib import Path

from caswit.checkpoint import load_model
from caswit.config import ComputeConfig
from caswit.data.samples import OpenScene
from caswit.data.scene import Scene
from caswit.errors import ConfigError
from caswit.explain import Explanation, explain_pixel
from caswit.explain_figure import explanation_figure
from caswit.files import atomic_write_bytes
from caswit.predict import classifier
from caswit.raster.io import Raster
from caswit.raster.mosaic import Mosaic
from caswit.raster.places import pixel_at, pixel_at_lonlat
from caswit.viz import png_bytes


def explain(
    image: Path, model: Path, out: Path, *, place: Mapping[str, float], settings: ComputeConfig | None = None
) -> list[str]:
    """Write the figure of one pixel.

    Args:
        image: Any three-band uint8 raster that GDAL opens.
        model: Model folder of a network that reads its context.
        out: PNG to write; its folder must exist.
        place: The pixel: row and col, x and y in the image's CRS, or lon and lat.
        settings: How to compute.

    Returns:
        Lines that say the same in words.

    Raises:
        CaswitError: The image, the place, the model or the file to write cannot be used.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out}: figures are PNG files; give a name that ends in .png")
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"{out}: its folder does not exist; create it first")
    loaded = load_model(model)
    tile = loaded.info.tile
    with OpenScene(Scene(image=image), bands=loaded.info.bands, gsd_m=tile.gsd_m) as scene:
        row, col = pixel_of(scene.image, place)
        found = explain_pixel(classifier(loaded, settings or ComputeConfig()), scene, row, col, tile.tile_px)
    title = f"{image.name}, row {row}, column {col}, labelled by {loaded.name}"
    figure = explanation_figure(found, loaded.info.classes, tile.context_factor, title)
    atomic_write_bytes(out, png_bytes(figure))
    return [title, *in_words(found, loaded.info.classes.names)]


def pixel_of(raster: Raster | Mosaic, place: Mapping[str, float]) -> tuple[int, int]:
    """(row, col) of a place named by pixel, coordinate or longitude and latitude."""
    if "row" in place:
        return int(place["row"]), int(place["col"])
    if "x" in place:
        return pixel_at(raster.grid, place["x"], place["y"], raster.path)
    return pixel_at_lonlat(raster.grid, place["lon"], place["lat"], raster.path)


def in_words(found: Explanation, names: tuple[str, ...]) -> list[str]:
    """A line for each kind of surroundings, and one on the tile."""
    lines = []
    for surroundings, probabilities in found.probabilities.items():
        best = int(probabilities.argmax())
        lines.append(f"surroundings {surroundings}: {names[best]} ({100 * probabilities[best]:.0f} %)")
    share = 100 * found.changed.mean()
    return [*lines, f"without surroundings {share:.1f} % of the tile's pixels have another class"]
