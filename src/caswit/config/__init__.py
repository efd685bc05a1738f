"""Settings of every command. Each field's text is its help, its comment in a recipe and its documentation.

Nothing here imports torch: ``caswit --help`` reads this package and must be instant.
"""

from caswit.config.checks import IGNORE_INDEX, check
from caswit.config.network import NUM_STAGES, Decoder, ModelConfig, Norm, Size, Stem, TileConfig
from caswit.config.running import ComputeConfig, DemoConfig, EvaluateConfig, InspectConfig, Precision, PredictConfig
from caswit.config.sources import (
    SOURCES,
    FlairHubSource,
    FolderSource,
    LabelValues,
    SourceConfig,
    SwissimageSource,
    UrurSource,
)
from caswit.config.training import AugmentConfig, DataConfig, Recipe, TrainConfig

__all__ = [
    "IGNORE_INDEX",
    "NUM_STAGES",
    "SOURCES",
    "AugmentConfig",
    "ComputeConfig",
    "DataConfig",
    "Decoder",
    "DemoConfig",
    "EvaluateConfig",
    "FlairHubSource",
    "FolderSource",
    "InspectConfig",
    "LabelValues",
    "ModelConfig",
    "Norm",
    "Precision",
    "PredictConfig",
    "Recipe",
    "Size",
    "SourceConfig",
    "Stem",
    "SwissimageSource",
    "TileConfig",
    "TrainConfig",
    "UrurSource",
    "check",
]
