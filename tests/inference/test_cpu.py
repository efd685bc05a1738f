"""The network arranged for inference against the plain one, in torch and in OpenVINO."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from caswit.config import ComputeConfig
from caswit.errors import ModelError
from caswit.evaluation.metrics import Counts, count, score
from caswit.inference.cpu.kernels import Kernels, usual
from caswit.inference.cpu.network import ArrangedCASWiT, arranged_network
from caswit.inference.cpu.ops import TorchOps
from caswit.inference.cpu.winograd import WIDE, Conv3x3
from caswit.inference.devices import uses_bf16
from caswit.inference.load import load_predictor
from caswit.nn.caswit import CASWiT
from caswit.weights.model_folder import load_model
from networks import random_network

pytestmark = pytest.mark.equivalence

CPU = torch.device("cpu")
NEEDS_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
WAYS = ["torch", pytest.param("openvino", marks=NEEDS_OPENVINO)]
NETWORKS = {
    "upernet": {},
    "segformer, conv stem, gates": {"decoder": "segformer", "stem": "conv", "gated": True},
    "group norms, two fusions": {"decoder_norm": "group", "stem": "conv", "fusion_stages": (1, 3)},
    "fused maps stay out": {"feed_forward": False, "decoder": "segformer", "decoder_norm": "group"},
    "no context": {"fusion_stages": ()},
    "two contexts": {"contexts": 2, "gated": True, "fusion_stages": (1, 2, 4)},
}


@pytest.fixture(params=WAYS)
def openvino(request):
    return request.param == "openvino"


def noise(*sides, batch=2):
    drawn = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (batch, 3, *side), dtype=torch.uint8, generator=drawn) for side in sides]


@torch.no_grad()
def apart(ours, plain):
    return float((ours - plain).abs().max() / plain.abs().max())


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_fp32_is_the_plain_network(settings, openvino):
    network, (hr, context, other) = random_network(**settings), noise((93, 141), (70, 50), (70, 50))
    images = hr, context if network.contexts == 1 else torch.stack([context, other], 1)
    arranged = ArrangedCASWiT(network, bf16=False, openvino=openvino)
    assert apart(arranged(*images), network(*images)) < 1e-4
    assert arranged.reads_context == network.reads_context


@torch.no_grad()
def test_each_of_several_contexts_is_read_as_the_plain_network_reads_it(openvino):
    network, (hr, *contexts) = random_network(contexts=2), noise((64, 64), (64, 64), (64, 64))
    for name, value in network.named_parameters():
        if name.endswith(("to_q.weight", "to_kv.weight", "proj.weight")) and name.startswith("fusion"):
            nn.init.normal_(value, std=0.3)  # else the context hardly matters
    arranged = ArrangedCASWiT(network, bf16=False, openvino=openvino)
    images = hr, torch.stack(contexts, 1)
    assert apart(arranged(*images), network(*images)) < 1e-4
    assert apart(arranged(hr, torch.stack(contexts[::-1], 1)), network(*images)) > 1e-2


@pytest.mark.parametrize("sides", [(32, 32), (48, 34), (33, 40)], ids=str)
@torch.no_grad()
def test_wide_convolutions_are_convolutions(sides):
    """Even sides go Winograd's way, odd ones do not."""
    ops = TorchOps(CPU, torch.double)
    weight, bias = torch.randn(WIDE, WIDE + 3, 3, 3, dtype=torch.double), torch.randn(WIDE, dtype=torch.double)
    image = torch.randn(1, WIDE + 3, *sides, dtype=torch.double)
    tokens = image[0].flatten(1).T.contiguous()
    ours = Conv3x3(ops, lambda: weight, bias, (WIDE, WIDE + 3))(tokens, sides)
    torch.testing.assert_close(ours.T.unflatten(1, sides)[None], nn.functional.conv2d(image, weight, bias, padding=1))


