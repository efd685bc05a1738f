"""The networks that ``speed.py`` compares: each a function that labels a batch, or takes a training step."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import ComputeConfig, ModelConfig, TileConfig, TrainConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.inference.cpu.network import ArrangedCASWiT
from caswit.inference.devices import uses_bf16
from caswit.inference.load import load_predictor
from caswit.nn.caswit import CASWiT
from caswit.training.optim import make_optimizer
from caswit.weights.model_folder import LoadedModel, ModelInfo, load_model, save_model

SIDE, CLASSES = 512, 15
INFERENCE = ["ours", "ours, torch", "plain", "(a) fp32", "(a) bf16", "(b) fp32", "(b) bf16", "(c)"]
TRAINING = ["ours", "ours, checkpointing", "(a) fp32", "(a) bf16", "(a) bf16, checkpointing"]
Run = Callable[[], Any]


def filled(model: nn.Module, *, train: bool = False) -> nn.Module:
    """Give a model that was built without memory noise for weights: initialising takes longer than measuring."""
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.1)
        for buffer in model.buffers():
            buffer.fill_(1) if buffer.is_floating_point() else buffer.zero_()
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.init_non_persistent_buffers()
    return model.train(train)


def network(size: str, *, train: bool = False) -> CASWiT:
    """Return CASWiT without memory; without the head of the context branch unless it trains."""
    with torch.device("meta"):
        return CASWiT(num_classes=CLASSES, size=size, drop_path=0.0, context_head=train)  # type: ignore[arg-type]


def assembled(size: str, *, train: bool = False, attention: str = "sdpa") -> nn.Module:
    """Return (a) without memory."""
    from common.assembled import Assembled

    with torch.device("meta"):
        model = Assembled(network(size, train=True), attention)
    if not train:
        model.context.head = None  # type: ignore[assignment]
    return model


def images(batch: int, side: int, context: int) -> tuple[Tensor, Tensor]:
    """Return tiles and contexts of noise, the same in every process."""
    drawn = torch.Generator().manual_seed(1)
    hr, around = (torch.randint(0, 256, (batch, 3, n, n), dtype=torch.uint8, generator=drawn) for n in (side, context))
    return hr, around


def prepare(name: str, size: str, side: int, folder: Path) -> None:
    """Write what a contestant reads, unless it is there; in a process of its own, whose memory is not measured."""
    if name == "(c)":
        if not converted(size, side, folder).is_file():
            convert(filled(assembled(size)), side, converted(size, side, folder))
    elif not name.startswith("(") and not (folder / size).is_dir():
        classes = ClassTable(tuple(LandClass(id=i, name=f"class {i}", color="#102030") for i in range(CLASSES)))
        model = ModelConfig(size=size, drop_path=0.0)  # type: ignore[arg-type]
        save_model(
            filled(network(size)),  # type: ignore[arg-type]
            ModelInfo(model=model, tile=TileConfig(), classes=classes),
            folder / size,
        )


def inference(name: str, size: str, batch: int, side: int, folder: Path) -> Run:
    """Return a contestant, ready to label a batch; ours and (c) from files that ``prepare`` wrote."""
    hr, context = images(batch, side, side)
    if name.startswith("(b)"):
        model = baseline(size)
        return lambda: under(model, "bf16" in name, hr)
    if name.startswith("(a)"):
        theirs = filled(assembled(size))
        return lambda: under(theirs, "bf16" in name, hr, context)
    if name == "(c)":
        return openvino(converted(size, side, folder), hr, context)
    loaded = load_model(folder / size)
    if name == "ours, torch":
        arranged = in_torch(loaded)
        return lambda: arranged(hr, context)
    settings = ComputeConfig(device="cpu", batch=batch, precision="fp32" if name == "plain" else "auto")
    predictor = load_predictor(loaded, settings)
    return torch.inference_mode()(lambda: predictor.image_logits(hr, context))


def in_torch(loaded: LoadedModel) -> nn.Module:
    """Return what ``caswit predict`` runs where OpenVINO is not installed."""
    bf16 = torch.cpu._is_avx512_bf16_supported()
    assert isinstance(loaded.network, CASWiT)
    return ArrangedCASWiT(loaded.network, bf16=bf16, openvino=False, weights=loaded.weights)


def under(model: nn.Module, bf16: bool, *inputs: Tensor) -> Tensor:
    """Return the logits, under autocast or not."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits: Tensor = model(*inputs)
    return logits.float()


def converted(size: str, side: int, folder: Path) -> Path:
    """Return the path of (c), which takes one image at a time."""
    return folder / f"openvino-{size}-{side}.xml"


def convert(model: nn.Module, side: int, file: Path) -> None:
    """Convert (a) as OpenVINO's documentation says."""
    import openvino as ov

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = tuple(x.float() for x in images(1, side, side))
        found = ov.convert_model(model, example_input=example, input=[list(x.shape) for x in example])
    file.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(found, file.with_stem(f"{file.stem}.partial"), compress_to_fp16=False)
    # The graph names its weights by its own name, so weights move first and the graph last.
    file.with_stem(f"{file.stem}.partial").with_suffix(".bin").rename(file.with_suffix(".bin"))
    file.with_stem(f"{file.stem}.partial").rename(file)


def openvino(file: Path, hr: Tensor, context: Tensor) -> Run:
    """Return (c), image by image, which is its best on a processor."""
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = ov.Core().compile_model(file, "CPU", settings).create_infer_request()
    inputs = [[x[i : i + 1].float().numpy() for x in (hr, context)] for i in range(len(hr))]
    return lambda: [request.infer(each, share_inputs=True) for each in inputs]


def baseline(size: str) -> nn.Module:
    """Return segmentation_models_pytorch's Swin of this size with its UPerNet; it has none as small as nano."""
    import segmentation_models_pytorch as smp

    encoder = {"tiny": "tu-swin_tiny_patch4_window7_224", "base": "tu-swin_base_patch4_window12_384"}[size]
    more = {"img_size": SIDE, "decoder_channels": 512}
    model = smp.create_model("upernet", encoder, None, classes=CLASSES, **more)
    model = model.eval()

    class Pixels(nn.Module):
        def forward(self, hr: Tensor) -> Tensor:
            logits: Tensor = model((hr.float() - 114) / 53)
            return logits

    return Pixels().eval()


def training(name: str, size: str, batch: int, side: int = SIDE, device: str = "cpu") -> Run:
    """Return a contestant, ready for a step: forward, backward, optimiser. Its loss stays on the device."""
    hr, context = (image.to(device) for image in images(batch, side, side))
    truth = torch.randint(0, CLASSES, (batch, side, side), generator=torch.Generator().manual_seed(2)).to(device)
    fused = device != "cpu"
    model: Any
    if name.startswith("(a)"):
        model = filled(assembled(size, train=True), train=True).to(device)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused or None)
    else:
        model = filled(network(size, train=True), train=True).to(device)
        optimizer = make_optimizer(model, TrainConfig(lr=1e-5), fused=fused)
    if "checkpointing" in name:
        model.checkpoint_gradients()
    if "compiled" in name:
        model = torch.compile(model)
    # Ours computes as ``caswit train`` does: in fp32 where bf16 would be emulated.
    bf16 = uses_bf16("auto", torch.device(device)) if name.startswith("ours") else "fp32" not in name

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            ours, around, *_ = model(hr, context)
        loss = F.cross_entropy(ours.float(), truth) + 0.5 * F.cross_entropy(around.float(), truth)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
