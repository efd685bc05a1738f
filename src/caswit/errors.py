"""Errors a user can fix. The command line prints them in one line and exits with status 2.

CaswitError
├── ConfigError   a setting or recipe is wrong
├── DataError     a dataset, raster or label is wrong
└── ModelError    a model folder, weights or a model's input is wrong

Values and foreign messages go into a line of ours through ``brief`` and ``one_line``. Both are bounded: a value
may be of any size, and another library's message may have a hundred lines.
"""

import difflib
import json
import reprlib
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60
_MOST = 120

EXTRAS = {
    "train": {"lightning", "tensorboard"},
    "vector": {"shapely", "pyogrio", "pyproj", "pyarrow"},
    "ray": {"ray"},
    "baselines": {"segmentation_models_pytorch", "transformers", "scipy"},
    "fast": {"openvino"},
    "int8": {"nncf"},
    "export": {"onnx", "onnx_ir", "onnxruntime", "onnxscript"},
    "serve": {"fastapi", "starlette", "uvicorn", "rio_tiler", "xstatic-leaflet"},
}
"""By extra of the package: the modules that it brings."""


class CaswitError(Exception):
    """Something the user can fix: the message says what is wrong, the value, and what to try."""


class ConfigError(CaswitError):
    """A setting, or a combination of settings, is not allowed."""


class DataError(CaswitError):
    """A dataset description, a raster or a label cannot be used as it is."""


class ModelError(CaswitError):
    """A model folder or its weights cannot be used, or a model was given the wrong input."""


class Stopped(Exception):
    """A training was told to stop before its end, and is saved: the message says where. Not an error.

    Args:
        message: One line; empty in the processes of a run that leave messages to its first.
        interrupted: By Ctrl-C.
    """

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        super().__init__(message)
        self.interrupted = interrupted


def brief(value: Any) -> str:
    """Return a value as Python writes it, in one line of at most 120 characters however large or deep it is."""
    try:
        # Looks at the first items of the first levels only: nine levels of YAML aliases are a billion items in full.
        text = _SHORT.repr(value)
    except ValueError:  # Python does not write out numbers of more than 4,300 digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return one_line(text, _MOST)


def one_line(said: object, most: int = 200) -> str:
    """Return another's message, or any text, as one printable line of at most ``most`` characters."""
    # What a terminal would obey is shown as its escape: names of files are not ours.
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(said)[: 4 * most].split()))
    return text if len(text) <= most else text[: most - 3] + "..."


def did_you_mean(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a question whether the most similar of some words was meant, for the end of a message, or nothing."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def naming_extras(what: str) -> Iterator[None]:
    """Turn a missing module of an extra into a CaswitError that says how to install it.

    Args:
        what: What needs the module, for the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if missing in modules), None)
        if extra is None:
            raise
        raise CaswitError(f"{what} needs {missing}, which comes with the extra {extra}: {install(extra)}") from error


def install(extra: str) -> str:
    """Return the command that installs an extra, as it works on this machine."""
    # caswit is on no package index, so an extra is installed from where the package came from: pip notes it (PEP 610).
    noted = json.loads(distribution("caswit").read_text("direct_url.json") or "{}")
    address = str(noted.get("url", ""))
    clone = Path(url2pathname(urlparse(address).path))
    if address.startswith("file:") and (clone / "pyproject.toml").is_file():
        editable = "--editable " if noted.get("dir_info", {}).get("editable") else ""
        return f"pip install {editable}{shlex.quote(f'{clone}[{extra}]')}"
    return f"pip install '.[{extra}]' in a clone of caswit, which is on no package index yet"
