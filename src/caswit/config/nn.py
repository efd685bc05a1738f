"""Settings of the network and of its input."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import lcm
from typing import Any, Literal, cast, get_args

from caswit.config.checks import check, nearest_multiple
from caswit.errors import brief

Size = Literal["pico", "nano", "tiny", "small", "base", "large"]
Decoder = Literal["upernet", "segformer", "mask2former"]
Table2Arch = Literal["stdc1", "stdc2", "glnet", "fctl", "isdnet", "wsdnet", "uhrs", "relay_tokens"]
SmpArch = Literal[
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3", "deeplabv3plus", "upernet",
    "segformer",
]  # fmt: skip
Arch = Literal["caswit", SmpArch, Table2Arch]
TABLE2: dict[Table2Arch, str] = {
    "stdc1": "STDC1", "stdc2": "STDC2", "glnet": "GLNet", "fctl": "FCtL", "isdnet": "ISDNet", "wsdnet": "WSDNet",
    "uhrs": "UHRS", "relay_tokens": "Relay Tokens",
}  # fmt: skip
"""Networks of table 2, and the names their papers have for them."""
CONTEXTS: dict[str, int] = {"fctl": 2, "relay_tokens": 1}
"""How many contexts those networks of table 2 read that see more than the tile."""
RGB = "red", "green", "blue"
"""Names of the usual bands, which weights of other libraries were learned with."""
_UNMEASURED = 127.5, 64.0
"""Mean and standard deviation of a band before it was measured."""
_SHARED = ("arch", "bands", "mean", "std", "ranges")
"""Settings of every network."""
_OF_KIND = {"smp": ("encoder", "encoder_weights"), "table2": ("width", "encoder_weights")}
"""Settings that networks of other libraries and those of table 2 have beside the shared ones."""
_DECODERS: dict[Decoder, str] = {"upernet": "UPerNet", "segformer": "SegFormer", "mask2former": "Mask2Former"}
Norm = Literal["batch", "group"]
Stem = Literal["patch", "conv"]
NUM_STAGES = 4
MASK2FORMER_STEP = 32
"""Widths of a Mask2Former decoder are multiples of this: groups of its norms, and channels of a head."""
_LEAST_TILE_PX = 32

ContextFactor = int | tuple[int, ...]
"""A context factor, or those of several contexts, narrowest first."""


def context_factors(context_factor: int | Sequence[int]) -> tuple[int, ...]:
    """Return the factor of every context, narrowest first."""
    return (context_factor,) if isinstance(context_factor, int) else tuple(context_factor)


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Geometry of the model's input, in pixels after resampling."""

    tile_px: int = 512
    """Side of the high-resolution tile the model labels, in pixels."""
    context_factor: int | tuple[int, ...] = 2
    """The context covers this many times the tile's side and is area-averaged to the tile's size; an increasing list,
    such as [2, 8], gives the network several contexts."""
    read_gsd_m: float | None = None
    """Ground size in metres that images are resampled to while they are read; null: pixels as they are."""

    def __post_init__(self) -> None:
        """Refuse tiles whose pixels would not line up with the averaged pixels of the context."""
        check(self.tile_px >= _LEAST_TILE_PX, f"tile_px must be at least {_LEAST_TILE_PX}, got {self.tile_px}; try 256")
        self._check_factors()
        factors, step = self.context_factors, self.step_px
        fits = nearest_multiple(self.tile_px, step, -(-_LEAST_TILE_PX // step))
        several = f"each context_factor of {list(factors)}, so of" if len(factors) > 1 else "context_factor ="
        check(
            self.tile_px % step == 0,
            f"tile_px must be a multiple of 2 x {several} {step}, got tile_px={self.tile_px}; try {fits}",
        )
        check(
            self.read_gsd_m is None or self.read_gsd_m > 0,
            f"read_gsd_m must be above 0 or null, got {self.read_gsd_m}; try 0.25",
        )

    def _check_factors(self) -> None:
        """Refuse factors that no context can have; a list of one factor becomes that factor."""
        factors, increasing = self.context_factors, sorted(set(self.context_factors))
        check(
            0 < len(factors) == len(increasing) and list(factors) == increasing,
            f"context_factor must be a number or an increasing list of numbers, got {list(factors)}; "
            f"try {increasing if len(increasing) > 1 else 2}",
        )
        for factor in factors:
            within = f" in {list(factors)}" if len(factors) > 1 else ""
            check(1 <= factor <= 16, f"context_factor must be in 1..16, got {factor}{within}; try 2")
        # So that files say the same of one context however it was written.
        object.__setattr__(self, "context_factor", factors if len(factors) > 1 else factors[0])

    @property
    def context_factors(self) -> tuple[int, ...]:
        """The factor of every context, narrowest first."""
        return context_factors(self.context_factor)

    @property
    def step_px(self) -> int:
        """What ``tile_px`` is a multiple of, so that the tile lies on edges of averaged pixels in every context."""
        # For odd factors half would do, which adds tiles of an odd side only.
        return lcm(*(2 * factor for factor in self.context_factors))

    @property
    def context_px(self) -> int:
        """Side of the widest context's window, in pixels of the tile."""
        return self.tile_px * self.context_factors[-1]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. Defaults are the paper's CASWiT-Base."""

    arch: Arch = "caswit"
    """caswit; a baseline of segmentation_models_pytorch (unet to segformer), which sees the tile alone; or a network of
    the paper's table 2 (stdc1 to relay_tokens). Of the other settings, bands, mean, std and ranges are for all of them,
    encoder and encoder_weights for the first kind of baseline, width and encoder_weights for the second."""
    encoder: str | None = None
    """Encoder of a baseline, by its name in segmentation_models_pytorch, e.g. resnet18; null for other networks."""
    encoder_weights: str | None = None
    """Weights that are downloaded for the encoder of a baseline before training, e.g. imagenet, the only ones that
    networks of table 2 have; null: none."""
    width: float = 1.0
    """Factor on all channels of a network of table 2, rounded to multiples of 8; encoder_weights need 1."""
    size: Size = "base"
    """Swin size of both branches: pico, nano (two CPU cores), tiny, small, base (the paper), large."""
    stem: Stem = "patch"
    """patch: Swin's linear layer on 4 px patches (the paper); conv: 3x3 convolutions, for few labels from scratch."""
    decoder: Decoder = "upernet"
    """Decoder head: upernet (the paper's first version), segformer (its second) or mask2former (not in the paper; masks
    and classes with a loss of their own, through transformers; its context head is a UPerNet)."""
    fusion_stages: tuple[int, ...] = (1, 2, 3, 4)
    """Stages after which hr reads the context; [] is the plain Swin + UPerNet, without a context branch."""
    gated: bool = False
    """Scale what is read from the context by a learned gate tanh(g), which starts at 0."""
    feed_forward: bool = True
    """Fused maps feed the next hr stage; false: only the decoder sees them."""
    decoder_channels: int | None = None
    """Width of the decoder; null takes the size's own (512, nano 96; mask2former 256, nano 64)."""
    decoder_norm: Norm = "batch"
    """Normalisation in the decoder and in a conv stem; group norm for batches of one tile per device."""
    drop_path: float = 0.1
    """Highest stochastic-depth rate of the Swin blocks, in training only."""
    bands: tuple[str, ...] = ()
    """Names of the bands that it reads, e.g. [red, green, blue, nir]; []: all that the dataset.yaml names, or red,
    green and blue."""
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    """Mean of each band on the 0-255 scale. Three numbers are of red, green and blue, measured for all other bands on
    the training scenes (default: ImageNet's)."""
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    """Standard deviation of each band on the 0-255 scale, given as the mean is (default: ImageNet's)."""
    ranges: tuple[tuple[float, float] | None, ...] = ()
    """Of each band the two values that become 0 and 255, null where pixels are uint8; []: measured on the training
    scenes, as those between which 98 of 100 lie."""

    def __post_init__(self) -> None:
        """Refuse names and stages that do not exist, and numbers outside their range."""
        names = {"arch": Arch, "size": Size, "stem": Stem, "decoder": Decoder, "decoder_norm": Norm}
        for name, choices in names.items():
            value = getattr(self, name)
            allowed = get_args(choices)
            check(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {brief(value)}")
        self._check_kind()
        stages = self.fusion_stages
        check(
            list(stages) == sorted(set(stages) & set(range(1, NUM_STAGES + 1))),
            f"fusion_stages must be increasing numbers from 1 to {NUM_STAGES}, got {list(stages)}; "
            "try [1, 2, 3, 4], or [] for no context",
        )
        check(0 <= self.drop_path < 1, f"drop_path must be in [0, 1), got {self.drop_path}; try 0.1")
        self._check_bands()
        check(
            self.decoder_channels is None or self.decoder_channels > 0,
            f"decoder_channels must be above 0, got {self.decoder_channels}; try 96 or 512",
        )
        check(
            self.decoder != "mask2former" or (self.decoder_channels or 0) % MASK2FORMER_STEP == 0,
            f"decoder_channels of mask2former must be a multiple of {MASK2FORMER_STEP}, got {self.decoder_channels}; "
            "try 64 or 256",
        )

    def _check_bands(self) -> None:
        """Refuse bands without a name of their own, and numbers that are not one for each."""
        names, count = self.bands, len(self.band_names)
        check(len(set(names)) == len(names) and all(names), f"bands must be different names, got {list(names)}")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            # Until the dataset is known, so is not how many bands there are.
            fits = len(numbers) in (3, count) if names else len(numbers) >= 1
            check(fits or count != 3, f"{name} must have three numbers, got {list(numbers)}")
            check(fits, f"{name} must have {count} numbers, or three for red, green and blue, got {list(numbers)}")
        check(
            len(self.mean) == len(self.std), f"std must have {len(self.mean)} numbers as mean has, got {list(self.std)}"
        )
        check(min(self.std) > 0, f"std must be above 0, got {list(self.std)}")
        check(
            not (names and self.ranges) or len(self.ranges) == count,
            f"ranges must have {count} pairs, one for each band, got {len(self.ranges)}; [] measures them",
        )
        for pair in self.ranges:
            check(pair is None or pair[0] < pair[1], f"ranges must be [low, high], the lower one first, got {pair}")
        check(
            count == 3 or self.kind != "table2",
            f"arch {self.arch} reads three bands, got {count} ({', '.join(names)}); try bands: [red, green, blue], or "
            "arch: caswit or unet",
        )

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands that it reads: red, green and blue unless ``bands`` or the mean say otherwise."""
        return self.bands or (RGB if len(self.mean) == 3 else tuple(f"band_{i + 1}" for i in range(len(self.mean))))

    @property
    def has_other_bands(self) -> bool:
        """True for a network that reads more or others than red, green and blue, or pixels that are not uint8."""
        return self.band_names != RGB or any(self.ranges)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each band, 0-255: those of bands not measured yet stand for any."""
        if len(self.mean) == len(self.band_names):
            return self.mean, self.std
        found = dict(zip(RGB, zip(self.mean, self.std, strict=True), strict=True))
        mean, std = zip(*(found.get(name, _UNMEASURED) for name in self.band_names), strict=True)
        return mean, std

    def _check_kind(self) -> None:
        """Refuse settings that have no meaning for the architecture."""
        kind = self.kind
        if kind == "caswit":
            for name in ("encoder", "encoder_weights"):
                value = getattr(self, name)
                check(value is None, f"{name} is for baselines, got {brief(value)} with arch caswit; leave it out")
            check(self.width == 1, f"width is for {', '.join(TABLE2)}, got {self.width} with arch caswit; try size")
            return
        if kind == "smp":
            check(self.encoder is not None, f"arch {self.arch} needs an encoder; try encoder: resnet18")
        else:
            check(
                self.encoder_weights in (None, "imagenet"),
                f"encoder_weights of arch {self.arch} must be imagenet or null, got {brief(self.encoder_weights)}",
            )
            check(0 < self.width <= 4, f"width must be above 0 and at most 4, got {self.width}; try 0.25")
            check(
                self.encoder_weights is None or self.width == 1,
                f"encoder_weights need width 1, got {self.width}; try encoder_weights: null",
            )
        whose = {"encoder": "baselines of segmentation_models_pytorch", "width": ", ".join(TABLE2)}
        for field in fields(self):
            value = getattr(self, field.name)
            check(
                field.name in (*_SHARED, *_OF_KIND[kind]) or value == field.default,
                f"{field.name} is for {whose.get(field.name, 'caswit')}, got {brief(value)} with arch {self.arch}; "
                "leave it out",
            )

    @property
    def kind(self) -> Literal["caswit", "smp", "table2"]:
        """Where the network comes from: caswit, segmentation_models_pytorch, or the other papers of table 2."""
        if self.arch == "caswit":
            return "caswit"
        return "table2" if self.arch in TABLE2 else "smp"

    @property
    def title(self) -> str:
        """Name of the network, for people, wherever one is printed.

        CASWiT-base, Swin-nano + UPerNet (no context), unet with encoder resnet18, ISDNet of width 0.25.
        """
        if self.kind == "caswit":
            # UPerNet is what the paper's CASWiT has; any other decoder is named.
            decoder = f" + {_DECODERS[self.decoder]}"
            if self.reads_context:
                return f"CASWiT-{self.size}{decoder if self.decoder != 'upernet' else ''}"
            return f"Swin-{self.size}{decoder} (no context)"
        if self.kind == "smp":
            return f"{self.arch} with encoder {self.encoder}"
        return TABLE2[cast("Table2Arch", self.arch)] + (f" of width {self.width:g}" if self.width != 1 else "")

    @property
    def encoder_title(self) -> str:
        """Name of a pretrained network of ours, which has no decoder: CASWiT-base, Swin-nano (no context)."""
        return f"CASWiT-{self.size}" if self.reads_context else f"Swin-{self.size} (no context)"

    @property
    def of_caswit(self) -> dict[str, Any]:
        """Return the settings that ``caswit.nn.caswit.CASWiT`` takes."""
        others = ("arch", "encoder", "encoder_weights", "width", "bands", "ranges")
        mean, std = self.normalisation()
        return {name: value for name, value in vars(self).items() if name not in others} | {"mean": mean, "std": std}

    @property
    def has_own_loss(self) -> bool:
        """True for a network that is given the label in training and returns a loss of its own."""
        return self.kind == "table2" or (self.kind == "caswit" and self.decoder == "mask2former")

    @property
    def reads_context(self) -> bool:
        """True for a network that takes a context beside the tile."""
        return bool(self.fusion_stages) if self.arch == "caswit" else self.arch in CONTEXTS
