"""Known folder layouts that turn into scenes."""

from typing import assert_never

from caswit.config import (
    CragSource,
    DeepGlobeSource,
    FlairHubSource,
    FolderSource,
    InriaSource,
    IsicSource,
    SourceConfig,
    SwissimageSource,
    UrurSource,
)
from caswit.data.sources import crag, deepglobe, flair_hub, folder, inria, isic, swissimage, urur
from caswit.data.sources.found import Found


def read_source(source: SourceConfig) -> Found:
    """Return the scenes of a source, and a line for everything that is missing or broken."""
    match source:
        case FlairHubSource():
            return flair_hub.find(source)
        case UrurSource():
            return urur.find(source)
        case SwissimageSource():
            return swissimage.find(source)
        case FolderSource():
            return folder.find(source)
        case InriaSource():
            return inria.find(source)
        case DeepGlobeSource():
            return deepglobe.find(source)
        case IsicSource():
            return isic.find(source)
        case CragSource():
            return crag.find(source)
        case _:
            assert_never(source)
