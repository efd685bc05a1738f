"""Weights that stay in their file."""

import hashlib
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from caswit.weights.lazy import LazyWeights, with_weights

STATUS = Path("/proc/self/status")


@pytest.fixture
def file(tmp_path):
    """32 MB, and one number."""
    torch.manual_seed(0)
    content = {"large": torch.randn(2048, 4096), "count": torch.tensor(7), "none": torch.zeros(0, 3)}
    save_file(content, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def from_files_mb():
    """Resident memory of this process that is files."""
    return next(int(x.split()[1]) / 1024 for x in STATUS.read_text().splitlines() if x.startswith("RssFile:"))


def test_they_are_what_was_saved_before_and_after_they_were_let_go_of(file):
    torch.manual_seed(0)
    expected = torch.randn(2048, 4096)
    weights = LazyWeights(file)
    with weights.released():
        assert torch.equal(weights["large"], expected)
    assert torch.equal(weights["large"], expected)
    assert weights["count"] == 7
    assert weights["none"].shape == (0, 3)
    assert sorted(weights) == ["count", "large", "none"]
    assert len(weights) == 3


@pytest.mark.skipif(not STATUS.is_file(), reason="memory is read from Linux")
def test_what_was_read_leaves_memory(file):
    weights = LazyWeights(file)
    before = from_files_mb()
    float(weights["large"].sum())
    assert from_files_mb() > before + 30
    with weights.released():
        float(weights["large"].sum())
    assert from_files_mb() < before + 2


def test_what_was_written_stays_and_the_file_too(file):
    weights = LazyWeights(file)
    layer = nn.Linear(4096, 2048, bias=False, device="meta")
    layer.load_state_dict({"weight": weights["large"]}, assign=True)
    with torch.no_grad():
        layer.weight += 1
    changed = layer.weight.detach().clone()
    with weights.released():
        time.sleep(0.2)
    assert torch.equal(layer.weight, changed)
    assert torch.equal(LazyWeights(file)["large"] + 1, changed)


def test_a_network_gets_them_and_no_noise(file):
    def build():
        return nn.Sequential(nn.Linear(4096, 2048, bias=False), nn.BatchNorm1d(2048, affine=False))

    kept = {"1.running_mean": torch.ones(2048), "1.running_var": torch.ones(2048), "1.num_batches_tracked": 0}
    weights = {"0.weight": LazyWeights(file)["large"], **{k: torch.as_tensor(v) for k, v in kept.items()}}
    drawn = torch.random.get_rng_state()
    network = with_weights(build, weights)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert network[0].weight.data_ptr() == weights["0.weight"].data_ptr()
    with pytest.raises(RuntimeError, match="Missing key"):
        with_weights(build, {k: v for k, v in weights.items() if k != "0.weight"})


def test_other_files_are_refused(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SafetensorError):
        LazyWeights(file)


def test_the_digest_is_that_of_the_file_and_finds_what_is_not_finite(file):
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert LazyWeights(file).digest() == (sha256, None)
    for kind in (torch.float32, torch.bfloat16):
        for value in (float("nan"), float("inf"), -float("inf")):
            content = {"a": torch.ones(9, dtype=kind), "b": torch.ones(9, 9, dtype=kind), "c": torch.tensor(7)}
            content["b"][4, 4] = value
            save_file(content, file)
            assert LazyWeights(file).digest() == (hashlib.sha256(file.read_bytes()).hexdigest(), "b")


@pytest.mark.skipif(not STATUS.is_file(), reason="memory is read from Linux")
def test_the_digest_leaves_nothing_in_memory(file):
    weights = LazyWeights(file)
    before = from_files_mb()
    weights.digest()
    assert from_files_mb() < before + 2
