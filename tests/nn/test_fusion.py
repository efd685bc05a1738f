"""Cross-attention against slow loops and torch's own module, and what makes it cross-scale."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caswit.nn.fusion import CrossAttention, FusionBlock

pytestmark = pytest.mark.equivalence

FUSED_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
SIZES = [((5, 4), (5, 4)), ((3, 7), (6, 2)), ((1, 1), (4, 3)), ((4, 3), (1, 1))]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(module):
    """Weights large enough for attention to be far from uniform, and no bias at 0."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.4)
    return module.double()


def maps(*sizes, channels=12, batch=2):
    return [torch.randn(batch, *size, channels, dtype=torch.double) for size in sizes]


def attend_slowly(attention, hr, context):
    """One query of one head at a time. hr (N, C), context (M, C)."""
    q = attention.to_q(attention.norm_hr(hr))
    k, v = attention.to_kv(attention.norm_context(context)).split(hr.shape[-1], dim=-1)
    width = hr.shape[-1] // attention.num_heads
    read = torch.empty_like(q)
    for query in range(len(hr)):
        for head in range(attention.num_heads):
            own = slice(head * width, (head + 1) * width)
            weights = (k[:, own] @ q[query, own] / width**0.5).softmax(0)  # (M,)
            read[query, own] = weights @ v[:, own]
    return attention.proj(read)


@pytest.mark.parametrize(("size", "context_size"), SIZES)
@pytest.mark.parametrize("num_heads", [1, 3])
@torch.no_grad()
def test_cross_attention_equals_one_query_at_a_time(num_heads, size, context_size):
    attention = randomise(CrossAttention(12, num_heads))
    hr, context = maps(size, context_size)
    slow = [attend_slowly(attention, x.flatten(0, 1), c.flatten(0, 1)) for x, c in zip(hr, context, strict=True)]
    torch.testing.assert_close(attention(hr, context), torch.stack(slow).view_as(hr))


@pytest.mark.parametrize(("size", "context_size"), SIZES)
@torch.no_grad()
def test_cross_attention_equals_torch_multihead_attention(size, context_size):
    attention = randomise(CrossAttention(12, 4))
    other = nn.MultiheadAttention(12, 4, batch_first=True, dtype=torch.double)
    other.in_proj_weight.copy_(torch.cat([attention.to_q.weight, attention.to_kv.weight]))
    other.in_proj_bias.copy_(torch.cat([attention.to_q.bias, attention.to_kv.bias]))
    other.out_proj.load_state_dict(attention.proj.state_dict())
    hr, context = maps(size, context_size)
    tokens = attention.norm_context(context).flatten(1, 2)
    theirs, _ = other(attention.norm_hr(hr).flatten(1, 2), tokens, tokens)
    torch.testing.assert_close(attention(hr, context), theirs.view_as(hr))


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_block_is_the_papers_two_equations(gated):
    """H' = X + gamma A; H = H' + MLP(H'), gamma = tanh(g) or 1; no norm before the MLP."""
    block = randomise(FusionBlock(12, 3, gated=gated))
    hr, context = maps((5, 4), (3, 6))
    gamma = 1.0
    if gated:
        block.gate.fill_(-0.7)
        gamma = -0.6043677771171636
    middle = hr + gamma * block.attention(hr, context)
    first, _, second = block.mlp
    hidden = nn.functional.linear(middle, first.weight, first.bias)
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2  # GELU
    expected = middle + nn.functional.linear(hidden, second.weight, second.bias)
    torch.testing.assert_close(block(hr, context), expected)


@torch.no_grad()
def test_closed_gate_leaves_the_input_and_its_mlp():
    block = FusionBlock(12, 3, gated=True).double()
    assert block.gate.item() == 0
    hr, context = maps((5, 4), (3, 6))
    assert torch.equal(block(hr, context), hr + block.mlp(hr))
    block.gate.fill_(0.1)
    assert not torch.equal(block(hr, context), hr + block.mlp(hr))


def test_closed_gate_still_learns():
    block = FusionBlock(12, 3, gated=True).double()
    block(*maps((5, 4), (3, 6))).square().sum().backward()
    assert block.gate.grad.abs() > 0


@torch.no_grad()
def test_every_hr_token_reads_every_context_token():
    block = randomise(FusionBlock(12, 3))
    hr, context = maps((4, 5), (3, 4))
    before = block(hr, context)
    for row in range(3):
        for col in range(4):
            changed = context.clone()
            changed[:, row, col] = torch.randn(2, 12, dtype=torch.double)
            moved = (block(hr, changed) - before).abs().amax(-1)  # (B, H, W)
            assert moved.min() > 1e-9, (row, col)


@torch.no_grad()
def test_hr_tokens_do_not_read_each_other():
    block = randomise(FusionBlock(12, 3))
    hr, context = maps((4, 5), (3, 4))
    changed = hr.clone()
    changed[:, 2, 3] += 1
    moved = (block(changed, context) - block(hr, context)).abs().amax((0, 3))
    assert moved.nonzero().tolist() == [[2, 3]]


@torch.no_grad()
def test_order_of_context_tokens_does_not_matter():
    block = randomise(FusionBlock(12, 3))
    hr, context = maps((4, 5), (3, 4))
    shuffled = context.flatten(1, 2)[:, torch.randperm(12)].unflatten(1, (2, 6))
    torch.testing.assert_close(block(hr, shuffled), block(hr, context))


class Watch(TorchDispatchMode):
    """Notes every operation that reaches a kernel and the largest tensor that any of them returns."""

    def __init__(self):
        super().__init__()
        self.names = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_are_never_stored(dtype):
    block = FusionBlock(16, 1).to(dtype)
    hr, context = torch.randn(2, 1, 60, 70, 16, dtype=dtype)
    num_scores = (60 * 70) ** 2
    with Watch() as watch:
        block(hr, context).sum().backward()
    assert FUSED_KERNEL in watch.names
    assert FUSED_KERNEL + "_backward" in watch.names
    assert watch.largest < num_scores / 50


@torch.no_grad()
def test_the_watch_sees_scores_where_they_are_stored():
    block = FusionBlock(16, 1)
    hr, context = torch.randn(2, 1, 20, 20, 16)
    with Watch() as watch, sdpa_kernel(SDPBackend.MATH):
        block(hr, context)
    assert watch.largest == (20 * 20) ** 2
    assert FUSED_KERNEL not in watch.names
