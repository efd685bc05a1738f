"""Recipe files: read with what they inherit, and checked before they are parsed so that a mistake is one clear line."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from caswit.cli.parsing import Command, closest, is_boolean, plain_message, refuse_null
from caswit.config import ModelConfig, PhaseConfig, Recipe, RowConfig, TileConfig, parse_init
from caswit.config.renamed import with_new_names
from caswit.errors import CaswitError, ConfigError, brief, did_you_mean
from caswit.files import read_yaml

log = logging.getLogger(__name__)

BASE, ROW = "base", "row"
_OF_DATASETS = {"classes", "scenes", "source"}
"""What a recipe never holds and a dataset.yaml does."""
_WHOLE = ("init", "loss", "logit_adjustment")
"""Settings with fields that a recipe takes over as a whole."""


def read_recipe(file: Path, kind: type = Recipe) -> dict[str, Any]:
    """Return the settings of a recipe file, with everything it inherits.

    ``base: ../base.yaml`` takes the settings of another recipe, or of several, later ones over earlier ones; paths are
    relative to the file that names them. The file's own settings replace inherited ones field by field, ``init``,
    ``train.loss`` and ``train.logit_adjustment`` as a whole. ``row`` is for ``caswit table``.

    Raises:
        CaswitError: A file is missing, is not YAML, has an unknown section or field, or is its own base.
    """
    return _read(file, kind, ())


def check_recipe(file: Path) -> None:
    """Raise CaswitError if a recipe is not there."""
    if not file.is_file():
        beside = sorted(each.name for each in file.parent.glob("*.yaml"))
        raise CaswitError(f"{file}: no such recipe file{did_you_mean(file.name, beside)}")


def recipe_text(file: Path, kind: type = Recipe) -> str:
    """Return a recipe as one YAML text for a command's parser, with its bases merged in and without its row."""
    content = read_recipe(file, kind)
    content.pop(ROW, None)
    return yaml.safe_dump(content, sort_keys=False)


def with_recipe(words: Sequence[str], command: Command) -> list[str]:
    """Return the words of a command with its recipe file, wherever it stood, in front of them as YAML text."""
    kind, complete = command.settings[0], list(words)
    at = _place_of_recipe(words, _switches(command))
    if at is not None:
        complete.insert(at, "--recipe")
    front, rest = [], []
    following = iter(complete)
    for word in following:
        option, equals, file = word.partition("=")
        if option != "--recipe":
            rest.append(word)
        elif equals or (file := next(following, "")):
            # In front, because of two words about a setting the parser takes the later one.
            front.append(f"--recipe={recipe_text(Path(file), kind)}")
        else:
            rest.append(word)
    return [*front, *rest]


def _place_of_recipe(words: Sequence[str], switches: set[str]) -> int | None:
    """Return the place of the first word that is neither an option nor the value of one."""
    place = 0
    while place < len(words):
        word, following = words[place], words[place + 1 : place + 2]
        if not word.startswith("-"):
            return place
        takes_value = "=" not in word and (word not in switches or (following and is_boolean(following[0])))
        place += 2 if takes_value else 1
    return None


def _switches(command: Command) -> set[str]:
    """Return the options of a command with a recipe that need no value."""
    sections = [f for f in dataclasses.fields(command.settings[0]) if dataclasses.is_dataclass(f.type)]
    fields = {f"--{s.name}.{f.name}" for s in sections for f in dataclasses.fields(s.type) if f.type is bool}  # type: ignore[arg-type]
    return {"-h", "--help", *fields, *(name for name, options in command.arguments if options["type"] is bool)}


def inherited_defaults(said: Namespace) -> dict[str, Any]:
    """Return the settings of a training that follow from the weights it starts from, by name; to be its defaults.

    Args:
        said: What the words and the recipe of ``train`` or ``pretrain`` say, without defaults.

    Raises:
        CaswitError: ``init``, or the config of the model that it names, is wrong.
    """
    if said.get("init") is None:
        return {}
    from caswit.training.fabric import is_first_process
    from caswit.training.run_folder import RunFolder
    from caswit.weights.inherited import INHERITED, inherited_settings

    run = RunFolder(Path(said.out))
    # What the run began with is in its folder; what it started from may have changed since, or be gone.
    if said.get("resume") and run.last.is_file():
        return {name: value for name, value in run.settings().items() if name in INHERITED}
    start = parse_init(said.init)
    found = inherited_settings(start)
    usual = {"model": ModelConfig(), "tile": TileConfig()}
    news = []
    for name, value in found.items():
        section, _, field = name.partition(".")
        if name not in said and section in usual and value != getattr(usual[section], field):
            news.append(f"{name}={list(value) if isinstance(value, tuple) else value}")
    if news and is_first_process():
        log.info("init: as in %s, because the recipe does not say: %s", brief(start.path), ", ".join(news))
    return found


