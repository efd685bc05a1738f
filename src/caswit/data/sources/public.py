"""What sources of public images and masks share: where the download lies, pairs by name, splits by rules or lists."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from caswit.config import LabelValues
from caswit.data.scene import Scene
from caswit.data.sources.found import Found
from caswit.errors import DataError

_MOST = 8
"""Names of a folder that an error lists."""


def unpacked(root: Path, inner: str, needed: Sequence[str], dataset: str) -> Path:
    """Return ``root``, or its folder ``inner``, whichever holds all needed folders.

    Raises:
        DataError: Neither does; the line says what was looked for, and what is there.
    """
    for folder in (root, root / inner):
        if all((folder / name).is_dir() for name in needed):
            return folder
    raise DataError(f"{root}: does not look like {dataset}, which has {' and '.join(needed)}; {listing(root)}")


def listing(folder: Path) -> str:
    """Return what a folder holds in a few words, with the folders in its folders."""
    names = []
    for entry in sorted(folder.iterdir()):
        inner = sorted(f"{entry.name}/{sub.name}/" for sub in entry.iterdir() if sub.is_dir()) if entry.is_dir() else []
        names += inner or [f"{entry.name}/" if entry.is_dir() else entry.name]
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"it holds {', '.join(names[:_MOST])}{more}" if names else "it is empty"


class Splits:
    """The split of each image, by its folder, by rule or by lists.

    Args:
        lists: A file for each split, with the name of an image in each line: with or without folder, extension and
            ``_sat``, and further columns. Images in none keep the split of their folder, or get ``unlisted`` if that
            split has a list.
        rule: The split by an image's name and its folder's split, where there are no lists.

    Raises:
        DataError: A file is missing, or two of them list the same image.
    """

    def __init__(self, lists: Mapping[str, str] | str, rule: Callable[[str, str], str]) -> None:
        self.lists = {} if isinstance(lists, str) else lists
        self.rule = rule
        self.listed: dict[str, str] = {}
        for split, file in self.lists.items():
            for name in _names(Path(file)):
                if self.listed.setdefault(name, split) != split:
                    raise DataError(f"{file}: lists {name}, which is in {self.lists[self.listed[name]]} too")
        self.used: set[str] = set()

    def of(self, name: str, folders: str) -> str:
        """Return the split of an image by its name, without extension and suffix, and the split of its folder."""
        if not self.lists:
            return self.rule(name, folders)
        self.used.add(name)
        return self.listed.get(name, "unlisted" if folders in self.lists else folders)

    def missing(self, root: Path) -> list[str]:
        """Return a line for each listed image that ``of`` was never asked for."""
        return [
            f"{self.lists[split]}: lists {name}, of which there is no image in {root}"
            for name, split in self.listed.items()
            if name not in self.used
        ]


def _names(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: no list of images that can be read; write a name into each line") from error
    firsts = (re.split(r"[\s,;]", line.strip())[0].replace("\\", "/") for line in lines)
    return [Path(first).stem.removesuffix("_sat") for first in firsts if first]


def paired(
    images: Iterable[Path],
    masks: Iterable[Path],
    splits: Splits,
    folders: str,
    *,
    suffixes: tuple[str, str] = ("", ""),
    label_values: LabelValues = "auto",
) -> Found:
    """Return a scene for each image with its mask, and a line for each that lacks the other.

    Args:
        images: Files of images, all labelled.
        masks: Files of masks.
        splits: The split by an image's name without extension and suffix.
        folders: The split of the folder.
        suffixes: Endings of these names, of images and of masks.
        label_values: What the masks hold.
    """
    by_name = {mask.stem.removesuffix(suffixes[1]): mask for mask in masks}
    scenes, broken = [], []
    for image in images:
        name = image.stem.removesuffix(suffixes[0])
        split = splits.of(name, folders)
        if mask := by_name.pop(name, None):
            scenes.append(Scene(image=image, label=mask, split=split, label_values=label_values))
        else:
            broken.append(f"{image}: has no mask {name}{suffixes[1]}.*")
    broken += [f"{mask}: has no image {name}{suffixes[0]}.*" for name, mask in by_name.items()]
    return Found(tuple(scenes), tuple(broken))


def joined(root: Path, found: Iterable[Found], splits: Splits, *, unlabelled: Iterable[Path] = ()) -> Found:
    """Return the scenes of several folders as one, with those of images that have no labels.

    Raises:
        DataError: There is nothing.
    """
    parts = list(found)
    scenes = [scene for part in parts for scene in part.scenes]
    broken = [line for part in parts for line in part.broken] + splits.missing(root)
    if not scenes and not broken:
        raise DataError(f"{root}: the folders of images are empty; {listing(root)}")
    scenes += [Scene(image=image, split="unlabelled") for image in unlabelled]
    return Found(tuple(scenes), tuple(broken))


def in_order(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder whose names match, numbers in names in their order: 2 before 10."""
    numbered = (([int(n) for n in re.findall(r"\d+", file.stem)], file) for file in folder.glob(pattern))
    return [file for _, file in sorted(numbered, key=lambda pair: (re.sub(r"\d+", "", pair[1].stem), *pair))]
