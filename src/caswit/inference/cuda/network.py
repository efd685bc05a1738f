"""A network on a CUDA GPU behind the call of the plain one."""

import copy
import logging
from functools import lru_cache

import torch
from torch import Tensor, nn

from caswit.inference.cuda.attention import Kernels, attend_by_sdpa
from caswit.inference.cuda.graphs import Graphed
from caswit.inference.devices import autocast
from caswit.inference.predictor import Forward
from caswit.nn.caswit import CASWiT
from caswit.nn.decoders import SegformerHead, UPerNetHead

log = logging.getLogger(__name__)


class NetworkOnGPU:
    """A copy of a network on a GPU: (hr, context) -> logits (B, K, H, W). Changes to the network have no effect on it.

    Args:
        network: In evaluation mode, with a decoder; it stays where it is.
        device: The GPU.
        bf16: Compute in bfloat16 where autocast does; the weights of those operations are kept in it.
    """

    def __init__(self, network: CASWiT, device: torch.device, *, bf16: bool) -> None:
        self.device, self.bf16 = device, bf16
        self.network = on_gpu(network, device, bf16=bf16)
        attend_by_sdpa(self.network)
        self.kernels = Kernels.found(self.network, device, torch.bfloat16 if bf16 else torch.float32)

    @torch.inference_mode()
    def __call__(self, hr: Tensor, context: Tensor | None) -> Tensor:
        """Label a batch of tiles as ``CASWiT.forward`` does in evaluation mode."""
        with self.kernels.asserted(), autocast(self.device, self.bf16):
            logits: Tensor = self.network(hr, context)
        return logits


def on_gpu(network: CASWiT, device: torch.device, *, bf16: bool) -> CASWiT:
    """Return a copy of a network on a device, whose convolutions have their channels last, as its maps have."""
    # Autocast would make bf16 of these weights in every pass: a third of the memory, and milliseconds.
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    halved = {id(weight) for layer in layers for weight in layer.parameters(recurse=False)} if bf16 else set()
    there: dict[int, Tensor] = {}
    for old in (*network.parameters(), *network.buffers()):
        order = torch.channels_last if old.dim() == 4 else torch.preserve_format
        new = old.detach().to(device, torch.bfloat16 if id(old) in halved else old.dtype, memory_format=order)
        there[id(old)] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    return copy.deepcopy(network, there)  # which takes what is there already: nothing is copied here


def network_on_gpu(network: nn.Module, *, device: torch.device, bf16: bool) -> Forward | None:
    """Prepare a network for a GPU; None where it runs as it was trained: on other devices, and for other networks."""
    if device.type != "cuda" or not isinstance(network, CASWiT):
        return None
    if not isinstance(network.decoder, UPerNetHead | SegformerHead):
        return None
    prepared = NetworkOnGPU(network, device, bf16=bf16)
    _say(f"{torch.cuda.get_device_name(device)}, {'bf16' if bf16 else 'fp32'}: {prepared.kernels.said()}")
    return Graphed(prepared)


@lru_cache(maxsize=8)
def _say(line: str) -> None:
    """Say what computes, once in a process."""
    log.info("%s", line)
