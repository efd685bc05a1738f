"""Recipe files, looked at before they are parsed: their mistakes get a clear line."""

import dataclasses
from pathlib import Path
from typing import Any

from caswit.config import Recipe
from caswit.errors import CaswitError
from caswit.files import read_yaml


def check_recipe(file: Path, kind: type = Recipe) -> None:
    """Raise CaswitError unless the file is YAML that has settings of a recipe in its sections."""
    if not file.is_file():
        raise CaswitError(f"{file}: no such recipe file")
    content = read_yaml(file)
    sections: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(kind) if dataclasses.is_dataclass(f.type)}
    _check_keys(f"{file}", content, {*(f.name for f in dataclasses.fields(kind)), "out", "resume"})
    for name in content.keys() & sections:
        _check_keys(f"{file}: {name}", content[name], {field.name for field in dataclasses.fields(sections[name])})


def _check_keys(where: str, content: Any, allowed: set[str]) -> None:
    if not isinstance(content, dict):
        raise CaswitError(f"{where}: must be a mapping with some of {', '.join(sorted(allowed))}, got {content!r}")
    if unknown := sorted(map(str, content.keys() - allowed)):
        raise CaswitError(f"{where}: unknown {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}")
