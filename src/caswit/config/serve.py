"""Settings of the map in a browser."""

from dataclasses import dataclass

from caswit.config.checks import check
from caswit.config.inference import ComputeConfig


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ComputeConfig):
    """How the map in a browser is served."""

    host: str = "127.0.0.1"
    """Address to listen on. The default can be reached from this machine only, 0.0.0.0 from every other one too."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""

    def __post_init__(self) -> None:
        """Refuse ports that do not exist."""
        super().__post_init__()
        check(0 <= self.port <= 65_535, f"port must be in 0..65535, got {self.port}; try 8000")
