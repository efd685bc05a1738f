"""The description of a map: tags inside it, and beside it a STAC item that describes map and model."""

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from caswit import __version__
from caswit.data.classes import ClassTable
from caswit.mapping.plan import MapPlan
from caswit.raster.cog import NODATA
from caswit.raster.vrt import Band, TableRow
from caswit.weights.model_folder import WEIGHTS, LoadedModel

_SCHEMAS = ("mlm/v1.4.0", "classification/v2.0.0", "projection/v2.0.0", "processing/v1.2.0", "file/v2.1.0")
_EXTENSIONS = [f"https://stac-extensions.github.io/{name}/schema.json" for name in _SCHEMAS]
_BANDS = ("red", "green", "blue")
_SHA256 = "1220"
"""The first two bytes of a multihash: the algorithm and its length of 32 bytes."""


def tags(plan: MapPlan, loaded: LoadedModel) -> dict[str, str]:
    """Return the tags that say where a map comes from, every setting that changes it among them."""
    facts = {"model": loaded.name, "model_sha256": loaded.digest, "image": Path(plan.title).name, **plan.facts()}
    return {
        "TIFFTAG_SOFTWARE": f"caswit {__version__}",
        "TIFFTAG_DATETIME": datetime.datetime.now().strftime("%Y:%m:%d %H:%M:%S"),
        **{f"CASWIT_{name.upper()}": _text(value) for name, value in facts.items() if value is not None},
    }


def _text(value: Any) -> str:
    """Write a setting as one would on the command line: 0.5, false, 1 2 3."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def class_band(table: ClassTable) -> Band:
    """Describe the band of class ids: palette, names, and a table of both."""
    return Band(
        source=1,
        name="land cover class",
        palette={c.id: c.rgb for c in table.mapped},
        tags={f"CLASS_{c.id}": c.name for c in table.mapped},
        table=[TableRow(c.id, c.name, (*c.rgb, 0 if c.is_background else 255)) for c in table.mapped],
    )


def stac_item(out: Path, plan: MapPlan, loaded: LoadedModel, others: Mapping[str, Path]) -> bytes:
    """Write the STAC item of the map and the files beside it; its properties describe the settings and the model."""
    grid = plan.grid
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    bands = [{"name": name} for name in loaded.info.model.band_names]
    properties: dict[str, Any] = {
        "datetime": now,
        "created": now,
        "processing:software": {"caswit": __version__},
        "bands": bands,
        "proj:shape": [grid.height, grid.width],
        "proj:transform": [round(v, 9) for v in grid.matrix.flatten().tolist()],
        "proj:wkt2": grid.crs.to_wkt(version="WKT2_2019") if grid.crs else None,
        "caswit:settings": {name: value for name, value in plan.facts().items() if value is not None},
        **_model(loaded),
    }
    assets = {
        "map": {
            "href": f"./{out.name}",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data"],
            "classification:classes": _classes(loaded.info.classes),
            "nodata": NODATA,
        },
        **{name: {"href": f"./{file.name}", "roles": ["data"]} for name, file in others.items()},
        "model": {
            "href": str(Path(plan.model) / WEIGHTS),
            "type": "application/octet-stream; framework=pytorch",
            "roles": ["mlm:model"],
            "mlm:artifact_type": "safetensors",
            "bands": bands,  # with those of the properties, which are allowed only where an asset has some
            "file:checksum": _SHA256 + loaded.digest,
        },
    }
    bounds = grid.degrees
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": _EXTENSIONS,
        "id": out.stem,
        "geometry": _rectangle(*bounds) if bounds else None,
        **({"bbox": list(bounds)} if bounds else {}),
        "properties": properties,
        "assets": assets,
        "links": [],
    }
    return (json.dumps(item, indent=2) + "\n").encode()


def _model(loaded: LoadedModel) -> dict[str, Any]:
    info, model, tile = loaded.info, loaded.info.model, loaded.info.tile.tile_px
    bands = model.band_names
    tasks, order = ["semantic-segmentation"], ["batch", "channel", "height", "width"]
    pixels = {"shape": [-1, len(bands), tile, tile], "dim_order": order, "data_type": "uint8"}
    shape = [-1, len(info.classes), tile, tile]
    result = {"shape": shape, "dim_order": ["batch", "class", "height", "width"], "data_type": "float32"}
    normalisation = zip(*model.normalisation(), strict=True)
    scaling = [{"type": "z-score", "mean": mean, "stddev": std} for mean, std in normalisation]
    stretched = [f"{n} {r[0]:g} to {r[1]:g}" for n, r in zip(bands, model.ranges, strict=False) if r is not None]
    before = f"; 0 to 255 are made of {', '.join(stretched)}" if stretched else ""
    inputs = {"tile": f"the tile to be mapped{before}"}
    if loaded.network.reads_context:
        for factor in (factors := info.tile.context_factors):
            name = "context" if len(factors) == 1 else f"context {factor}"
            inputs[name] = f"the area around it, {factor} times its side, averaged to its size{before}"
    classes = {"classification:classes": _classes(info.classes)}
    return {
        "mlm:name": "caswit-" + re.sub(r"[^a-zA-Z0-9]+", "-", loaded.name.removeprefix("caswit-")).strip("-"),
        "mlm:architecture": model.title,
        "mlm:tasks": tasks,
        "mlm:framework": "PyTorch",
        "mlm:framework_version": torch.__version__,
        "mlm:total_parameters": sum(p.numel() for p in loaded.network.parameters()),
        "mlm:input": [
            {
                "name": name,
                "description": text,
                "bands": list(bands),
                "input": pixels,
                "value_scaling": scaling,
            }
            for name, text in inputs.items()
        ],
        "mlm:output": [{"name": "classes", "tasks": tasks, "result": result, **classes}],
        **({"mlm:hyperparameters": {"gsd_m": info.trained_gsd_m}} if info.trained_gsd_m else {}),
    }


def _classes(table: ClassTable) -> list[dict[str, Any]]:
    # The schema allows no blanks in a name; the description has the name as the table writes it.
    names = [(c, re.sub(r"[^a-zA-Z0-9_-]+", "_", c.name)) for c in table.mapped]
    return [{"value": c.id, "name": n, "description": c.name, "color_hint": c.color[1:].upper()} for c, n in names]


def _rectangle(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}