@pytest.mark.parametrize("winograd", [False, True])
@torch.no_grad()
def test_a_wide_decoder(openvino, winograd):
    network, images = random_network(decoder_channels=WIDE), noise((128, 128), (128, 128), batch=1)
    ways = replace(usual(openvino=openvino), winograd=winograd)
    assert apart(ArrangedCASWiT(network, bf16=False, openvino=openvino, kernels=ways)(*images), network(*images)) < 1e-4


@NEEDS_OPENVINO
@pytest.mark.parametrize("joined_masks", [False, True])
@torch.no_grad()
def test_rolled_windows(joined_masks):
    network, images = random_network(), noise((96, 64), (96, 64), batch=1)
    ways = replace(usual(openvino=True), joined_masks=joined_masks)
    assert apart(ArrangedCASWiT(network, bf16=False, openvino=True, kernels=ways)(*images), network(*images)) < 1e-4


@torch.no_grad()
def test_sizes_follow_each_other(openvino):
    """The size is not remembered from the first call, nor anything of its images."""
    network, sizes = random_network(), [((128, 128), (128, 128)), ((64, 96), (96, 64))]
    arranged = ArrangedCASWiT(network, bf16=False, openvino=openvino)
    for size in (*sizes, *sizes):
        images = noise(*size)
        assert apart(arranged(*images), network(*images)) < 1e-4


ATTENTION = ["torch", pytest.param("whole", marks=NEEDS_OPENVINO), pytest.param("groups", marks=NEEDS_OPENVINO)]


@NEEDS_OPENVINO
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("times", [20, 2000])
@torch.no_grad()
def test_many_keys(attention, times):
    """So many context tokens that there are several ways; some scores are high and most low, or all out of range."""
    network, images = random_network(fusion_stages=(1,)), noise((64, 64), (512, 512), batch=1)
    network.fusion["1"].attention.to_q.weight *= times
    ways = replace(usual(openvino=True), attention=attention)
    arranged = ArrangedCASWiT(network, bf16=False, openvino=True, kernels=ways)
    assert apart(arranged(*images), network(*images)) < (1e-4 if times == 20 else 1e-3)


@torch.no_grad()
def test_many_keys_in_torch():
    network, images = random_network(fusion_stages=(1,)), noise((64, 64), (512, 512), batch=1)
    network.fusion["1"].attention.to_q.weight *= 20
    assert apart(ArrangedCASWiT(network, bf16=False, openvino=False)(*images), network(*images)) < 1e-4


