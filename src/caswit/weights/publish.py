"""Publish a model with its model card, on the Hugging Face hub or in a folder."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from caswit.config import ModelConfig
from caswit.config.renamed import with_new_names
from caswit.errors import ConfigError, brief
from caswit.files import atomic_path, checked, read_json, read_yaml
from caswit.raster.ground import Degrees
from caswit.viz.pages import render
from caswit.weights.hub import PREFIX, upload
from caswit.weights.int8 import ABOUT as INT8_ABOUT
from caswit.weights.int8 import PARTS as INT8_PARTS
from caswit.weights.model_folder import (
    CONFIG,
    PRETRAINED,
    WEIGHTS,
    config_errors,
    load_model,
    load_pretrained,
    model_folder,
    read_config,
)
from caswit.weights.summary import averaged_with_start, started_from

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class About:
    """Statements of a model's maker for its card, from a YAML file."""

    summary: str
    """Line that says what the model maps."""
    gsd_m: tuple[float, float]
    """Lowest and highest ground size of a pixel that it is meant for, in metres."""
    read_gsd_m: float
    """Ground size in metres that images are resampled to while they are read, if they say theirs."""
    data: str
    """Training data and licences, in Markdown."""
    training: str
    """Recipes, seed, commands and what they cost, in Markdown."""
    limits: str
    """Uses that the model is not good for, in Markdown."""
    pictures: Mapping[str, str]
    """Captions of pictures, by the name of a file beside the YAML file."""
    sample: str
    """Name of a file beside the YAML file: an image of the kind the model is for."""
    sample_gsd_m: float
    """Ground size of the sample's pixels, in metres."""
    place: Sequence[str] = ()
    """Name of the place that the training images show, for the end of ``caswit predict``, or of each region; in the
    YAML file one or a list."""
    area: Sequence[Degrees] = ()
    """West, south, east and north of the training images in degrees, of each region; in the YAML file one or a list."""


def read_about(file: Path) -> About:
    """Read the statements of a model's maker.

    Raises:
        ConfigError: Something is missing or unknown, or a picture does not exist.
    """
    content = read_yaml(file)
    content = with_new_names("about", content, str(file)) if isinstance(content, dict) else {}
    names = {f.name for f in fields(About) if f.default is MISSING}
    if set(content) - {"place", "area"} != names:
        raise ConfigError(f"{file}: must have exactly {', '.join(sorted(names))}; place and area may be there too")
    for name in (names | content.keys()) - {"gsd_m", "read_gsd_m", "pictures", "sample_gsd_m", "place", "area"}:
        if not isinstance(content[name], str):
            raise ConfigError(f"{file}: {name} must be text, got {brief(content[name])}")
    gsd_m, pictures = content["gsd_m"], content["pictures"]
    numbers = isinstance(gsd_m, list) and len(gsd_m) == 2 and all(isinstance(x, int | float) for x in gsd_m)
    if not numbers or not 0 < gsd_m[0] <= gsd_m[1]:
        raise ConfigError(f"{file}: gsd_m must be two numbers of metres, the lower one first, got {brief(gsd_m)}")
    if not isinstance(pictures, dict):
        raise ConfigError(f"{file}: pictures must be files and their captions, got {brief(pictures)}")
    for name in ("read_gsd_m", "sample_gsd_m"):
        if not isinstance(content[name], int | float) or not gsd_m[0] <= content[name] <= gsd_m[1]:
            raise ConfigError(f"{file}: {name} must be metres within gsd_m, got {brief(content[name])}")
    areas = _areas(content.get("area"), file)
    places = _places(content.get("place"), len(areas), file)
    for name in (*pictures, content["sample"]):
        if Path(name).name != name or not file.with_name(name).is_file():
            raise ConfigError(f"{file}: {name} is not in the same folder")
    return About(**content | {"gsd_m": tuple(gsd_m), "place": places, "area": areas})


