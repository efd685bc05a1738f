"""The predictor of a loaded model: which device, which precision, and whether the network is arranged for it."""

from caswit.config import ComputeConfig, PredictConfig
from caswit.config.inference import TTAConfig
from caswit.inference.cpu.int8 import network_in_int8
from caswit.inference.cpu.network import arranged_network, can_be_arranged
from caswit.inference.cpu.timing import describe, file_of, remember, timed
from caswit.inference.cuda.network import network_on_gpu
from caswit.inference.devices import pick_device, uses_bf16
from caswit.inference.predictor import Forward, Predictor
from caswit.weights.model_folder import LoadedModel


def load_predictor(loaded: LoadedModel, settings: ComputeConfig, map_px: int = 0) -> Predictor:
    """Put a loaded model on the device that the settings ask for.

    Args:
        loaded: The model.
        settings: Device, precision and what else it is run with.
        map_px: Pixels that will be labelled; where they are many, it may be timed what is fastest on this processor.

    Raises:
        ConfigError: There is no such device, or it does not compute in the precision asked for.
        ModelError: The model has no int8 weights, although they are asked for.
    """
    device = pick_device(settings.device)
    int8 = settings.precision == "int8"
    # What is not computed in integers is computed as it would be without them.
    bf16 = uses_bf16("auto" if int8 else settings.precision, device)
    arranged: Forward | None = None
    if int8:
        arranged = network_in_int8(loaded, device, bf16=bf16)
    elif settings.precision != "fp32":  # which promises the plain network, to compare with
        px = {"tile_px": loaded.info.tile.tile_px, "map_px": map_px}
        arranged = arranged_network(loaded.network, device=device, bf16=bf16, weights=loaded.weights, **px)
        arranged = arranged or network_on_gpu(loaded.network, device=device, bf16=bf16)
    return Predictor(
        loaded.network,
        context_factor=loaded.info.tile.context_factor,
        batch=settings.batch,
        device=device,
        bf16=bf16,
        int8=int8,
        arranged=arranged,
        tta=settings.tta if isinstance(settings, TTAConfig) else 1,
        fill=settings.fill or "black" if isinstance(settings, PredictConfig) else "black",
    )


def speed_page(loaded: LoadedModel) -> str:
    """Time what is fastest on this processor, remember it, and return what was chosen and why, for ``caswit info``."""
    device = pick_device("cpu")
    bf16 = uses_bf16("auto", device)
    if not can_be_arranged(loaded.network):
        return "speed          this network runs as it was trained: there is nothing to choose on a CPU"
    found = timed(loaded.network, loaded.info.tile.tile_px, bf16=bf16)
    file = file_of(found.about)
    kept = f"remembered in {file}" if remember(found) else f"not remembered, since {file} cannot be written"
    return "\n".join(describe(found, f"by timing the parts that differ, tiles of {found.about['tile']}; {kept}"))
