"""Initialise a network from existing weights: translate their names, assign them to branches, fit shapes, report."""

import difflib
import logging
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from timm.layers import resize_rel_pos_bias_table_simple
from torch import Tensor

from caswit.config import RGB, InitConfig, Size
from caswit.data.classes import known_and_new, plain_name
from caswit.errors import CaswitError, ConfigError, ModelError
from caswit.nn.bands import for_bands, said
from caswit.nn.caswit import SIZES, CASWiT
from caswit.nn.swin import PATCH_PX
from caswit.weights import convert
from caswit.weights.convert import State, find_weights, read_weights
from caswit.weights.hub import fetch, is_on_hub
from caswit.weights.model_folder import CONFIG, ModelInfo, PretrainedInfo, read_info

log = logging.getLogger(__name__)

# Models with the windows of ``SIZES``. Pico and nano are ours, so timm has no weights for them.
TIMM_MODELS: dict[Size, str] = {
    "tiny": "swin_tiny_patch4_window7_224",
    "small": "swin_small_patch4_window7_224",
    "base": "swin_base_patch4_window12_384",
    "large": "swin_large_patch4_window12_384",
}
_TRANSLATE = {
    "timm": convert.from_timm,
    "smp": convert.from_smp,
    "flair_hub": convert.from_flair_hub,
    "transformers": convert.from_transformers,
    "mmseg": convert.from_mmseg,
}
_BRANCHES = {
    "encoder.": ("hr_encoder.", "context_encoder."),
    "norms.": ("hr_norms.", "context_norms."),
    "decoder.": ("decoder.", "context_decoder."),
}
_HEADS = (("context_decoder.", "decoder."), ("context_norms.", "hr_norms."))
"""Beginnings of the names of the context branch's head, and of the same parts of the main one."""
_ENCODERS = ("hr_encoder.", "context_encoder.")
_LAST = ("decoder.classify.", "context_decoder.classify.")
"""Beginnings of the names of last layers, which have a row for each class."""
_FIRST = ("patch_embed.proj.weight", "patch_embed.layers.0.0.weight")
"""Endings of the names of the weights (O, n, ...) that read an image of n bands."""
_PARTS = ("hr encoder", "context encoder", "fusion", "decoder", "context decoder")
_LISTED = 12
"""Number of names that a line of the report lists."""


class Fit(NamedTuple):
    """The weights that were used, and for what, by name."""

    taken: tuple[str, ...]
    """Names in the network whose weights were found."""
    resized: tuple[str, ...]
    """Names in ``taken`` of position biases that were interpolated from another size of window."""
    missing: tuple[str, ...]
    """Names in the network whose weights were not found, or not in their shape; they keep their random start."""
    left_over: tuple[str, ...]
    """Names in the file that were not used."""
    copied: tuple[str, ...] = ()
    """Names in ``taken`` of parts of the context branch that the file lacks, which start as those of the hr branch."""

    def share(self, encoders: tuple[str, ...] = _ENCODERS) -> float:
        """Return the share of the encoders' weights that were found, 0..1."""
        taken, missing = (sum(n.startswith(encoders) for n in group) for group in (self.taken, self.missing))
        return taken / max(1, taken + missing)


