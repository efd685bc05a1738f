"""Which files a map may replace: those that caswit wrote, and no others unless it is told to."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from caswit.cli.main import main
from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.errors import ConfigError
from caswit.mapping.own_files import may_replace
from caswit.mapping.run import predict
from conftest import georeference

pytestmark = pytest.mark.e2e

EXACT = PredictConfig(precision="fp32", batch=1, device="cpu")
STYLE_OF_QGIS = (
    "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    '<qgis hasScaleBasedVisibilityFlag="0" styleCategories="AllStyleCategories" version="3.34.4-Prizren">\n'
    "  <pipe>\n</pipe></qgis>\n"
)


@pytest.fixture
def path(make_raster, image) -> Path:
    return make_raster(image[:, :40, :50], **georeference())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_forgotten_output_overwrites_no_image(make_raster, image, path, model_folder, tmp_path, capsys):
    """The last of three images was taken for the map, and its style for the map's."""
    for name in ("b.tif", "c.tif"):
        make_raster(image, name, **georeference())
    (tmp_path / "c.qml").write_text(STYLE_OF_QGIS)
    before = contents(tmp_path)
    words = [str(tmp_path / name) for name in ("image.tif", "b.tif", "c.tif")]
    with pytest.raises(SystemExit) as stop:
        main(["predict", *words, "--model", str(model_folder)])
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert "c.tif: exists, and caswit did not write it; give another name for the map" in said
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("name", "content"), [("ortho.qml", STYLE_OF_QGIS), ("ortho.stac.json", '{"properties": {}}')])
def test_what_lies_beside_an_image_is_kept(make_raster, image, model_folder, tmp_path, name, content):
    """ortho.tiff shares its style and its item with ortho.tif."""
    path = make_raster(image, "ortho.tif", **georeference())
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"{name}: exists, and caswit did not write it"):
        predict(path, tmp_path / "ortho.tiff", model_folder, EXACT)
    assert set(contents(tmp_path)) == {"ortho.tif", name}
    predict(path, tmp_path / "ortho.tiff", model_folder, EXACT, run=MapRunConfig(overwrite=True))
    assert (tmp_path / name).read_text() != content


@pytest.mark.parametrize("kind", [".gpkg", ".parquet", ".geojson"])
def test_its_own_files_are_replaced_and_no_others(path, model_folder, tmp_path, kind):
    names = {"confidence": "c.tif", "probabilities": "p.tif", "vector": f"v{kind}"}
    outputs = OutputConfig(**{what: str(tmp_path / name) for what, name in names.items()})
    out = tmp_path / "map.tif"
    for _ in range(2):  # a finished map is computed again by the same call
        predict(path, out, model_folder, EXACT, outputs)
    own = [out, tmp_path / "map.qml", tmp_path / "map.stac.json", *(tmp_path / name for name in names.values())]
    assert all(may_replace(file, out) for file in own)
    (tmp_path / "map.qml").write_text(STYLE_OF_QGIS)
    assert may_replace(tmp_path / "map.qml", out)  # changed in QGIS, beside our map
    for name in names.values():
        file = tmp_path / name
        file.write_bytes(b"somebody's work")
        with pytest.raises(ConfigError, match=f"{name}: exists, and caswit did not write it"):
            predict(path, out, model_folder, EXACT, outputs)
        assert file.read_bytes() == b"somebody's work"
        file.unlink()


