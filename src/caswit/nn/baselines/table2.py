"""The networks of the paper's table 2 behind the same interface as CASWiT.

Each is a module of its own in this package, imported only when it is built, and knows nothing of recipes. Here it gets
the normalisation of images, the checks of its input, and its own loss where the training loop expects one.

Shapes: B batch, H/W rows and columns, K classes, N contexts.
"""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from caswit.config import ModelConfig
from caswit.config.nn import CONTEXTS
from caswit.errors import ModelError
from caswit.nn.baselines.normalised import Normalised
from caswit.nn.caswit import TrainingLogits, check_images


class _Network(Protocol):
    """What each of these networks has beside a module's own methods."""

    reads_context: bool
    stride_px: int
    """Sides of images must be multiples of this."""
    phases: Mapping[str, tuple[str, ...]]
    """Names of the steps that it is trained in -> beginnings of the names of the parameters that learn in each."""
    phase: str | None
    """The step it is trained in; None: everything, as in a finished model."""

    def __call__(self, image: Tensor, context: Tensor | None = None) -> Any:
        """Return logits (B, K, H, W); in training all that its loss reads, by name, "logits" among it."""

    def loss(self, outputs: dict[str, Tensor], label: Tensor) -> Tensor:
        """Return its own loss as a mean over the labelled pixels."""


def network_class(arch: str) -> Any:
    """Return the class of a network of table 2, whose module is imported only now."""
    match arch:
        case "stdc1" | "stdc2":
            from caswit.nn.baselines.stdc import STDC

            return STDC
        case "glnet":
            from caswit.nn.baselines.glnet import GLNet

            return GLNet
        case "fctl":
            from caswit.nn.baselines.fctl import FCtL

            return FCtL
        case "isdnet":
            from caswit.nn.baselines.isdnet import ISDNet

            return ISDNet
        case "wsdnet":
            from caswit.nn.baselines.wsdnet import WSDNet

            return WSDNet
        case "uhrs":
            from caswit.nn.baselines.uhrs import UHRS

            return UHRS
        case "relay_tokens":
            from caswit.nn.baselines.relay_tokens import RelayTokens

            return RelayTokens
    raise AssertionError(arch)


class Table2Network(Normalised):
    """A network of table 2, with the normalisation of images in front. Its weights keep their own names in files.

    Args:
        num_classes: K, the number of predicted classes.
        settings: Of these ``arch``, ``width``, ``mean`` and ``std`` apply.
        pretrained: Download the ImageNet weights that the network begins with; otherwise weights are random.

    Raises:
        ConfigError: There are no such weights, or they cannot be downloaded.
    """

    def __init__(self, *, num_classes: int, settings: ModelConfig, pretrained: bool = False) -> None:
        own = {"stdc1": {"variant": 1}, "stdc2": {"variant": 2}}.get(settings.arch, {})
        make = network_class(settings.arch)
        network = make(num_classes=num_classes, width=settings.width, pretrained=pretrained, **own)
        super().__init__(network, num_classes=num_classes, settings=settings)
        self._contexts = CONTEXTS.get(settings.arch, 0)

    @property
    def _own(self) -> _Network:
        return cast("_Network", self.network)

    @property
    def reads_context(self) -> bool:
        """True for a network that takes a context beside the tile."""
        return self._own.reads_context

    @property
    def phase(self) -> str | None:
        """The step of its training that the network is in; None: all of it learns, as in a finished model."""
        return self._own.phase

    @phase.setter
    def phase(self, name: str | None) -> None:
        assert name is None or name in self._own.phases, name
        self._own.phase = name

    def learns(self, name: str) -> bool:
        """Return whether a parameter or module of the inner network learns in the phase that is set."""
        return self.phase is None or f"{name}.".startswith(self._own.phases[self.phase])

    def train(self, mode: bool = True) -> "Table2Network":
        """Switch to training; batch norms of parts that do not learn keep what they know of the data."""
        super().train(mode)
        for name, module in self.network.named_modules():
            if isinstance(module, _BatchNorm) and not self.learns(name):
                module.eval()
        return self

    def forward(
        self, hr: Tensor, context: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor | TrainingLogits:
        """Label a batch of tiles.

        Args:
            hr: (B, 3, H, W), uint8 or floating point on the 0-255 scale; sides are multiples of ``stride_px``.
            context: (B, 3, H', W') on the same scale, or (B, N, 3, H', W'); ignored by networks of the tile alone.
            label: (B, H, W) class indices to learn, ``IGNORE_INDEX`` where unlabelled; None outside of training.

        Returns:
            In evaluation mode logits (B, K, H, W); in training mode ``TrainingLogits``, with the network's own loss
            where there is a label.

        Raises:
            ModelError: Wrong shape, number of bands, batch or type, sides that do not fit, or a missing context.
        """
        check_images(hr, context, self._contexts)
        _check_sides(hr, self._own.stride_px)
        used = self.normalise(context) if context is not None and self.reads_context else None
        found = self.network(self.normalise(hr), used)
        if not self.training:
            logits: Tensor = found
            return logits
        if label is None:
            return TrainingLogits(found["logits"], None)
        # Here and not in the task: data parallelism must see every weight that the loss reads.
        with torch.autocast(hr.device.type, enabled=False):
            loss = self._own.loss({name: x.float() for name, x in found.items()}, label.long())
        return TrainingLogits(found["logits"], None, loss)

    # The wrapper has no weights of its own, so files need not repeat its name before each of the network's.
    def state_dict(self, *args: Any, **keywords: Any) -> Any:
        """Return the inner network's weights under its own names."""
        return self.network.state_dict(*args, **keywords)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the inner network's weights by its own names."""
        return self.network.load_state_dict(state_dict, strict=strict, assign=assign)


def _check_sides(image: Tensor, stride_px: int) -> None:
    """Raise ModelError unless both sides are multiples of the stride."""
    height, width = image.shape[-2:]
    if height % stride_px or width % stride_px:
        fitting = [-(-side // stride_px) * stride_px for side in (height, width)]
        raise ModelError(
            f"hr must have sides in multiples of {stride_px} px, got {height} x {width}; "
            f"try tiles of {fitting[0]} x {fitting[1]}"
        )
