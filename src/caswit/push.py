"""Handing a model on: its folder with a model card, to the Hugging Face hub or to a folder."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caswit.checkpoint import CONFIG, PRETRAINED, WEIGHTS, config_errors, load_model, model_folder, read_config
from caswit.errors import ConfigError, DataError
from caswit.hub import PREFIX, upload
from caswit.pretrained import load_pretrained
from caswit.report import render

CARD = "README.md"


def push(
    model: Path, where: str, *, report: Path | None = None, license_name: str | None = None, private: bool = False
) -> str:
    """Put a model, its config and a card on the hub, or into a folder.

    Args:
        model: Model folder, trained or pretrained.
        where: owner/name on the hub; or a folder, which begins with a dot, a slash or a tilde.
        report: report.json of caswit evaluate, or its folder.
        license_name: For the card, e.g. cc-by-4.0.
        private: Make a new repository private.

    Returns:
        The address of the page, or the folder.

    Raises:
        CaswitError: The model or the report cannot be read, or the hub refuses.
    """
    folder = model_folder(model)
    config = _public_config(folder)
    (load_pretrained if config.get("kind") == PRETRAINED else load_model)(folder)  # what cannot be used is not sent
    name = where.removeprefix(PREFIX)
    local = name.startswith((".", "/", "~"))
    if not local and name.count("/") != 1:
        raise ConfigError(f"{where}: give owner/name on the hub, or a folder as ./name")
    card = model_card(config, Path(name).name if local else name, _read_report(report), license_name)
    if local:
        target = Path(name).expanduser()
        _fill(target, folder, config, card)
        return str(target)
    with tempfile.TemporaryDirectory() as scratch:
        _fill(Path(scratch), folder, config, card)
        return upload(Path(scratch), name, private=private, message=f"Upload {config['software']} model")


def model_card(
    config: Mapping[str, Any], name: str, report: Mapping[str, Any] | None, license_name: str | None = None
) -> str:
    """A page about a model, in Markdown, with the hub's tags.

    Args:
        config: What config.json says.
        name: owner/name.
        report: What report.json says, if there is one.
        license_name: Tag of the licence.
    """
    return render(
        "model_card.md.j2",
        **{key: config[key] for key in ("model", "tile", "bands", "gsd_m", "provenance")},
        name=name,
        classes=[c for c in config.get("classes", ()) if not c.get("ignore")],
        pretrained=config.get("kind") == PRETRAINED,
        report=report,
        license=license_name,
    )


def _public_config(folder: Path) -> dict[str, Any]:
    """The config without the folders of whoever trained the model."""
    with config_errors(folder / CONFIG):
        config = read_config(folder / CONFIG)
        recipe = config["provenance"].get("recipe", {})
        for section in (recipe.get("data"), recipe.get("init")):
            for key in ("dataset", "path"):
                if isinstance(section, dict) and isinstance(section.get(key), str):
                    section[key] = Path(section[key]).name
        if isinstance(recipe.get("init"), str) and not recipe["init"].startswith(PREFIX):
            recipe["init"] = Path(recipe["init"]).name
    return config


def _read_report(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    file = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = report["miou"], report["per_class"], report["evaluated"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: no report.json of caswit evaluate ({type(error).__name__})") from error
    return report


def _fill(target: Path, folder: Path, config: Mapping[str, Any], card: str) -> None:
    """Write what a repository holds; the config, which makes it a model folder, comes last."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / WEIGHTS, target / WEIGHTS)
    (target / CARD).write_text(card, encoding="utf-8")
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
