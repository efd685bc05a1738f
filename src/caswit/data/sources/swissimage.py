"""SWISSIMAGE 10 cm: one-kilometre GeoTIFFs as virtual mosaics, one for each group of kilometres that touch."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from caswit.config import SwissimageSource
from caswit.data.scene import Scene
from caswit.data.sources.found import Found, Mosaics, source_cache
from caswit.data.sources.index import list_files, read_headers
from caswit.errors import DataError
from caswit.raster.vrt import Affine, Part, place, shifted

_NAME = re.compile(r"swissimage-dop10_(?P<year>\d{4})_(?P<east>\d{4})-(?P<north>\d{4})_(?P<gsd>[0-9.]+)_2056\.tif")
_CRS = "EPSG:2056"
Kilometre = tuple[int, int]
"""East and north of the lower left corner in LV95, in km."""


def find(source: SwissimageSource) -> Found:
    """Return one unlabelled scene for each group of kilometres that touch.

    Raises:
        DataError: There is no file named as swisstopo names them.
    """
    root = Path(source.root)
    files = [file for file in list_files(root, ["."]) if _match(file.path)]
    finest = min((float(_match(f.path)["gsd"]) for f in files), default=0.0)
    # The 2 m previews lie beside the 0.1 m files.
    files = [file for file in files if float(_match(file.path)["gsd"]) == finest]
    if not files:
        raise DataError(f"{root}: no file is named like swissimage-dop10_2021_2594-1138_0.1_2056.tif; put them there")
    cache = source_cache("swissimage", root)
    headers = read_headers(root, files, cache / "headers.npz")
    newest: dict[Kilometre, str] = {}
    placed: dict[str, _Placed] = {}
    broken = []
    for path in sorted(headers, key=lambda p: _match(p)["year"]):
        header, match = headers[path], _match(path)
        if isinstance(header, str):
            broken.append(header)
        elif header.transform is None or header[2:4] != (3, "uint8"):
            broken.append(f"{root / path}: is no georeferenced image of three uint8 bands")
        else:
            placed[path] = _Placed(header.height, header.width, header.transform, header.nodata)
            newest[int(match["east"]), int(match["north"])] = path  # the newest year comes last, and stays
    mosaics = Mosaics(cache / "mosaics")
    scenes = []
    for group in _groups(newest):
        origin = placed[newest[group[0]]].transform
        parts = []
        for path in (newest[kilometre] for kilometre in group):
            window = place(placed[path].transform, origin, placed[path].height, placed[path].width)
            if window is None:
                broken.append(f"{root / path}: does not lie on the grid of {newest[group[0]]}")
            else:
                parts.append(Part(str((root / path).absolute()), window, placed[path].nodata))
        moved, transform, size = shifted(parts, origin)
        name = f"swissimage_{group[0][0]}-{group[0][1]}"
        image = mosaics.write(name, moved, size, bands=3, transform=transform, crs=_CRS)
        scenes.append(Scene(image=image, split=source.split, areas=tuple(p.window for p in moved), checked=True))
    mosaics.close()
    return Found(tuple(scenes), tuple(broken))


class _Placed(NamedTuple):
    """Size and place of a file, and its value of pixels without data."""

    height: int
    width: int
    transform: Affine
    nodata: int | None


def _groups(kilometres: Iterable[Kilometre]) -> Iterator[list[Kilometre]]:
    """Yield groups of kilometres that touch, corners included, sorted."""
    left = set(kilometres)
    while left:
        group, edge = [], [min(left)]
        left.remove(edge[0])
        while edge:
            east, north = edge.pop()
            group.append((east, north))
            touching = {(east + i, north + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= touching
            edge += touching
        yield sorted(group)


def _match(path: str) -> dict[str, str]:
    match = _NAME.fullmatch(path.rsplit("/", 1)[-1])
    return match.groupdict() if match else {}
