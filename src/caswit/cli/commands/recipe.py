"""Recipe files: what they inherit, and their mistakes in a clear line before they are parsed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from caswit.cli.commands.parsing import plain_message
from caswit.config import Recipe, RowConfig
from caswit.config.renamed import with_new_names
from caswit.errors import CaswitError, ConfigError
from caswit.files import read_yaml

BASE, ROW = "base", "row"


def read_recipe(file: Path, kind: type = Recipe) -> dict[str, Any]:
    """What a recipe file says, with everything it inherits.

    ``base: ../base.yaml`` takes the settings of another recipe, or of several, later ones over earlier ones; paths are
    relative to the file that says so. What the file says itself replaces them field by field, and ``init`` as a
    whole. ``row`` is for ``caswit table``.

    Raises:
        CaswitError: A file is missing, is not YAML, has an unknown section or field, or bases go round in a circle.
    """
    return _read(file, kind, ())


def recipe_text(file: Path, kind: type = Recipe) -> str:
    """A recipe as one YAML text without what it inherits from or says to others, for a command's parser."""
    content = read_recipe(file, kind)
    content.pop(ROW, None)
    return yaml.safe_dump(content, sort_keys=False)


def parse_recipe(content: Mapping[str, Any], where: Path) -> Recipe:
    """The settings behind what ``read_recipe`` gave.

    Raises:
        ConfigError: A value is not allowed, or one is missing.
    """
    sections = {name: value for name, value in content.items() if name in _names(Recipe)}
    recipe: Recipe = _parse(Recipe, sections, where)
    return recipe


def parse_row(content: Mapping[str, Any], where: Path) -> RowConfig:
    """The row of a table that a recipe stands for; its file name where it says none."""
    row: RowConfig = _parse(RowConfig, {"name": where.stem, **content.get(ROW, {})}, where)
    return row


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of both; those of ``over`` replace others field by field, except ``init``, which is one value."""
    merged = dict(under)
    for name, value in over.items():
        mapping = name != "init" and isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if mapping else value
    return merged


def _read(file: Path, kind: type, includers: tuple[Path, ...]) -> dict[str, Any]:
    if not file.is_file():
        if includers:
            raise CaswitError(
                f"{includers[-1]}: base {file}: no such recipe file; a base is relative to the file that names it"
            )
        raise CaswitError(f"{file}: no such recipe file")
    if file.resolve() in [each.resolve() for each in includers]:
        chain = " -> ".join(str(each) for each in (*includers, file))
        raise CaswitError(f"{includers[0]}: bases go round in a circle ({chain}); take one base away")
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
        raise CaswitError(f"{file}: base must be a recipe or a list of them, got {bases!r}; try base: ../base.yaml")
    inherited: dict[str, Any] = {}
    for base in bases:
        inherited = merge(inherited, _read(file.parent / base, kind, (*includers, file)))
    return merge(inherited, content)


def _check(file: Path, content: Any, kind: type) -> None:
    """Raise CaswitError unless a file has settings of a recipe in its sections."""
    sections: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(kind) if dataclasses.is_dataclass(f.type)}
    sections[ROW] = RowConfig
    _check_keys(f"{file}", content, {*_names(kind), ROW, BASE, "out", "resume"})
    for name in content.keys() & sections:
        _check_keys(f"{file}: {name}", content[name], _names(sections[name]))


def _check_keys(where: str, content: Any, allowed: set[str]) -> None:
    if not isinstance(content, dict):
        raise CaswitError(f"{where}: must be a mapping with some of {', '.join(sorted(allowed))}, got {content!r}")
    if unknown := sorted(map(str, content.keys() - allowed)):
        raise CaswitError(f"{where}: unknown {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}")


def _names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _parse(kind: Any, content: Mapping[str, Any], where: Path) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "it", fail_untyped=True)
    try:
        return parser.instantiate(parser.parse_object({"it": dict(content)})).it
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except ArgumentError as error:
        raise ConfigError(f"{where}: {plain_message(str(error)).replace('--it.', '').replace('it.', '')}") from error
