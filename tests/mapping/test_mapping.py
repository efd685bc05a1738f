"""Maps of many blocks: inputs, resuming, outputs."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyogrio
import pystac
import pytest
import rasterio
import shapely
import torch
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rio_cogeo import cog_validate
from stac_model.schema import MLModelProperties

from caswit.cli.main import main
from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.errors import ConfigError, DataError
from caswit.mapping.blocks import BlockMapper
from caswit.mapping.run import predict
from caswit.weights.model_folder import load_model
from conftest import CLASSES, georeference

pytestmark = pytest.mark.e2e

EXACT = {"precision": "fp32", "batch": 1, "device": "cpu"}
BLOCKS = PredictConfig(**EXACT, block_px=64)


def read(path: Path, band: int = 1) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read(band)


@pytest.fixture
def path(make_raster, image) -> Path:
    return make_raster(image, **georeference())


@pytest.fixture
def expected(path, model_folder, tmp_path) -> np.ndarray:
    """The map, undisturbed."""
    predict(path, tmp_path / "expected.tif", model_folder, BLOCKS)
    return read(tmp_path / "expected.tif")


@pytest.fixture
def served(path, tmp_path) -> Iterator[tuple[str, Path]]:
    """The image on a server: its address, and the log of the ranges that were asked for."""
    log = tmp_path / "ranges.txt"
    command = [sys.executable, str(Path(__file__).parents[1] / "ranges.py"), str(path), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().strip()}", log
        process.kill()


class TestInputs:
    def test_a_folder_of_tiles_gives_the_map_of_the_whole(self, make_raster, image, model_folder, tmp_path, expected):
        """Context comes from the neighbouring file: else borders of files would show."""
        folder = tmp_path / "tiles"
        folder.mkdir()
        for row in (0, 30, 60):
            for col in (0, 50, 100):
                where = georeference(x=700_000 + 0.5 * col, y=6_600_000 - 0.5 * row)
                part = image[:, row : row + 30, col : col + 50]
                shutil.move(make_raster(part, f"{row}-{col}.tif", **where), folder)
        for given in (folder, [str(folder / "*.tif")], sorted(folder.iterdir())[::-1]):
            predict(given, tmp_path / "map.tif", model_folder, BLOCKS)
            np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)
        with rasterio.open(tmp_path / "map.tif") as found, rasterio.open(tmp_path / "expected.tif") as whole:
            assert (found.transform, found.crs) == (whole.transform, whole.crs)

    def test_sixteen_bits_and_bands_in_another_order(self, make_raster, image, model_folder, tmp_path, expected):
        wide = image[[2, 0, 1]].astype(np.uint16) * 16 + 100
        with pytest.raises(DataError, match="--rescale LOW HIGH"):
            predict(make_raster(wide, "wide.tif", **georeference()), tmp_path / "map.tif", model_folder)
        settings = PredictConfig(**EXACT, block_px=64, rescale=(100, 100 + 16 * 255), bands=(2, 3, 1))
        predict(tmp_path / "wide.tif", tmp_path / "map.tif", model_folder, settings)
        np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)

    @pytest.mark.parametrize("mosaic", [False, True])
    def test_a_white_hole_that_the_image_does_not_declare(self, make_raster, image, model_folder, tmp_path, mosaic):
        image[:, 20:60, 30:80] = 255
        declared = make_raster(image, "declared.tif", **georeference(), nodata=255)
        predict(declared, tmp_path / "expected.tif", model_folder, BLOCKS)
        if mosaic:
            halves = (image[:, :, :70], "left.tif", 0), (image[:, :, 70:], "right.tif", 70 * 0.5)
            given = [make_raster(part, name, **georeference(x=700_000 + east)) for part, name, east in halves]
        else:
            given = make_raster(image, "silent.tif", **georeference())
        predict(given, tmp_path / "map.tif", model_folder, dataclasses.replace(BLOCKS, nodata=255))
        found = read(tmp_path / "map.tif")
        np.testing.assert_array_equal(found, read(tmp_path / "expected.tif"))
        assert (found == 255).sum() == 40 * 50

    @pytest.mark.parametrize("kind", ["vrt", "jp2"])
    def test_other_formats(self, path, model_folder, tmp_path, expected, kind):
        other = tmp_path / f"image.{kind}"
        options = (
            {"driver": "VRT"} if kind == "vrt" else {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes"}
        )
        rasterio.shutil.copy(path, other, **options)
        predict(other, tmp_path / "map.tif", model_folder, BLOCKS)
        np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)

    def test_far_ground_sizes_are_said_and_can_be_matched(self, make_raster, image, model_folder, tmp_path, caplog):
        """Like a model that is made for that size: the conftest model was trained on 0.5 m."""
        fine = make_raster(image.repeat(2, 1).repeat(2, 2), "fine.tif", **georeference(0.25))
        predict(fine, tmp_path / "map.tif", model_folder, BLOCKS)
        assert "pixels of 0.25 m, the model was trained on 0.5 m" in caplog.text
        caplog.clear()
        predict(fine, tmp_path / "matched.tif", model_folder, PredictConfig(**EXACT, block_px=128, match_gsd=True))
        assert not caplog.text
        model = tmp_path / "made-for-it"
        shutil.copytree(model_folder, model)
        config = json.loads((model / "config.json").read_text())
        config["tile"]["read_gsd_m"] = 0.5
        (model / "config.json").write_text(json.dumps(config))
        predict(fine, tmp_path / "made.tif", model, PredictConfig(**EXACT, block_px=128))
        found = read(tmp_path / "matched.tif")
        np.testing.assert_array_equal(found, read(tmp_path / "made.tif"))
        assert found.shape == (180, 260)
        assert (found != read(tmp_path / "map.tif")).any()

    @pytest.mark.parametrize("address", ["http://{}/image.tif", "s3://bucket/image.tif"])
    def test_addresses(self, path, model_folder, tmp_path, expected, served, monkeypatch, address):
        """The address is read like a file; both ways through a server that answers ranges."""
        server, log = served
        options = {
            "AWS_S3_ENDPOINT": server,
            "AWS_NO_SIGN_REQUEST": "YES",
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
        for name, value in options.items():
            monkeypatch.setenv(name, value)
        predict(address.format(server), tmp_path / "map.tif", model_folder, BLOCKS)
        assert np.array_equal(read(tmp_path / "map.tif"), expected)
        assert log.exists()  # read by ranges, not downloaded

    def test_an_address_that_does_not_answer(self, model_folder, tmp_path, served):
        with pytest.raises(DataError, match=r"none\.tif"):
            predict(f"http://{served[0]}/none.tif", tmp_path / "map.tif", model_folder, BLOCKS)
        assert not list(tmp_path.glob("map*"))

    def test_only_what_an_area_touches(self, path, model_folder, tmp_path, expected, monkeypatch):
        """In another CRS: a triangle of which the upper left is inside."""
        inside = shapely.Polygon([(0, 0), (70, 0), (0, 60)])
        placed = shapely.transform(inside, lambda p: p * [0.5, -0.5] + [700_000, 6_600_000])
        import geopandas

        geopandas.GeoSeries([placed], crs=2154).to_crs(4326).to_file(tmp_path / "area.gpkg")
        done = []
        original = BlockMapper.begin
        monkeypatch.setattr(BlockMapper, "begin", lambda self, *a: done.append(a) or original(self, *a))
        predict(path, tmp_path / "map.tif", model_folder, BLOCKS, run=MapRunConfig(aoi=str(tmp_path / "area.gpkg")))
        found = read(tmp_path / "map.tif")
        rows, cols = np.indices(found.shape) + 0.5
        distance = rows / 60 + cols / 70 - 1  # below 0 inside
        clear = np.abs(distance) > 0.01
        np.testing.assert_array_equal((found != 255)[clear], (distance < 0)[clear])
        np.testing.assert_array_equal(found[found != 255], expected[found != 255])
        assert len(done) < 6

    def test_an_area_elsewhere(self, path, model_folder, tmp_path):
        area = {"type": "Polygon", "coordinates": [[[7, 46], [8, 46], [8, 47], [7, 46]]]}
        (tmp_path / "area.geojson").write_text(json.dumps(area))
        with pytest.raises(DataError, match="lies outside the image"):
            predict(path, tmp_path / "map.tif", model_folder, run=MapRunConfig(aoi=str(tmp_path / "area.geojson")))


HARNESS = """
import os, random, signal, sys, time
from pathlib import Path

