"""Cross-scale fusion: hr tokens read from the context branch (paper section 3.2).

Shapes: B batch, H/W rows and columns of tokens, C channels, h heads, D = C / h, N hr tokens (queries), M context tokens
(keys and values). The maps of several contexts lie one under another, narrowest first: H' are the rows of all.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Multi-head attention in which every hr token reads all context tokens.

    Attention is global, not in windows, and has no position bias: where a token of the context lies must be in its
    features. Of several contexts the tokens of all are read by one softmax.

    Args:
        channels: C of both maps.
        num_heads: h; must divide ``channels``.
        contexts: Number of contexts whose maps are read.
    """

    def __init__(self, channels: int, num_heads: int, contexts: int = 1) -> None:
        super().__init__()
        assert channels % num_heads == 0, (channels, num_heads)
        self.num_heads = num_heads
        # The paper writes LN for both inputs. Each has its own here, as the two encoders share no weights either.
        self.norm_hr = nn.LayerNorm(channels)
        self.norm_context = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        # One encoder sees all contexts, so that a token does not say how much ground it stands for. What is added to
        # the tokens of each context does; at first nothing, so that a context starts as it is read when it is alone.
        self.context_embedding = nn.Parameter(torch.zeros(contexts, channels)) if contexts > 1 else None

    def _keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, h, M, D) of context maps (B, H', W', C)."""
        tokens = self.norm_context(context)
        if self.context_embedding is not None:
            each = tokens.unflatten(1, (len(self.context_embedding), -1))
            tokens = (each + self.context_embedding[:, None, None]).flatten(1, 2)
        k, v = map(self._heads, self.to_kv(tokens).chunk(2, dim=-1))
        return k, v

    def _heads(self, tokens: Tensor) -> Tensor:
        """Split maps into heads: (B, H, W, C) -> (B, h, H * W, D)."""
        return tokens.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, hr: Tensor, context: Tensor) -> Tensor:
        """Read from the context: (B, H, W, C), (B, H', W', C) -> (B, H, W, C)."""
        q = self._heads(self.to_q(self.norm_hr(hr)))  # (B, h, N, D)
        k, v = self._keys_values(context)  # (B, h, M, D)
        # Never stores the N x M scores: at stage 1 of a 512 px tile they are 16384 x 16384 for each head.
        read = F.scaled_dot_product_attention(q, k, v)  # (B, h, N, D)
        return self.proj(read.transpose(1, 2).reshape(hr.shape))  # (B, H, W, C)

    def weights(self, hr: Tensor, context: Tensor, row: int, col: int) -> Tensor:
        """Return how much one hr token reads from each context token: (B, h, H', W'), which sums to 1 for each head.

        This is one row of the softmax that ``forward`` never stores; memory grows with the context tokens only.
        """
        q = self._heads(self.to_q(self.norm_hr(hr[:, row : row + 1, col : col + 1])))  # (B, h, 1, D)
        k, _ = self._keys_values(context)  # (B, h, M, D)
        scores = (q.float() @ k.float().transpose(-1, -2)).squeeze(-2) / q.shape[-1] ** 0.5  # (B, h, M)
        return scores.softmax(-1).unflatten(-1, context.shape[1:3])


class FusionBlock(nn.Module):
    """H' = X_hr + gamma * MHA(LN(X_hr), LN(X_context)); H = H' + MLP(H').

    The equation is the paper's, in which the MLP has no layer norm of its own. Left open there are the MLP's width and
    the number of heads: here four times the channels, and as many heads as the Swin stage has.

    Args:
        channels: C of both branches at this stage.
        num_heads: Attention heads; must divide ``channels``.
        gated: Learn a scalar gate, gamma = tanh(g), starting closed (g = 0); otherwise gamma = 1.
        mlp_ratio: Hidden width of the MLP over ``channels``.
        contexts: Number of contexts.
    """

    def __init__(
        self, channels: int, num_heads: int, *, gated: bool = False, mlp_ratio: float = 4.0, contexts: int = 1
    ) -> None:
        super().__init__()
        self.attention = CrossAttention(channels, num_heads, contexts)
        # Closed at first: training starts like that of the baseline, which reads nothing (docs/decisions/0004).
        self.gate = nn.Parameter(torch.zeros(())) if gated else None
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.apply(_init_linear)

    def forward(self, hr: Tensor, context: Tensor) -> Tensor:
        """Fuse an hr map with a context map: (B, H, W, C), (B, H', W', C) -> (B, H, W, C)."""
        read = self.attention(hr, context)
        if self.gate is not None:
            read = self.gate.tanh() * read
        hr = hr + read
        # No layer norm here, unlike in a Swin block: the formula of section 3.2 has none (docs/decisions/0004).
        return hr + self.mlp(hr)


def _init_linear(module: nn.Module) -> None:
    """Initialise as Swin does, so that fusion starts at the scale of the blocks around it."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
