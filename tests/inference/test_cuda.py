"""The network prepared for a GPU, CUDA graphs and copies, on a GPU that is not there."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend

from caswit.inference.cuda.attention import FUSED, Kernels
from caswit.inference.cuda.graphs import Graphed
from caswit.inference.cuda.network import NetworkOnGPU, network_on_gpu, on_gpu
from caswit.inference.transfers import Transfers
from caswit.nn.window_partition import windows
from networks import random_network
from pretend_gpu import GPU, Graph, OnGPU, pretend_gpu

pytestmark = pytest.mark.equivalence


def images(batch: int, side: int, context: int | None = None, seed: int = 0):
    """Tiles and contexts of noise."""
    drawn = torch.Generator().manual_seed(seed)
    sides = side, context or side
    return [torch.randint(0, 256, (batch, 3, n, n), dtype=torch.uint8, generator=drawn) for n in sides]


@pytest.mark.parametrize(
    ("settings", "side"),
    [({"stem": "conv"}, 64), ({"decoder": "segformer", "gated": True}, 52)],
    ids=["whole windows", "padded windows"],
)
def test_the_prepared_network_is_the_network(settings, side):
    """Windows of 8 of the 16 or 13 tokens of stage 1 are rolled, and at 13 padded."""
    network = random_network("pico", decoder_channels=16, fusion_stages=(1, 4), **settings)
    tiles, contexts = images(2, side)
    with torch.inference_mode():
        expected = network(tiles, contexts)
    with pretend_gpu() as device:
        prepared = NetworkOnGPU(network, device, bf16=False)
        found = prepared(tiles.to(device), contexts.to(device))
        assert isinstance(found, OnGPU)
        found = found.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert next(network.parameters()).device.type == "cpu"  # it stays where it was


def test_weights_in_bf16_are_what_autocast_makes_of_them():
    network = random_network("pico", decoder_channels=16, fusion_stages=(2,))
    halved = on_gpu(network, torch.device("cpu"), bf16=True)
    tiles, contexts = images(1, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(halved(tiles, contexts), network(tiles, contexts))
    for module in halved.modules():
        in_half = isinstance(module, nn.Linear | nn.Conv2d)
        types = {weight.dtype for weight in module.parameters(recurse=False)}
        assert types <= {torch.bfloat16 if in_half else torch.float32}, module
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert halved.decoder.bottleneck[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_fusions_fail_rather_than_store_scores():
    """16384 x 16384 of them in the first stage of a tile of 512 px."""
    network = random_network("pico", decoder_channels=16, fusion_stages=(4,))
    tiles, contexts = images(1, 32)
    with pretend_gpu() as device:
        prepared = NetworkOnGPU(network, device, bf16=False)
        assert prepared.kernels.fusion == FUSED
        assert prepared.kernels.windows == FUSED[1:]  # flash takes no mask
        assert prepared.kernels.said() == (
            "attention in windows by cudnn or efficient, of fusions by flash or cudnn or efficient"
        )
        prepared.kernels = Kernels((SDPBackend.FLASH_ATTENTION,), (SDPBackend.FLASH_ATTENTION,))
        with pytest.raises(RuntimeError, match="No available kernel"):  # of windows, which have masks
            prepared(tiles.to(device), contexts.to(device))
        prepared.kernels = Kernels((), (SDPBackend.FLASH_ATTENTION,))
        assert "in windows by no fused kernel, so that scores are stored" in prepared.kernels.said()
        prepared(tiles.to(device), contexts.to(device))


def test_other_networks_run_as_they_were_trained():
    with pretend_gpu() as device:
        assert network_on_gpu(nn.Conv2d(3, 1, 1), device=device, bf16=False) is None
    assert network_on_gpu(random_network("pico"), device=torch.device("cpu"), bf16=False) is None


class Cell(nn.Module):
    """A network of one table, which only it and the cache of tables know."""

    def forward(self, hr, context):
        table = windows((4, 4), (2, 2), (0, 0), hr.device).tokens
        return (hr.flatten(1)[:, table].float() * 2 + context.flatten(1)[:, table]).unflatten(1, (4, 4))


def test_a_graph_is_captured_and_gives_what_the_network_gives():
    network, (_, offsets) = Cell(), images(4, 4)
    with pretend_gpu() as device:
        graphed = Graphed(network)
        kept = []
        for seed in range(7):
            tiles, _ = images(4, 4, seed=seed)
            found = graphed(tiles.to(device), offsets.to(device))
            kept.append((found, network(tiles, offsets)))
        # Three plain passes first; nothing that was returned is written to by a later one.
        assert Graph.replays == 4
        for found, expected in kept:
            torch.testing.assert_close(found.cpu(), expected)
        # The table stays where the graph reads it, whatever becomes of the cache.
        table = windows((4, 4), (2, 2), (0, 0), device).tokens
        assert any(one is table for one in graphed.graph.read)
        last = graphed(tiles[:1].to(device), offsets[:1].to(device))
        torch.testing.assert_close(last.cpu(), network(tiles[:1], offsets[:1]))
        assert Graph.replays == 4, "the last batch of a block runs plainly"
        for _ in range(5):
            graphed(*(x.to(device) for x in images(1, 4)))
        assert len(graphed.graph.images[0]) == 4, "the largest batch keeps its graph"


def test_tiles_of_other_sides_are_captured_anew():
    def network(hr, context):
        return hr.float() + 1

    with pretend_gpu() as device:
        graphed = Graphed(network)
        for side in (4, 6):
            for _ in range(5):
                tiles, _ = images(2, side)
                torch.testing.assert_close(graphed(tiles.to(device), None).cpu(), tiles.float() + 1)
            assert graphed.graph.shapes == ((2, 3, side, side),)


def test_a_network_that_cannot_be_captured_runs_plainly_and_says_so_once(caplog):
    def network(hr, context):
        return hr.float() * hr.float().max().item()  # waits for the GPU, which a graph cannot

    tiles, _ = images(2, 4)
    with pretend_gpu() as device, caplog.at_level(logging.WARNING):
        graphed = Graphed(network)
        for _ in range(6):
            found = graphed(tiles.to(device), None)
            torch.testing.assert_close(found.cpu(), tiles.float() * tiles.max())
    assert [r.getMessage()[:31] for r in caplog.records] == ["no CUDA graph of the network (o"]
    assert Graph.replays == 0


def test_pixels_are_awaited_and_earlier_ones_forgotten():
    blocks = [np.full((3, 4, 4), value, np.uint8) for value in (1, 2, 3)]
    with pretend_gpu() as device:
        transfers = Transfers(device)
        for block in blocks[:2]:
            transfers.send(block)
        assert not torch.equal(transfers._sent[0].there.cpu(), torch.from_numpy(blocks[0])), "still under way"
        for block in blocks:  # nobody sent the last one
            assert torch.equal(transfers.pixels(block).cpu(), torch.from_numpy(block))
            assert torch.equal(transfers.pixels(block).cpu(), torch.from_numpy(block))
        assert len(transfers._sent) == 1
        fetched = transfers.fetch(torch.full((5,), 9, device=device))
        assert fetched._values.tolist() != [9] * 5, "still under way"
        assert fetched.numpy().tolist() == [9] * 5


def test_every_weight_is_on_the_gpu():
    with pretend_gpu() as device:
        copied = on_gpu(random_network("pico"), device, bf16=False)
        for name, value in [*copied.named_parameters(), *copied.named_buffers()]:
            assert value.device == GPU, name
