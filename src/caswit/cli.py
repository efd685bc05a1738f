"""The command line. Commands are thin: they read settings and call the library, imported only then."""

import errno
import importlib
import logging
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentError, set_parsing_settings

from caswit.commands.recipe import check_recipe
from caswit.errors import CaswitError
from caswit.version import __version__

_USERS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}
"""Errors of the file system that are not our bugs: no permission, no room, a file in place of a folder."""

TRAIN_EXTRA = ("lightning", "tensorboard", "pyogrio")
"""Modules that come with caswit[train]."""

USAGE = """usage: caswit COMMAND ...

Land-cover maps from aerial and satellite orthophotos of any size.

commands:
  demo                       train, score and map a synthetic landscape; writes a report
  train RECIPE --out DIR     train a model; DIR/model is the result
  evaluate MODEL DATASET     score a model on labelled scenes; writes a report
  predict IMAGE OUT.tif      map an image of any size
  info MODEL                 what a model is and expects
  inspect DATASET --out DIR  pictures and figures of a dataset, to see that it is right
  prepare urur ROOT          make URUR readable by window, once

caswit COMMAND --help says more. caswit --version prints the version.
"""

SHORT = {"train": {"--skip-broken": "--data.skip_broken=true"}, "evaluate": {"--skip-broken": "--skip_broken=true"}}
"""What may be written for a setting, by command."""

COMMANDS = ("demo", "train", "evaluate", "predict", "info", "inspect", "prepare")
"""Each is a module of caswit.commands."""


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
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what GDAL says is part of our errors
    for part in ("fabric", "pytorch"):  # says its precision twice at every start; the parents set their own levels
        logging.getLogger(f"lightning.{part}.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        _run(words[0], words[1:])
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
        raise CaswitError(f"no command {name!r}; commands are: {', '.join(COMMANDS)}")
    command = importlib.import_module(f"caswit.commands.{name}")
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # fields' docstrings are their help
    if name == "train" and words and not words[0].startswith("-"):
        words = ["--recipe", *words]
    words = [SHORT.get(name, {}).get(word, word) for word in words]
    for option, value in pairwise(words):
        if option == "--recipe":
            check_recipe(Path(value))
    parser = command.parser()
    try:
        arguments = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise CaswitError(_plain(str(error))) from error
    try:
        command.run(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in TRAIN_EXTRA:
            raise
        raise CaswitError(f"{name} needs {missing}, which comes with: pip install 'caswit[train]'") from error


def _plain(message: str) -> str:
    """What jsonargparse says about an argument, in a user's words and one line."""
    text = " ".join(message.split())
    text = re.sub(r"Does not validate .* Subtypes: \[(.*?)\] Errors: .* Given value: ", r"expected \1, got ", text)
    text = re.sub(r"Expected an? (.*)\. Got value: ", r"expected \1, got ", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("NoneType", "null").replace("typing.Literal", "one of ")
    return re.sub(r'^Parser key "(.*?)": ', r"--\1: ", text)


def _fail(message: str) -> None:
    print(f"caswit: {message}", file=sys.stderr)
    sys.exit(2)
