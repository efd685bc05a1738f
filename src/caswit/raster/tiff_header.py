"""Read the headers of GeoTIFFs without GDAL: a data set of half a million files is indexed ten times faster.

Only what is needed to place a file in a mosaic and to see that it is whole. Anything unusual is left to GDAL,
which opens the file in the end.
"""

import os
import struct
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from caswit.errors import DataError

_FIRST_BYTES = 4096
_TYPES = 1, 2, 3, 4, 6, 8, 9, 11, 12, 13, 16, 17, 18
_FORMATS = dict(zip(_TYPES, "BcHIbhifdIQqQ", strict=True))  # of struct
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _SAMPLE_FORMAT = 256, 257, 258, 277, 339
_OFFSETS, _COUNTS = (273, 324), (279, 325)
_PIXEL_SCALE, _TIEPOINT, _MATRIX, _GEO_KEYS = 33550, 33922, 34264, 34735
_NODATA = 42113
_RASTER_TYPE_KEY, _GEOGRAPHIC_KEY, _PROJECTED_KEY = 1025, 2048, 3072
_USER_DEFINED = 32767
_KINDS = {1: "uint", 2: "int", 3: "float"}


class Header(NamedTuple):
    """Size, pixels and place of a GeoTIFF."""

    height: int
    width: int
    bands: int
    """Number of bands."""
    dtype: str
    """As numpy calls it."""
    transform: tuple[float, float, float, float, float, float] | None
    """Affine, as rasterio has it: x = a col + b row + c, y = d col + e row + f. None without a georeference."""
    crs: str
    """EPSG:number, or empty where the file gives none."""
    nodata: int | None = None
    """The value of pixels without data, if it is one that uint8 can have."""


def read_header(path: Path | str) -> Header:
    """Read the header of a GeoTIFF.

    Raises:
        DataError: The file is missing, is not a TIFF, or ends before its pixels do.
    """
    try:
        with Path(path).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            tags = _Tags(file, size)
            header = _header(tags)
            ends = [o + n for o, n in zip(tags.first(_OFFSETS), tags.first(_COUNTS), strict=True)]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (struct.error, ValueError, KeyError, IndexError, MemoryError, OSError) as error:
        raise DataError(f"{path}: not a TIFF, or truncated") from error
    # Tools that run out of disk leave files with a whole header and pixels that end early.
    if not ends or max(ends) > size:
        raise DataError(f"{path}: truncated: its pixels end at byte {max(ends, default=0)}, the file at {size}")
    return header


class _Tags:
    """The first image directory of a TIFF, of either byte order, classic or big."""

    def __init__(self, file: FileIO, size: int) -> None:
        self.file, self.size = file, size
        self.start = file.read(_FIRST_BYTES)  # nearly always all that is needed
        self.order = {b"II": "<", b"MM": ">"}[self.start[:2]]
        (version,) = struct.unpack_from(f"{self.order}H", self.start, 2)
        if version not in (42, 43):
            raise ValueError(version)
        big = version == 43
        self.inline = 8 if big else 4
        (directory,) = struct.unpack(f"{self.order}{'Q' if big else 'I'}", self._bytes(8 if big else 4, self.inline))
        count_format = f"{self.order}{'Q' if big else 'H'}"
        count_bytes = struct.calcsize(count_format)
        (count,) = struct.unpack(count_format, self._bytes(directory, count_bytes))
        entry = f"{self.order}HH{'Q' if big else 'I'}{self.inline}s"
        entries = self._bytes(directory + count_bytes, count * struct.calcsize(entry))
        self.entries = {tag: rest for tag, *rest in struct.iter_unpack(entry, entries)}

    def _bytes(self, at: int, length: int) -> bytes:
        if at + length > self.size:
            raise ValueError(length)
        if at + length <= _FIRST_BYTES:
            return self.start[at : at + length]
        self.file.seek(at)
        return self.file.read(length)

    def values(self, tag: int, default: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        """Return all values of a tag; KeyError where it is missing and has no default."""
        if tag not in self.entries and default is not None:
            return default
        kind, count, value = self.entries[tag]
        layout = f"{self.order}{count}{_FORMATS[kind]}"
        length = struct.calcsize(layout)
        if length > self.inline:
            (at,) = struct.unpack(f"{self.order}{'Q' if self.inline == 8 else 'I'}", value)
            value = self._bytes(at, length)
        return struct.unpack_from(layout, value)

    def first(self, tags: tuple[int, ...]) -> tuple[Any, ...]:
        """Return the values of the first of these tags that is there, or ()."""
        return next((self.values(tag) for tag in tags if tag in self.entries), ())


def _header(tags: _Tags) -> Header:
    keys = tags.values(_GEO_KEYS, (0,) * 4)
    # Each key is (number, where its value is, how many, value); 0: the value itself is in the last field.
    geo = {keys[i]: keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i + 1] == 0}
    code = geo.get(_PROJECTED_KEY, geo.get(_GEOGRAPHIC_KEY, _USER_DEFINED))
    (kind, *_), (bits, *_) = tags.values(_SAMPLE_FORMAT, (1,)), tags.values(_BITS, (1,))
    return Header(
        height=tags.values(_HEIGHT)[0],
        width=tags.values(_WIDTH)[0],
        bands=tags.values(_SAMPLES, (1,))[0],
        dtype=f"{_KINDS.get(kind, 'kind' + str(kind))}{bits}",
        transform=_transform(tags, pixel_is_point=geo.get(_RASTER_TYPE_KEY) == 2),
        crs="" if code == _USER_DEFINED else f"EPSG:{code}",
        nodata=_nodata(b"".join(tags.values(_NODATA, ()))),
    )


def _nodata(text: bytes) -> int | None:
    with suppress(ValueError):
        value = float(text.strip(b"\0 "))
        return int(value) if value.is_integer() and 0 <= value <= 255 else None
    return None


def _transform(tags: _Tags, *, pixel_is_point: bool) -> tuple[float, float, float, float, float, float] | None:
    if _MATRIX in tags.entries:
        a, b, _, c, d, e, _, f = tags.values(_MATRIX)[:8]
    elif _PIXEL_SCALE in tags.entries and _TIEPOINT in tags.entries:
        a, e = tags.values(_PIXEL_SCALE)[:2]
        col, row, _, x, y = tags.values(_TIEPOINT)[:5]
        b, d, e = 0.0, 0.0, -e
        c, f = x - col * a, y - row * e
    else:
        return None
    if pixel_is_point:  # the tie point is a pixel's centre
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return a, b, c, d, e, f
