"""The scenes a source finds, and the cache of mosaics it writes for them."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from caswit.data.scene import Scene
from caswit.errors import DataError
from caswit.files import atomic_path, atomic_write_bytes, cache_folder, checked, read_json
from caswit.raster.vrt import Affine, Part, mosaic_files

_VERSION = 2
"""Of the way in which mosaics are written: those of an earlier one are written anew."""


class Found(NamedTuple):
    """Scenes, and a line for everything that is missing or broken."""

    scenes: tuple[Scene, ...]
    broken: tuple[str, ...]


def source_cache(kind: str, root: Path) -> Path:
    """Return the folder for the index and the mosaics of a source."""
    place = str(root.resolve())
    return cache_folder() / kind / hashlib.sha256(place.encode()).hexdigest()[:12]


class Mosaics:
    """Writes the mosaics of a source, each only where it differs from what was written before.

    Args:
        folder: Folder to write them to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._list = folder / "digests.json"
        self._written: dict[str, list[str]] = {}
        """The digest of what each mosaic was made from, and its files."""
        with suppress(DataError):
            self._written = checked(dict[str, list[str]], read_json(self._list), str(self._list))
        self._changed = False

    def write(
        self,
        name: str,
        parts: Sequence[Part],
        size: tuple[int, int],
        *,
        bands: int,
        transform: Affine,
        crs: str,
        nodata: int | None = None,
        filled: bool = False,
    ) -> Path:
        """Write a mosaic as ``mosaic_files`` describes it, and return its path."""
        path = self.folder / f"{name}.vrt"
        digest = hashlib.sha256(
            repr((_VERSION, *parts, size, bands, transform, crs, nodata, filled)).encode()
        ).hexdigest()
        before = self._written.get(name, [])
        # Clusters delete what nobody has read for a month, file by file.
        if before[:1] != [digest] or not all((self.folder / file).is_file() for file in before[1:]):
            files = mosaic_files(
                name, parts, size, bands=bands, transform=transform, crs=crs, nodata=nodata, filled=filled
            )
            for file, xml in files.items():  # the mosaic comes last, when its sheets are there
                (self.folder / file).parent.mkdir(exist_ok=True)
                with atomic_path(self.folder / file) as partial:
                    partial.write_text(xml, encoding="utf-8")
            self._written[name] = [digest, *files]
            self._changed = True
        return path

    def close(self) -> None:
        """Record what was written."""
        if self._changed:
            atomic_write_bytes(self._list, json.dumps(self._written).encode())
