"""FLAIR-HUB as downloaded: each region (ROI) is one virtual mosaic of its patches, which are the areas to tile.

A scene is the patches of one split in one region; its context reaches into neighbouring patches. Patches are placed by
their geotransforms: their names do not tell where they lie.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

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

_NO_LABEL = 255


def find(source: FlairHubSource) -> Found:
    """Return the scenes of all splits, region by region.

    Raises:
        DataError: The folder holds no FLAIR-HUB, or no splits.
    """
    root = Path(source.root)
    folders = sorted(f.name for kind in (IMAGES, LABELS) for f in root.glob(f"*_{kind}"))
    if not any(name.endswith(IMAGES) for name in folders):
        raise DataError(f"{root}: no folder is named like D004-2021_{IMAGES}; unpack the zip files there")
    listed = read_splits(source.splits, root)
    cache = source_cache("flair_hub", root)
    headers = read_headers(root, list_files(root, folders), cache / "headers.npz")
    tree = _Tree(root, headers)
    tree.check_images()
    usable = [patch for patch in listed if tree.check(patch)]
    tree.place_all()
    by_region: dict[str, dict[str, list[Listed]]] = {}
    for patch in usable:
        if patch.image in tree.windows:
            by_region.setdefault(_region(patch.image), {}).setdefault(patch.split, []).append(patch)
    mosaics = Mosaics(cache / f"{source.neighbours}-{_digest(listed)}")
    scenes = [
        _scene(tree, region, split, patches, mosaics, same_split=source.neighbours == "same_split")
        for region, splits in sorted(by_region.items())
        for split, patches in sorted(splits.items())
    ]
    mosaics.close()
    return Found(tuple(scenes), tuple(tree.broken))


class _Tree:
    """The files of a download: which are whole, and where they lie."""

    def __init__(self, root: Path, headers: Mapping[str, HeaderFound]) -> None:
        self.root, self.headers = root, headers
        self.images: dict[str, Header] = {}
        """Whole images by path."""
        self.windows: dict[str, Window] = {}
        """Their pixels on the grid of their region."""
        self.origins: dict[str, Affine] = {}
        """Transform of the grid by region."""
        self.regions: dict[str, list[str]] = {}
        """Images by region."""
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
                self.regions.setdefault(_region(path), []).append(path)

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

    def place_all(self) -> None:
        """Place every whole image on the grid of its region."""
        for region, paths in self.regions.items():
            first, windows = self._grid(paths)
            origin = self.images[first].transform
            assert origin is not None
            self.origins[region] = origin
            taken: dict[Window, str] = {}
            for path, window in windows.items():
                if window is None:
                    self.broken.append(f"{self.root / path}: does not lie on the grid of {first}")
                elif window in taken:
                    self.broken.append(f"{self.root / path}: lies where {taken[window]} lies")
                else:
                    taken[window] = path
                    self.windows[path] = window

    def _grid(self, paths: Sequence[str]) -> tuple[str, dict[str, Window | None]]:
        """Return the first patch on whose grid half of them lie, and their windows on it: the very first may be off."""
        for first in paths:
            windows = {path: self._on_grid(path, first) for path in paths}
            if 2 * sum(map(bool, windows.values())) >= len(paths):
                break
        return first, windows

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
    tree: _Tree, region: str, split: str, patches: Sequence[Listed], mosaics: Mosaics, *, same_split: bool
) -> Scene:
    """Write image and label mosaic of a region's patches of one split, on one grid, and return their scene."""
    shown = [p.image for p in patches] if same_split else [p for p in tree.regions[region] if p in tree.windows]
    header = tree.images[shown[0]]
    crs = header.crs or _crs(tree.root / shown[0])
    parts, transform, size = shifted([tree.part(p, tree.windows[p]) for p in shown], tree.origins[region])
    windows = dict(zip(shown, (part.window for part in parts), strict=True))
    labels = [tree.part(p.label, windows[p.image]) for p in patches]
    flat = region.replace("/", "_")
    name = f"{flat}_{split}" if same_split else flat
    label_name = f"{flat}_{split}_label"
    image = mosaics.write(name, parts, size, bands=header.bands, transform=transform, crs=crs, filled=True)
    label = mosaics.write(label_name, labels, size, bands=1, transform=transform, crs=crs, nodata=_NO_LABEL)
    areas = tuple(sorted(windows[p.image] for p in patches))
    return Scene(image=image, label=label, split=split, areas=areas, checked=True)


def _region(image: str) -> str:
    """Return DOMAIN/ROI of an image path."""
    folder, roi, _ = image.split("/")
    return f"{folder.removesuffix('_' + IMAGES)}/{roi}"


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
