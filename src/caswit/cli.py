"""The command line. Commands are thin: they read settings and call the library, imported only then."""

import dataclasses
import errno
import logging
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from caswit.config import DemoConfig, EvaluateConfig, PredictConfig, Recipe
from caswit.errors import CaswitError
from caswit.version import __version__

T = TypeVar("T")
_USERS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}
"""Errors of the file system that are not our bugs: no permission, no room, a file in place of a folder."""

TRAIN_EXTRA = ("lightning", "tensorboard")
"""Modules that come with caswit[train]."""

USAGE = """usage: caswit COMMAND ...

Land-cover maps from aerial and satellite orthophotos of any size.

commands:
  demo                       train, score and map a synthetic landscape; writes a report
  train RECIPE --out DIR     train a model; DIR/model is the result
  evaluate MODEL DATASET     score a model on labelled scenes; writes a report
  predict IMAGE OUT.tif      map an image of any size
  info MODEL                 what a model is and expects

caswit COMMAND --help says more. caswit --version prints the version.
"""


def _train_parser() -> ArgumentParser:
    parser = _parser(
        "train",
        "Train a model from a recipe. Any field of the recipe can be given as --section.field VALUE.",
        usage="caswit train RECIPE --out DIR [--resume] [--section.field VALUE ...]",
    )
    parser.add_argument("--recipe", action="config", help="YAML file with the settings below (or first argument)")
    parser.add_argument("--out", type=str, required=True, help="run folder; its model/ is the result")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    parser.add_class_arguments(Recipe, fail_untyped=True)
    return parser


def _train(arguments: Namespace) -> None:
    from caswit.launch import is_first_process
    from caswit.train import train

    model = train(_instance(Recipe, arguments), Path(arguments.out), resume=arguments.resume)
    if is_first_process():
        print(f"model: {model}\nlog:   {model.parent / 'log.csv'}")


def _predict_parser() -> ArgumentParser:
    parser = _parser("predict", "Map the land cover of an image of any size.")
    parser.add_argument("image", type=str, help="RGB uint8 raster, any format GDAL reads")
    parser.add_argument("out", type=str, help="GeoTIFF to write, on the image's grid")
    parser.add_argument("--model", type=str, required=True, help="model folder")
    parser.add_class_arguments(PredictConfig)
    return parser


def _predict(arguments: Namespace) -> None:
    from caswit.predict import predict

    image, out, model = (Path(path) for path in (arguments.image, arguments.out, arguments.model))
    predict(image, out, model, _instance(PredictConfig, arguments))
    print(arguments.out)


def _evaluate_parser() -> ArgumentParser:
    parser = _parser("evaluate", "Score a model on labelled scenes; writes report.html, report.md and report.json.")
    parser.add_argument("model", type=str, help="model folder")
    parser.add_argument("dataset", type=str, help="dataset.yaml with labelled scenes")
    parser.add_argument("--split", default="test", help="split whose scenes are scored")
    parser.add_argument("--out", type=str, required=True, help="folder of the report")
    parser.add_class_arguments(EvaluateConfig)
    return parser


def _evaluate(arguments: Namespace) -> None:
    from caswit.evaluate import evaluate
    from caswit.metrics import score

    settings = _instance(EvaluateConfig, arguments)
    model, dataset, out = (Path(path) for path in (arguments.model, arguments.dataset, arguments.out))
    evaluation = evaluate(model, dataset, out, split=arguments.split, settings=settings)
    scores = score(evaluation.counts)
    print(f"mIoU {scores.miou:.4f}  mF1 {scores.mf1:.4f}  mBIoU {scores.mbiou:.4f} (band {evaluation.band_px} px)")
    print(f"overall accuracy {scores.overall_accuracy:.4f} over {evaluation.tiles} tiles")
    print(f"report: {out / 'report.html'}")


