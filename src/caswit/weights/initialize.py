"""Starting a network from weights that exist: translate, place, fit, and say what came of it."""

import difflib
import logging
import math
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from caswit.config import InitConfig, Size
from caswit.errors import ConfigError, ModelError
from caswit.nn.caswit import SIZES, CASWiT
from caswit.nn.swin import PATCH_PX
from caswit.weights import convert as names
from caswit.weights.convert import State, find_weights, read_weights

log = logging.getLogger(__name__)

TIMM_MODELS: dict[Size, str] = {
    "tiny": "swin_tiny_patch4_window7_224",
    "small": "swin_small_patch4_window7_224",
    "base": "swin_base_patch4_window12_384",
    "large": "swin_large_patch4_window12_384",
}
_TRANSLATE = {
    "timm": names.from_timm,
    "smp": names.from_smp,
    "flair_hub": names.from_flair_hub,
    "transformers": names.from_transformers,
    "mmseg": names.from_mmseg,
}
_BRANCHES = {
    "encoder.": ("hr_encoder.", "context_encoder."),
    "norms.": ("hr_norms.", "context_norms."),
    "decoder.": ("decoder.", "context_decoder."),
}
_ENCODERS = ("hr_encoder.", "context_encoder.")
_LISTED = 12
"""Names in one line of the report."""


class Fit(NamedTuple):
    """What of the weights went where."""

    taken: tuple[str, ...]
    """Our names."""
    resized: tuple[str, ...]
    """Of these, position biases of another window that were interpolated."""
    missing: tuple[str, ...]
    """Our names that the weights do not have, or not in that shape; they keep their random start."""
    left_over: tuple[str, ...]
    """Names in the weights that nothing of ours took."""

    def share(self, encoders: tuple[str, ...] = _ENCODERS) -> float:
        """Share of the encoders' weights that were found, 0..1."""
        taken, missing = (sum(n.startswith(encoders) for n in group) for group in (self.taken, self.missing))
        return taken / max(1, taken + missing)


def start_from(network: CASWiT, start: InitConfig, size: Size, tile_px: int | None = None) -> Fit:
    """Give a network the weights that a recipe names, and log what matched, was missing or left over.

    Args:
        network: With or without decoders.
        start: Where the weights are and whose names they have.
        size: Of the network.
        tile_px: Of the tiles that it will see; warn where the weights' own library would see them otherwise.

    Raises:
        CaswitError: They cannot be read, or too little of the encoders is in them.
    """
    where, state = _read(start, size)
    state = {_with_beginning(name, start): x for name, x in state.items()}
    ours = network.state_dict()
    placed = _placed(_TRANSLATE[start.source](state) if start.source in _TRANSLATE else state, start, set(ours))
    new: State = {}
    resized = []
    for name, theirs in placed.items():
        wanted = name in ours and (start.decoder or not name.startswith(("decoder.", "context_decoder.")))
        fitted = _fitted(name, theirs, ours[name]) if wanted else None
        if fitted is not None:
            new[name] = fitted
            if theirs.shape != fitted.shape:
                resized.append(name)
    fit = Fit(
        taken=tuple(new),
        resized=tuple(resized),
        missing=tuple(n for n in ours if n not in new and not n.endswith("num_batches_tracked")),
        left_over=tuple(n for n in placed if n not in new),
    )
    for line in report(fit, where, start, placed, ours):
        log.info("%s", line)
    if fit.share(_counted(start)) < start.min_matched:
        raise ModelError(_refusal(fit, where, start, size, placed))
    network.load_state_dict(new, strict=False)
    if tile_px is not None and (warning := window_warning(start, size, tile_px)):
        log.warning("%s", warning)
    return fit


def report(fit: Fit, where: str, start: InitConfig, theirs: State, ours: State) -> list[str]:
    """Lines that say what matched; for names nobody knows, with the nearest ones of the same shape."""
    count = {kind: sum(n.startswith(kind) for n in fit.taken) for kind in (*_ENCODERS, "fusion.")}
    parts = [f"{n} of {kind[:-1]}" for kind, n in count.items() if n] or ["nothing"]
    rest = len(fit.taken) - sum(count.values())
    others = f", {rest} others" if rest else ""
    resized = f"; {len(fit.resized)} position biases interpolated to this window" if fit.resized else ""
    share = f"{fit.share(_counted(start)):.0%} of the encoders"
    lines = [f"init: {where}: took {', '.join(parts)}{others}; {share}{resized}"]
    if fit.missing:
        lines.append(f"init: {len(fit.missing)} start at random: {_some(fit.missing)}")
    if fit.left_over:
        lines.append(f"init: {len(fit.left_over)} left over: {_some(fit.left_over)}")
    if start.source == "official":
        spare = {name: theirs[name] for name in fit.left_over}
        lines += [f"init:   {name} {tuple(ours[name].shape)} <- {_nearest(name, ours, spare)}" for name in fit.missing]
    return lines


