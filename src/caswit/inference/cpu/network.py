"""The arranged network behind the call of the plain one.

Shapes: B batch, H/W rows and columns, K classes.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import NUM_STAGES
from caswit.inference.cpu.decoder import Conv, Segformer, UPerNet, as_map, as_tokens, pointwise
from caswit.inference.cpu.encoder import Fusion, Norm, Stage
from caswit.inference.cpu.kernels import Kernels, usual
from caswit.inference.cpu.ops import Affine, Ops, TorchOps, Value
from caswit.inference.cpu.timing import choose
from caswit.nn.caswit import CASWiT, check_images
from caswit.nn.decoders import SegformerHead, UPerNetHead
from caswit.nn.swin import PATCH_PX, ConvStem, SwinEncoder
from caswit.nn.window_partition import Sides
from caswit.weights.lazy import LazyWeights

if TYPE_CHECKING:
    from caswit.inference.cpu.openvino import Built

log = logging.getLogger(__name__)

Arrange = Callable[[Sequence[Sides]], Callable[..., Tensor]]
"""From the sides of all images to the function that computes the logits of images that are normalised."""


class Embedding:
    """The patch embedding of a branch: an image as tokens of 4 px."""

    def __init__(self, ops: Ops, encoder: SwinEncoder) -> None:
        stem = encoder.patch_embed
        self.norm = Norm(ops, stem.norm)
        self.convs: list[Conv] = []
        if isinstance(stem, ConvStem):
            *layers, last = stem.layers
            self.convs = [Conv(ops, layer) for layer in layers]  # type: ignore[arg-type]
            assert isinstance(last, nn.Conv2d)
            self.last = pointwise(ops, last)
        else:
            projection = stem.proj
            assert isinstance(projection, nn.Conv2d)
            assert projection.bias is not None
            self.patches = Affine(ops.ready(projection.weight), ops.ready(projection.bias))

    def __call__(self, ops: Ops, image: Value, sides: Sides) -> tuple[Value, Sides]:
        """Embed an image: (1, n, H, W) -> tokens, and the sides of their map."""
        after = sides[0] // PATCH_PX, sides[1] // PATCH_PX
        if self.convs:
            first, *others = self.convs
            sides = -(-sides[0] // first.stride), -(-sides[1] // first.stride)
            x = first.norm.relu(ops, first.of_map(ops, image, (sides[0] * first.stride, sides[1] * first.stride)))
            for conv in others:
                x = conv(ops, x, sides)
                sides = -(-sides[0] // conv.stride), -(-sides[1] // conv.stride)
            x = ops.linear(x, self.last)
        else:
            x = as_tokens(ops, ops.conv(image, self.patches, PATCH_PX, 0), after)
        return self.norm(ops, x), after


class Arrangement:
    """The parts of a network, their weights folded and laid out for the operations that run them."""

    @torch.no_grad()
    def __init__(self, ops: Ops, network: CASWiT) -> None:
        self.ops, self.feed_forward = ops, network.feed_forward
        self.hr_embedding = Embedding(ops, network.hr_encoder)
        self.hr_stages = [Stage(ops, stage) for stage in network.hr_encoder.layers]
        self.context_stages: list[Stage] = []
        if network.context_encoder is not None:
            # Only fusions read the context, so its stages after the last fusion are never computed.
            read = list(network.context_encoder.layers)[: max(network.fusion_stages)]
            self.context_embedding = Embedding(ops, network.context_encoder)
            self.context_stages = [Stage(ops, stage) for stage in read]
        self.fusion = {int(stage): Fusion(ops, block) for stage, block in network.fusion.items()}  # type: ignore[arg-type]
        self.norms = [Norm(ops, norm) for norm in network.hr_norms]  # type: ignore[arg-type]
        head = network.decoder
        assert isinstance(head, UPerNetHead | SegformerHead)
        self.head = UPerNet(ops, head) if isinstance(head, UPerNetHead) else Segformer(ops, head)

    def __call__(self, images: Sequence[Value], sizes: Sequence[Sides]) -> Value:
        """Turn normalised images (1, 3, H, W), their sides multiples of 4, into logits (1, K, H / 4, W / 4)."""
        ops = self.ops
        x, sides = self.hr_embedding(ops, images[0], sizes[0])
        contexts: list[Value] = []
        if self.context_stages:
            embedded = [self.context_embedding(ops, image, sizes[1]) for image in images[1:]]
            contexts, c_sides = [tokens for tokens, _ in embedded], embedded[0][1]
        maps = []
        for stage in range(1, NUM_STAGES + 1):
            x, sides = self.hr_stages[stage - 1](ops, x, sides)
            fused = x
            if stage <= len(self.context_stages):
                advanced = [self.context_stages[stage - 1](ops, c, c_sides) for c in contexts]
                contexts, c_sides = [c for c, _ in advanced], advanced[0][1]
                if stage in self.fusion:
                    fused = self.fusion[stage](ops, x, contexts)
            maps.append((self.norms[stage - 1](ops, fused), sides))
            x = fused if self.feed_forward else x
        return as_map(ops, self.head(ops, maps), maps[0][1])


class ArrangedCASWiT(nn.Module):
    """The arranged form of a network, called as the network is: ``(hr, context)`` gives fp32 logits (B, K, H, W).

    Weights are copied: changes to the network afterwards have no effect. Images are run one by one, which costs a CPU
    nothing and needs the memory of one.

    Args:
        network: In evaluation mode, with a decoder.
        bf16: Compute in bfloat16; otherwise in fp32.
        openvino: Compile with OpenVINO, which must be installed; otherwise run in torch.
        weights: The file that the network's weights lie in, if they do; they need not stay in memory then.
        kernels: Ways of computing, of which ``openvino`` is one; None: what is usual for the processor.
        arrange: Called for what runs images of these sides; None: the network arranged for them.
    """

    def __init__(
        self,
        network: CASWiT,
        *,
        bf16: bool,
        openvino: bool,
        weights: LazyWeights | None = None,
        kernels: Kernels | None = None,
        arrange: Arrange | None = None,
    ) -> None:
        super().__init__()
        self.kernels = replace(kernels or usual(), openvino=openvino)
        self.reads_context = network.reads_context
        self.contexts = network.contexts if network.reads_context else 0
        self.normalise: Callable[[Tensor], Tensor] = network.normalise
        self.bands = network.bands
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        # A bound method, not a submodule: the network's weights must not count as this module's, nor be moved with it.
        self._plain = cast("Callable[..., Tensor]", network.forward)
        self._arrange: Arrange
        self._runs: dict[tuple[Sides, ...], Callable[..., Tensor]] = {}
        self._read = nullcontext if weights is None else weights.released
        if arrange is not None:
            self._arrange = arrange
        elif openvino:
            self._arrange = partial(_in_openvino, network, bf16, self.kernels)
        else:
            with self._read():
                arranged = Arrangement(TorchOps(network.mean.device, self.dtype, self.kernels), network)
            self._arrange = partial(_in_torch, arranged)

    @torch.inference_mode()
    def forward(self, hr: Tensor, context: Tensor | None = None) -> Tensor:
        """Label a batch of tiles as ``CASWiT.forward`` does in evaluation mode."""
        check_images(hr, context, self.contexts, self.bands)
        images = [hr, context] if context is not None and self.contexts else [hr]
        return torch.cat([self._one([x[i : i + 1] for x in images]) for i in range(len(hr))])

    def ready(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return the images of one tile as what runs them takes them: each alone, normalised and padded."""
        tile, *context = images
        each = [one for several in context for one in several.unbind(1)] if self.contexts > 1 else context
        return [_padded(self.normalise(x)) for x in (tile, *each)]

    def _one(self, images: Sequence[Tensor]) -> Tensor:
        height, width = images[0].shape[-2:]
        ready = self.ready(images)
        sizes = tuple((int(x.shape[-2]), int(x.shape[-1])) for x in ready)
        # OpenVINO plans memory for fixed shapes: one graph for each image size. The tiles of a map all have one.
        if sizes in self._runs:
            logits = self._runs[sizes](*ready).float()
        else:
            with self._read():
                self._runs[sizes] = self._arrange(sizes)
                # Run while weights are released: some of them are read when they are first used.
                logits = self._runs[sizes](*ready).float()
        if not bool(logits.isfinite().all()):
            # Attention in groups of keys overflows where scores leave the range of exponentials. Trained networks have
            # no such scores; for those that do, the plain network gives the answer.
            return self._plain(*images)
        return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)