def start_from(
    network: CASWiT,
    start: InitConfig,
    size: Size,
    tile_px: int | None = None,
    classes: tuple[str, ...] = (),
    bands: tuple[str, ...] = RGB,
) -> Fit:
    """Load the weights that a recipe names into a network, and log what matched, was missing or was left over.

    Args:
        network: Network, with or without decoders.
        start: Settings: where the weights are and whose names they have.
        size: Size of the network.
        tile_px: Side of its tiles; warn where the library of the weights computes something else for such tiles.
        classes: Names of its classes. The last layer of a decoder of ours is taken class by class: what has the same
            name in both goes on, all others start at random.
        bands: Names of the bands that it reads. The first convolution is copied by name; those of new bands are a mean.

    Raises:
        CaswitError: The weights cannot be read, or too little of the encoders is among them.
    """
    where, state = _read(start, size)
    state = {_with_beginning(name, start): x for name, x in state.items()}
    ours = network.state_dict()
    placed = _placed(_TRANSLATE[start.source](state) if start.source in _TRANSLATE else state, start, set(ours))
    info = info_of_start(start)
    twins = _left_out(placed, start, ours)
    placed |= twins
    theirs_classes = info.classes.names if isinstance(info, ModelInfo) and classes and start.decoder else ()
    if theirs_classes:
        log.info("%s", _matched(classes, theirs_classes))
    theirs_bands = RGB if info is None else info.model.band_names
    if theirs_bands != bands:
        placed |= {n: for_bands(x, theirs_bands, bands) for n, x in placed.items() if _reads(n, x, theirs_bands)}
        log.info("init: bands of the first convolution: %s", said(theirs_bands, bands))
    new: State = {}
    resized = []
    for name, theirs in placed.items():
        # Decoders are taken only on request: those for other classes fit too, in all but the last layer.
        wanted = name in ours and (start.decoder or not name.startswith(("decoder.", "context_decoder.")))
        if wanted and theirs_classes and name.startswith(_LAST):
            fitted = _by_class(theirs, ours[name], classes, theirs_classes)
        else:
            fitted = _fitted(name, theirs, ours[name]) if wanted else None
        if fitted is not None:
            new[name] = fitted
            if theirs.shape != fitted.shape and not name.startswith(_LAST):
                resized.append(name)
    fit = Fit(
        taken=tuple(new),
        resized=tuple(resized),
        # num_batches_tracked is a counter of batch norm, not a weight, and some files lack it.
        missing=tuple(n for n in ours if n not in new and not n.endswith("num_batches_tracked")),
        left_over=tuple(n for n in placed if n not in new and n not in twins and not n.endswith("num_batches_tracked")),
        copied=tuple(n for n in twins if n in new),
    )
    for line in report(fit, where, start, placed, ours):
        log.info("%s", line)
    # With the names of the wrong library hardly anything matches, and training would silently start at random.
    if fit.share(_counted(start)) < start.min_matched:
        raise ModelError(_refusal(fit, where, start, size, placed))
    network.load_state_dict(new, strict=False)
    if tile_px is not None and (warning := window_warning(start, size, tile_px)):
        log.warning("%s", warning)
    return fit


def info_of_start(start: InitConfig | None) -> ModelInfo | PretrainedInfo | None:
    """Return what config.json says of the network whose weights a training starts from; None where none says it.

    Raises:
        ModelError: It is damaged.
    """
    if start is None or start.source != "caswit" or start.path is None:
        return None
    try:
        folder = folder_of_start(start.path)
    except CaswitError:
        return None  # who loads the weights says what is wrong; a run that resumes needs none
    return read_info(folder) if (folder / CONFIG).is_file() else None


def folder_of_start(path: str) -> Path:
    """Return the folder of the weights that ``init`` names: of a run the model's, of a file its own.

    Raises:
        CaswitError: There are none, or they cannot be fetched.
    """
    return fetch(path) if is_on_hub(path) else find_weights(path).parent


def report(fit: Fit, where: str, start: InitConfig, theirs: State, ours: State) -> list[str]:
    """Return lines that say what matched; for ``from: official`` with the most similar names of the same shape.

    Of weights of caswit one line says it, by parts of the network; of others single names are listed.
    """
    if start.source == "caswit":
        return _report_of_ours(fit, where, start, ours)
    read = [name for name in fit.taken if name not in fit.copied]
    count = {kind: sum(n.startswith(kind) for n in read) for kind in (*_ENCODERS, "fusion.")}
    parts = [f"{n} of {kind[:-1]}" for kind, n in count.items() if n] or ["nothing"]
    rest = len(read) - sum(count.values())
    others = f", {rest} others" if rest else ""
    resized = f"; {len(fit.resized)} position biases interpolated to this window" if fit.resized else ""
    share = f"{fit.share(_counted(start)):.0%} of the encoders"
    lines = [f"init: {where}: took {', '.join(parts)}{others}; {share}{resized}"]
    if fit.missing:
        lines.append(f"init: {len(fit.missing)} start at random ({_by_part(fit.missing)}): {_some(fit.missing)}")
    if fit.left_over:
        lines.append(f"init: {len(fit.left_over)} left over: {_some(fit.left_over)}")
    if start.source == "official":
        spare = {name: theirs[name] for name in fit.left_over}
        lines += [f"init:   {name} {tuple(ours[name].shape)} <- {_nearest(name, ours, spare)}" for name in fit.missing]
    return lines