def _info_parser() -> ArgumentParser:
    parser = _parser("info", "Say what a model is, what it costs and what it expects.")
    parser.add_argument("model", type=str, help="model folder")
    return parser


def _info(arguments: Namespace) -> None:
    from caswit.info import describe

    print(describe(Path(arguments.model)))


def _demo_parser() -> ArgumentParser:
    parser = _parser("demo", "Train with and without context on drawn landscapes, score both, map one; a few minutes.")
    parser.add_argument("--out", type=str, default="demo", help="folder to write, or to continue in")
    parser.add_class_arguments(DemoConfig)
    return parser


def _demo(arguments: Namespace) -> None:
    from caswit.demo import demo

    result = demo(Path(arguments.out), _instance(DemoConfig, arguments))
    alone, seeing = result.context_miou.values()
    print(f"classes that only the surroundings decide: mIoU {alone:.3f} from tiles alone, {seeing:.3f} with context")
    alone, seeing = result.miou.values()
    print(f"all classes:                               mIoU {alone:.3f} from tiles alone, {seeing:.3f} with context")
    print(f"report: {result.report}\nmap:    {result.report.with_name('map.tif')}")


COMMANDS: dict[str, tuple[Callable[[], ArgumentParser], Callable[[Namespace], None]]] = {
    "demo": (_demo_parser, _demo),
    "train": (_train_parser, _train),
    "evaluate": (_evaluate_parser, _evaluate),
    "predict": (_predict_parser, _predict),
    "info": (_info_parser, _info),
}


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
    make_parser, command = COMMANDS[name]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # fields' docstrings are their help
    if name == "train" and words and not words[0].startswith("-"):
        words = ["--recipe", *words]
    for option, value in pairwise(words):
        if option == "--recipe":
            _check_recipe(Path(value))
    parser = make_parser()
    try:
        arguments = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise CaswitError(_plain(str(error))) from error
    try:
        command(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in TRAIN_EXTRA:
            raise
        raise CaswitError(f"{name} needs {missing}, which comes with: pip install 'caswit[train]'") from error


def _check_recipe(file: Path) -> None:
    """Raise CaswitError unless the file is YAML that has settings of a recipe in its sections."""
    if not file.is_file():
        raise CaswitError(f"{file}: no such recipe file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CaswitError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    sections: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Recipe)}
    _check_keys(f"{file}", content, {*sections, "out", "resume"})
    for name in content.keys() & sections:
        _check_keys(f"{file}: {name}", content[name], {field.name for field in dataclasses.fields(sections[name])})


def _check_keys(where: str, content: Any, allowed: set[str]) -> None:
    if not isinstance(content, dict):
        raise CaswitError(f"{where}: must be a mapping with some of {', '.join(sorted(allowed))}, got {content!r}")
    if unknown := sorted(map(str, content.keys() - allowed)):
        raise CaswitError(f"{where}: unknown {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}")


def _plain(message: str) -> str:
    """What jsonargparse says about an argument, in a user's words and one line."""
    text = " ".join(message.split())
    text = re.sub(r"Does not validate .* Subtypes: \[(.*?)\] Errors: .* Given value: ", r"expected \1, got ", text)
    text = re.sub(r"Expected an? (.*)\. Got value: ", r"expected \1, got ", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("NoneType", "null").replace("typing.Literal", "one of ")
    return re.sub(r'^Parser key "(.*?)": ', r"--\1: ", text)


def _parser(name: str, description: str, usage: str | None = None) -> ArgumentParser:
    prog = f"caswit {name}"
    # No abbreviations: a misspelt option must not be taken for another.
    return ArgumentParser(prog=prog, description=description, usage=usage, exit_on_error=False, allow_abbrev=False)


def _instance(kind: type[T], arguments: Namespace) -> T:
    """The settings of one dataclass out of everything that was parsed."""
    return kind(**{field.name: arguments[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def _fail(message: str) -> None:
    print(f"caswit: {message}", file=sys.stderr)
    sys.exit(2)