def _in_torch(arranged: Arrangement, sizes: Sequence[Sides]) -> Callable[..., Tensor]:
    def run(*images: Tensor) -> Tensor:
        logits: Tensor = arranged([arranged.ops.ready(x) for x in images], sizes)
        return logits

    return run


def _in_openvino(network: CASWiT, bf16: bool, kernels: Kernels, sizes: Sequence[Sides]) -> Callable[..., Tensor]:
    from caswit.inference.cpu.openvino import Compiled

    return Compiled(graph_of(network, sizes, bf16=bf16, kernels=kernels), bf16=bf16)


def graph_of(network: CASWiT, sizes: Sequence[Sides], *, bf16: bool, kernels: Kernels) -> "Built":
    """Return the arranged network as an OpenVINO graph for images of these sides."""
    from caswit.inference.cpu.openvino import build

    shapes = [(1, network.bands, *size) for size in sizes]
    return build(lambda ops, inputs: Arrangement(ops, network)(inputs, sizes), shapes, bf16=bf16, kernels=kernels)


def _padded(image: Tensor) -> Tensor:
    """Pad an image to sides that are multiples of 4, as ``SwinEncoder.embed`` does."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % PATCH_PX, 0, -height % PATCH_PX))


def can_be_arranged(network: nn.Module) -> TypeGuard[CASWiT]:
    """Return whether an arrangement of a network is known."""
    return isinstance(network, CASWiT) and isinstance(network.decoder, UPerNetHead | SegformerHead)


def arranged_network(
    network: nn.Module,
    *,
    device: torch.device,
    bf16: bool,
    weights: LazyWeights | None = None,
    tile_px: int = 0,
    map_px: int = 0,
) -> nn.Module | None:
    """Arrange a network for inference on a processor; None where no arrangement of it is known.

    It runs in OpenVINO where that is installed and no slower, in the ways that ``timing.choose`` finds.

    Args:
        network: In evaluation mode.
        device: Where it will run.
        bf16: Compute in bfloat16; otherwise in fp32.
        weights: The file that the network's weights lie in, if they do.
        tile_px: Side of the tiles, by which ways are chosen; 0: those that are usual for the processor.
        map_px: Pixels that will be labelled; where they are many, ways may be timed.
    """
    if device.type != "cpu" or not isinstance(network, CASWiT):
        return None
    if not can_be_arranged(network):
        log.info("the Mask2Former decoder has no form arranged for processors: the network runs as it was trained")
        return None
    kernels = choose(network, tile_px, bf16=bf16, map_px=map_px).kernels if tile_px else usual()
    return ArrangedCASWiT(network, bf16=bf16, openvino=kernels.openvino, weights=weights, kernels=kernels).eval()
