"""ResNet-50 and VGG16 of any width: the backbones of GLNet and FCtL.

Shapes: B batch, C channels, H/W rows and columns.
"""

from typing import Any

import timm
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.nn.baselines.parts import BatchNorm, downloaded, maps_of, scaled


class ResNet50(nn.Module):
    """timm's ResNet-50 without its classifier.

    Args:
        width: Factor on the channels.
        pretrained: Start from ImageNet weights.

    Raises:
        ConfigError: ``pretrained`` with another width than 1, or the weights cannot be downloaded.
    """

    def __init__(self, width: float = 1.0, *, pretrained: bool = False) -> None:
        super().__init__()
        planes = tuple(scaled(channels, width) for channels in (64, 128, 256, 512))
        if pretrained:
            network = downloaded("ResNet-50", width, lambda: timm.create_model("resnet50", True, norm_layer=BatchNorm))
        else:
            network = timm.create_model("resnet50", channels=planes, zero_init_last=False, norm_layer=BatchNorm)
            _narrow_stem(network, planes[0])
        self.channels = tuple(4 * channels for channels in planes)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.act1, network.maxpool)
        self.stages = nn.ModuleList([network.layer1, network.layer2, network.layer3, network.layer4])

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the maps of the four stages: 1/4, 1/8, 1/16, 1/32 of the sides, rounded up."""
        return maps_of(self.stages, self.stem(image))


class VGG16(nn.Module):
    """torchvision's VGG16 up to its last pooling, as FCN-8s arranges it.

    The image is padded by 100 px and poolings round up, so that an image of any size leaves enough cells for a 7x7
    convolution without padding, and what lies above each pixel is found by a constant shift.

    Args:
        width: Factor on the channels.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = tuple(scaled(c, width) for c in (64, 128, 256, 512, 512))
        self.channels = channels[2:]
        depths = (2, 2, 3, 3, 3)
        layers = torchvision.models.vgg.make_layers(
            [x for c, depth in zip(channels, depths, strict=True) for x in (*[c] * depth, "M")]
        )
        for layer in layers:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        self.features = layers
        init_for_relu(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> pool3, pool4, pool5: an eighth, a 16th, a 32nd of the sides and of the padding."""
        x = F.pad(image, [99] * 4)  # and one by the first convolution itself
        maps = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
        return maps[2:]


def imagenet_vgg16(width: float) -> Any:
    """Return torchvision's VGG16 with ImageNet weights, classifier included.

    Raises:
        ConfigError: ``width`` is not 1, or the weights cannot be downloaded.
    """
    weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    return downloaded("VGG16", width, lambda: torchvision.models.vgg16(weights=weights))


def init_for_relu(module: nn.Module) -> None:
    """Draw convolutions so that ReLU networks without normalisation keep the scale of their maps (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _narrow_stem(network: Any, channels: int) -> None:
    # timm's plain stem has 64 channels whatever the stages have. At small widths it would cost more than all stages.
    first = network.layer1[0]
    network.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
    network.bn1 = BatchNorm(channels)
    first.conv1 = nn.Conv2d(channels, first.conv1.out_channels, 1, bias=False)
    first.downsample = nn.Sequential(nn.Conv2d(channels, 4 * channels, 1, bias=False), BatchNorm(4 * channels))
    network.init_weights(zero_init_last=False)