def parse_recipe(content: Mapping[str, Any], where: Path) -> Recipe:
    """Return the settings that ``read_recipe`` found as config classes.

    Raises:
        ConfigError: A value is not allowed, or one is missing.
    """
    sections = {name: value for name, value in content.items() if name in _names(Recipe)}
    if sections.get("init") is not None:
        from caswit.weights.inherited import inherited_settings

        followed: dict[str, Any] = {}
        for name, value in inherited_settings(parse_init(sections["init"])).items():
            section, _, field = name.partition(".")
            followed.setdefault(section, {})[field] = value
        sections = merge(followed, sections)
    recipe: Recipe = _parse(Recipe, sections, where)
    return recipe


def parse_row(content: Mapping[str, Any], where: Path) -> RowConfig:
    """Return the table row that a recipe describes, named after its file unless it has a name."""
    row: RowConfig = _parse(RowConfig, {"name": where.stem, **content.get(ROW, {})}, where)
    return row


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of both; those of ``over`` win, field by field, except where the fields are one thing."""
    merged = dict(under)
    for name, value in over.items():
        # Two descriptions of weights, or two sums, merged, would describe a third that nobody wrote.
        mapping = name not in _WHOLE and isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if mapping else value
    return merged


def _read(file: Path, kind: type, includers: tuple[Path, ...]) -> dict[str, Any]:
    if includers and not file.is_file():
        raise CaswitError(
            f"{includers[-1]}: base {file}: no such recipe file; a base is relative to the file that names it"
        )
    check_recipe(file)
    if file.resolve() in [each.resolve() for each in includers]:
        chain = " -> ".join(str(each) for each in (*includers, file))
        raise CaswitError(f"{includers[0]}: the recipe is its own base ({chain}); remove one base")
    content = read_yaml(file)
    if isinstance(content, dict):
        content = {
            name: with_new_names(name, section, str(file)) if isinstance(section, dict) else section
            for name, section in content.items()
        }
    _check(file, content, kind)
    bases = content.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise CaswitError(
            f"{file}: base must be a recipe or a list of them, got {brief(bases)}; try base: ../base.yaml"
        )
    inherited: dict[str, Any] = {}
    for base in bases:
        inherited = merge(inherited, _read(file.parent / base, kind, (*includers, file)))
    return merge(inherited, content)


def _check(file: Path, content: Any, kind: type) -> None:
    """Raise CaswitError if a file has sections or fields that recipes do not have."""
    sections: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(kind) if dataclasses.is_dataclass(f.type)}
    sections[ROW] = RowConfig
    if isinstance(content, dict) and content.keys() & _OF_DATASETS:
        raise CaswitError(
            f"{file}: describes a dataset and is no recipe; caswit recipe {file} --out RECIPE.yaml writes one for it"
        )
    _check_keys(f"{file}", content, {*_names(kind), ROW, BASE, "out", "resume"})
    for name in content.keys() & sections:
        _check_keys(f"{file}: {name}", content[name], _names(sections[name]))
    phases = content.get("train", {}).get("phases", [])
    if phases is None:
        return  # the parser says that of every setting
    if not isinstance(phases, list):
        raise CaswitError(f"{file}: train.phases must be a list, got {brief(phases)}; try [{{name: NAME, share: 1}}]")
    for phase in phases:
        _check_keys(f"{file}: train.phases", phase, _names(PhaseConfig))


def _check_keys(where: str, content: Any, allowed: set[str]) -> None:
    if not isinstance(content, dict):
        raise CaswitError(f"{where}: must be a mapping with some of {', '.join(sorted(allowed))}, got {brief(content)}")
    if unknown := sorted(map(str, content.keys() - allowed)):
        meant = closest(unknown[0], allowed)
        raise CaswitError(f"{where}: unknown {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}{meant}")


def _names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _parse(kind: Any, content: Mapping[str, Any], where: Path) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "it", fail_untyped=True)
    try:
        parsed = parser.parse_object({"it": dict(content)})
        refuse_null(parser, parsed)
        return parser.instantiate(parsed).it
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except ArgumentError as error:
        raise ConfigError(f"{where}: {plain_message(str(error)).replace('--it.', '').replace('it.', '')}") from error
