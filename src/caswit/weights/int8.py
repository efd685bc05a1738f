"""The eight-bit form of a network that ``caswit quantize`` writes into a model folder: its files, and whether they fit.

``int8.json`` says what the others were made of and how they did. They are read only where the weights, the settings and
every byte of theirs are still those it names.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from caswit.errors import ModelError
from caswit.files import atomic_write_bytes, checked, read_json
from caswit.weights.model_folder import LoadedModel

ABOUT = "int8.json"
GRAPH = "int8.xml"
"""The graph; its weights lie beside it under the same name with ``.bin``, as OpenVINO has it."""
MATRICES = "int8.safetensors"
"""Constants that the graph is handed with every image."""
PARTS = (GRAPH, "int8.bin", MATRICES)
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The eight-bit network beside the one that ``--precision auto`` ran on the same machine."""

    dataset: str
    split: str
    tiles: int
    beside: str
    """Precision of the other: bf16 or fp32."""
    pixels_alike: float
    """Share of the labelled pixels that both give the same class."""
    miou: tuple[float, float]
    """Of the other, and of the eight-bit one."""
    iou: dict[str, tuple[float, float]]
    """The same for each class."""
    times_as_long: float
    """Time of the network for a tile, divided by the other's."""
    processor: str
    """Processor and threads on which that is so."""


@dataclass(frozen=True, kw_only=True)
class Int8:
    """What the files were made of, and how they did."""

    format: int = _FORMAT
    model_sha256: str
    """Of the weights they were made from."""
    model_config: str
    """``LoadedModel.config_digest`` of the settings they were made from."""
    tile_px: int
    """Side of the tiles they are for."""
    calibrated_on: str
    tiles: int
    """Number of tiles they were calibrated on."""
    versions: dict[str, str]
    """Of caswit, OpenVINO and NNCF."""
    comparison: Comparison
    files: dict[str, str]
    """SHA-256 of each file."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with what is computed."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()[:16]


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that ``int8.json`` vouches for."""
    found = {}
    for name in PARTS:
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_about(folder: Path, int8: Int8) -> None:
    """Write ``int8.json``, the last of the files."""
    atomic_write_bytes(folder / ABOUT, (json.dumps(asdict(int8), indent=2) + "\n").encode())


def int8_of(loaded: LoadedModel) -> Int8:
    """Return what is said of the eight-bit form of a loaded model.

    Raises:
        ModelError: It has none, or one of other weights or settings, or one that is damaged.
    """
    folder, make = loaded.folder, "caswit quantize MODEL DATASET --out DIR"
    if folder is None or not (folder / ABOUT).is_file():
        raise ModelError(f"{loaded.name}: has no int8 weights, which --precision int8 needs; make them: {make}")
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ModelError(f"{folder / ABOUT}: not of a format that this version reads; make it again: {make}")
    int8 = checked(Int8, about, str(folder / ABOUT))
    if (int8.model_sha256, int8.model_config) != (loaded.digest, loaded.config_digest):
        raise ModelError(
            f"{folder / ABOUT}: was made from other weights or settings than the model has now; make it again: {make}"
        )
    there = [name for name in PARTS if (folder / name).is_file()]
    if len(there) < len(PARTS) or digests(folder) != int8.files:
        raise ModelError(f"{folder / GRAPH}: this file or one beside it is missing or damaged; make it again: {make}")
    return int8
