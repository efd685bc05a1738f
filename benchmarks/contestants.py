"""What is compared in ``speed.py``: each a function that labels a batch, or takes a training step."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import TrainConfig
from caswit.fast.network import FastCASWiT, fast_network
from caswit.model import CASWiT
from caswit.optim import adamw

SIDE, CLASSES = 512, 15
INFERENCE = ["ours", "ours, torch", "ours, OpenVINO", "plain", "(a) fp32", "(a) bf16", "(b) fp32", "(b) bf16", "(c)"]
TRAINING = ["ours", "ours, checkpointing", "(a) fp32", "(a) bf16", "(a) bf16, checkpointing"]
Run = Callable[[], Any]


def filled(model: nn.Module, *, train: bool = False) -> nn.Module:
    """A model that was built without memory, with noise for weights: initialising takes longer than measuring."""
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
    """CASWiT without memory; whoever predicts has no head of the context branch."""
    with torch.device("meta"):
        return CASWiT(num_classes=CLASSES, size=size, drop_path=0.0, context_head=train)  # type: ignore[arg-type]


def assembled(size: str, *, train: bool = False, attention: str = "sdpa") -> nn.Module:
    """(a) without memory."""
    from assembled import Assembled

    with torch.device("meta"):
        model = Assembled(network(size, train=True), attention)
    if not train:
        model.context.head = None  # type: ignore[assignment]
    return model


def images(batch: int, side: int, context: int) -> tuple[Tensor, Tensor]:
    """The same noise in every process."""
    drawn = torch.Generator().manual_seed(1)
    hr, around = (torch.randint(0, 256, (batch, 3, n, n), dtype=torch.uint8, generator=drawn) for n in (side, context))
    return hr, around


def inference(name: str, size: str, batch: int, side: int = SIDE) -> Run:
    """A contestant, ready to label a batch."""
    hr, context = images(batch, side, side)
    bf16 = torch.cpu._is_avx512_bf16_supported()
    if name.startswith("(b)"):
        model = baseline(size)
        return lambda: under(model, "bf16" in name, hr)
    if name.startswith("(a)"):
        theirs = filled(assembled(size))
        return lambda: under(theirs, "bf16" in name, hr, context)
    if name == "(c)":
        return openvino(filled(assembled(size)), hr, context)
    plain = filled(network(size))
    if name == "plain":
        return lambda: under(plain, False, hr, context)
    fast = {
        "ours": lambda: fast_network(plain, device=hr.device, bf16=bf16),
        "ours, torch": lambda: FastCASWiT(plain, bf16=bf16, openvino=False),  # type: ignore[arg-type]
        "ours, OpenVINO": lambda: FastCASWiT(plain, bf16=bf16, openvino=True),  # type: ignore[arg-type]
    }[name]()
    assert fast is not None
    return lambda: fast(hr, context)


def under(model: nn.Module, bf16: bool, *inputs: Tensor) -> Tensor:
    """Logits, under autocast or not."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits: Tensor = model(*inputs)
    return logits.float()


def openvino(model: nn.Module, hr: Tensor, context: Tensor) -> Run:
    """(a), converted as OpenVINO's documentation says."""
    import openvino as ov

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = tuple(x.float() for x in (hr, context))
        converted = ov.convert_model(model, example_input=example, input=[list(x.shape) for x in example])
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    inputs = [x.numpy() for x in example]
    return lambda: request.infer(inputs, share_inputs=True)


def baseline(size: str) -> nn.Module:
    """segmentation_models_pytorch's Swin of this size with its UPerNet; it has none as small as nano."""
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


def training(name: str, size: str, batch: int, side: int = SIDE) -> Run:
    """A contestant, ready for a step: forward, backward, optimiser."""
    hr, context = images(batch, side, side)
    truth = torch.randint(0, CLASSES, (batch, side, side), generator=torch.Generator().manual_seed(2))
    model: Any
    if name.startswith("(a)"):
        model = filled(assembled(size, train=True), train=True)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    else:
        model = filled(network(size, train=True), train=True)
        optimizer = adamw(model, TrainConfig(lr=1e-5))
    if "checkpointing" in name:
        model.checkpoint_gradients()
    bf16 = "fp32" not in name

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            ours, around = model(hr, context)
        loss = F.cross_entropy(ours.float(), truth) + 0.5 * F.cross_entropy(around.float(), truth)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step
