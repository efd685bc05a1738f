"""What the networks beside CASWiT share: images are normalised in front of them, as CASWiT does itself."""

import torch
from torch import Tensor, nn

from caswit.config import ModelConfig
from caswit.errors import ConfigError


class Normalised(nn.Module):
    """A network with the normalisation of images in front.

    Args:
        network: Takes normalised images.
        num_classes: K, the number of predicted classes.
        settings: Of these ``bands``, ``mean`` and ``std`` apply.
    """

    def __init__(self, network: nn.Module, *, num_classes: int, settings: ModelConfig) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        # Buffers that are not saved: they belong to the settings, as CASWiT's do.
        for name, values in zip(("mean", "std"), settings.normalisation(), strict=True):
            numbers = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, numbers, persistent=False)
        self.bands = self.mean.shape[1]

    def normalise(self, image: Tensor) -> Tensor:
        """Scale pixels (..., n, H, W) of 0-255 to zero mean and unit deviation."""
        return (image.to(self.mean.dtype) - self.mean) / self.std

    def checkpoint_gradients(self, enable: bool = True) -> None:
        """Refuse gradient checkpointing, which these networks do not have.

        Raises:
            ConfigError: ``enable`` is true.
        """
        if enable:
            raise ConfigError("checkpoint_gradients is for caswit only; leave it out for other architectures")
