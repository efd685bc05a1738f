"""A map is of one model and one set of images: what may change between two calls, within one, and what may not."""

import json
import os
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import rasterio

from caswit.config import OutputConfig, PredictConfig
from caswit.errors import ConfigError, DataError
from caswit.mapping.blocks import BlockMapper
from caswit.mapping.local import LocalEngine
from caswit.mapping.run import predict
from conftest import georeference

pytestmark = pytest.mark.e2e

BLOCKS = PredictConfig(precision="fp32", batch=1, device="cpu", block_px=32)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read()


def map_after(path, model, out, count, *, then=KeyboardInterrupt) -> None:
    """Map an image until so many blocks are done."""
    original = LocalEngine.run

    def run(self, todo, journal):
        yield from islice(original(self, todo, journal), count)
        raise then

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalEngine, "run", run)
        with pytest.raises(then):
            predict(path, out, model, BLOCKS)


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=1))


class TestBetweenTwoCalls:
    @pytest.fixture
    def model(self, model_folder, tmp_path) -> Path:
        return shutil.copytree(model_folder, tmp_path / "model")

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c["classes"].reverse(),
            lambda c: c["model"].update(mean=[0.0, 0.0, 0.0]),
            lambda c: c["tile"].update(context_factor=4),
            lambda c: c["classes"][1].update(id=9),
        ],
    )
    def test_another_config_is_another_model(self, make_raster, image, model, tmp_path, change):
        path = make_raster(image, **georeference())
        map_after(path, model, tmp_path / "map.tif", 3)
        edit(model / "config.json", change)
        with pytest.raises(ConfigError, match=r"holds 3 finished blocks .*model_config was "):
            predict(path, tmp_path / "map.tif", model, BLOCKS)

    def test_names_colours_and_scores_are_not(self, make_raster, image, model, tmp_path, capsys):
        path = make_raster(image, **georeference())
        map_after(path, model, tmp_path / "map.tif", 3)

        def change(config):
            config["classes"][1].update(color="#123456", name="house")
            config["provenance"] = {"miou": 0.5}

        edit(model / "config.json", change)
        predict(path, tmp_path / "map.tif", model, BLOCKS)
        assert "going on, 3 of " in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["scene.tif.msk", "scene.tif.aux.xml", "scene.tfw", "scene.prj", "left.tif",
                                      "left.tif.msk", "left.tif.ovr", "left.tif.aux.xml", "inner.vrt"])  # fmt: skip
    def test_files_behind_an_image(self, make_raster, image, model_folder, tmp_path, name):
        """Masks and world files of an image; sources of a virtual raster of virtual rasters, and their sidecars."""
        path = make_raster(image, "scene.tif", **georeference())
        if not name.startswith("scene"):
            make_raster(image, "left.tif", **georeference())
            rasterio.shutil.copy(tmp_path / "left.tif", tmp_path / "inner.vrt", driver="VRT")
            path = tmp_path / "outer.vrt"
            # A copy of a virtual raster names the sources of the first, not the first.
            path.write_text((tmp_path / "inner.vrt").read_text().replace(">left.tif<", ">inner.vrt<"))
            assert "inner.vrt" in path.read_text()
        map_after(path, model_folder, tmp_path / "map.tif", 3)
        if name.endswith(".xml"):
            content = "<PAMDataset><PAMRasterBand band='1'><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>"
            (tmp_path / name).write_text(content)
        elif name.endswith((".msk", ".ovr")):
            shutil.copy(make_raster(np.full((1, 90, 130), 255, np.uint8), "other.tif"), tmp_path / name)
        elif name == "scene.tfw":
            (tmp_path / name).write_text("1\n0\n0\n-1\n5\n5\n")
        elif name == "scene.prj":
            (tmp_path / name).write_text(rasterio.CRS.from_epsg(2154).to_wkt())
        else:
            os.utime(tmp_path / name, ns=(1, 1))
        with pytest.raises(ConfigError, match=r"holds 3 finished blocks .*sidecars_and_sources was "):
            predict(path, tmp_path / "map.tif", model_folder, BLOCKS)

    def test_looking_at_an_image_changes_nothing(self, make_raster, image, model_folder, tmp_path, capsys):
        """QGIS writes statistics beside an image, and pyramids, which a map is never read from."""
        path = make_raster(image, **georeference())
        map_after(path, model_folder, tmp_path / "map.tif", 3)
        (tmp_path / "image.tif.aux.xml").write_text(
            "<PAMDataset><PAMRasterBand band='1'><Histograms><HistItem/></Histograms><Metadata>"
            "<MDI key='STATISTICS_MEAN'>5</MDI></Metadata></PAMRasterBand></PAMDataset>"
        )
        (tmp_path / "image.tif.ovr").write_bytes(path.read_bytes())
        predict(path, tmp_path / "map.tif", model_folder, BLOCKS)
        assert "going on, 3 of " in capsys.readouterr().err

    def test_older_manifests_say_less(self, make_raster, image, model_folder, tmp_path, capsys):
        """What they say agrees, so the run goes on; they had no seals either."""
        path = make_raster(image, **georeference())
        map_after(path, model_folder, tmp_path / "map.tif", 3)
        parts = tmp_path / "map.tif.parts"
        for file in parts.glob("*.tif"):
            file.write_bytes(file.read_bytes()[:-64])
        blank = read(parts / "0000000.tif")
        with rasterio.open(
            parts / "0000001.tif", "w", driver="GTiff", dtype="uint8", count=1, height=9, width=9
        ) as dst:
            dst.write(blank[:, :9, :9])

        def forget(manifest):
            for name in ("model_config", "sidecars_and_sources", "parts"):
                del manifest[name]

        edit(parts / "manifest.json", forget)
        predict(path, tmp_path / "expected.tif", model_folder, BLOCKS)
        capsys.readouterr()
        predict(path, tmp_path / "map.tif", model_folder, BLOCKS)
        assert "going on, 2 of " in capsys.readouterr().err  # one had another size
        np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "expected.tif"))


