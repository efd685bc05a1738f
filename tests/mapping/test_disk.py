"""A full disk while a map is written."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from caswit.config import OutputConfig, PredictConfig
from caswit.errors import DataError
from caswit.mapping import journal
from caswit.mapping.run import predict
from conftest import georeference, picture

EXACT = {"precision": "fp32", "batch": 1, "device": "cpu"}


def read(path):
    with rasterio.open(path) as src:
        return src.read(1)


def test_a_full_disk_names_the_file_what_is_needed_and_that_the_call_goes_on(
    make_raster, image, model_folder, tmp_path, monkeypatch
):
    path, settings = make_raster(image, **georeference()), PredictConfig(**EXACT, block_px=64)
    predict(path, tmp_path / "whole.tif", model_folder, settings)
    write, written = journal.atomic_write_bytes, []

    def full(file, content):
        if file.suffix == ".tif":
            written.append(len(content))
            if len(written) > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        write(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "atomic_write_bytes", full)
        with pytest.raises(DataError) as caught:
            predict(path, tmp_path / "map.tif", model_folder, settings)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/map.tif.parts/0000002.tif: No space left on device: ")
    assert " are free on its disk, and about " in said
    assert said.endswith("make room, then the same call goes on from here")
    predict(path, tmp_path / "map.tif", model_folder, settings)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "whole.tif"))


@pytest.mark.parametrize("kind", ["map", "confidence"])
def test_a_file_that_cannot_be_completed_is_named(make_raster, model_folder, tmp_path, kind):
    """It was the folder that was named, and nobody heard that the blocks were not lost."""
    path, out = make_raster(picture(300, 300), **georeference()), tmp_path / "out"
    out.mkdir()
    code = f"""
import resource, sys
from pathlib import Path
from caswit.config import OutputConfig, PredictConfig
import caswit.mapping.outputs as o
from caswit.errors import DataError
from caswit.mapping.run import predict
write, end = o.assemble, "{"map" if kind == "map" else "c"}.tif"
def assemble(file, *more):
    if file.name.startswith("." + end):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, -1))
    write(file, *more)
o.assemble = assemble
try:
    predict({str(path)!r}, Path({str(out)!r}) / "map.tif", {str(model_folder)!r}, PredictConfig(device="cpu"),
            OutputConfig(confidence={str(out / "c.tif")!r}))
except DataError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    name = "map.tif" if kind == "map" else "c.tif"
    assert said.startswith(f"{out / name}: "), said
    assert "more are needed; make room, then the same call goes on from here" in said
    assert not (out / "map.tif").exists()
    assert (out / "map.tif.parts").is_dir()


def test_what_is_needed_is_about_what_is_used_in_the_end(make_raster, model_folder, tmp_path, monkeypatch):
    """From half of the blocks: the rest of the parts, and the map."""
    path, settings = make_raster(picture(256, 256), **georeference()), PredictConfig(**EXACT, block_px=64)
    outputs, needed, sizes = OutputConfig(), [], []
    finish = journal.Journal.finish

    def counting(self, number, part):
        from caswit.mapping.disk import bytes_to_come

        finish(self, number, part)
        sizes.append(len(part))
        needed.append(bytes_to_come(self, BLOCKS[0]))

    BLOCKS = []
    run = __import__("caswit.mapping.run", fromlist=["_map_blocks"])
    map_blocks = run._map_blocks
    monkeypatch.setattr(run, "_map_blocks", lambda blocks, *more: BLOCKS.append(blocks) or map_blocks(blocks, *more))
    monkeypatch.setattr(journal.Journal, "finish", counting)
    predict(path, tmp_path / "map.tif", model_folder, settings, outputs)
    half = len(sizes) // 2
    assert needed[half - 1] == pytest.approx(sum(sizes[half:]) + sum(sizes), rel=0.3)