def window_warning(start: InitConfig, size: Size, tile_px: int) -> str | None:
    """What to know about weights of others at tile sizes where their library treats windows in another way."""
    if start.source in ("caswit", "official"):
        return None
    window = SIZES[size]["window_size"]
    sides = [math.ceil(tile_px / (PATCH_PX * 2**stage)) for stage in range(4)]
    exact_px = 2 * PATCH_PX * 8 * window
    if sides[-1] <= window:
        what = f"does not shift windows of {window} tokens where a stage has {sides[-1]}, as in tiles of {tile_px} px"
    elif start.source in ("transformers", "mmseg") and any(side % window for side in sides):
        what = f"pads tiles of {tile_px} px before it rolls them, where windows of {window} tokens do not divide them"
    else:
        return None
    return f"init: unlike caswit, {start.source} {what}; features agree exactly for tiles of {exact_px} px"


def _counted(start: InitConfig) -> tuple[str, ...]:
    """Encoders that the weights are meant for."""
    return _ENCODERS if start.context else _ENCODERS[:1]


def _read(start: InitConfig, size: Size) -> tuple[str, State]:
    if not start.timm:
        assert start.path is not None
        file = find_weights(start.path)
        return str(file), read_weights(file)
    if size not in TIMM_MODELS:
        raise ConfigError(f"timm has no weights for size {size}; sizes with weights: {', '.join(TIMM_MODELS)}")
    import timm

    try:
        whole = timm.create_model(TIMM_MODELS[size], pretrained=True, num_classes=0)
    except Exception as error:  # anything from the network stack
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"cannot download timm's {TIMM_MODELS[size]} ({reason}); without a network, fetch the file elsewhere and "
            "give its path"
        ) from error
    return f"timm's {TIMM_MODELS[size]}", dict(whole.state_dict())


def _with_beginning(name: str, start: InitConfig) -> str:
    for old, new in start.rename.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _placed(state: State, start: InitConfig, ours: set[str]) -> State:
    """Weights of one encoder under the names of both branches; decoders only if they are wanted."""
    placed: State = {}
    for name, x in state.items():
        found = [target for target in _targets(name, start) if target in ours]
        placed |= dict.fromkeys(found or [name], x)
    if start.context and not any(n.startswith("context_encoder.") for n in placed):
        # caswit's own weights without a context branch: its one encoder starts both.
        twins = {n.replace("hr_", "context_", 1): x for n, x in placed.items() if n.startswith(("hr_enc", "hr_norm"))}
        placed |= {n: x for n, x in twins.items() if n in ours}
    return placed


def _targets(name: str, start: InitConfig) -> list[str]:
    """Our names for a translated one: those of both branches, or of the tile's alone."""
    if start.source in _TRANSLATE:
        for single, pair in _BRANCHES.items():
            if name.startswith(single):
                return [branch + name.removeprefix(single) for branch in (pair if start.context else pair[:1])]
    return [name]


def _fitted(name: str, theirs: Tensor, ours: Tensor) -> Tensor | None:
    """Their tensor in our shape, or None: only position biases can be of another size."""
    theirs = theirs.detach().to(ours.dtype) if ours.is_floating_point() else theirs.detach()
    if theirs.shape == ours.shape:
        return theirs
    if name.endswith("relative_position_bias_table") and theirs.ndim == 2 and theirs.shape[1] == ours.shape[1]:
        return _interpolated(theirs, len(ours))
    return None


def _interpolated(table: Tensor, length: int) -> Tensor | None:
    """Position biases ((2w - 1)^2, heads) of one window for another, bicubic as Swin does."""
    was, now = math.isqrt(len(table)), math.isqrt(length)
    if was * was != len(table):
        return None
    grid = table.T.reshape(1, -1, was, was)
    resized = F.interpolate(grid, (now, now), mode="bicubic", align_corners=False)
    return resized.reshape(-1, now * now).T.contiguous()


def _refusal(fit: Fit, where: str, start: InitConfig, size: Size, placed: State) -> str:
    first = next(n for n in fit.missing if n.startswith(_counted(start)))
    lost = [n for n in fit.left_over if n in fit.missing]
    hint = "is from right?"
    if lost:
        hint = f"{lost[0]} is {tuple(placed[lost[0]].shape)} in the file: another model.size than {size}?"
    return (
        f"{where}: by the names of {start.source}, only {fit.share(_counted(start)):.0%} of the encoders' weights are "
        f"there ({start.min_matched:.0%} are needed); missing {first}, left over {_some(fit.left_over, 3)}; {hint}"
    )


def _nearest(name: str, ours: State, spare: State) -> str:
    same = [n for n, x in spare.items() if x.shape == ours[name].shape]
    near = difflib.get_close_matches(name, same, n=1, cutoff=0.0)
    return f"perhaps {near[0]}" if near else "nothing of that shape"


def _some(group: tuple[str, ...], count: int = _LISTED) -> str:
    return ", ".join(group[:count]) + (f", ... ({len(group) - count} more)" if len(group) > count else "")
