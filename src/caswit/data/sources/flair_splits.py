"""Read which patches of FLAIR-HUB belong to which split, from its GeoPackage or its CSV files."""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from caswit.errors import DataError, brief

IMAGES, LABELS = "AERIAL_RGBI", "AERIAL_LABEL-COSIA"
_GEOPACKAGE = "GLOBAL_ALL_MTD/GLOBAL_ALL_MTD_SPLIT.gpkg"
_COLUMN = "split_flairhub"
_OURS = {"valid": "val", "validation": "val"}
_PATCH_ID = re.compile(r"(?P<domain>[^_]+-[^_]+)_(?P<roi>.+)_(?P<place>\d+-\d+)")


class Listed(NamedTuple):
    """A patch that belongs to a split; paths are relative to the root."""

    image: str
    label: str
    split: str
    by: str
    """The file that lists it."""


def read_splits(splits: str | Mapping[str, str] | None, root: Path) -> list[Listed]:
    """Return the patches of all splits, from the files named or else from those found in ``root``.

    Raises:
        DataError: A file or one of its columns is missing.
    """
    if splits is None:
        splits = _look_for(root)
    if isinstance(splits, str):
        return list(_from_geopackage(Path(splits), root))
    return [listed for split, file in splits.items() for listed in _from_csv(Path(file), split)]


def _look_for(root: Path) -> str | dict[str, str]:
    if (root / _GEOPACKAGE).is_file():
        return str(root / _GEOPACKAGE)
    tables = {}
    for file in sorted(root.glob("*.csv")):
        last = file.stem.lower().replace("-", "_").split("_")[-1]
        if (split := _OURS.get(last, last)) in ("train", "val", "test"):
            tables[split] = str(file)
    if not tables:
        raise DataError(
            f"{root}: no splits: neither {_GEOPACKAGE} nor *_TRAIN.csv, *_VALID.csv, *_TEST.csv; "
            "unpack GLOBAL_ALL_MTD.zip there, or name them: source: {..., splits: FILE.gpkg}"
        )
    return tables


def _from_geopackage(file: Path, root: Path) -> Iterable[Listed]:
    """Yield the patches of the domains that are in ``root``: a few of the 74 are enough to train."""
    import pyogrio  # comes with the extra train

    if not file.is_file():
        raise DataError(f"{file}: no such GeoPackage of splits")
    try:
        names = list(pyogrio.read_info(file)["fields"])
        if _COLUMN not in names:
            raise DataError(f"{file}: has no column {_COLUMN}; its columns are: {', '.join(names)}")
        meta, _, _, columns = pyogrio.raw.read(file, read_geometry=False)
    except pyogrio.errors.DataSourceError as error:
        raise DataError(f"{file}: not a GeoPackage ({' '.join(str(error).split())})") from error
    values = dict(zip(meta["fields"], columns, strict=True))
    ids = next((c for c in columns if len(c) and _PATCH_ID.fullmatch(str(c[0]))), None)
    if ids is None:
        raise DataError(f"{file}: no column holds patch ids like D012-2019_AF-S1-27_5-10; got {', '.join(names)}")
    there = {folder.name.removesuffix(f"_{IMAGES}") for folder in root.glob(f"*_{IMAGES}")}
    for patch_id, split in zip(ids, values[_COLUMN], strict=True):
        match = _PATCH_ID.fullmatch(str(patch_id))
        if match and match["domain"] in there and split:
            image, label = (
                f"{match['domain']}_{kind}/{match['roi']}/{match['domain']}_{kind}_{match['roi']}_{match['place']}.tif"
                for kind in (IMAGES, LABELS)
            )
            yield Listed(image, label, _OURS.get(str(split).lower(), str(split).lower()), file.name)


def _from_csv(file: Path, split: str) -> Iterable[Listed]:
    if not file.is_file():
        raise DataError(f"{file}: no such table of the split {brief(split)}")
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if missing := {IMAGES, LABELS} - set(rows.fieldnames or ()):
            raise DataError(
                f"{file}: has no column {', '.join(sorted(missing))}; got {', '.join(rows.fieldnames or ())}"
            )
        for row in rows:
            yield Listed(_rerooted(row[IMAGES]), _rerooted(row[LABELS]), split, file.name)


def _rerooted(path: str) -> str:
    """Return DOMAIN_MODALITY/ROI/PATCH.tif, whatever folder stands before it."""
    return str(PurePosixPath(*PurePosixPath(path.replace("\\", "/")).parts[-3:]))
