"""Settings of every command. Each field's text is its help, its comment in a recipe and its documentation.

Nothing here imports torch: ``caswit --help`` reads this package and must be instant.
"""

from caswit.config.checks import IGNORE_INDEX, check
from caswit.config.learning import LearningConfig
from caswit.config.mapping import MapRunConfig, OnError, OutputConfig, PredictConfig
from caswit.config.network import NUM_STAGES, Decoder, ModelConfig, Norm, Size, Stem, TileConfig
from caswit.config.pretraining import TOKEN_PX, ImageryConfig, MaskConfig, PretrainConfig, PretrainRecipe
from caswit.config.running import (
    ComputeConfig,
    DemoConfig,
    EvaluateConfig,
    FiguresConfig,
    InspectConfig,
    Precision,
    ProtocolName,
)
from caswit.config.serving import ServeConfig
from caswit.config.sources import (
    SOURCES,
    FlairHubSource,
    FolderSource,
    LabelValues,
    SourceConfig,
    SwissimageSource,
    UrurSource,
)
from caswit.config.starting import InitConfig, WeightSource, parse_init
from caswit.config.table import PaperFigures, RowConfig, TableConfig
from caswit.config.training import AugmentConfig, DataConfig, Recipe, TrainConfig

__all__ = [
    "IGNORE_INDEX",
    "NUM_STAGES",
    "SOURCES",
    "TOKEN_PX",
    "AugmentConfig",
    "ComputeConfig",
    "DataConfig",
    "Decoder",
    "DemoConfig",
    "EvaluateConfig",
    "FiguresConfig",
    "FlairHubSource",
    "FolderSource",
    "ImageryConfig",
    "InitConfig",
    "InspectConfig",
    "LabelValues",
    "LearningConfig",
    "MapRunConfig",
    "MaskConfig",
    "ModelConfig",
    "Norm",
    "OnError",
    "OutputConfig",
    "PaperFigures",
    "Precision",
    "PredictConfig",
    "PretrainConfig",
    "PretrainRecipe",
    "ProtocolName",
    "Recipe",
    "RowConfig",
    "ServeConfig",
    "Size",
    "SourceConfig",
    "Stem",
    "SwissimageSource",
    "TableConfig",
    "TileConfig",
    "TrainConfig",
    "UrurSource",
    "WeightSource",
    "check",
    "parse_init",
]
