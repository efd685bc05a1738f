"""The command line: finds the command in the table, reads its words, runs it, and reports mistakes in one line.

Commands are thin: they hand settings to the library, which they import only when they run, so that help is instant.
"""

import contextlib
import errno
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence

from caswit import __version__
from caswit.cli.commands import COMMANDS
from caswit.cli.inputs import check_inputs
from caswit.cli.parsing import closest, current_words, parse, with_options
from caswit.cli.recipe import inherited_defaults, with_recipe
from caswit.cli.signals import quiet_end
from caswit.errors import CaswitError, ConfigError, Stopped, brief, naming_extras, one_line

_OURS = {errno.EBADF, errno.EINVAL, errno.EFAULT, errno.ECHILD, errno.ENOTSOCK}
"""Errors of the system that a program makes by itself; all others are what files, disks, limits and networks say."""
_MOST_SAID = 2000
"""Characters of an error: a path may be of any length."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_HINTS = {errno.EMFILE: "; try: ulimit -n 4096", errno.EFBIG: "; ulimit -f says how large a file may be"}

_GO_ON = {"train": "--resume", "pretrain": "--resume", "finetune": None, "table": None}
"""Commands that save when they are stopped, and the option by which the same command goes on."""
_KEEP = {"predict": "finished blocks are kept", "demo": "finished steps are kept", "prepare": "finished files stay"}
"""Commands that go on by themselves, and what they have when they end at any moment."""
_LONGEST = 500
"""Characters of a command that is worth repeating: a shell may have written ten thousand names of files into it."""

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
    try:
        with _saying_how_to_go_on(words), quiet_end():
            _run(words[0], words[1:])
    except Stopped as stopped:
        _stop(words, stopped)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # as of caswit info | head: nobody reads what is left, and Python would say so at its end
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except Exception as error:
        said = _users_fault(error, words)
        if said is None:
            raise
        # One line whatever it holds: names of files may have line ends, and are not ours.
        print(f"caswit: {one_line(said, _MOST_SAID)}", file=sys.stderr)
        sys.exit(2)


def _users_fault(error: Exception, words: Sequence[str]) -> str | None:
    """Return what a user can do about an error, or None if it is our bug."""
    match error:
        case CaswitError():
            return str(error)
        case OSError(errno=int(number)) if number not in _OURS:
            hint = _HINTS.get(number, "")
            if number in _FULL:
                hint = "; make room and try again"
                if words[0] in _KEEP or words[0] in _GO_ON:
                    hint = f"; make room, then {_again(words, _GO_ON.get(words[0]))}"
            return f"{error.filename or 'cannot write'}: {error.strerror}{hint}"
        case MemoryError() | RuntimeError() if _is_out_of_memory(error):
            return f"not enough memory ({one_line(error, 200)}); try smaller images or settings, e.g. --batch 1"
        case RecursionError():
            return "a value is nested too deeply; write it in fewer levels"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    # torch has no MemoryError: it names its own class on a GPU, and its allocator in a RuntimeError on a CPU.
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, MemoryError) or "OutOfMemoryError" in names or "DefaultCPUAllocator" in str(error)


def _run(name: str, words: Sequence[str]) -> None:
    command = COMMANDS.get(name)
    if command is None:
        raise CaswitError(f"no command {brief(name)}; commands are: {', '.join(COMMANDS)}{closest(name, COMMANDS)}")
    words = current_words(command, words)
    if command.reads_recipe:
        words = with_recipe(words, command)
    try:
        with naming_extras(name):
            # Settings that follow from weights are looked up with what trains, an extra.
            settings, arguments = parse(command, words, inherited_defaults if command.reads_recipe else None)
            check_inputs(settings, arguments)
            command.run(*settings, **arguments)
    except ConfigError as error:
        raise ConfigError(with_options(str(error), command)) from error


def _stop(words: Sequence[str], stopped: Stopped) -> None:
    """Say how to go on. Status 0 unless it was Ctrl-C, so that a job which saved in time may be queued again."""
    name = words[0]
    if str(stopped):
        print(f"caswit: {stopped}{'; ' + _again(words, _GO_ON[name]) if name in _GO_ON else ''}", file=sys.stderr)
    sys.exit(130 if stopped.interrupted else 0 if name in _GO_ON else 128 + signal.SIGTERM)


@contextlib.contextmanager
def _saying_how_to_go_on(words: Sequence[str]) -> Iterator[None]:
    """Say it if a signal ends a command that can be repeated."""
    try:
        yield
    except SystemExit as end:
        if end.code in (128 + signal.SIGINT, 128 + signal.SIGTERM) and words[0] in _KEEP:
            print(f"caswit: stopped; {_KEEP[words[0]]}; {_again(words)}", file=sys.stderr)
        raise


def _again(words: Sequence[str], option: str | None = None) -> str:
    """Return how to go on: the command to repeat, with an option more, and without --restart, which begins anew."""
    # With its value, if it has one: --restart true.
    dropped = {i for i, word in enumerate(words) if word.partition("=")[0] == "--restart"}
    dropped |= {i + 1 for i in dropped if "=" not in words[i] and words[i + 1 : i + 2] == ["true"]}
    kept = [word for i, word in enumerate(words) if i not in dropped]
    command = shlex.join(["caswit", *kept, *([option] if option and option not in kept else [])])
    if len(command) > _LONGEST:
        return f"the same command{f' with {option}' if option else ''} goes on"
    return f"go on with: {command}"