def _report_of_ours(fit: Fit, where: str, start: InitConfig, ours: State) -> list[str]:
    """Return the line about weights of caswit: which parts are taken, copied, at random, and not used."""
    weights = [name for name in ours if not name.endswith("num_batches_tracked")]
    whole = Counter(map(_part, weights))

    def parts(names: Iterable[str]) -> str:
        counts = Counter(_part(name) for name in names if not name.endswith("num_batches_tracked"))
        # Those of the network in its order; parts of other networks, such as mask tokens, after them.
        ordered = sorted(counts, key=lambda part: _PARTS.index(part) if part in _PARTS else len(_PARTS))
        all_of = {part for part in ordered if counts[part] == whole[part] or not whole[part]}
        return ", ".join(part if part in all_of else f"{counts[part]} of {whole[part]} of {part}" for part in ordered)

    taken = set(fit.taken) - set(fit.copied)
    # Of a network of one context: at zero, every further context is read as that one was.
    at_zero = [name for name in fit.missing if name.endswith("context_embedding")]
    said = {
        "copies of the hr branch": parts(fit.copied),
        "at zero, so that contexts are read alike": parts(at_zero),
        "at random": parts(name for name in fit.missing if name not in at_zero),
        "not used": parts(fit.left_over),
    }
    resized = f"; {len(fit.resized)} position biases interpolated to this window" if fit.resized else ""
    others = "".join(f"; {what}: {which}" for what, which in said.items() if which)
    took = parts(name for name in weights if name in taken) or "nothing"
    return [f"init: {where}: takes {took} ({fit.share(_counted(start)):.0%} of the encoders){resized}{others}"]


def _part(name: str) -> str:
    """Return the part of the network that a weight belongs to, in words."""
    first = name.partition(".")[0]
    return {"hr_norms": "decoder", "context_norms": "context decoder"}.get(first, first.replace("_", " "))


def _by_part(names: tuple[str, ...]) -> str:
    return ", ".join(f"{count} of {part}" for part, count in Counter(n.partition(".")[0] for n in names).items())


def window_warning(start: InitConfig, size: Size, tile_px: int) -> str | None:
    """Return a warning if the library of the weights treats windows differently for tiles of this size, else None.

    Weights then still are a good start, but features are not exactly those of that library (docs/decisions/0005).
    """
    if start.source in ("caswit", "official"):
        return None
    window = SIZES[size]["window_size"]
    sides = [math.ceil(tile_px / (PATCH_PX * 2**stage)) for stage in range(4)]
    # Stage 4 then has two windows along a side, and every stage before it whole ones.
    exact_px = 2 * PATCH_PX * 8 * window
    if sides[-1] <= window:
        what = f"does not shift windows of {window} tokens where a stage has {sides[-1]}, as in tiles of {tile_px} px"
    elif start.source in ("transformers", "mmseg") and any(side % window for side in sides):
        what = f"pads tiles of {tile_px} px before it rolls them, where windows of {window} tokens do not divide them"
    else:
        return None
    return f"init: unlike caswit, {start.source} {what}; features agree exactly for tiles of {exact_px} px"


def _reads(name: str, weight: Tensor, bands: tuple[str, ...]) -> bool:
    """Return whether weights are those of a first convolution that reads these bands."""
    return name.endswith(_FIRST) and weight.ndim == 4 and weight.shape[1] == len(bands)


def _counted(start: InitConfig) -> tuple[str, ...]:
    """Return the encoders that the weights are meant for."""
    return _ENCODERS if start.context else _ENCODERS[:1]


def _read(start: InitConfig, size: Size) -> tuple[str, State]:
    """Return where the weights come from, for messages, and the weights."""
    if not start.timm:
        assert start.path is not None
        file = find_weights(start.path)
        return _shown(start.path if start.source == "caswit" else str(file)), read_weights(file)
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


def _shown(path: str) -> str:
    """Return a path as it is from this folder, where it lies in it."""
    place = Path(path)
    inside = place.is_absolute() and place.is_relative_to(Path.cwd())
    return str(place.relative_to(Path.cwd())) if inside else path