import numpy as np, rasterio, torch

import caswit.raster.polygons, caswit.raster.vector_files
from caswit.config import OutputConfig, PredictConfig
from caswit.mapping.run import predict

image, model, folder = map(Path, sys.argv[1:])
out = folder / "map.tif"
settings = PredictConfig(precision="fp32", batch=1, device="cpu", block_px=32)
outputs = OutputConfig(confidence=str(folder / "confidence.tif"), vector=str(folder / "v.gpkg"))

def run():
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        status = 1
        try:
            predict(image, out, model, settings, outputs)
            status = 0
        finally:
            os._exit(status)
    return pid

def state():
    with rasterio.open(out) as src, rasterio.open(folder / "confidence.tif") as other:
        return src.read(1), other.read(1)

began = time.perf_counter()
run()
assert os.wait()[1] == 0
took = time.perf_counter() - began
expected = state()
out.unlink()
kills, finished, resumed = 0, 0, 0
random.seed(0)
while kills < 10:
    resumed += bool(list(folder.glob("map.tif.parts/*.tif")))
    pid = run()
    time.sleep(random.random() * took)
    os.kill(pid, signal.SIGKILL)  # a child that ended already is still there, until we wait for it
    status = os.wait()[1]
    killed = os.WIFSIGNALED(status)
    kills += killed
    assert killed or status == 0, status
    if out.exists():  # complete, whenever it was killed
        for one, other in zip(state(), expected):
            np.testing.assert_array_equal(one, other)
        if not killed:
            finished += 1
            assert not list(folder.glob("*.parts")) and not list(folder.glob(".*"))
        out.unlink()
