"""Peak memory of a model, and what the driver says of it, by a driver that tests make up."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from caswit.errors import CaswitError, install
from caswit.experiments import memory
from caswit.experiments.memory import MB, Driver, PeakMemory, measure, peak_memory

GPU = SimpleNamespace(uuid="1234")


class Nvml:
    """pynvml, as far as it is used."""

    def __init__(self, processes, known="GPU-1234"):
        self.processes, self.known, self.began = processes, known, False

    def nvmlInit(self):
        self.began = True

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert self.began
        if uuid != self.known:
            raise RuntimeError("Not Found")
        return "handle"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        assert handle == "handle"
        if isinstance(self.processes, Exception):
            raise self.processes
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes.items()]


def driver(monkeypatch, processes, **how):
    monkeypatch.setitem(memory.sys.modules, "pynvml", Nvml(processes, **how))
    return Driver.of(GPU)


def test_the_driver_says_what_this_process_holds(monkeypatch):
    assert driver(monkeypatch, {os.getpid(): 812 * MB, 1: 5 * MB}).process_mb() == 812


def test_a_container_that_numbers_processes_anew(monkeypatch):
    """Alone on the GPU the listed process is this one; among several nobody knows."""
    assert driver(monkeypatch, {999_999_999: 70 * MB}).process_mb() == 70
    assert driver(monkeypatch, {999_999_999: 70 * MB, 999_999_998: 1}).process_mb() is None


@pytest.mark.parametrize("processes", [{}, {os.getpid(): None}, RuntimeError("Not Supported")])
def test_a_driver_that_does_not_tell(monkeypatch, processes):
    assert driver(monkeypatch, processes).process_mb() is None


def test_without_the_library_or_with_another_gpu(monkeypatch):
    monkeypatch.setitem(memory.sys.modules, "pynvml", None)  # as if it were not installed
    assert Driver.of(GPU) is None
    assert driver(monkeypatch, {}, known="GPU-5") is None


def test_all_three_figures_are_printed():
    peak = PeakMemory(device="L40S", precision="bf16", process_mb=3530.4, allocated_mb=1200, reserved_mb=2000.6)
    assert str(peak) == "3530 / 2001 / 1200"
    assert peak.description.startswith("of the process by NVML, CUDA's context included / reserved by torch / alloc")
    silent = PeakMemory(device="L40S", precision="bf16", allocated_mb=1200, reserved_mb=2000.6)
    assert str(silent) == "- / 2001 / 1200"
    assert install("gpu") in silent.description


def test_files_of_earlier_versions_are_read():
    before = {"device": "cpu", "precision": "fp32", "allocated_mb": None, "reserved_mb": None}
    assert str(PeakMemory(**before, resident_mb=812.4, before_mb=400.6)) == "812 (401)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_process_holds_more_than_torch(make_model):
    pytest.importorskip("pynvml")
    peak = peak_memory(make_model((1, 2, 3, 4)), device="cuda")
    assert peak.process_mb is None or peak.process_mb > peak.reserved_mb >= peak.allocated_mb > 0


@pytest.mark.e2e
def test_a_larger_image_takes_more(make_model, capsys):
    """640 x 600 px, filled up to 640 x 608, beside a tile of 32 px."""
    folder = make_model(())
    tile = peak_memory(folder, device="cpu", precision="fp32")
    image = peak_memory(folder, device="cpu", precision="fp32", sides_px=(640, 600))
    assert (tile.image, image.image) == ("32 x 32 px", "640 x 608 px")
    assert image.resident_mb > tile.resident_mb + 20
    assert json.loads(json.dumps(vars(image))) == vars(image)


def test_a_context_is_measured_with_it(make_model, monkeypatch):
    seen = []

    def note(self, hr, context):
        seen.append((hr.shape, None if context is None else context.shape))
        return torch.zeros(1, 3, *hr.shape[-2:])

    monkeypatch.setattr("caswit.inference.predictor.Predictor.image_logits", note)
    measure(make_model((1, 2, 3, 4)), "cpu", "fp32")
    measure(make_model(()), "cpu", "fp32", (90, 130))
    assert seen[0] == ((1, 3, 32, 32), (1, 3, 32, 32))
    assert seen[-1] == ((1, 3, 96, 160), None)


def test_what_cannot_be_measured_is_one_line(tmp_path):
    with pytest.raises(CaswitError, match="none: no such model folder"):
        peak_memory(tmp_path / "none", device="cpu")
