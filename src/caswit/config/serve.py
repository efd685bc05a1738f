"""Settings of showing maps in a browser."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from caswit.config.checks import check
from caswit.config.inference import ComputeConfig

_BASEMAP = re.compile(r"(?P<origin>https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?)/[^\s'\"<>;,\\]*")


class Basemap(NamedTuple):
    """A web map of tiles of 256 x 256 pixels in Web Mercator."""

    url: str
    origin: str
    """Scheme, host and port: the only place elsewhere that the page may ask for pictures."""
    credit: str


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ComputeConfig):
    """Settings of the server that shows images and maps in a browser."""

    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 is reached from this machine only, 0.0.0.0 from others too."""
    port: int = 8000
    """Port to listen on; 0 chooses a free one."""

    bands: tuple[int, int, int] | None = None
    """Numbers of the three bands of the images that are shown as red, green and blue, e.g. 4 1 2; the page can choose
    others. Null: those called so in the file, else those of the model or the dataset.yaml, else 1 2 3."""
    also: str | None = None
    """Rasters on the same ground for bands of the model that the images lack: dsm=dsm.tif, several with commas between.
    Those that a dataset.yaml names are found."""
    basemap: str = ""
    """Address of web map tiles with {z}, {x} and {y}, such as https://tile.openstreetmap.org/{z}/{x}/{y}.png; the
    page gets a switch for it, and only then asks that server. Empty: none, and nobody else is contacted."""
    basemap_credit: str = ""
    """Who made the basemap, in the words that its terms of use ask for; shown with it. Empty: its host name."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a port that does not exist, or a basemap that is no address of tiles."""
        super().__post_init__()
        check(min(self.bands or (1,)) >= 1, f"bands must be three numbers from 1, got {self.bands}; try 1 2 3")
        check(0 <= self.port <= 65_535, f"port must be in 0..65535, got {self.port}; try 8000")
        check(
            not self.basemap or self.background is not None,
            f"basemap must be one http or https address with {{z}}, {{x}} and {{y}}, and no {{s}}, got {self.basemap}; "
            "try https://tile.openstreetmap.org/{z}/{x}/{y}.png",
        )

    @property
    def background(self) -> Basemap | None:
        """The basemap; None if there is none, or its address is not one."""
        match = _BASEMAP.fullmatch(self.basemap)
        if match is None or sorted(re.findall(r"\{(.*?)\}", self.basemap)) != ["x", "y", "z"]:
            return None
        origin = match["origin"]
        return Basemap(self.basemap, origin, self.basemap_credit or origin.partition("//")[2])