run()
assert os.wait()[1] == 0
for one, other in zip(state(), expected):
    np.testing.assert_array_equal(one, other)
names = ["confidence.qml", "confidence.tif", "map.qml", "map.stac.json", "map.tif", "v.gpkg"]
assert sorted(p.name for p in folder.iterdir()) == names
print(kills, finished, resumed)
"""


class TestInterruptions:
    @pytest.mark.slow
    def test_killed_at_ten_random_moments_the_map_is_the_same(self, path, model_folder, tmp_path):
        folder = tmp_path / "out"
        folder.mkdir()
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", HARNESS, str(path), str(model_folder), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=one)
        assert done.returncode == 0, done.stderr
        kills, _, resumed = map(int, done.stdout.split())
        assert kills == 10
        assert resumed >= 2  # went on from parts of a killed run

    def test_finished_blocks_are_not_computed_again(self, path, model_folder, tmp_path, expected, monkeypatch, capsys):
        class Interrupted(BaseException):
            pass

        done = []
        original = BlockMapper.begin

        def stop_at_third(self, block, pixels):
            if len(done) == 3:
                raise Interrupted
            done.append(block.window)
            return original(self, block, pixels)

        monkeypatch.setattr(BlockMapper, "begin", stop_at_third)
        out = tmp_path / "map.tif"
        shutil.copy(tmp_path / "expected.tif", out)
        older = out.read_bytes()
        with pytest.raises(Interrupted):
            predict(path, out, model_folder, BLOCKS)
        assert out.read_bytes() == older
        first = list(done)
        monkeypatch.setattr(BlockMapper, "begin", lambda self, b, p: done.append(b.window) or original(self, b, p))
        capsys.readouterr()
        predict(path, out, model_folder, BLOCKS)
        assert f"going on, {len(first)} of " in capsys.readouterr().err
        assert not set(first) & set(done[len(first) :])
        np.testing.assert_array_equal(read(out), expected)
        assert not (tmp_path / "map.tif.parts").exists()

    def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(self, path, model_folder, tmp_path, expected):
        disk = tmp_path / "disk"
        disk.mkdir()
        code = """
import errno, sys
from pathlib import Path
from caswit.cli.main import main
image, model, disk = sys.argv[1:]
out = Path(disk) / "map.tif"
words = ["predict", image, str(out), "--model", model, "--precision", "fp32", "--batch", "1", "--device", "cpu",
         "--block_px", "64", "--probabilities", f"{disk}/p.tif"]
