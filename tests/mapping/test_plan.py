"""The plan of a map: what is resolved once, and who follows it."""

import json
import pickle
from dataclasses import field, make_dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.config.checks import KEEPS_MAP
from caswit.errors import ConfigError
from caswit.mapping.journal import read_manifest
from caswit.mapping.local import LocalEngine
from caswit.mapping.partial_map import read_partial_map
from caswit.mapping.plan import fingerprint, make_plan
from caswit.mapping.run import predict
from caswit.raster import polygons
from caswit.raster.reader import Raster
from caswit.weights.model_folder import load_model
from conftest import georeference

EXACT = {"precision": "fp32", "batch": 1, "device": "cpu"}
MATCHED = PredictConfig(**EXACT, block_px=64, gsd_m=0.3, match_gsd=True)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read()


def plan_of(path: Path, model, settings: PredictConfig):
    return make_plan([str(path)], model and str(model), settings, OutputConfig(), MapRunConfig())[0]


@pytest.fixture
def path(make_raster, image) -> Path:
    """An image that says 0.5 m, as the model of the tests was trained on. Its name is like one of a second download."""
    return make_raster(image, "scene (1).tif", **georeference(0.5))


@pytest.fixture
def interrupted(path, model_folder, tmp_path, monkeypatch) -> Path:
    """The folder of parts of a run that ended after four blocks."""
    run = LocalEngine.run

    def run_four(self, todo, journal):
        yield from islice(run(self, todo, journal), 4)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "run", run_four)
        with pytest.raises(KeyboardInterrupt):
            predict(path, tmp_path / "map.tif", model_folder, replace(MATCHED, fill="black", blend=False))  # as 0.1.0
    return tmp_path / "map.tif.parts"


