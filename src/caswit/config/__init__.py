"""Settings of every command. Each field's text is its help, its comment in a recipe and its documentation.

Nothing here imports torch: ``caswit --help`` reads this package and must be instant.
"""

from caswit.config.checks import IGNORE_INDEX, check
from caswit.config.network import NUM_STAGES, Decoder, ModelConfig, Norm, Size, Stem, TileConfig
from caswit.config.running import ComputeConfig, DemoConfig, EvaluateConfig, FiguresConfig, Precision, PredictConfig
from caswit.config.serving import ServeConfig
from caswit.config.training import AugmentConfig, DataConfig, Recipe, TrainConfig

__all__ = [
    "IGNORE_INDEX",
    "NUM_STAGES",
    "AugmentConfig",
    "ComputeConfig",
    "DataConfig",
    "Decoder",
    "DemoConfig",
    "EvaluateConfig",
    "FiguresConfig",
    "ModelConfig",
    "Norm",
    "Precision",
    "PredictConfig",
    "Recipe",
    "ServeConfig",
    "Size",
    "Stem",
    "TileConfig",
    "TrainConfig",
    "check",
]