def attempt():
    try:
        main(words)
        return 0
    except SystemExit as stop:
        return stop.code
ballast = Path(disk) / "ballast"
statuses = []
for room in (0, 9_000, 30_000, 60_000):
    ballast.write_bytes(b"")
    free = __import__("os").statvfs(disk)
    ballast.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - room))
    statuses.append(attempt())
    assert not out.exists() and not list(Path(disk).glob(".map*")), list(Path(disk).iterdir())
ballast.unlink()
statuses.append(attempt())
print(statuses)
print(*sorted(p.name for p in Path(disk).iterdir()))
import shutil; shutil.copy(out, sys.argv[1] + ".copy")
"""
        mount = f'mount -t tmpfs -o size=600k none "{disk}" && exec "$@"'
        namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
        if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
            pytest.skip("no small file system can be mounted here")
        command = [*namespace, sys.executable, "-c", code, str(path), str(model_folder), str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-2:] == ["[2, 2, 2, 2, 0]", "map.qml map.stac.json map.tif p.tif"]
        said = [line for line in done.stderr.splitlines() if line.startswith("caswit: ")]
        full = ("No space left", "is the disk full?", "are free on its disk")
        assert all(any(words in line for words in full) for line in said), said
        np.testing.assert_array_equal(read(Path(f"{path}.copy")), expected)

    def test_a_block_that_cannot_be_read(self, make_raster, image, model_folder, tmp_path, expected, capsys):
        """By default it stops the run; skipped, it is nodata, in a list, and tried again."""
        path = make_raster(image, "cut.tif", **georeference(), tiled=True, blockxsize=16, blockysize=16)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * 0.7)])
        os.utime(path, ns=(1, 1))
        out = tmp_path / "map.tif"
        with pytest.raises(DataError, match="may be truncated"):
            predict(path, out, model_folder, BLOCKS)
        assert not out.exists()
        result = predict(path, out, model_folder, BLOCKS, run=MapRunConfig(on_error="skip"))
        found = read(out)
        assert result.skipped
        assert all(line.startswith("rows ") and "cut.tif" in line for line in result.skipped)
        missing = found == 255
        assert missing.any()
        np.testing.assert_array_equal(found[~missing], expected[~missing])
        from caswit.cli.main import main

        words = [path, out, "--model", model_folder, "--block-px", 64, "--on-error", "skip", "--precision", "fp32"]
        with pytest.raises(SystemExit) as stop:
            main([str(w) for w in ["predict", *words, "--batch", 1, "--device", "cpu"]])
        assert stop.value.code == 3
        assert f"{len(result.skipped)} blocks could not be read" in capsys.readouterr().err
        assert (tmp_path / "map.tif.parts").is_dir()

    def test_a_link_is_followed(self, path, model_folder, tmp_path, expected):
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "map.tif"
        link.symlink_to(tmp_path / "elsewhere" / "real.tif")
        predict(path, link, model_folder, BLOCKS)
        assert link.is_symlink()
        np.testing.assert_array_equal(read(tmp_path / "elsewhere" / "real.tif"), expected)


class TestOutputs:
    def test_confidence_and_probabilities_agree_with_the_map(self, path, model_folder, tmp_path, expected):
        files = {kind: tmp_path / f"{kind}.tif" for kind in ("confidence", "probabilities")}
        outputs = OutputConfig(**{kind: str(file) for kind, file in files.items()})
        predict(path, tmp_path / "map.tif", model_folder, BLOCKS, outputs)
        np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)
        assert not list(tmp_path.glob(".*"))  # GDAL once left descriptions of the temporary file beside it
        with rasterio.open(files["probabilities"]) as src:
            percent = src.read().astype(int)
            assert src.descriptions == ("building", "land", "water")
            assert src.nodata == 255
        confidence = read(files["confidence"])
        assert (np.abs(percent.sum(0) - 100) <= 2).all()
        np.testing.assert_array_equal(confidence, percent.max(0))
        index = np.searchsorted([1, 2, 7], expected)
        np.testing.assert_array_equal(np.take_along_axis(percent, index[None], 0)[0], percent.max(0))
        assert len(np.unique(percent)) >= 3  # random weights are never sure
        for file in files.values():
            assert cog_validate(file, quiet=True)[0]

    @pytest.mark.parametrize("blend", [False, True])
    def test_what_is_not_probable_enough_becomes_nodata(self, path, model_folder, tmp_path, blend):
        kinds = ("confidence", "probabilities")
        files = OutputConfig(**{kind: str(tmp_path / f"{kind}.tif") for kind in kinds})
        settings = dataclasses.replace(BLOCKS, blend=blend)
        predict(path, tmp_path / "map.tif", model_folder, settings, files)
        whole, before = read(tmp_path / "map.tif"), [read(tmp_path / f"{kind}.tif") for kind in kinds]
        least = int(np.median(before[0]))
        assert (before[0] < least).any()
        sure = dataclasses.replace(settings, min_confidence=least)
        predict(path, tmp_path / "map.tif", model_folder, sure, files)
        np.testing.assert_array_equal(read(tmp_path / "map.tif"), np.where(before[0] < least, 255, whole))
        for kind, pixels in zip(kinds, before, strict=True):  # what it is not sure of is still told
            np.testing.assert_array_equal(read(tmp_path / f"{kind}.tif"), pixels)
        with rasterio.open(tmp_path / "map.tif") as src:
            assert src.tags()["CASWIT_MIN_CONFIDENCE"] == str(least)
        predict(path, tmp_path / "map.tif", model_folder, sure)  # without those bands beside it
        np.testing.assert_array_equal(read(tmp_path / "map.tif"), np.where(before[0] < least, 255, whole))

    def test_polygons_are_those_of_the_map(self, path, model_folder, tmp_path, expected):
        outputs = OutputConfig(vector=str(tmp_path / "v.gpkg"))
        predict(path, tmp_path / "map.tif", model_folder, BLOCKS, outputs)
        table = pyogrio.read_dataframe(tmp_path / "v.gpkg", layer="landcover")
        with rasterio.open(tmp_path / "map.tif") as src:
            drawn = rasterio.features.rasterize(
                zip(table.geometry, table["class"], strict=True), src.shape, fill=255, transform=src.transform
            )
            whole = list(rasterio.features.shapes(src.read(1)))
        np.testing.assert_array_equal(drawn, expected)
        assert len(table) == len(whole)  # no polygon is cut where blocks meet
        assert table["area_m2"].sum() == pytest.approx(90 * 130 / 4)
        assert dict(zip(table["class"], table["name"], strict=True)) == {1: "building", 2: "land", 7: "water"}

    def test_a_style_and_an_item_lie_beside_the_map(self, path, model_folder, tmp_path):
        predict(path, tmp_path / "map.tif", model_folder, BLOCKS, OutputConfig(confidence=str(tmp_path / "c.tif")))
        style = ElementTree.parse(tmp_path / "map.qml")
        entries = {int(e.get("value")): (e.get("label"), e.get("color")) for e in style.iter("paletteEntry")}
        assert entries == {c.id: (c.name, c.color) for c in CLASSES.predicted}
        item = json.loads((tmp_path / "map.stac.json").read_text())
        assert item["assets"]["map"]["href"] == "./map.tif"
        assert item["assets"]["confidence"]["href"] == "./c.tif"
        assert item["assets"]["model"]["roles"] == ["mlm:model"]
        about = item["properties"]
        assert about["mlm:total_parameters"] == sum(p.numel() for p in load_model(model_folder).network.parameters())
        assert [i["input"]["shape"] for i in about["mlm:input"]] == [[-1, 3, 32, 32]] * 2
        assert [c["value"] for c in about["mlm:output"][0]["classification:classes"]] == [1, 2, 7]
        validator = (
            JsonSchemaSTACValidator()
        )  # schemas of extensions need a network; the package of one is a second opinion
        assert validator.validate_core(item, pystac.STACObjectType.ITEM, "1.1.0")
        MLModelProperties.model_validate(about)
        named = {
            band["name"] for band in about["bands"]
        }  # a rule of the extension's schema that the package leaves out
        assert all(named == set(i["bands"]) for i in about["mlm:input"])
        weights = (model_folder / "model.safetensors").read_bytes()
        assert item["assets"]["model"]["file:checksum"] == "1220" + hashlib.sha256(weights).hexdigest()
        west, south, east, north = item["bbox"]
        assert 2.9 < west < east < 3.1
        assert 46.4 < south < north < 46.6

    @pytest.mark.parametrize(
        ("outputs", "message"),
        [
            ({"confidence": "c.png"}, "ends in .tif"),
            ({"vector": "v.shp"}, "written as .gpkg"),
            ({"confidence": "map.tif"}, "two outputs have this name"),
            ({"vector": "none/v.gpkg"}, "folder does not exist"),
            ({"min_area": 4.0}, "add --vector"),
        ],
    )
    def test_outputs_that_cannot_be(self, path, model_folder, tmp_path, monkeypatch, outputs, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=message):
            predict(path, Path("map.tif"), model_folder, BLOCKS, OutputConfig(**outputs))
        assert not (tmp_path / "map.tif.parts").exists()


class TestBlending:
    def test_a_pixel_is_the_weighted_mean_of_all_tiles_that_see_it(self, path, image, model_folder, tmp_path):
        loaded = load_model(model_folder)
        outputs = OutputConfig(probabilities=str(tmp_path / "p.tif"))
        settings = PredictConfig(**EXACT, blend=True, overlap_px=12, block_px=64, fill="black")
        predict(path, tmp_path / "map.tif", model_folder, settings, outputs)
        padded = np.pad(image, ((0, 0), (16, 64), (16, 64)))
        total, weights = np.zeros((3, 90, 130)), np.zeros((90, 130))
        hann = np.sin(np.pi * (np.arange(32) + 0.5) / 32) ** 2
        for row in (0, 20, 40, 58):
            for col in (0, 20, 40, 60, 80, 98):
                wide = padded[:, row : row + 64, col : col + 64].astype(np.float32)
                context = np.floor(wide.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4)) + 0.5)
                with torch.inference_mode():
                    logits = loaded.network(
                        *(torch.from_numpy(x)[None] for x in (wide[:, 16:48, 16:48].copy(), context))
                    )
                part = slice(row, row + 32), slice(col, col + 32)
                total[:, *part] += logits[0].softmax(0).numpy() * np.outer(hann, hann)
                weights[part] += np.outer(hann, hann)
        expected = total / weights * 100
        with rasterio.open(tmp_path / "p.tif") as src:
            found = src.read()
        assert np.abs(found - expected).max() <= 0.51
        classes = loaded.info.classes.ids[expected.argmax(0)]
        assert (read(tmp_path / "map.tif") == classes).mean() > 0.999

    @pytest.mark.parametrize("ratio", [1.0, 1.5])
    def test_the_block_size_does_not_change_the_map(self, make_raster, image, model_folder, tmp_path, ratio):
        path = make_raster(image[:, :55, :70], **georeference())
        model = tmp_path / "model"
        shutil.copytree(model_folder, model)
        with SceneReader(Scene(image=path)) as scene:
            source_gsd_m = scene.image.grid.source_gsd_m
        config = json.loads((model / "config.json").read_text())
        config["tile"]["read_gsd_m"] = None if ratio == 1 else ratio * source_gsd_m
        (model / "config.json").write_text(json.dumps(config))
        outputs = OutputConfig(probabilities=str(tmp_path / "p.tif"))
        found = []
        for block_px in (40, 4096):
            predict(path, tmp_path / "map.tif", model, PredictConfig(**EXACT, blend=True, block_px=block_px), outputs)
            with rasterio.open(tmp_path / "p.tif") as src:
                found.append(src.read())
        np.testing.assert_array_equal(found[0], found[1])

    def test_flags_need_no_value(self, path, model_folder, tmp_path):
        settings = ["--model", str(model_folder), "--precision", "fp32"]
        for name, words in {"bare": ["--blend"], "said": ["--blend", "true"], "not": ["--blend", "false"]}.items():
            main(["predict", *words, str(path), str(tmp_path / f"{name}.tif"), *settings, "--restart"])
        bare, said, no = (read(tmp_path / f"{name}.tif") for name in ("bare", "said", "not"))
        assert np.array_equal(bare, said)
        assert not np.array_equal(bare, no)

    def test_blending_needs_an_overlap(self):
        with pytest.raises(ConfigError, match="leave overlap_px out"):
            PredictConfig(blend=True, overlap_px=0)
