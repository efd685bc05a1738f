"""The predictor of a loaded model: which device, which precision, and whether the network is arranged for it."""

from caswit.config import ComputeConfig, PredictConfig
from caswit.config.inference import TTAConfig
from caswit.inference.cpu.network import arranged_network
from caswit.inference.cuda.network import network_on_gpu
from caswit.inference.devices import pick_device, uses_bf16
from caswit.inference.predictor import Forward, Predictor
from caswit.weights.model_folder import LoadedModel


def load_predictor(loaded: LoadedModel, settings: ComputeConfig) -> Predictor:
    """Put a loaded model on the device that the settings ask for.

    Raises:
        ConfigError: There is no such device.
    """
    device = pick_device(settings.device)
    bf16 = uses_bf16(settings.precision, device)
    arranged: Forward | None = None
    if settings.precision != "fp32":  # which promises the plain network, to compare with
        arranged = arranged_network(loaded.network, device=device, bf16=bf16, weights=loaded.weights)
        arranged = arranged or network_on_gpu(loaded.network, device=device, bf16=bf16)
    return Predictor(
        loaded.network,
        context_factor=loaded.info.tile.context_factor,
        batch=settings.batch,
        device=device,
        bf16=bf16,
        arranged=arranged,
        tta=settings.tta if isinstance(settings, TTAConfig) else 1,
        fill=settings.fill or "black" if isinstance(settings, PredictConfig) else "black",
    )
