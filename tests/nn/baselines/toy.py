"""Four drawn images that a network must be able to learn, and the other checks that every network of table 2 passes.

``learned`` trains on them for seconds; the functions after it state what the interface of the networks promises.
"""

import math

import pytest
import torch
from torch import Tensor

from caswit.config import IGNORE_INDEX

NUM_CLASSES = 3
COLOURS = torch.tensor([[0.2, 0.6, 0.3], [0.8, 0.2, 0.2], [0.2, 0.3, 0.9]])


def toy_set(side: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (4, 3, side, side), normalised, and labels (4, side, side): a square (1) and a disc (2) on ground (0)."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    labels = torch.zeros(4, side, side, dtype=torch.long)
    for label in labels:
        radius = side // 5
        places = torch.randint(radius, side - radius, (2, 2), generator=generator)
        (row, col), (disc_row, disc_col) = places.tolist()
        label[(rows - row).abs().maximum((cols - col).abs()) < radius] = 1
        label[(rows - disc_row) ** 2 + (cols - disc_col) ** 2 < radius**2] = 2
    images = COLOURS[labels].permute(0, 3, 1, 2)
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    return (images - 0.4) / 0.25, labels


def learned(network, *, steps: int = 60, lr: float = 0.02, side: int = 64, context: Tensor | None = None) -> float:
    """Train on the toy set and return the share of its pixels that the network then labels rightly.

    Args:
        network: Of ``NUM_CLASSES`` classes; with ``phases`` each gets ``steps`` steps.
        steps: Adam, learning rate falling to 0 along a cosine.
        lr: At the beginning.
        side: Of the images.
        context: What networks that read a context get beside the images.
    """
    images, labels = toy_set(side)
    torch.manual_seed(0)
    for phase in network.phases or (None,):
        network.phase = phase
        prefixes = network.phases[phase] if phase else ("",)
        learning = [p for name, p in network.named_parameters() if name.startswith(prefixes)]
        optimiser = torch.optim.Adam(learning, lr=lr)
        network.train()
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
            network.loss(network(images, context), labels).backward()
            optimiser.step()
    network.phase = None
    network.eval()
    with torch.no_grad():
        return (network(images, context).argmax(1) == labels).float().mean().item()


def noisy(network, seed: int = 0):
    """Shake all that starts as a constant (gates, biases, norms), so that nothing is forgotten; return the network."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point() and value.ndim <= 1:
                value += 0.2 * torch.randn_like(value)
    return network


def check_shapes(network, sizes: list[tuple[int, int]], context: Tensor | None = None) -> None:
    """Logits have the image's sides in both modes, for one image too, and training gives tensors only."""
    for height, width in sizes:
        image = torch.randn(1, 3, height, width)
        outputs = network.train()(image, context)
        assert all(isinstance(value, Tensor) for value in outputs.values())
        with torch.no_grad():
            logits = network.eval()(image, context)
        assert outputs["logits"].shape == logits.shape == (1, NUM_CLASSES, height, width)


def check_gradients(network, context: Tensor | None = None, side: int = 64) -> None:
    """Every parameter gets a gradient that is not 0 from the loss of one pass."""
    noisy(network).train()
    label = torch.randint(NUM_CLASSES, (2, side, side))
    network.loss(network(torch.randn(2, 3, side, side), context), label).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    assert all(p.grad.isfinite().all() for p in network.parameters())


def check_loss(network, context: Tensor | None = None, side: int = 64) -> None:
    """The loss is 0 with a graph where nothing is labelled, finite with bf16 logits, and ignores unlabelled pixels."""
    network.train()
    image = torch.randn(2, 3, side, side)
    label = torch.randint(NUM_CLASSES, (2, side, side))
    nothing = torch.full_like(label, IGNORE_INDEX)
    loss = network.loss(network(image, context), nothing)
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())
    one = nothing.clone()
    one[0, 5, 7] = 1
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(image, context)
        for some in (label, one, label.to(torch.uint8)):
            loss = network.loss(outputs, some)
            assert loss.dtype == torch.float32
            assert loss.isfinite()
            assert loss > 0
    # Another answer where nothing is labelled changes nothing.
    half = label.clone()
    half[:, :, : side // 2] = IGNORE_INDEX
    outputs = {name: value.detach().float() for name, value in network(image, context).items()}
    changed = outputs | {"logits": outputs["logits"].clone()}
    changed["logits"][..., : side // 2] += torch.randn(2, NUM_CLASSES, side, side // 2)
    torch.testing.assert_close(network.loss(changed, half), network.loss(outputs, half))


@torch.no_grad()
def check_batch(network, context: Tensor | None = None, side: int = 64) -> None:
    """In evaluation mode an image's logits do not depend on what else is in the batch."""
    noisy(network).eval()
    images = torch.randn(3, 3, side, side)
    each = [network(images[i : i + 1], None if context is None else context[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(network(images, context), torch.cat(each), rtol=1e-4, atol=1e-5)


def check_only_trains(network, names: tuple[str, ...]) -> None:
    """The modules of these names are not computed in evaluation mode."""
    for name in names:
        for module in getattr(network.eval(), name).modules():
            module.register_forward_hook(lambda *_: pytest.fail("computed in evaluation mode"))
    network(torch.randn(1, 3, 32, 32))


def parameters(network, without: tuple[str, ...] = ()) -> int:
    """Count parameters, without those of modules with these names, such as heads that only train."""
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith(without))