def _places(said: Any, areas: int, file: Path) -> list[str]:
    """Return one name or several as a list."""
    places = checked(list[str], [said] if isinstance(said, str) else said or [], f"{file}: place")
    if len(places) not in (0, 1, areas):
        raise ConfigError(f"{file}: place must be one name, or one for each area, got {len(places)} for {areas} areas")
    return places


def _areas(said: Any, file: Path) -> list[Degrees]:
    """Return one area or several as a list."""
    if said is None:
        return []
    several = isinstance(said, list) and bool(said) and isinstance(said[0], list)
    areas = checked(list[Degrees], said if several else [said], f"{file}: area")
    for west, south, east, north in areas:
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise ConfigError(f"{file}: area must be west, south, east, north in degrees, got {brief(said)}")
    return areas


def push(
    model: Path,
    where: str,
    *,
    report: Path | None = None,
    about: Path | None = None,
    half: bool = False,
    license_name: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """Publish a model, its config and a card on the hub or in a folder.

    Args:
        model: Model folder, trained or pretrained.
        where: owner/name on the hub, or hf:owner/name where ``owner`` is a folder here; or a folder, which begins with
            a dot, a slash or a tilde.
        report: report.json of caswit evaluate, or its folder.
        about: YAML file with the fields of ``About``, for the card and for ``caswit models``.
        half: Store floating-point weights in 16 bits: half the size. Readers widen them again.
        license_name: For the card, e.g. cc-by-4.0.
        private: Make a new repository private.
        overwrite: Replace the model that a folder holds.

    Returns:
        The address of the page, or the folder.

    Raises:
        CaswitError: The model or the report cannot be read, the folder holds a model, or the hub refuses.
    """
    folder = model_folder(model)
    config = public_config(folder)
    (load_pretrained if config.get("kind") == PRETRAINED else load_model)(folder)  # refuses what cannot be used
    name = where.removeprefix(PREFIX)
    local = name.startswith((".", "/", "~"))
    if not local and name.count("/") != 1:
        raise ConfigError(f"{where}: give owner/name on the hub, or a folder as ./name")
    if not local and name == where and Path(name).parent.is_dir():
        raise ConfigError(f"{where}: a folder here, or a name on the hub? write ./{name}, or {PREFIX}{name}")
    there = [file for file in (CARD, CONFIG, WEIGHTS) if local and (Path(name).expanduser() / file).exists()]
    if there and not overwrite:
        raise ConfigError(f"{where}: holds {', '.join(there)} already; give another folder, or add --overwrite")
    if report is None and about is None and license_name is None and (folder / CARD).is_file():
        # It has a card already: licence, scores and limits go with the weights.
        card = (folder / CARD).read_text(encoding="utf-8")
        # Eight-bit weights are made for the tiles and the processor at hand, and downloads leave them out.
        others = CARD, CONFIG, WEIGHTS, INT8_ABOUT, *INT8_PARTS
        beside = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name not in others]
    else:
        said, beside = None, []
        if about is not None:
            said = read_about(about)
            beside = [about.with_name(picture) for picture in {*said.pictures, said.sample}]
            kept = ("summary", "gsd_m", "sample", "sample_gsd_m")
            config["about"] = {key: getattr(said, key) for key in kept}
            if said.place or said.area:
                config["provenance"]["learned"] = {
                    "name": ", and ".join(said.place) or None,
                    **({"names": [*said.place]} if len(said.place) > 1 else {}),
                    "areas": [list(area) for area in said.area],
                }
            config["trained_gsd_m"] = config["tile"]["read_gsd_m"] = said.read_gsd_m
        scores = _read_report(report)
        if scores is not None and "confidence" in scores:
            # Beside which the end of a map puts the confidence that it has.
            config["provenance"]["validation_confidence"] = scores["confidence"]
        if scores is not None and "context_report" in scores:
            # By which a map decides whether to blend its tiles.
            kinds = scores["context_report"]
            config["provenance"]["context_report"] = {
                kind: round(kinds[kind]["miou_truth"], 4) for kind in ("own", "masked", "swapped")
            }
        card = model_card(config, Path(name).name if local else name, scores, license_name, said)
    with nullcontext(name) if local else tempfile.TemporaryDirectory() as written:
        target = Path(written).expanduser()
        _fill(target, folder, config, card, beside, half)
        if local:
            return str(target)
        return upload(target, name, private=private, message=f"Upload {config['software']} model")


