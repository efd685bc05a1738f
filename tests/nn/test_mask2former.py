"""The Mask2Former decoder beside transformers' whole model on the same maps, and what it says as logits of classes."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Mask2FormerForUniversalSegmentation, SwinConfig

from caswit.config import IGNORE_INDEX, ModelConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.errors import CaswitError, ConfigError, ModelError, naming_extras
from caswit.inference.cpu.network import arranged_network
from caswit.inference.onnx.write import export
from caswit.inference.predictor import Predictor
from caswit.nn.caswit import CASWiT
from caswit.nn.decoders import UPerNetHead
from caswit.nn.losses import loss_normalizer, supervised_loss
from caswit.nn.mask2former import LabelledPointsLoss, Mask2FormerHead, mask2former_config, semantic_logits
from caswit.weights.model_folder import ModelInfo, build, load_model, save_model
from caswit.weights.summary import count_parameters, describe

IN_CHANNELS, WIDTH, K = (8, 16, 32, 64), 32, 3
CLASSES = ClassTable(tuple(LandClass(id=i, name=f"class {i}", color="#102030") for i in range(K)))


def stage_maps(batch: int = 2, side: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, c, side >> i, side >> i, generator=generator) for i, c in enumerate(IN_CHANNELS)]


class Backbone(nn.Module):
    """Returns the maps it is told to."""

    maps: list[torch.Tensor]

    def forward(self, _pixels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(feature_maps=self.maps)


@pytest.fixture
def pair() -> tuple[Mask2FormerHead, Mask2FormerForUniversalSegmentation]:
    """Our head and their model, with the same random weights."""
    torch.manual_seed(0)
    config = mask2former_config(WIDTH, K)
    stages = [f"stage{i}" for i in range(1, 5)]
    config.backbone_config = SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, out_features=stages)
    theirs = Mask2FormerForUniversalSegmentation(config)
    theirs.model.pixel_level_module.encoder = Backbone()
    for value in theirs.state_dict().values():
        if value.ndim == 1:
            value += 0.1 * torch.randn_like(value)  # no bias is 0, no norm the identity
    state = theirs.state_dict()
    ours = Mask2FormerHead(IN_CHANNELS, channels=WIDTH, num_classes=K)
    whose = {
        "pixel_decoder": "model.pixel_level_module.decoder",
        "transformer": "model.transformer_module",
        "class_predictor": "class_predictor",
    }
    names = {name: name.partition(".") for name in ours.state_dict()}
    ours.load_state_dict({name: state[f"{whose[part]}.{rest}"] for name, (part, _, rest) in names.items()})
    theirs.criterion.empty_weight.copy_(torch.tensor([1.0] * K + [0.1]))
    theirs.criterion.num_points = theirs.criterion.matcher.num_points = 16 * 16 * 49 // 64
    return ours, theirs


def their_output(theirs: Mask2FormerForUniversalSegmentation, maps: list[torch.Tensor], **labels):
    theirs.model.pixel_level_module.encoder.maps = maps
    return theirs(torch.zeros(len(maps[0]), 3, 64, 64), output_auxiliary_logits=True, **labels)


@pytest.mark.equivalence
@torch.no_grad()
def test_equals_transformers_in_every_layer(pair):
    ours, theirs = pair
    masks, classes = ours.eval().predict(stage_maps())
    expected = their_output(theirs.eval(), stage_maps())
    assert len(masks) == len(classes) == 10
    layers = [*expected.auxiliary_logits, {k: expected[k] for k in ("masks_queries_logits", "class_queries_logits")}]
    for mask, kind, layer in zip(masks, classes, layers, strict=True):
        torch.testing.assert_close(mask, layer["masks_queries_logits"])
        torch.testing.assert_close(kind, layer["class_queries_logits"])


@pytest.mark.equivalence
def test_the_loss_is_that_of_transformers_where_all_is_labelled(pair):
    """Same random points, same matching; gradients of the maps too."""
    ours, theirs = pair
    label = torch.randint(K, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    label[1][label[1] == 2] = 0  # a class less
    found, expected = ([x.requires_grad_() for x in stage_maps()] for _ in range(2))
    torch.manual_seed(5)
    _, loss = ours.train().with_loss(found, label)
    ids = [x.unique() for x in label]
    torch.manual_seed(5)
    masks = [(x == i[:, None, None]).float() for x, i in zip(label, ids, strict=True)]
    theirs_too = their_output(theirs.train(), expected, mask_labels=masks, class_labels=ids).loss
    torch.testing.assert_close(loss, theirs_too)
    gradients = torch.autograd.grad(loss, found), torch.autograd.grad(theirs_too, expected)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_unlabelled_pixels_have_no_part_in_the_loss():
    """Whatever masks say in rows without labels, matching and loss are the same, and no gradient arrives there."""
    config = mask2former_config(WIDTH, K)
    loss = LabelledPointsLoss(config)
    label = torch.randint(K, (2, 32, 32))
    label[0, 16:] = IGNORE_INDEX
    generator = torch.Generator().manual_seed(0)
    masks, classes = torch.randn(2, 100, 32, 32, generator=generator), torch.randn(2, 100, K + 1, generator=generator)

    def of(masks: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return loss.of_layers([masks], [classes], label)

    other = masks.clone()
    other[0, :, 16:] = 9.0
    assert torch.equal(of(masks), of(other))
    masks.requires_grad_()
    of(masks).backward()
    assert bool((masks.grad[0, :, 16:] == 0).all())
    assert bool((masks.grad[0, :, :16] != 0).any())
    assert bool((masks.grad[1, :, 16:] != 0).any())


def test_images_without_a_label_are_left_out():
    loss = LabelledPointsLoss(mask2former_config(WIDTH, K))
    masks, classes = torch.randn(2, 100, 16, 16), torch.randn(2, 100, K + 1).requires_grad_()
    label = torch.randint(K, (2, 16, 16))
    torch.manual_seed(0)
    alone = loss.of_layers([masks[:1]], [classes[:1]], label[:1])
    label[1] = IGNORE_INDEX
    torch.manual_seed(0)
    assert torch.equal(loss.of_layers([masks], [classes], label), alone)
    label[0] = IGNORE_INDEX
    nothing = loss.of_layers([masks], [classes], label)
    nothing.backward()
    assert nothing == 0
    assert bool((classes.grad == 0).all())


@pytest.mark.equivalence
@torch.no_grad()
def test_softmax_of_the_logits_are_the_normalised_scores():
    """Scores as the paper has them, written out for one pixel after the other."""
    masks, classes = torch.randn(2, 7, 3, 4) * 3, torch.randn(2, 7, K + 1)
    found = semantic_logits(masks, classes)
    for image in range(2):
        for row in range(3):
            for col in range(4):
                scores = sum(masks[image, q, row, col].sigmoid() * classes[image, q].softmax(0)[:K] for q in range(7))
                expected = scores / scores.sum()
                torch.testing.assert_close(found[image, :, row, col].softmax(0), expected, atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(found[image, :, row, col].exp(), expected, atol=1e-5, rtol=1e-4)


def test_a_pixel_that_no_mask_claims_is_unsure():
    logits = semantic_logits(torch.full((1, 5, 1, 1), -90.0), torch.randn(1, 5, K + 1))
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(logits.softmax(1), torch.full((1, K, 1, 1), 1 / K))


def test_the_decoder_of_base_is_the_paper_s():
    """Swin-B with Mask2Former has 107 M parameters (Cheng et al. 2022, table 3), of which Swin-B has 86.9."""
    head = Mask2FormerHead((128, 256, 512, 1024), channels=256, num_classes=150)
    assert sum(p.numel() for p in head.parameters()) == pytest.approx(20.0e6, rel=0.01)


def network(**settings) -> CASWiT:
    torch.manual_seed(0)
    settings = {"size": "pico", "decoder": "mask2former", "decoder_channels": 32, **settings}
    return CASWiT(num_classes=K, **settings)


def images(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.rand(2, batch, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255)


@pytest.mark.parametrize("stages", [(), (1, 2, 3, 4)], ids=["Swin", "CASWiT"])
def test_gradients_reach_every_parameter(stages):
    model = network(fusion_stages=stages, drop_path=0.0).train()
    label = torch.randint(K, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    logits = model(*images(), label)
    normalizer = loss_normalizer(label)
    supervised_loss(logits, (label, label), (normalizer, normalizer), alpha=0.5).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert (logits.context is None) == (not stages)
    if stages:
        assert isinstance(model.context_decoder, UPerNetHead)
        assert model.context_decoder.classify.in_channels == 32


def test_its_loss_counts_by_the_share_of_labelled_pixels():
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    label[0, 0] = IGNORE_INDEX
    logits = network(fusion_stages=()).train()(images(2)[0])._replace(loss=torch.tensor(2.0))
    found = supervised_loss(logits, (label, label), (torch.tensor(48.0), torch.tensor(48.0)), alpha=0.5)
    assert found == pytest.approx(2.0 * 12 / 48)


def test_learns_four_images():
    torch.manual_seed(0)
    head = Mask2FormerHead(IN_CHANNELS, channels=WIDTH, num_classes=K)
    head.pixel_decoder.encoder.layers = head.pixel_decoder.encoder.layers[:1]  # for time
    head.transformer.decoder.layers = head.transformer.decoder.layers[:3]
    label = torch.zeros(4, 16, 16, dtype=torch.long)
    label[:, :, 8:] = 1
    label[2:, :8, 8:] = 2
    label[1::2, 8:, :8] = 2
    shades = nn.functional.one_hot(label, K).permute(0, 3, 1, 2).float()
    maps = [
        nn.functional.interpolate(shades, scale_factor=1 / (1 << i)).repeat(1, c, 1, 1)[:, :c]
        for i, c in enumerate(IN_CHANNELS)
    ]
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    for _ in range(25):
        optimizer.zero_grad()
        head.train().with_loss(maps, label)[1].backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        assert (head.eval()(maps).argmax(1) == label).float().mean() > 0.95


def test_a_model_folder_keeps_it(tmp_path):
    info = ModelInfo(
        model=ModelConfig(size="pico", decoder="mask2former"), tile=TileConfig(tile_px=64), classes=CLASSES
    )
    model = build(info, context_head=True)
    save_model(model, info, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert not [name for name in loaded.network.state_dict() if "criterion" in name]
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(*images()), model.eval()(*images()))
    page = describe(tmp_path / "model")
    assert "decoder      mask2former, 64 channels\n" in page
    with pytest.raises(
        ModelError, match="networks with decoder mask2former cannot be exported as ONNX yet; export one"
    ):
        export(tmp_path / "model", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    assert count_parameters(loaded.network)["decoder"] > 1e6


def test_training_goes_on_after_a_validation():
    """transformers keeps the last embedding of positions, which a validation makes in inference mode."""
    model = network(fusion_stages=())
    with torch.inference_mode():
        model.eval()(images()[0])
    model.train()(images()[0], None, torch.zeros(2, 64, 64, dtype=torch.long)).loss.backward()


def test_on_a_processor_it_runs_as_it_was_trained(caplog):
    model = network().eval()
    with caplog.at_level("INFO"):
        assert arranged_network(model, device=torch.device("cpu"), bf16=True) is None
    assert "no form arranged for processors" in caplog.text
    predictor = Predictor(model, context_factor=2, batch=2, device=torch.device("cpu"), bf16=True)
    fp32 = Predictor(model, context_factor=2, batch=2, device=torch.device("cpu"), bf16=False)
    found, expected = (p.image_logits(*images()).softmax(1) for p in (predictor, fp32))
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_widths_that_it_cannot_have():
    with pytest.raises(ConfigError, match="decoder_channels of mask2former must be a multiple of 32, got 48; try 64"):
        ModelConfig(decoder="mask2former", decoder_channels=48)


def test_without_transformers_the_message_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "caswit.nn.mask2former")
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = r"train needs transformers, which comes with the extra baselines: pip"
    with pytest.raises(CaswitError, match=said), naming_extras("train"):
        network()
