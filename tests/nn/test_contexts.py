"""Several contexts: the network of one context, reading more."""

import pytest
import torch

from caswit.config import IGNORE_INDEX
from caswit.errors import ModelError
from caswit.nn.caswit import CASWiT, TrainingLogits
from caswit.nn.fusion import CrossAttention
from caswit.nn.losses import CrossEntropy, cross_entropy_sum, loss_normalizer, supervised_loss
from caswit.nn.simmim import SimMIM
from networks import random_network

EMBEDDING = "context_embedding"


def images(*, contexts: int = 2, side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(1)
    shape = (2, 3, side, side)
    tile, *others = (torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn) for _ in range(1 + contexts))
    return tile, torch.stack(others, 1)


def reader(contexts: int, **settings) -> CASWiT:
    """A network with random weights for which it counts what is read from the context."""
    network = random_network(contexts=contexts, **settings)
    for module in network.modules():
        if isinstance(module, CrossAttention):
            for weight in (module.to_q.weight, module.to_kv.weight, module.proj.weight):
                torch.nn.init.normal_(weight, std=0.3)
    return network


def twin(network: CASWiT, contexts: int, **settings) -> CASWiT:
    """The same weights in a network of another number of contexts, whose embeddings start at zero."""
    other = random_network(contexts=contexts, **settings)
    missing = other.load_state_dict({n: x for n, x in network.state_dict().items() if EMBEDDING not in n}, strict=False)
    assert all(EMBEDDING in name for name in missing.missing_keys)
    for name, value in other.named_parameters():
        if EMBEDDING in name:
            torch.nn.init.zeros_(value)
    return other


def test_only_what_tells_contexts_apart_is_new():
    one, two = (CASWiT(num_classes=3, size="pico", contexts=n).state_dict() for n in (1, 2))
    assert not any(EMBEDDING in name for name in one)
    new = {name: x for name, x in two.items() if name not in one}
    assert set(new) == {f"fusion.{stage}.attention.{EMBEDDING}" for stage in (1, 2, 3, 4)}
    assert all(x.shape[0] == 2 and not x.any() for x in new.values())
    assert {n: x.shape for n, x in one.items()} == {n: x.shape for n, x in two.items() if n not in new}


