"""The same network with its surroundings taken away or exchanged: how much does context matter?

Only what lies outside the tile is changed. The middle of the context is the tile once more, averaged, and stays:
black neighbours are what the network met in training at every edge of the data, a black middle it never met.

Shapes: B batch, H/W rows and columns, f context_factor.
"""

from torch import Tensor, nn

from caswit.raster.windows import slice_middle
from caswit.weights.model_folder import LoadedModel


def exchanged(context: Tensor, factor: int, other: Tensor | None = None) -> Tensor:
    """The context with the tile's own part kept and the rest from ``other`` (black if None): (B, 3, H, W)."""
    height, width = context.shape[-2:]
    inner = slice_middle(height, factor), slice_middle(width, factor)
    changed = context.new_zeros(context.shape) if other is None else other.clone()
    changed[..., inner[0], inner[1]] = context[..., inner[0], inner[1]]
    return changed


class WithoutSurroundings(nn.Module):
    """A network whose surroundings are always black.

    Args:
        network: In evaluation mode.
        context_factor: What it was trained with.
    """

    def __init__(self, network: nn.Module, context_factor: int) -> None:
        super().__init__()
        self.network, self.context_factor = network, context_factor
        self.reads_context: bool = network.reads_context  # type: ignore[assignment]

    def forward(self, hr: Tensor, context: Tensor | None = None) -> Tensor:
        """As ``CASWiT.forward`` in evaluation mode."""
        seen = context if context is None else exchanged(context, self.context_factor)
        logits: Tensor = self.network(hr, seen)
        return logits


def without_surroundings(loaded: LoadedModel) -> LoadedModel:
    """The same model, blind to what lies outside its tiles; it shares the weights."""
    blind = WithoutSurroundings(loaded.network, loaded.info.tile.context_factor).eval()
    return loaded._replace(network=blind)  # type: ignore[arg-type]