@pytest.fixture(scope="module")
def trained():
    """A small network that has learned which of three bands is brightest."""
    torch.manual_seed(0)
    network = CASWiT(
        num_classes=3, size="pico", decoder_channels=WIDE, fusion_stages=(1, 2), drop_path=0, context_head=False
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    network.train()
    for step in range(30):
        hr, context, truth = coloured(4, seed=step)
        loss = nn.functional.cross_entropy(network(hr, context).hr, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def coloured(batch, seed, side=64):
    """Smooth noise in three bands, its context, and which band is brightest."""
    drawn = torch.Generator().manual_seed(seed)
    fields = torch.rand(batch, 3, 7, 7, generator=drawn)
    context = nn.functional.interpolate(fields, size=(2 * side, 2 * side), mode="bicubic").clamp(0, 1)
    middle = slice(side // 2, side // 2 + side)
    hr = context[..., middle, middle]
    return 255 * hr, 255 * nn.functional.avg_pool2d(context, 2), hr.argmax(1)


EVERY_WAY = [
    Kernels(openvino=False, attention="torch", winograd=False, joined_masks=False),
    Kernels(openvino=False, attention="torch", winograd=True, joined_masks=False),
    *(
        pytest.param(
            Kernels(openvino=True, attention=attention, winograd=winograd, joined_masks=joined), marks=NEEDS_OPENVINO
        )
        for attention, winograd, joined in [("torch", False, True), ("whole", False, False), ("groups", True, False)]
    ),
]


@pytest.mark.parametrize("ways", EVERY_WAY, ids=lambda w: f"{w.attention}-{w.winograd}-{w.openvino}")
@torch.no_grad()
def test_bf16_labels_as_fp32_does_once_trained(trained, ways, monkeypatch):
    """However it is computed, so that a map may be begun on one processor and finished on another."""
    if ways.openvino:  # the images are small: let them count as large ones
        monkeypatch.setattr("caswit.inference.cpu.openvino.MANY_KEYS", 512)
        monkeypatch.setattr("caswit.inference.cpu.openvino.GROUP", 256)
    arranged = ArrangedCASWiT(trained, bf16=True, openvino=ways.openvino, kernels=ways)
    counts, alike = [Counts.zeros(3), Counts.zeros(3)], []
    for seed in range(1000, 1003):
        hr, context, truth = coloured(4, seed, side=128)
        plain, ours = trained(hr, context).argmax(1), arranged(hr, context).argmax(1)
        alike.append((plain == ours).float().mean())
        for image in range(len(hr)):
            for index, found in enumerate((plain, ours)):
                pair = (x[image].byte().numpy() for x in (found, truth))
                counts[index] += count(*pair, num_classes=3, band_px=2, ignore_index=255)
    scores = [score(each).miou for each in counts]
    assert scores[0] > 0.7  # it has learned
    assert torch.stack(alike).mean() >= 0.995
    assert abs(scores[0] - scores[1]) < 0.001


@NEEDS_OPENVINO
@torch.no_grad()
def test_products_are_computed_in_the_precision_asked_for(trained):
    """OpenVINO leaves a product in fp32 whose first factor is a constant: there is none."""
    if not uses_bf16("auto", CPU):
        pytest.skip("this processor has no bf16")
    arranged = ArrangedCASWiT(trained, bf16=True, openvino=True)
    arranged(*noise((128, 128), (128, 128), batch=1))
    (run,) = arranged._runs.values()
    graph = run._request.get_compiled_model().get_runtime_model()
    kinds = [{name: value.astype(str) for name, value in node.get_rt_info().items()} for node in graph.get_ops()]
    products = [kind["runtimePrecision"] for kind in kinds if kind.get("layerType") in ("MatMul", "FullyConnected")]
    assert len(products) > 30
    assert set(products) == {"bf16"}


def test_predict_and_evaluate_choose_it_and_fp32_does_not(model_folder):
    loaded = load_model(model_folder)
    chosen = {p: load_predictor(loaded, ComputeConfig(device="cpu", precision=p)) for p in ("auto", "bf16", "fp32")}
    assert chosen["fp32"].arranged is None
    assert isinstance(chosen["auto"].arranged, ArrangedCASWiT)
    assert chosen["bf16"].arranged.dtype == torch.bfloat16
    masked = chosen["auto"].with_masked_context()
    assert masked.masked_context
    assert isinstance(masked.arranged, ArrangedCASWiT)
    assert not chosen["auto"].masked_context


def test_no_arrangement_for_other_networks_and_devices():
    assert arranged_network(nn.Conv2d(3, 4, 1), device=CPU, bf16=True) is None
    assert arranged_network(random_network(), device=torch.device("cuda"), bf16=True) is None


def test_a_missing_context_is_said_as_ever(openvino):
    arranged = ArrangedCASWiT(random_network(), bf16=False, openvino=openvino)
    with pytest.raises(ModelError, match="needs a context image"):
        arranged(*noise((64, 64)))


DROPPED_ELSEWHERE = """
import faulthandler, signal, subprocess, threading
from caswit.inference.cpu.kernels import Kernels, usual
from caswit.inference.cpu.network import ArrangedCASWiT
from caswit.nn.caswit import CASWiT
import torch

faulthandler.enable()  # its handlers, and Python's, run on a stack of their own
signal.signal(signal.SIGCHLD, lambda *_: None)
image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
network = CASWiT(num_classes=2, size="pico", context_head=False).eval()
held = [ArrangedCASWiT(network, bf16=False, openvino=True)]
with torch.no_grad():
    held[0](image, image)
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
subprocess.run(["true"], check=True)
"""


@NEEDS_OPENVINO
def test_signals_are_survived_after_a_network_was_dropped_in_another_thread():
    assert subprocess.run([sys.executable, "-c", DROPPED_ELSEWHERE], check=False).returncode == 0
