"""Maps made by several processes of this machine, one for each device, beside those of this process."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.errors import ConfigError
from caswit.mapping.processes import ProcessEngine
from caswit.mapping.run import predict
from conftest import georeference, picture

SETTINGS = PredictConfig(precision="fp32", batch=1, block_px=48, blend=True)
BOTH = MapRunConfig(devices="cpu,cpu")


@pytest.fixture
def path(make_raster):
    return make_raster(picture(90, 90), **georeference())


def read(path):
    with rasterio.open(path) as src:
        return src.read()


def test_numbers_are_gpus():
    assert MapRunConfig(devices="0, 1,cuda:3,cpu").device_names == ("cuda:0", "cuda:1", "cuda:3", "cpu")
    assert MapRunConfig().device_names == ()


@pytest.mark.parametrize("devices", ["", "0,", "gpu", "-1", "cuda:x", "0 1"])
def test_what_is_no_device_is_refused(devices):
    with pytest.raises(ConfigError, match="devices must be numbers of GPUs or torch devices"):
        MapRunConfig(devices=devices)


def test_two_answers_to_one_question_are_refused(path, model_folder, tmp_path):
    with pytest.raises(ConfigError, match="the ray engine finds its own"):
        MapRunConfig(devices="0,1", engine="ray")
    with pytest.raises(ConfigError, match="both --device and --devices say where to compute, got cpu and 0,1"):
        predict(path, tmp_path / "map.tif", model_folder, PredictConfig(device="cpu"), run=MapRunConfig(devices="0,1"))
    assert not list(tmp_path.glob("map*"))


def test_the_map_is_that_of_one_process_though_one_of_two_is_killed(path, model_folder, tmp_path, monkeypatch, caplog):
    def outputs(folder):
        folder.mkdir()
        return folder / "map.tif", OutputConfig(confidence=str(folder / "confidence.tif"))

    out, asked = outputs(tmp_path / "one")
    predict(path, out, model_folder, SETTINGS, asked)
    original, killed = ProcessEngine.run, []

    def kill_one_midway(self, todo, journal):
        for number, outcome in enumerate(original(self, todo, journal)):
            if number == 0:
                killed.append(self.processes[0])
                os.kill(killed[0], signal.SIGKILL)
            yield outcome

    monkeypatch.setattr(ProcessEngine, "run", kill_one_midway)
    out, asked = outputs(tmp_path / "two")
    predict(path, out, model_folder, SETTINGS, asked, BOTH)
    assert killed
    assert "the process on cpu was ended (status -9); its blocks go to others" in caplog.text
    for name in ("map.tif", "confidence.tif"):
        np.testing.assert_array_equal(read(tmp_path / "two" / name), read(tmp_path / "one" / name))
    assert not list(out.parent.glob("*.parts"))
    assert not any(_is_alive(process) for process in killed)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_device_that_is_not_there_is_one_line_and_leaves_nothing(path, model_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"devices: there is no GPU 99, torch finds \d+; name others"):
        predict(path, tmp_path / "map.tif", model_folder, SETTINGS, run=MapRunConfig(devices="99"))
    assert not list(tmp_path.glob("map*"))


@pytest.mark.slow
@pytest.mark.e2e
def test_a_run_that_is_killed_takes_its_processes_along_and_another_goes_on(path, model_folder, tmp_path):
    words = [sys.executable, "-m", "caswit", "predict", str(path), "map.tif", "--model", str(model_folder)]
    words += ["--precision", "fp32", "--batch", "1", "--block-px", "32", "--devices", "cpu,cpu"]
    parts = tmp_path / "map.tif.parts"
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        while run.poll() is None and len(list(parts.glob("*.tif"))) < 2:
            time.sleep(0.01)
        assert run.poll() is None, run.stderr.read()
        run.kill()
        run.stderr.read()  # which ends once no process has it open
    ended = subprocess.run(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "going on, " in ended.stderr
    alone = [word if word != "map.tif" else "alone.tif" for word in words[:-2]]
    assert subprocess.run([*alone, "--device", "cpu"], cwd=tmp_path, capture_output=True, check=False).returncode == 0
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "alone.tif"))
