"""The command line. Commands are thin: they read settings and call the library, imported only then."""

import errno
import importlib
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, set_parsing_settings

from caswit import __version__
from caswit.cli.commands.parsing import closest, command_message
from caswit.cli.commands.recipe import recipe_text
from caswit.config import PretrainRecipe, Recipe
from caswit.config.renamed import OPTIONS, SECTIONS, say_once
from caswit.errors import CaswitError

_USERS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}
"""Errors of the file system that are not our bugs: no permission, no room, a file in place of a folder."""

EXTRAS = {
    **dict.fromkeys(("lightning", "tensorboard"), "train"),
    **dict.fromkeys(("shapely", "pyogrio", "pyproj", "pyarrow"), "vector"),
    "ray": "ray",
    "segmentation_models_pytorch": "baselines",
    **dict.fromkeys(("onnx", "onnx_ir", "onnxruntime", "onnxscript"), "export"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "rio_tiler", "xstatic-leaflet"), "serve"),
}
"""Modules that come with caswit[EXTRA]."""

USAGE = """usage: caswit COMMAND ...

Land-cover maps from aerial and satellite orthophotos of any size.

commands:
  demo                       train, score and map a synthetic landscape; writes a report
  train RECIPE --out DIR     train a model; DIR/model is the result
  pretrain RECIPE --out DIR  learn from imagery without labels; DIR/model is what train's init takes
  reconstruct MODEL IMAGE    draw what pretrained weights make of an image
  evaluate MODEL DATASET     score a model on labelled scenes; writes a report
  table RECIPES... --out DIR rows of the paper's tables: train, score, print beside the paper's figures
  predict IMAGES OUT.tif     map images of any size
  explain IMAGE --out F.png  what the network looked at when it labelled a pixel
  serve WHERE                look at images and maps in a browser
  figures MODEL DATASET      the paper's figures for your data
  models [NAME]              the models that come with caswit
  info MODEL                 what a model is and expects
  inspect DATASET --out DIR  pictures and figures of a dataset, to see that it is right
  prepare urur ROOT          make URUR readable by window, once
  export MODEL OUT.onnx      a model as an ONNX file, for other programs and QGIS
  push MODEL REPO            put a model on the Hugging Face hub; hf:owner/name is then a model

caswit COMMAND --help says more. caswit --version prints the version.
"""

FLAGS = {
    "train": {"--skip_broken": "--data.skip_broken"},
    "pretrain": {"--skip_broken": "--data.skip_broken"},
    "evaluate": {"--skip_broken": "--skip_broken", "--masked_context": "--masked_context"},
    "table": {"--skip_broken": "--skip_broken"},
    "predict": {name: name for name in ("--blend", "--match_gsd", "--restart")},
}
"""Settings, by command, that need no "true" after them, and their whole names."""

COMMANDS = (
    "demo",
    "train",
    "pretrain",
    "reconstruct",
    "evaluate",
    "table",
    "predict",
    "explain",
    "serve",
    "figures",
    "models",
    "info",
    "inspect",
    "prepare",
    "export",
    "push",
)
"""Each is a module of caswit.cli.commands."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; user errors are one line and exit status 2, bugs a traceback and status 1."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if words[0] == "--version":
        print(f"caswit {__version__}")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # pictures are welcome
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what GDAL says is part of our errors
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # says how many threads it has
    logging.getLogger("pyogrio").setLevel(logging.WARNING)
    for part in ("onnx_ir", "onnxscript"):  # say every number they put elsewhere
        logging.getLogger(part).setLevel(logging.ERROR)
    for part in ("fabric", "pytorch"):  # says its precision twice at every start; the parents set their own levels
        logging.getLogger(f"lightning.{part}.utilities.rank_zero").setLevel(logging.WARNING)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    try:
        _run(words[0], [_underscored(word) for word in words[1:]])
    except CaswitError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _USERS:
            raise
        _fail(f"{error.filename or 'cannot write'}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)


def _run(name: str, words: list[str]) -> None:
    if name not in COMMANDS:
        raise CaswitError(f"no command {name!r}; commands are: {', '.join(COMMANDS)}{closest(name, COMMANDS)}")
    command = importlib.import_module(f"caswit.cli.commands.{name}")
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # fields' docstrings are their help
    recipes = {"train": Recipe, "pretrain": PretrainRecipe}
    words = _flags_set(_renamed(name, words), FLAGS.get(name, {}))
    if name in recipes:
        words = _with_recipe(words, recipes[name])
    parser = command.parser()
    try:
        arguments = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise CaswitError(command_message(str(error), parser)) from error
    try:
        command.run(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in EXTRAS:
            raise
        raise CaswitError(
            f"{name} needs {missing}, which comes with: pip install 'caswit[{EXTRAS[missing]}]'"
        ) from error


def _flags_set(words: list[str], flags: dict[str, str]) -> list[str]:
    """Write out flags that stand alone."""
    after = [*words[1:], ""][: len(words)]
    alone = [
        word in flags and following.lower() not in ("true", "false")
        for word, following in zip(words, after, strict=True)
    ]
    return [f"{flags[w]}=true" if bare else flags.get(w, w) for w, bare in zip(words, alone, strict=True)]


def _renamed(command: str, words: list[str]) -> list[str]:
    """Options under their names of today."""
    names = {f"--{old}": f"--{new}" for old, new in OPTIONS.get(command, {}).items()}
    if command in ("train", "pretrain"):
        names = {
            f"--{section}.{old}": f"--{section}.{new}"
            for section, pairs in SECTIONS.items()
            for old, new in pairs.items()
        }
    found = []
    for word in words:
        option, equals, value = word.partition("=")
        if option in names:
            say_once(option.replace("_", "-"), names[option].replace("_", "-"))
        found.append(names.get(option, option) + equals + value)
    return found


def _end(*_: object) -> None:
    """Leave as after an exception, so that files written half are removed."""
    sys.exit(128 + signal.SIGTERM)


def _underscored(word: str) -> str:
    """Options may be written with - or _ between their words."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word


def _with_recipe(words: list[str], kind: type) -> list[str]:
    """The words of a command whose recipe file, checked and with what it inherits, stands in for its name."""
    if words and not words[0].startswith("-"):
        words = ["--recipe", *words]
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--recipe=") else [word])]
    for number, option in enumerate(words[:-1]):
        if option == "--recipe":
            words[number + 1] = recipe_text(Path(words[number + 1]), kind)
    return words


def _fail(message: str) -> None:
    print(f"caswit: {message}", file=sys.stderr)
    sys.exit(2)
