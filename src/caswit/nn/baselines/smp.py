"""Baselines: architectures of segmentation_models_pytorch behind the same interface as CASWiT.

They see the tile alone. Everything around the network (samples, loss, loop, tiling, scores) is shared, so that a
difference between two rows of a table is a difference between two networks.

Shapes: B batch, H/W rows and columns, K classes.
"""

from typing import Any

from torch import Tensor

from caswit.config import RGB, ModelConfig
from caswit.errors import ConfigError, brief
from caswit.nn.bands import for_bands
from caswit.nn.baselines.normalised import Normalised
from caswit.nn.caswit import TrainingLogits, check_image

STRIDE_PX = 32
"""Tiles must be multiples of this: the deepest maps of the encoders have a 32nd of their sides."""


class Baseline(Normalised):
    """An encoder and decoder of segmentation_models_pytorch, with the normalisation of images in front.

    Args:
        num_classes: K, the number of predicted classes.
        settings: Of these ``arch``, ``encoder``, ``encoder_weights``, ``mean`` and ``std`` apply.
        pretrained: Download the encoder weights that the settings name; otherwise weights are random.

    Raises:
        ConfigError: There is no such encoder, or its weights cannot be downloaded.
    """

    reads_context = False

    def __init__(self, *, num_classes: int, settings: ModelConfig, pretrained: bool = False) -> None:
        network = _create(settings, num_classes, settings.encoder_weights if pretrained else None)
        super().__init__(network, num_classes=num_classes, settings=settings)

    def forward(self, hr: Tensor, context: Tensor | None = None) -> Tensor | TrainingLogits:
        """Label a batch of tiles.

        Args:
            hr: (B, n, H, W) of n bands, uint8 or floating point on the 0-255 scale; sides are multiples of
                ``STRIDE_PX``.
            context: Ignored.

        Returns:
            In evaluation mode logits (B, K, H, W); in training mode ``TrainingLogits`` without a context.
        """
        check_image("hr", hr, self.bands)
        logits = self.network(self.normalise(hr))
        return TrainingLogits(logits, None) if self.training else logits


def _create(settings: ModelConfig, num_classes: int, weights: str | None) -> Any:
    import segmentation_models_pytorch as smp

    assert settings.encoder is not None
    bands = settings.band_names

    def create(channels: int, weights: str | None) -> Any:
        return smp.create_model(
            settings.arch, encoder_name=settings.encoder, encoder_weights=weights, in_channels=channels,
            classes=num_classes,
        )  # fmt: skip

    try:
        if weights is None or bands == RGB:
            return create(len(bands), weights)
        # Its library repeats the weights of three bands in their order, whatever the others show.
        theirs, wider = create(len(RGB), weights).state_dict(), create(len(RGB) + 1, None).state_dict()
        network = create(len(bands), None)
        network.load_state_dict(
            {n: x if x.shape == wider[n].shape else for_bands(x, RGB, bands) for n, x in theirs.items()}
        )
        return network
    except KeyError as error:
        known = ", ".join(name for name in smp.encoders.get_encoder_names() if name.startswith(settings.encoder[:3]))
        raise ConfigError(
            f"model.encoder {brief(settings.encoder)} with encoder_weights {brief(weights)}: "
            "segmentation_models_pytorch has no such encoder or weights; "
            f"{f'similar names: {known}' if known else 'try resnet18'}"
        ) from error
    except Exception as error:
        if weights is None:
            raise
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"model.encoder_weights {brief(weights)} of {settings.encoder} cannot be downloaded ({reason}); "
            "try encoder_weights: null to start from random weights"
        ) from error