def _with_beginning(name: str, start: InitConfig) -> str:
    for old, new in start.rename.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _placed(state: State, start: InitConfig, ours: set[str]) -> State:
    """Put weights under our names, those of a single encoder under the names of both branches."""
    placed: State = {}
    for name, x in state.items():
        found = [target for target in _targets(name, start) if target in ours]
        # A weight without a place in the network keeps its name, so that the report can list it as left over.
        placed |= dict.fromkeys(found or [name], x)
    if start.context and not any(n.startswith("context_encoder.") for n in placed):
        # A baseline of caswit has our names already, and only those of the hr branch: it starts both as well.
        twins = {n.replace("hr_", "context_", 1): x for n, x in placed.items() if n.startswith(("hr_enc", "hr_norm"))}
        placed |= {n: x for n, x in twins.items() if n in ours}
    return placed


def _left_out(placed: State, start: InitConfig, ours: State) -> State:
    """Return weights of the hr branch for what of the context branch a model is stored without, by their new names.

    These are parts that only training with alpha above 0 has: the stages of the context encoder after the last fusion,
    and, where the decoder is taken, the head. Beside a mask2former that is another kind of decoder.
    """
    if start.source != "caswit" or not start.context:
        return {}
    found: State = {}
    for context, hr in (("context_encoder.", "hr_encoder."), *(_HEADS if start.decoder else ())):
        wanted = {n: hr + n.removeprefix(context) for n in ours if n.startswith(context) and n not in placed}
        if placed.keys() >= set(wanted.values()):
            found |= {n: placed[main] for n, main in wanted.items()}
    return found


def _targets(name: str, start: InitConfig) -> list[str]:
    """Return our names for a translated one: those of both branches, or of the hr branch alone."""
    if start.source in _TRANSLATE:
        for single, pair in _BRANCHES.items():
            if name.startswith(single):
                return [branch + name.removeprefix(single) for branch in (pair if start.context else pair[:1])]
    return [name]


def _fitted(name: str, theirs: Tensor, ours: Tensor) -> Tensor | None:
    """Return their tensor in our type and shape, or None if it has another shape.

    Position biases ((2w - 1)^2, heads) are the exception: those of another window w are interpolated, as Swin does.
    """
    theirs = theirs.detach().to(ours.dtype) if ours.is_floating_point() else theirs.detach()
    if theirs.shape == ours.shape:
        return theirs
    # A square number of offsets belongs to a square window.
    biases = name.endswith("relative_position_bias_table") and theirs.ndim == 2 and theirs.shape[1] == ours.shape[1]
    if not biases or math.isqrt(len(theirs)) ** 2 != len(theirs):
        return None
    window = (math.isqrt(len(ours)) + 1) // 2
    resized: Tensor = resize_rel_pos_bias_table_simple(theirs, (window, window), ours.shape)
    return resized


def _by_class(theirs: Tensor, ours: Tensor, names: tuple[str, ...], their_names: tuple[str, ...]) -> Tensor | None:
    """Return a last layer (K, ...) whose rows of classes that both have are theirs; None if there are none."""
    rows = {plain_name(name): row for row, name in enumerate(their_names)}
    if len(theirs) != len(their_names) or theirs.shape[1:] != ours.shape[1:] or len(ours) != len(names):
        return _fitted("", theirs, ours)
    both = [(k, rows[plain_name(name)]) for k, name in enumerate(names) if plain_name(name) in rows]
    if not both:
        return None
    fitted = ours.clone()
    to, where = map(list, zip(*both, strict=True))
    fitted[to] = theirs[where].to(ours.dtype)
    return fitted


def _matched(classes: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """Say which classes a model has already."""
    same, new = known_and_new(classes, theirs)
    parts = [f"classes as in the model: {', '.join(same)}"] if same else ["no class has the name of one of the model"]
    return "init: " + "; ".join([*parts, *([f"new: {', '.join(new)}"] if new else [])])


def _refusal(fit: Fit, where: str, start: InitConfig, size: Size, placed: State) -> str:
    """Return the message for weights that hold too little of the encoders."""
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
    """Say which unused tensor of the same shape has the most similar name."""
    same = [n for n, x in spare.items() if x.shape == ours[name].shape]
    near = difflib.get_close_matches(name, same, n=1, cutoff=0.0)
    return f"perhaps {near[0]}" if near else "nothing of that shape"


def _some(group: tuple[str, ...], count: int = _LISTED) -> str:
    return ", ".join(group[:count]) + (f", ... ({len(group) - count} more)" if len(group) > count else "")
