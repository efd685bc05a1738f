"""Settings of every command. Each field's text is its help, and its line in docs/settings.md.

Nothing here imports torch: ``caswit --help`` reads this package and must be instant.
"""

from caswit.config.checks import IGNORE_INDEX, check
from caswit.config.data import (
    SOURCES,
    CragSource,
    DeepGlobeSource,
    FlairHubSource,
    FolderSource,
    InriaSource,
    IsicSource,
    LabelValues,
    SourceConfig,
    SwissimageSource,
    UrurSource,
)
from caswit.config.evaluation import EvaluateConfig, InspectConfig, ProtocolName, ScoreConfig, TilingConfig
from caswit.config.experiments import DemoConfig, FiguresConfig, PaperFigures, RowConfig, TableConfig
from caswit.config.inference import ComputeConfig, ExplainConfig, Precision, RunPrecision
from caswit.config.mapping import MapRunConfig, OnError, OutputConfig, PredictConfig
from caswit.config.nn import (
    NUM_STAGES,
    RGB,
    TABLE2,
    ContextFactor,
    Decoder,
    ModelConfig,
    Norm,
    Size,
    Stem,
    Table2Arch,
    TileConfig,
    context_factors,
)
from caswit.config.pretraining import TOKEN_PX, MaskConfig, PretrainConfig, PretrainRecipe
from caswit.config.serve import ServeConfig
from caswit.config.training import (
    AugmentConfig,
    DataConfig,
    FinetuneConfig,
    ImageryConfig,
    LearningConfig,
    PhaseConfig,
    Recipe,
    TrainConfig,
)
from caswit.config.weights import InitConfig, WeightSource, parse_init

__all__ = [
    "IGNORE_INDEX",
    "NUM_STAGES",
    "RGB",
    "SOURCES",
    "TABLE2",
    "TOKEN_PX",
    "AugmentConfig",
    "ComputeConfig",
    "ContextFactor",
    "CragSource",
    "DataConfig",
    "Decoder",
    "DeepGlobeSource",
    "DemoConfig",
    "EvaluateConfig",
    "ExplainConfig",
    "FiguresConfig",
    "FinetuneConfig",
    "FlairHubSource",
    "FolderSource",
    "ImageryConfig",
    "InitConfig",
    "InriaSource",
    "InspectConfig",
    "IsicSource",
    "LabelValues",
    "LearningConfig",
    "MapRunConfig",
    "MaskConfig",
    "ModelConfig",
    "Norm",
    "OnError",
    "OutputConfig",
    "PaperFigures",
    "PhaseConfig",
    "Precision",
    "PredictConfig",
    "PretrainConfig",
    "PretrainRecipe",
    "ProtocolName",
    "Recipe",
    "RowConfig",
    "RunPrecision",
    "ScoreConfig",
    "ServeConfig",
    "Size",
    "SourceConfig",
    "Stem",
    "SwissimageSource",
    "Table2Arch",
    "TableConfig",
    "TileConfig",
    "TilingConfig",
    "TrainConfig",
    "UrurSource",
    "WeightSource",
    "check",
    "context_factors",
    "parse_init",
]