@torch.no_grad()
def test_the_same_context_twice_is_read_like_once():
    """A softmax over doubled keys gives each half, and the values are the same."""
    one = reader(1, gated=True)
    two = twin(one, 2, gated=True)
    tile, contexts = images(contexts=1)
    torch.testing.assert_close(
        two(tile, contexts.repeat(1, 2, 1, 1, 1)), one(tile, contexts[:, 0]), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_the_embedding_alone_tells_contexts_apart():
    """Attention is over a set: without the embedding, a wide context in the place of a narrow one looks the same."""
    tile, contexts = images()
    plain, told = twin(reader(1), 2), reader(2)
    torch.testing.assert_close(plain(tile, contexts), plain(tile, contexts.flip(1)), rtol=1e-4, atol=1e-4)
    assert (told(tile, contexts) - told(tile, contexts.flip(1))).abs().max() > 1e-2


@torch.no_grad()
def test_attention_over_two_maps_equals_one_query_at_a_time():
    torch.manual_seed(0)
    attention = CrossAttention(12, 3, contexts=2).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    hr, *context = (torch.randn(4, 5, 12, dtype=torch.double) for _ in range(3))
    each = [
        attention.norm_context(c.flatten(0, 1)) + e for c, e in zip(context, attention.context_embedding, strict=True)
    ]
    k, v = attention.to_kv(torch.cat(each)).split(12, dim=-1)
    q = attention.to_q(attention.norm_hr(hr.flatten(0, 1)))
    read = torch.empty_like(q)
    for query in range(len(q)):
        for own in (slice(0, 4), slice(4, 8), slice(8, 12)):
            read[query, own] = (k[:, own] @ q[query, own] / 4**0.5).softmax(0) @ v[:, own]
    stacked = torch.cat(context)[None]
    torch.testing.assert_close(attention(hr[None], stacked), attention.proj(read).view(1, 4, 5, 12))
    weights = attention.weights(hr[None], stacked, 2, 3)
    assert weights.shape == (1, 3, 8, 5)
    expected = (k[:, :4] @ q[2 * 5 + 3, :4] / 2).softmax(0).float()  # weights are computed in fp32
    torch.testing.assert_close(weights[0].flatten(1)[0], expected)


@torch.no_grad()
def test_the_context_head_labels_each_context():
    """As it would label it alone: encoder and head see every context as an image of its own."""
    settings = {"decoder_norm": "group", "drop_path": 0.0}
    one = random_network(**settings)
    two = twin(one, 2, **settings)
    tile, contexts = images()
    found = two.train()(tile, contexts).context
    alone = [one.train()(tile, context).context for context in contexts.unbind(1)]
    assert found.shape == (2, 2, 5, 64, 64)
    torch.testing.assert_close(found, torch.stack(alone, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_the_loss_of_the_context_head_is_the_mean_over_contexts(weights):
    torch.manual_seed(0)
    hr, context = torch.randn(2, 3, 8, 8), torch.randn(2, 2, 3, 8, 8)
    labels = torch.randint(0, 3, (2, 8, 8)), torch.randint(0, 3, (2, 2, 8, 8))
    labels[1][:, 1, :, 2:] = IGNORE_INDEX  # the wide one reaches out of the scene
    mean = torch.nn.CrossEntropyLoss(weights, ignore_index=IGNORE_INDEX)
    expected = (
        mean(hr, labels[0]) + 0.5 * (mean(context[:, 0], labels[1][:, 0]) + mean(context[:, 1], labels[1][:, 1])) / 2
    )
    normalizers = (
        loss_normalizer(labels[0], weights),
        torch.stack([loss_normalizer(x, weights) for x in labels[1].unbind(1)]),
    )
    logits = TrainingLogits(hr, context)
    torch.testing.assert_close(
        supervised_loss(logits, labels, normalizers, alpha=0.5, loss=CrossEntropy(weights)), expected
    )
    # A context without a labelled pixel adds nothing, and no NaN.
    labels[1][:, 1] = IGNORE_INDEX
    normalizers[1][1] = 0
    alone = cross_entropy_sum(context[:, 0], labels[1][:, 0], weights) / normalizers[1][0]
    found = supervised_loss(logits, labels, normalizers, alpha=0.5, loss=CrossEntropy(weights))
    torch.testing.assert_close(found, mean(hr, labels[0]) + 0.25 * alone)


def test_every_weight_learns():
    network = random_network(contexts=2).train()
    tile, contexts = images()
    found = network(tile, contexts)
    (found.hr.square().mean() + found.context.square().mean()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    "contexts", [torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 3, 64, 64)], ids=lambda x: str(x.ndim)
)
def test_another_number_of_contexts_is_refused(contexts):
    with pytest.raises(
        ModelError, match=r"reads 2 contexts, narrowest first: context must be \(B, 2, 3, H', W'\), got"
    ):
        random_network(contexts=2)(torch.zeros(2, 3, 64, 64), contexts)
    with pytest.raises(ModelError, match=r"with a context \(B, 2, 3, H', W'\)"):
        random_network(contexts=2)(torch.zeros(2, 3, 64, 64))


@torch.no_grad()
def test_pretraining_masks_what_the_tile_covers_in_each_context():
    torch.manual_seed(0)
    network = SimMIM(CASWiT(num_classes=0, size="pico", contexts=2), context_ratio=(1 / 2, 1 / 4)).eval()
    tile, contexts = images()
    mask = torch.zeros(2, 16, 16, dtype=torch.bool)
    mask[:, ::2] = True
    found = network(tile, contexts, mask)
    for number, middle in enumerate((slice(16, 48), slice(24, 40))):
        hidden = contexts.clone()
        hidden[:, number, :, middle, middle] = 7
        assert torch.equal(network(tile, hidden, mask), found)
        beside = contexts.clone()
        beside[:, number, :, middle.start - 4, middle] = 7
        assert not torch.equal(network(tile, beside, mask), found)