def as_of_0_1_0(parts: Path, path: Path, model_folder: Path) -> None:
    """Replace the manifest by the one that version 0.1.0 wrote for the same run."""
    loaded = load_model(model_folder)
    manifest = {
        "images": f"{path} ({fingerprint([str(path)])})",
        "model": f"{loaded.name} ({loaded.digest})",
        "bands": "(1, 2, 3)",
        "rescale": "None",
        "nodata": "None",
        "gsd_m": "0.3",
        "read_at_m": "0.5",
        "tile_px": "32",
        "overlap_px": "8",
        "blend": "False",
        "block_px": "64",
        "turns": "1",
        "min_confidence": "0",
        "precision": "fp32",
        "aoi": "none",
        "confidence": "False",
        "probabilities": "False",
    }
    (parts / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


class TestGroundSizes:
    """The file says 0.5 m, the user 1 m: everything that counts metres follows the user."""

    TOLD = PredictConfig(**EXACT, gsd_m=1.0)

    @pytest.mark.parametrize(("told_m", "simplify_px"), [(None, 4.0), (1.0, 2.0)])
    def test_simplify(self, path, model_folder, tmp_path, monkeypatch, told_m, simplify_px):
        """Two metres were four pixels, whatever the user said of the pixels."""
        given, original = [], polygons.fragments
        monkeypatch.setattr(polygons, "fragments", lambda *a: given.append(a[2]) or original(*a))
        outputs = OutputConfig(vector=str(tmp_path / "v.gpkg"), simplify=2)
        predict(path, tmp_path / "map.tif", model_folder, replace(self.TOLD, gsd_m=told_m), outputs)
        assert given == [pytest.approx(simplify_px)]

    @pytest.mark.parametrize(("told_m", "pixel_m2"), [(None, 0.25), (1.0, 1.0)])
    def test_areas_and_min_area(self, path, model_folder, tmp_path, told_m, pixel_m2):
        settings, tables = replace(self.TOLD, gsd_m=told_m), []
        for least_m2 in (0, 3):
            outputs = OutputConfig(vector=str(tmp_path / "v.gpkg"), min_area=least_m2)
            predict(path, tmp_path / "map.tif", model_folder, settings, outputs)
            tables.append(pyogrio.read_dataframe(tmp_path / "v.gpkg", layer="landcover"))
        whole, large = tables
        assert whole["area_m2"].sum() == pytest.approx(90 * 130 * pixel_m2)
        assert whole.geometry.area.sum() == pytest.approx(90 * 130 / 4)  # coordinates stay the file's
        assert 0 < len(large) == (whole["area_m2"] >= 3).sum() < len(whole)

    def test_the_reading_ratio(self, path, model_folder):
        matched = plan_of(path, model_folder, replace(self.TOLD, match_gsd=True))
        assert (matched.source_gsd_m, matched.read_gsd_m, matched.layout.ratio) == (1.0, 0.5, 0.5)
        with matched.open() as scene:
            assert (scene.ratio, scene.height, scene.width) == (0.5, 180, 260)
        assert plan_of(path, model_folder, replace(MATCHED, gsd_m=None)).layout.ratio == 1

    def test_the_model(self, make_raster, image):
        path = make_raster(image, **georeference(0.13))
        assert plan_of(path, None, PredictConfig()).model == "swin-nano-buildings"
        assert plan_of(path, None, self.TOLD).model == "swin-nano-dubai"

    def test_an_image_of_unknown_ground_size_is_read_as_the_models_after_one_warning(self, make_raster, image, caplog):
        plan = plan_of(make_raster(image, "photo.png"), "swin-nano-dubai", PredictConfig())
        assert (plan.source_gsd_m, plan.read_gsd_m, plan.layout.ratio) == (None, 1.0, 1.0)
        with plan.open() as scene:
            assert scene.ratio == 1
        assert [r.message.split(": ", 1)[1] for r in caplog.records] == [
            "the ground size of its pixels is unknown; read as if it were 1 m"
        ]

    def test_matching_needs_the_ground_size(self, make_raster, image, model_folder):
        with pytest.raises(ConfigError, match="pixels of the image is unknown; add --gsd-m METRES"):
            plan_of(make_raster(image, "photo.png"), model_folder, PredictConfig(match_gsd=True))


class TestSettings:
    def test_a_field_that_says_nothing_is_in_manifest_tags_and_item(self, path, model_folder, tmp_path):
        """Whoever adds a setting and forgets the journal cannot mix two maps in one."""
        fields = [("sharpen", int, field(default=3)), ("threads", int, field(default=2, metadata=KEEPS_MAP))]
        more = make_dataclass("More", fields, bases=(PredictConfig,), frozen=True, kw_only=True)
        plan, loaded = make_plan([str(path)], str(model_folder), more(**EXACT), OutputConfig(), MapRunConfig())
        manifest = plan.manifest(loaded)
        assert manifest["sharpen"] == "3"
        assert not {"threads", "batch", "device", "restart", "engine", "vector"} & manifest.keys()
        predict(path, tmp_path / "map.tif", model_folder, more(**EXACT))
        with rasterio.open(tmp_path / "map.tif") as found:
            assert found.tags()["CASWIT_SHARPEN"] == "3"
        item = json.loads((tmp_path / "map.stac.json").read_text())
        assert item["properties"]["caswit:settings"]["sharpen"] == 3

    @pytest.mark.parametrize("config", [OutputConfig, MapRunConfig])
    def test_so_is_one_of_the_other_groups(self, path, model_folder, config):
        more = make_dataclass("More", [("sharpen", int, field(default=3))], bases=(config,), frozen=True, kw_only=True)
        groups = {kind: more() if kind is config else kind() for kind in (OutputConfig, MapRunConfig)}
        plan, loaded = make_plan([str(path)], str(model_folder), PredictConfig(), *groups.values())
        assert plan.manifest(loaded)["sharpen"] == "3"

    def test_the_manifest_is_what_was_resolved(self, interrupted, path, model_folder):
        found = read_manifest(interrupted)
        assert (found["bands"], found["overlap_px"], found["precision"]) == ("(1, 2, 3)", "8", "fp32")
        assert (found["gsd_m"], found["read_gsd_m"], found["aoi"]) == ("0.3", "0.5", "none")
        assert found["layout"] == plan_of(path, model_folder, MATCHED).layout._asdict()

    def test_a_plan_can_be_sent(self, path, model_folder):
        plan = plan_of(path, model_folder, MATCHED)
        assert pickle.loads(pickle.dumps(plan)) == plan


class TestFoldersOfVersion010:
    def test_a_run_goes_on_from_them_to_the_same_map(self, interrupted, path, model_folder, tmp_path, capsys):
        predict(path, tmp_path / "expected.tif", model_folder, replace(MATCHED, fill="black", blend=False))
        as_of_0_1_0(interrupted, path, model_folder)
        capsys.readouterr()
        predict(path, tmp_path / "map.tif", model_folder, MATCHED)
        assert "going on, 4 of 6 blocks are done" in capsys.readouterr().err
        np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "expected.tif"))

    def test_a_run_of_something_else_is_refused(self, interrupted, path, model_folder, tmp_path):
        as_of_0_1_0(interrupted, path, model_folder)
        with pytest.raises(
            ConfigError, match=r"holds 4 finished .*: read_gsd_m was 0.5, now None; tta was 1, now 2; use"
        ):
            predict(path, tmp_path / "map.tif", model_folder, replace(MATCHED, match_gsd=False, tta=2))

    @pytest.mark.parametrize("old", [False, True])
    def test_a_viewer_finds_where_their_blocks_lie(self, interrupted, path, model_folder, old):
        if old:
            as_of_0_1_0(interrupted, path, model_folder)
        with Raster(path) as raster:
            partial = read_partial_map(interrupted, raster.grid)
        blocks = plan_of(path, model_folder, MATCHED).blocks()
        assert partial.image == "scene (1).tif"
        assert [*partial.parts.values()] == [block.native for block in blocks[: partial.finished]]
        for file, window in partial.parts.items():
            assert read(file).shape[1:] == window[2:]

    def test_a_viewer_leaves_an_image_of_another_size_alone(self, interrupted, make_raster, image):
        with Raster(make_raster(image[:, :80], "other.tif", **georeference(0.5))) as raster:
            assert read_partial_map(interrupted, raster.grid) is None


def test_an_image_of_more_blocks_than_a_country_is_not_begun(path, model_folder, tmp_path):
    """It ran for ever, in a list of 10^11 blocks, before it said anything."""
    xml = '<VRTDataset rasterXSize="2147483647" rasterYSize="2147483647">'
    xml += "".join(f'<VRTRasterBand dataType="Byte" band="{band}"/>' for band in (1, 2, 3)) + "</VRTDataset>"
    (tmp_path / "world.vrt").write_text(xml)
    with pytest.raises(ConfigError, match=r"2,147,483,647 x 2,147,483,647 pixels are [\d,]{15,} blocks; .*--yes"):
        predict(tmp_path / "world.vrt", tmp_path / "map.tif", model_folder)
    assert not list(tmp_path.glob("map*"))
    small = plan_of(path, model_folder, MATCHED).layout
    assert small.number_of_blocks() == len(small.blocks())
