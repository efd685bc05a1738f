"""The command line: finds the command in the table, reads its words, runs it, and reports mistakes in one line.

Commands are thin: they hand settings to the library, which they import only when they run, so that help is instant.
"""

import errno
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Sequence

from caswit import __version__
from caswit.cli.commands import COMMANDS
from caswit.cli.parsing import closest, current_words, parse
from caswit.cli.recipe import with_recipe
from caswit.errors import CaswitError, Stopped

_USERS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}
"""Errors of the file system that are not our bugs: no permission, no room, a file in place of a folder."""

_GO_ON = {
    "train": "the same command with --resume goes on",
    "pretrain": "the same command with --resume goes on",
    "table": "the same command goes on",
}
"""By command that continues what a stopped training saved: how."""

EXTRAS = {
    "train": {"lightning", "tensorboard"},
    "vector": {"shapely", "pyogrio", "pyproj", "pyarrow"},
    "ray": {"ray"},
    "baselines": {"segmentation_models_pytorch"},
    "export": {"onnx", "onnx_ir", "onnxruntime", "onnxscript"},
    "serve": {"fastapi", "starlette", "uvicorn", "rio_tiler", "xstatic-leaflet"},
}
"""By extra, as in ``pip install 'caswit[EXTRA]'``: the modules that it brings."""

_QUIET = {
    "rasterio": logging.CRITICAL,  # what GDAL says is part of our errors
    "numexpr": logging.WARNING,  # says how many threads it has
    "pyogrio": logging.WARNING,
    "onnx_ir": logging.ERROR,  # these two say every number they put elsewhere
    "onnxscript": logging.ERROR,
    "lightning.fabric.utilities.distributed": logging.WARNING,  # every process says its number
    "lightning.fabric.utilities.rank_zero": logging.WARNING,  # these say their precision twice at every start;
    "lightning.pytorch.utilities.rank_zero": logging.WARNING,  # their parents set their own levels
}
"""Loggers of libraries and the level from which on they are heard."""


def usage() -> str:
    """Return the text of ``caswit --help``."""
    width = max(len(command.synopsis) for command in COMMANDS.values())
    lines = (f"  {c.synopsis:{width}}  {c.help[0].rstrip('.')}" for c in COMMANDS.values())
    return "\n".join(
        (
            "usage: caswit COMMAND ...\n",
            "Land-cover maps from aerial and satellite orthophotos of any size.\n",
            "commands:",
            *lines,
            "\ncaswit COMMAND --help says more. caswit --version prints the version.\n",
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; user errors are one line and exit status 2, bugs a traceback and status 1."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return
    if words[0] == "--version":
        print(f"caswit {__version__}")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # pictures are welcome
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    try:
        _run(words[0], words[1:])
    except CaswitError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _USERS:
            raise
        _fail(f"{error.filename or 'cannot write'}: {error.strerror}")
    except Stopped as stopped:
        _stop(words[0], stopped)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(name: str, words: Sequence[str]) -> None:
    command = COMMANDS.get(name)
    if command is None:
        raise CaswitError(f"no command {name!r}; commands are: {', '.join(COMMANDS)}{closest(name, COMMANDS)}")
    words = current_words(command, words)
    if command.reads_recipe:
        words = with_recipe(words, command.settings[0])
    settings, arguments = parse(command, words)
    try:
        command.run(*settings, **arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if missing in modules), None)
        if extra is None:
            raise
        raise CaswitError(f"{name} needs {missing}, which comes with: pip install 'caswit[{extra}]'") from error


def _stop(name: str, stopped: Stopped) -> None:
    """Say how to go on. Status 0 unless it was Ctrl-C, so that a job which saved in time may be queued again."""
    remedy = _GO_ON.get(name)
    if str(stopped):
        print(f"caswit: {stopped}{'; ' + remedy if remedy else ''}", file=sys.stderr)
    sys.exit(130 if stopped.interrupted else 0 if remedy else 128 + signal.SIGTERM)


def _end(*_: object) -> None:
    """Leave as after an exception, so that files written half are removed."""
    sys.exit(128 + signal.SIGTERM)


def _fail(message: str) -> None:
    print(f"caswit: {message}", file=sys.stderr)
    sys.exit(2)