def model_card(
    config: Mapping[str, Any],
    name: str,
    report: Mapping[str, Any] | None,
    license_name: str | None = None,
    about: About | None = None,
) -> str:
    """Render a model card in Markdown, with the hub's tags.

    Args:
        config: Content of config.json.
        name: owner/name, or the name of the folder.
        report: Content of report.json, if there is one.
        license_name: Tag of the licence.
        about: Statements of the model's maker.
    """
    model = checked(ModelConfig, config["model"], "model")
    layout = {name.casefold() for name in config.get("layout") or ()}
    # Where nothing but names is known, they may be those of bands or of rasters.
    known = bool(layout) or any(isinstance(band, int) for band in config["bands"])
    apart = [band for band in config["bands"] if known and isinstance(band, str) and band.casefold() not in layout]
    return render(
        "model_card.md.j2",
        network=model.encoder_title if config.get("kind") == PRETRAINED else model.title,
        reads_context=model.reads_context,
        model=model,
        **{key: config[key] for key in ("tile", "trained_gsd_m", "provenance")},
        bands=[band for band in config["bands"] if band not in apart],
        band_names=[name for name in model.band_names if name not in apart],
        apart=apart,
        stretched=[
            f"{band} {pair[0]:g} to {pair[1]:g}"
            for band, pair in zip(model.band_names, model.ranges, strict=False)  # ranges may be empty
            if pair is not None
        ],
        name=name,
        classes=[c for c in config.get("classes", ()) if not c.get("ignore")],
        pretrained=config.get("kind") == PRETRAINED,
        averaged=averaged_with_start(config["provenance"]),
        start=started_from(config["provenance"]),
        report=report,
        license=license_name,
        about=about,
    )


def public_config(folder: Path) -> dict[str, Any]:
    """Read a model's config and remove the folders on the disk of whoever trained it."""
    with config_errors(folder / CONFIG):
        config = read_config(folder / CONFIG)
        recipe = config["provenance"].get("recipe", {})
        for section in (recipe.get("data"), recipe.get("init")):
            for key in ("dataset", "path"):
                if isinstance(section, dict) and isinstance(section.get(key), str):
                    if section[key].startswith(PREFIX):
                        continue
                    section[key] = Path(section[key]).name
        if isinstance(recipe.get("init"), str) and not recipe["init"].startswith(PREFIX):
            recipe["init"] = Path(recipe["init"]).name
    return config


def _read_report(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    file = path / "report.json" if path.is_dir() else path
    remedy = "give the report.json of caswit evaluate, or its folder"
    report: dict[str, Any] = checked(dict[str, Any], read_json(file), str(file), remedy)
    # Reports of all versions have these; the card takes what else there is.
    for name, kind in (("miou", float), ("per_class", dict[str, Any]), ("evaluated", dict[str, Any])):
        checked(kind, report.get(name), f"{file}: {name}", remedy)
    return report


def _fill(target: Path, folder: Path, config: Mapping[str, Any], card: str, beside: Sequence[Path], half: bool) -> None:
    """Write all files of a repository; the config, which makes it a model folder, comes last."""
    target.mkdir(parents=True, exist_ok=True)
    with atomic_path(target / WEIGHTS) as partial:
        if half:
            weights = load_file(folder / WEIGHTS)
            save_file({name: x.half() if x.is_floating_point() else x for name, x in weights.items()}, partial)
        else:
            shutil.copyfile(folder / WEIGHTS, partial)
        partial.chmod(0o644)  # safetensors writes files that only their owner can read
    for file in beside:
        if file.resolve() != (target / file.name).resolve():  # the YAML file may lie in the folder that is made
            shutil.copyfile(file, target / file.name)
    (target / CARD).write_text(card, encoding="utf-8")
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