class TestWithinOne:
    @pytest.mark.parametrize("behind", [False, True])
    def test_an_image_that_is_rewritten_gives_no_map(
        self, make_raster, image, model_folder, tmp_path, monkeypatch, behind
    ):
        path = source = make_raster(image, **georeference())
        if behind:
            path = tmp_path / "image.vrt"
            rasterio.shutil.copy(source, path, driver="VRT")
        done, original = [], BlockMapper.begin

        def rewrite_at_third(self, block, pixels):
            done.append(block)
            if len(done) == 3:
                make_raster(255 - image, **georeference())
            return original(self, block, pixels)

        monkeypatch.setattr(BlockMapper, "begin", rewrite_at_third)
        with pytest.raises(DataError, match="was changed while the map was made") as caught:
            predict(path, tmp_path / "map.tif", model_folder, BLOCKS)
        assert "\n" not in str(caught.value)
        # Its blocks are of both versions: no later run may go on from them.
        assert not list(tmp_path.glob("map*"))

    @pytest.mark.parametrize("renamed", [False, True])
    def test_weights_that_are_written_over_give_no_map(
        self, make_raster, image, model_folder, tmp_path, monkeypatch, renamed
    ):
        """Another file under their name does no harm: the network goes on reading the one it has mapped."""
        path, model = make_raster(image, **georeference()), shutil.copytree(model_folder, tmp_path / "model")
        predict(path, tmp_path / "expected.tif", model, BLOCKS)
        weights, done, original = model / "model.safetensors", [], BlockMapper.begin

        def overwrite_at_third(self, block, pixels):
            done.append(block)
            if len(done) == 3:
                content = bytearray(weights.read_bytes())
                content[-1000:] = bytes(1000)
                target = tmp_path / "other" if renamed else weights
                with target.open("wb" if renamed else "r+b") as file:
                    file.write(content)
                if renamed:
                    target.replace(weights)
            return original(self, block, pixels)

        monkeypatch.setattr(BlockMapper, "begin", overwrite_at_third)
        if renamed:
            predict(path, tmp_path / "map.tif", model, BLOCKS)
            np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "expected.tif"))
            return
        with pytest.raises(DataError, match="weights were written over while the map was made") as caught:
            predict(path, tmp_path / "map.tif", model, BLOCKS)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("map*"))

    @pytest.mark.parametrize("moment", ["assembly", "resume"])
    def test_parts_that_were_deleted_swapped_or_damaged(
        self, make_raster, image, model_folder, tmp_path, monkeypatch, caplog, moment
    ):
        """Deleted ones became nodata, others another place's map."""
        path, out, parts = make_raster(image, **georeference()), tmp_path / "map.tif", tmp_path / "map.tif.parts"
        outputs = OutputConfig(confidence=str(tmp_path / "c.tif"))
        predict(path, tmp_path / "expected.tif", model_folder, BLOCKS, outputs)
        expected = [read(tmp_path / "expected.tif"), read(tmp_path / "c.tif")]

        def damage():
            files = [parts / f"{number:07}.tif" for number in range(12)]
            for file in files[:3]:
                file.unlink()
            swapped = files[3].read_bytes(), files[4].read_bytes()
            files[4].write_bytes(swapped[0])
            files[3].write_bytes(swapped[1])
            content = bytearray(files[5].read_bytes())
            content[len(content) // 2] ^= 255
            files[5].write_bytes(content)
            files[6].write_bytes(files[6].read_bytes()[:-100])
            content = files[7].read_bytes()
            files[7].write_bytes(content[:300] + bytes(len(content) - 300))

        from caswit.mapping import run as module

        done, damaged, original, mapped = [], [], BlockMapper.begin, module._map_blocks
        blocks = 24

        def map_then(*a):
            mapped(*a)
            if len(done) == blocks and not damaged:
                damaged.append(damage())
                if moment == "resume":
                    raise KeyboardInterrupt

        monkeypatch.setattr(BlockMapper, "begin", lambda self, *a: done.append(a) or original(self, *a))
        monkeypatch.setattr(module, "_map_blocks", map_then)
        if moment == "resume":
            with pytest.raises(KeyboardInterrupt):
                predict(path, out, model_folder, BLOCKS, outputs)
        predict(path, out, model_folder, BLOCKS, outputs)
        for name, pixels in zip(("map.tif", "c.tif"), expected, strict=True):
            np.testing.assert_array_equal(read(tmp_path / name), pixels)
        assert len(done) == blocks + 8
        said = "3, 4, 5, 6, 7" if moment == "resume" else "0, 1, 2, 3, 4 and 3 more"
        assert f"parts are missing or damaged; computing these blocks again: {said}" in caplog.text
        assert not parts.exists()

    def test_a_disk_that_keeps_nothing(self, make_raster, image, model_folder, tmp_path, monkeypatch):
        from caswit.mapping import run as module

        original = module._map_blocks

        def map_then(blocks, engine, journal, *rest):
            original(blocks, engine, journal, *rest)
            (journal.folder / "0000001.tif").write_bytes(b"")

        monkeypatch.setattr(module, "_map_blocks", map_then)
        with pytest.raises(DataError, match="parts of 1 blocks were missing or damaged 3 times"):
            predict(make_raster(image, **georeference()), tmp_path / "map.tif", model_folder, BLOCKS)
        assert not (tmp_path / "map.tif").exists()
