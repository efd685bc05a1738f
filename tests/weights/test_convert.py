"""Imported weights against the library they come from: random weights, written, imported, features compared."""

import logging
import pickle
import re

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resize_rel_pos_bias_table_simple
from timm.models.swin_transformer import PatchMerging, SwinTransformer
from torch import nn
from transformers import SwinConfig, SwinModel, UperNetConfig, UperNetForSemanticSegmentation

from caswit.config import InitConfig
from caswit.errors import ConfigError, ModelError
from caswit.nn.caswit import SIZES, CASWiT
from caswit.weights.convert import from_mmseg, from_timm
from caswit.weights.initialize import start_from, window_warning

pytestmark = pytest.mark.equivalence

SIDE = 512
"""Windows of 8 tokens divide every stage and are smaller than any, where all libraries compute the same."""
CHANNELS, CLASSES = 24, 3
NANO = {k: v for k, v in SIZES["nano"].items() if k != "decoder_channels"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(network):
    """No bias is 0 and every position bias and running statistic matters."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            std = 0.3 if tensor.ndim <= 1 else tensor[0].numel() ** -0.5
            tensor.mul_(tensor.ndim <= 1).add_(std * torch.randn_like(tensor))
    return network.eval()


def ours(**settings) -> CASWiT:
    return CASWiT(
        **{"num_classes": CLASSES, "size": "nano", "decoder_channels": CHANNELS, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        | settings
    ).eval()


def start(network, source, path, **settings):
    return start_from(network, InitConfig(source=source, path=str(path), **settings), "nano")


def timm_swin(**settings):
    return randomise(SwinTransformer(**NANO | settings, img_size=SIDE, num_classes=5))


@torch.no_grad()
def assert_both_encoders_equal(network, their_maps, image):
    """Their maps are channels first."""
    for encoder in (network.hr_encoder, network.context_encoder):
        for our_map, their_map in zip(encoder(image), their_maps, strict=True):
            torch.testing.assert_close(our_map.permute(0, 3, 1, 2), their_map, rtol=1e-4, atol=1e-4)


class TestTimm:
    @pytest.mark.parametrize("wrap", ["safetensors", "pth", "nested in model", "inside of a network"])
    def test_feature_maps_are_equal_in_both_branches(self, tmp_path, wrap):
        theirs = timm_swin()
        state = theirs.state_dict()
        if wrap == "inside of a network":
            state = {f"module.backbone.{name}": x for name, x in state.items()}
        file = tmp_path / ("weights.safetensors" if wrap == "safetensors" else "weights.pth")
        if wrap == "safetensors":
            save_file(state, file)
        else:
            torch.save({"model": state, "epoch": 3} if wrap == "nested in model" else state, file)
        network = ours()
        fit = start(network, "timm", file)
        assert fit.share() == 1
        assert {re.sub(r".*(head\.fc|norm)\.", r"\1.", n) for n in fit.left_over} == {
            "head.fc.weight", "head.fc.bias", "norm.weight", "norm.bias"
        }  # fmt: skip
        image = torch.randn(1, 3, SIDE, SIDE)
        assert_both_encoders_equal(network, theirs.forward_intermediates(image, intermediates_only=True), image)

    def test_names_of_before_version_0_9_mean_the_same(self):
        new = timm_swin().state_dict()
        old = {
            re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", n): x
            for n, x in new.items()
        }
        assert old.keys() != new.keys()
        translated, expected = from_timm(old), from_timm(new)
        assert translated.keys() == expected.keys()
        assert all(translated[n] is expected[n] for n in expected)

    def test_position_biases_of_another_window_are_interpolated(self, tmp_path):
        theirs = timm_swin(window_size=4)
        torch.save(theirs.state_dict(), tmp_path / "w.pth")
        network = ours()
        fit = start(network, "timm", tmp_path / "w.pth")
        tables = [n for n in network.state_dict() if n.endswith("relative_position_bias_table")]
        assert sorted(fit.resized) == sorted(tables)
        for name in tables:
            table = theirs.state_dict()[name.split("encoder.")[1]]
            now = network.state_dict()[name]
            assert len(table) == 7**2
            torch.testing.assert_close(now, resize_rel_pos_bias_table_simple(table, (8, 8), (15**2, table.shape[1])))

    def test_context_false_leaves_the_context_at_random(self, tmp_path):
        torch.save(timm_swin().state_dict(), tmp_path / "w.pth")
        network = ours()
        before = network.context_encoder.state_dict()["layers.0.blocks.0.mlp.fc1.weight"].clone()
        start(network, "timm", tmp_path / "w.pth", context=False)
        assert torch.equal(network.context_encoder.state_dict()["layers.0.blocks.0.mlp.fc1.weight"], before)

    def test_timm_true_asks_timm_for_the_size_and_says_when_there_is_no_network(self, monkeypatch):
        asked = []

        def no_network(name, **_):
            asked.append(name)
            raise OSError("no route to host")

        monkeypatch.setattr(timm, "create_model", no_network)
        with pytest.raises(ModelError, match=r"no route to host.*give its path"):
            start_from(ours(), InitConfig(source="timm", timm=True), "base")
        assert asked == ["swin_base_patch4_window12_384"]
        with pytest.raises(ConfigError, match="timm has no weights for size nano"):
            start_from(ours(), InitConfig(source="timm", timm=True), "nano")


class TestTransformers:
    def config(self):
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in NANO.items()}
        return SwinConfig(**settings, image_size=SIDE, out_features=["stage1", "stage2", "stage3", "stage4"])

    @torch.no_grad()
    @pytest.mark.parametrize("in_memory", [False, True], ids=["as in files", "as in memory"])
    def test_feature_maps_of_swin_are_equal_in_both_branches(self, tmp_path, in_memory):
        theirs = randomise(SwinModel(self.config(), add_pooling_layer=False))
        if in_memory:
            save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        else:
            theirs.save_pretrained(tmp_path)
        network = ours()
        assert start(network, "transformers", tmp_path).share() == 1
        image = torch.randn(1, 3, SIDE, SIDE)
        found = theirs(image, output_hidden_states=True, output_hidden_states_before_downsampling=True)
        assert_both_encoders_equal(network, found.reshaped_hidden_states[1:], image)

    @torch.no_grad()
    def test_logits_of_upernet_swin_are_equal(self, tmp_path):
        """Patch merging, q, k and v, the norms of the stages, the decode head: everything at once."""
        config = UperNetConfig(
            backbone_config=self.config(), hidden_size=CHANNELS, num_labels=CLASSES, auxiliary_in_channels=128
        )
        theirs = randomise(UperNetForSemanticSegmentation(config))
        theirs.save_pretrained(tmp_path)
        image = torch.randn(1, 3, SIDE, SIDE)
        expected = theirs(image).logits
        network = ours(fusion_stages=())
        fit = start(network, "transformers", tmp_path, decoder=True)
        assert not fit.missing
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)
        plain = ours(fusion_stages=())
        fit = start(plain, "transformers", tmp_path)
        assert {n.split(".")[0] for n in fit.missing} == {"decoder"}
        assert not torch.allclose(plain(image), expected, rtol=1e-2, atol=1e-2)

    def test_sizes_at_which_padding_differs_are_named(self):
        theirs = InitConfig(source="transformers", path="x")
        timms = InitConfig(source="timm", path="x")
        assert "transformers pads tiles of 512 px before" in (window_warning(theirs, "base", 512) or "")
        assert "exactly for tiles of 768 px" in (window_warning(theirs, "base", 512) or "")
        assert window_warning(theirs, "tiny", 448) is None
        assert window_warning(timms, "base", 512) is None
        assert "timm does not shift windows of 12 tokens where a stage has 8" in (
            window_warning(timms, "base", 256) or ""
        )
        assert window_warning(InitConfig(path="x"), "base", 256) is None


class TestSmpAndFlairHub:
    @torch.no_grad()
    def test_logits_of_smps_upernet_are_equal(self, tmp_path):
        theirs = smp.create_model(
            "upernet",
            encoder_name="tu-swin_tiny_patch4_window7_224",
            encoder_weights=None,
            classes=CLASSES,
            decoder_channels=CHANNELS,
            img_size=SIDE,
            **NANO,
        )
        randomise(theirs)
        torch.save(theirs.state_dict(), tmp_path / "upernet.pth")
        network = ours(fusion_stages=())
        fit = start(network, "smp", tmp_path / "upernet.pth", decoder=True)
        assert not fit.missing
        assert not fit.left_over
        image = torch.randn(1, 3, SIDE, SIDE)
        logits = []
        network.decoder.register_forward_hook(lambda _module, _given, out: logits.append(out))
        network(image)
        # Before smp upsamples, which aligns corners. The norms' smallest divisors differ: 1e-5 here, 1e-6 there.
        expected = theirs.segmentation_head[0](theirs.decoder(theirs.encoder(image)))
        torch.testing.assert_close(logits[0], expected, rtol=1e-3, atol=1e-3)

    @torch.no_grad()
    def test_feature_maps_of_flair_hubs_layout_are_equal_in_both_branches(self, tmp_path):
        theirs = randomise(timm.create_model("swin_tiny_patch4_window7_224", features_only=True, img_size=SIDE, **NANO))
        beginning = "model.encoders.AERIAL_RGBI.seg_model.model."
        state = {beginning + name: x for name, x in theirs.state_dict().items()}
        # Another modality's encoder, of the same shape, and what else is in these files.
        state |= {n.replace("AERIAL_RGBI", "SPOT_RGBI"): torch.zeros_like(x) for n, x in state.items()}
        state["model.main_decoders.AERIAL_LABEL-COSIA.seg_model.segmentation_head.0.weight"] = torch.zeros(19, 64, 3, 3)
        state["criterion.AERIAL_LABEL-COSIA.weight"] = torch.ones(19)
        save_file(dict(sorted(state.items(), reverse=True)), tmp_path / "FLAIR-HUB_LC-A_RGB.safetensors")
        network = ours()
        assert start(network, "flair_hub", tmp_path / "FLAIR-HUB_LC-A_RGB.safetensors").share() == 1
        image = torch.randn(1, 3, SIDE, SIDE)
        their_maps = [x.permute(0, 3, 1, 2) for x in theirs(image)]
        assert_both_encoders_equal(network, their_maps, image)


class TestMmseg:
    @torch.no_grad()
    def test_patch_merging_by_unfold_is_ours_after_reordering(self):
        """mmsegmentation gathers 2 x 2 neighbours with nn.Unfold, channel by channel."""
        theirs_norm, theirs_reduction = randomise(nn.LayerNorm(32)), randomise(nn.Linear(32, 16, bias=False))
        state = {
            "backbone.patch_embed.projection.weight": torch.zeros(8, 3, 4, 4),
            "backbone.stages.0.downsample.norm.weight": theirs_norm.weight.data,
            "backbone.stages.0.downsample.norm.bias": theirs_norm.bias.data,
            "backbone.stages.0.downsample.reduction.weight": theirs_reduction.weight.data,
        }
        translated = from_mmseg(state)
        merging = PatchMerging(8, 16).eval()
        beginning = "encoder.layers.1.downsample."
        merging.load_state_dict(
            {n.removeprefix(beginning): x for n, x in translated.items() if n.startswith(beginning)}
        )
        x = torch.randn(2, 8, 6, 10)
        unfolded = nn.Unfold(kernel_size=2, stride=2)(x).transpose(1, 2)
        expected = theirs_reduction(theirs_norm(unfolded)).transpose(1, 2).reshape(2, 16, 3, 5)
        torch.testing.assert_close(merging(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected)

    def test_its_other_names_are_known(self):
        given = {
            "backbone.patch_embed.projection.bias": "encoder.patch_embed.proj.bias",
            "backbone.patch_embed.projection.weight": "encoder.patch_embed.proj.weight",
            "backbone.stages.2.blocks.1.attn.w_msa.qkv.weight": "encoder.layers.2.blocks.1.attn.qkv.weight",
            "backbone.stages.2.blocks.1.attn.w_msa.relative_position_bias_table": (
                "encoder.layers.2.blocks.1.attn.relative_position_bias_table"
            ),
            "backbone.stages.2.blocks.1.ffn.layers.0.0.bias": "encoder.layers.2.blocks.1.mlp.fc1.bias",
            "backbone.stages.2.blocks.1.ffn.layers.1.bias": "encoder.layers.2.blocks.1.mlp.fc2.bias",
            "backbone.norm3.weight": "norms.3.weight",
            "decode_head.psp_modules.0.1.bn.weight": "decoder.pools.0.1.1.weight",
            "decode_head.lateral_convs.2.conv.weight": "decoder.laterals.2.0.weight",
            "decode_head.conv_seg.weight": "decoder.classify.weight",
        }
        assert list(from_mmseg({name: torch.zeros(1) for name in given})) == list(given.values())
        network = ours()
        decoder = {n for n in network.state_dict() if n.startswith("decoder.")}
        assert {n for n in given.values() if n.startswith("decoder.")} <= decoder


class TestCaswit:
    def test_encoders_and_fusion_are_taken_and_the_decoder_only_if_asked(self, tmp_path):
        theirs = randomise(ours(context_head=False))
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        network = ours()
        before = network.state_dict()["decoder.classify.weight"].clone()
        fit = start(network, "caswit", tmp_path)
        for name, x in network.state_dict().items():
            if name.startswith(("hr_encoder.", "context_encoder.", "fusion.", "hr_norms.")):
                assert torch.equal(x, theirs.state_dict()[name]), name
        assert torch.equal(network.state_dict()["decoder.classify.weight"], before)
        assert fit.share() == 1
        start(network, "caswit", tmp_path, decoder=True)
        assert torch.equal(
            network.state_dict()["decoder.classify.weight"], theirs.state_dict()["decoder.classify.weight"]
        )

    def test_a_baseline_starts_both_branches(self, tmp_path):
        theirs = randomise(ours(fusion_stages=()))
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        network = ours()
        start(network, "caswit", tmp_path)
        for name, x in theirs.hr_encoder.state_dict().items():
            assert torch.equal(network.context_encoder.state_dict()[name], x)

    def test_another_size_is_refused_in_one_line_with_a_hint(self, tmp_path):
        save_file(CASWiT(num_classes=0, size="tiny", fusion_stages=()).state_dict(), tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=r"only \d% .* another model.size than nano\?") as caught:
            start(ours(), "caswit", tmp_path)
        assert "\n" not in str(caught.value)

    def test_too_little_is_refused_before_anything_is_changed(self, tmp_path):
        state = randomise(ours(context_head=False)).state_dict()
        save_file({n: x for n, x in state.items() if "layers.2" not in n}, tmp_path / "model.safetensors")
        network = ours()
        before = {n: x.clone() for n, x in network.state_dict().items()}
        with pytest.raises(ModelError, match="90% are needed"):
            start(network, "caswit", tmp_path)
        assert all(torch.equal(x, before[n]) for n, x in network.state_dict().items())
        fit = start(network, "caswit", tmp_path, min_matched=0.5)
        assert 0.5 < fit.share() < 0.9


def test_names_nobody_knows_are_reported_with_the_nearest_ones_and_can_be_renamed(tmp_path, caplog):
    theirs = randomise(ours(context_head=False)).state_dict()
    strange = {n.replace("hr_encoder.", "backbone_hr.").replace("context_encoder.", "backbone_lr."): x
               for n, x in theirs.items()}  # fmt: skip
    torch.save({"state_dict": strange}, tmp_path / "official.pth")
    network = ours()
    with caplog.at_level(logging.INFO), pytest.raises(ModelError, match="only 0%"):
        start(network, "official", tmp_path / "official.pth")
    name = "layers.2.blocks.1.attn.qkv.weight"
    assert re.search(rf"hr_encoder\.{name} .* <- perhaps backbone_[hl]r\.{name}", caplog.text)
    rename = {"backbone_hr.": "hr_encoder.", "backbone_lr.": "context_encoder."}
    assert start(network, "official", tmp_path / "official.pth", rename=rename).share() == 1
    assert torch.equal(network.state_dict()[f"context_encoder.{name}"], theirs[f"context_encoder.{name}"])


class _Malicious:
    def __reduce__(self):
        return print, ("owned",)


class TestFiles:
    def test_a_malicious_pickle_is_refused_in_one_line_and_not_run(self, tmp_path, capsys):
        file = tmp_path / "weights.pth"
        torch.save({"state_dict": {"patch_embed.proj.weight": torch.zeros(1)}, "extra": _Malicious()}, file)
        with file.open("rb") as opened:
            torch.load(opened, weights_only=False)  # it does harm when it is run
        assert "owned" in capsys.readouterr().out
        with pytest.raises(ModelError, match="cannot be read as a checkpoint") as caught:
            start(ours(), "timm", file)
        assert "\n" not in str(caught.value)
        assert "owned" not in capsys.readouterr().out
        plain = tmp_path / "plain.bin"
        plain.write_bytes(pickle.dumps(_Malicious()))
        with pytest.raises(ModelError):
            start(ours(), "timm", plain)
        assert "owned" not in capsys.readouterr().out

    @pytest.mark.parametrize("content", [{}, {"a": 3}, [torch.zeros(1)]])
    def test_files_without_named_tensors(self, tmp_path, content):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ModelError, match="holds no tensors by name"):
            start(ours(), "timm", tmp_path / "w.pth")

    def test_a_damaged_file(self, tmp_path):
        (tmp_path / "w.safetensors").write_bytes(b"nonsense")
        with pytest.raises(ModelError, match="damaged"):
            start(ours(), "timm", tmp_path / "w.safetensors")

    def test_places_without_one_file(self, tmp_path):
        with pytest.raises(ModelError, match="no such file"):
            start(ours(), "caswit", tmp_path / "nowhere")
        with pytest.raises(ModelError, match="holds 0 files"):
            start(ours(), "caswit", tmp_path)
        for name in ("a.pth", "b.pth"):
            torch.save({}, tmp_path / name)
        with pytest.raises(ModelError, match=r"2 files of weights \(a.pth, b.pth\)"):
            start(ours(), "caswit", tmp_path)

    def test_a_run_folder_means_its_model(self, tmp_path):
        theirs = randomise(ours(context_head=False)).state_dict()
        (tmp_path / "run" / "model").mkdir(parents=True)
        save_file(theirs, tmp_path / "run" / "model" / "model.safetensors")
        network = ours()
        start(network, "caswit", tmp_path / "run")
        assert load_file(tmp_path / "run" / "model" / "model.safetensors").keys() == theirs.keys()
        name = "hr_encoder.patch_embed.proj.weight"
        assert torch.equal(network.state_dict()[name], theirs[name])


def test_counters_of_batch_norm_are_not_listed_as_left_over():
    network = CASWiT(num_classes=2, size="nano", stem="conv", fusion_stages=(2, 3), gated=True)
    fit = start_from(network, InitConfig(path="swin-nano-dubai"), "nano")
    assert fit.left_over  # the decoder, which was not asked for
    assert not [name for name in (*fit.left_over, *fit.missing) if name.endswith("num_batches_tracked")]
