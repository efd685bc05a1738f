"""Settings of showing maps in a browser."""

from dataclasses import dataclass

from caswit.config.checks import check
from caswit.config.inference import ComputeConfig


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ComputeConfig):
    """Settings of the server that shows images and maps in a browser."""

    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 is reached from this machine only, 0.0.0.0 from others too."""
    port: int = 8000
    """Port to listen on; 0 chooses a free one."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a port that does not exist."""
        super().__post_init__()
        check(0 <= self.port <= 65_535, f"port must be in 0..65535, got {self.port}; try 8000")
