"""FLAIR-HUB, unpacked: the patches of a domain and year are one virtual mosaic, and the areas to tile.

A scene is the patches of one split in one mosaic; its context reaches into neighbouring patches, those of other regions
(ROI) too. Patches are placed by their geotransforms: their names do not tell where they lie. What does not fit into the
mosaic of its domain is a mosaic apart.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from caswit.config import FlairHubSource
from caswit.data.scene import Scene
from caswit.data.sources.flair_splits import IMAGES, LABELS, Listed, read_splits
from caswit.data.sources.found import Found, Mosaics, source_cache
from caswit.data.sources.index import Found as HeaderFound
from caswit.data.sources.index import list_files, read_headers
from caswit.errors import DataError
from caswit.raster.reader import Raster
from caswit.raster.tiff_header import Header
from caswit.raster.vrt import Affine, Part, place, shifted
from caswit.raster.windows import Window

log = logging.getLogger(__name__)

_NO_LABEL = 255
_CANDIDATES = 16
"""Patches that are tried as the first of a grid."""


def find(source: FlairHubSource) -> Found:
    """Return the scenes of all splits, domain by domain.

    Raises:
        DataError: The folder holds no FLAIR-HUB, or no splits.
    """
    root = Path(source.root)
    folders = sorted(f.name for kind in (IMAGES, LABELS) for f in root.glob(f"*_{kind}"))
    if not any(name.endswith(IMAGES) for name in folders):
        raise DataError(f"{root}: no folder is named like D004-2021_{IMAGES}; unpack: caswit prepare flair_hub {root}")
    listed = read_splits(source.splits, root)
    cache = source_cache("flair_hub", root)
    headers = read_headers(root, list_files(root, folders), cache / "headers.npz")
    tree = _Tree(root, headers)
    tree.check_images()
    usable = [patch for patch in listed if tree.check(patch)]
    by_image: dict[str, list[Listed]] = {}
    for patch in usable:
        by_image.setdefault(patch.image, []).append(patch)
    same_split = source.neighbours == "same_split"
    mosaics = Mosaics(cache / f"{source.neighbours}-{_digest(listed)}")
    scenes, apart = [], 0
    for domain, paths in sorted(tree.domains.items()):
        for number, layer in enumerate(tree.layers(paths), 1):
            splits: dict[str, list[Listed]] = {}
            for path in layer.windows:
                for patch in by_image.get(path, ()):
                    splits.setdefault(patch.split, []).append(patch)
            apart += (number > 1) * sum(map(len, splits.values()))
            name = domain if number == 1 else f"{domain}_{number}"
            scenes += [
                _scene(tree, layer, name, split, patches, mosaics, same_split=same_split)
                for split, patches in sorted(splits.items())
            ]
    mosaics.close()
    if apart:
        log.warning(
            "%s: %d of %d patches lie off the pixel grid of their domain or over another patch; they are scored, but "
            "their context is black where only the other patches of the domain lie",
            *(root, apart, len(usable)),
        )
    return Found(tuple(scenes), tuple(tree.broken))


class _Layer(NamedTuple):
    """Patches that lie on one grid, none over another."""

    origin: Affine
    windows: dict[str, Window]
    """Their pixels on that grid, by path."""


class _Tree:
    """The files of a download: which are whole, and where they lie."""

    def __init__(self, root: Path, headers: Mapping[str, HeaderFound]) -> None:
        self.root, self.headers = root, headers
        self.images: dict[str, Header] = {}
        """Whole images by path."""
        self.domains: dict[str, list[str]] = {}
        """Their paths by domain and year, such as D012-2019."""
        self.broken: list[str] = []

    def check_images(self) -> None:
        """Sort out images that cannot be read, or differ in size, bands or type from most."""
        found = {path: h for path, h in self.headers.items() if path.split("/")[0].endswith(f"_{IMAGES}")}
        kinds = Counter(h[:4] for h in found.values() if isinstance(h, Header))
        usual = kinds.most_common(1)[0][0] if kinds else None
        for path, header in found.items():
            if isinstance(header, str):
                self.broken.append(header)
            elif header[:4] != usual:
                self.broken.append(f"{self.root / path}: is {_kind(header[:4])}, the other patches are {_kind(usual)}")
            elif header.transform is None:
                self.broken.append(f"{self.root / path}: has no georeference, so its place in the mosaic is unknown")
            else:
                self.images[path] = header
                self.domains.setdefault(path.split("/")[0].removesuffix(f"_{IMAGES}"), []).append(path)

    def check(self, patch: Listed) -> bool:
        """Return whether a listed patch has an image and a label that fit each other; note what is wrong if not."""
        wrong = self._wrong(patch)
        if wrong:
            self.broken.append(wrong)
        return patch.image in self.images and not wrong

    def _wrong(self, patch: Listed) -> str | None:
        image, label = self.headers.get(patch.image), self.headers.get(patch.label)
        label_path = self.root / patch.label
        if image is None:
            return f"{self.root / patch.image}: no such image patch, {patch.by} lists it"
        if label is None:
            return f"{label_path}: no such label patch, {patch.by} lists it"
        if isinstance(label, str):
            return label
        if isinstance(image, str) or patch.image not in self.images:
            return None  # noted already
        if label[:2] != image[:2]:
            return f"{label_path}: is {label.height} x {label.width}, its image is {image.height} x {image.width}"
        if label[2:4] != (1, "uint8"):
            return f"{label_path}: is {_kind(label[:4])}, one band of uint8 ids is needed"
        if label.transform and not _same_place(label.transform, image):
            return f"{label_path}: lies elsewhere than its image {patch.image}"
        return None

    def layers(self, paths: Sequence[str]) -> Iterator[_Layer]:
        """Yield all images of a domain in layers; most are in the first unless they lie on several grids.

        An image in the very place of another one of its region is no layer: one of the two should not be there.
        """
        places: dict[tuple[str, Affine | None], str] = {}
        left = []
        for path in paths:
            there = places.setdefault((path.rsplit("/", 1)[0], self.images[path].transform), path)
            if there == path:
                left.append(path)
            else:
                self.broken.append(f"{self.root / path}: lies where {there} lies")
        tries = _CANDIDATES
        while left:
            origin, windows = self._grid(left, tries)
            placed: dict[str, Window] = {}
            corners: dict[tuple[int, int], Window] = {}
            for path, window in windows.items():
                if window is not None and _is_free(window, corners):
                    corners[window.row // window.height, window.col // window.width] = window
                    placed[path] = window
            yield _Layer(origin, placed)
            left = [path for path in left if path not in placed]
            tries = 1  # what is left are few, or many grids

    def _grid(self, paths: Sequence[str], tries: int) -> tuple[Affine, dict[str, Window | None]]:
        """Return the grid of one of the first patches and all windows on it: of one that suits half of them, if any."""
        for first in paths[:tries]:
            windows = {path: self._on_grid(path, first) for path in paths}
            if 2 * sum(map(bool, windows.values())) >= len(paths):
                break
        origin = self.images[first].transform
        assert origin is not None
        return origin, windows

    def _on_grid(self, path: str, first: str) -> Window | None:
        header, origin = self.images[path], self.images[first]
        assert header.transform is not None
        assert origin.transform is not None
        if header.crs != origin.crs:
            return None
        return place(header.transform, origin.transform, header.height, header.width)

    def part(self, path: str, window: Window) -> Part:
        """Return a file of a mosaic."""
        return Part(str((self.root / path).absolute()), window)


def _scene(
    tree: _Tree, layer: _Layer, name: str, split: str, patches: Sequence[Listed], mosaics: Mosaics, *, same_split: bool
) -> Scene:
    """Write image and label mosaic of a layer's patches of one split, on one grid, and return their scene."""
    shown = [p.image for p in patches] if same_split else list(layer.windows)
    header = tree.images[shown[0]]
    crs = header.crs or _crs(tree.root / shown[0])
    parts, transform, size = shifted([tree.part(p, layer.windows[p]) for p in shown], layer.origin)
    windows = dict(zip(shown, (part.window for part in parts), strict=True))
    labels = [tree.part(p.label, windows[p.image]) for p in patches]
    image_name = f"{name}_{split}" if same_split else name
    label_name = f"{name}_{split}_label"
    image = mosaics.write(image_name, parts, size, bands=header.bands, transform=transform, crs=crs, filled=True)
    label = mosaics.write(label_name, labels, size, bands=1, transform=transform, crs=crs, nodata=_NO_LABEL)
    areas = tuple(sorted(windows[p.image] for p in patches))
    return Scene(image=image, label=label, split=split, areas=areas, checked=True)


def _is_free(window: Window, corners: Mapping[tuple[int, int], Window]) -> bool:
    """Return whether a window shares no pixel with others of its size, given by the cell that their corner lies in."""
    row, col = window.row // window.height, window.col // window.width
    around = (corners.get((row + i, col + j)) for i, j in product((-1, 0, 1), repeat=2))
    return not any(other and all(window.common(other)[2:]) for other in around)


def _same_place(transform: Affine, image: Header) -> bool:
    assert image.transform is not None
    where = place(transform, image.transform, image.height, image.width)
    return where is not None and where[:2] == (0, 0)


def _crs(path: Path) -> str:
    with Raster(path) as raster:
        return raster.grid.crs.to_wkt() if raster.grid.crs else ""


def _kind(kind: tuple[int, int, int, str] | None) -> str:
    height, width, bands, dtype = kind or (0, 0, 0, "?")
    return f"{height} x {width} with {bands} band{'s' * (bands != 1)} of {dtype}"


def _digest(listed: Sequence[Listed]) -> str:
    """Tell one set of splits from another: their mosaics must not overwrite each other."""
    return hashlib.sha256("\n".join(f"{p.image} {p.split}" for p in listed).encode()).hexdigest()[:8]