def test_files_of_version_010_are_its_own(path, tmp_path):
    """Beside an interrupted run the map is missing yet: each file has to say by itself whose it is."""
    out = tmp_path / "map.tif"
    with rasterio.open(path) as src, rasterio.open(out, "w", **src.profile) as dst:
        dst.update_tags(CASWIT_MODEL="town", TIFFTAG_SOFTWARE="caswit 0.1.0")
    assert may_replace(out, out)
    out.unlink()
    (tmp_path / "map.qml").write_text(
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis styleCategories="Symbology" version="3.28"><pipe>'
        '<rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">'
        "<colorPalette></colorPalette></rasterrenderer></pipe></qgis>\n"
    )
    item = {"type": "Feature", "properties": {"processing:software": {"caswit": "0.1.0"}}}
    (tmp_path / "map.stac.json").write_text(json.dumps(item))
    (tmp_path / "v.geojson").write_text('{"type": "FeatureCollection", "features": [\n]}\n')
    (tmp_path / "empty.tif").touch()
    for name in ("map.qml", "map.stac.json", "v.geojson", "empty.tif", "missing.tif"):
        assert may_replace(tmp_path / name, out)


def test_polygons_that_somebody_added_to_are_kept(path, model_folder, tmp_path):
    import pyogrio

    file = tmp_path / "v.gpkg"
    outputs = OutputConfig(vector=str(file))
    predict(path, tmp_path / "map.tif", model_folder, EXACT, outputs)
    pyogrio.write_dataframe(pyogrio.read_dataframe(file, layer="landcover").head(1), file, layer="checked", append=True)
    with pytest.raises(ConfigError, match=r"v\.gpkg: exists, and caswit did not write it"):
        predict(path, tmp_path / "map.tif", model_folder, EXACT, outputs)


def test_a_source_of_an_input_is_an_input(path, model_folder, tmp_path):
    """Even caswit's own maps, and even if told to overwrite: a map cannot be made from itself."""
    out = tmp_path / "map.tif"
    predict(path, out, model_folder, EXACT)
    for name, source in (("inner.vrt", out), ("outer.vrt", tmp_path / "inner.vrt")):
        rasterio.shutil.copy(source, tmp_path / name, driver="VRT")
    (tmp_path / "outer.vrt").write_text((tmp_path / "inner.vrt").read_text().replace(">map.tif<", ">inner.vrt<"))
    assert "inner.vrt" in (tmp_path / "outer.vrt").read_text()
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r"map\.tif: is an input image"):
        predict(tmp_path / "outer.vrt", out, model_folder, EXACT, run=MapRunConfig(overwrite=True))
    assert out.read_bytes() == before


def test_a_file_that_appears_meanwhile_is_kept(path, model_folder, tmp_path, monkeypatch):
    """Its blocks are kept: with --overwrite the same call ends."""
    from caswit.mapping import run as module

    out = tmp_path / "map.tif"
    original = module._map_blocks
    monkeypatch.setattr(module, "_map_blocks", lambda *a: (original(*a), out.write_bytes(b"somebody's work")))
    with pytest.raises(ConfigError, match=r"map\.tif: exists"):
        predict(path, out, model_folder, EXACT)
    assert out.read_bytes() == b"somebody's work"
    assert (tmp_path / "map.tif.parts" / "0000000.tif").exists()
    predict(path, out, model_folder, EXACT, run=MapRunConfig(overwrite=True))
    with rasterio.open(out) as found:
        assert (found.read(1) != 255).all()


@pytest.mark.parametrize("kind", ["vector", "confidence"])
def test_a_folder_that_cannot_be_written_to_is_found_first(path, model_folder, tmp_path, monkeypatch, kind):
    """It showed after all blocks were computed; a name that is too long fails for root too."""
    file = tmp_path / ("x" * 245 + {"vector": ".gpkg", "confidence": ".tif"}[kind])
    monkeypatch.setattr("caswit.mapping.run.make_plan", None)  # nothing is begun
    with pytest.raises(ConfigError, match=r"cannot be written .*; give another name or folder"):
        predict(path, tmp_path / "map.tif", model_folder, EXACT, OutputConfig(**{kind: str(file)}))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_empty_map_is_no_loss(path, model_folder, tmp_path):
    (tmp_path / "map.tif").touch()
    predict(path, tmp_path / "map.tif", model_folder, EXACT)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert np.isin(found.read(1), [1, 2, 7]).all()
