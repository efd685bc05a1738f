"""Settings of mapping images of any size.

A field changes the map unless it is declared with ``KEEPS_MAP``; the journal's manifest, the map's tags and its STAC
item are made of those that do.
"""

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from caswit.config.checks import KEEPS_MAP, check
from caswit.config.inference import Fill, TTAConfig
from caswit.errors import brief

OnError = Literal["stop", "skip"]
Engine = Literal["local", "ray"]
_DEVICE = re.compile(r"(cuda|mps|xpu)(:\d{1,4})?|cpu")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(TTAConfig):
    """Settings of reading images, cutting them into tiles and predicting them."""

    overlap_px: int | None = None
    """Pixels by which neighbouring tiles overlap; each keeps its half. Null: a quarter of the tile, half with --blend
    true."""
    blend: bool | None = None
    """Average overlapping tiles with weights that fall towards their edges, instead of each keeping its half. Null: for
    models that lean on their context, whose tiles would show lines between them."""
    # Changes no pixel, but which of them a part holds, so it must be the same in a run that goes on.
    block_px: int = 4096
    """Largest side, in pixels, of a block: what is read, predicted and stored as one. Changes memory, not the map."""
    bands: tuple[int, ...] | None = None
    """Numbers of the bands of the image, from 1, in the order of the model's: red, green, blue, unless it has others.
    Null: those of their names in the file, else those the model was trained on."""
    # The files themselves enter the manifest, where there are some.
    also: str | None = field(default=None, metadata=KEEPS_MAP)
    """Rasters on the same ground for bands that the image lacks, warped to its grid: dsm=dsm.tif, several with commas
    between."""
    # Acts through the ground size that is read alone, which the plan resolves and the manifest has.
    match_gsd: bool = field(default=False, metadata=KEEPS_MAP)
    """Resample the image while it is read, to the ground size that the model was trained on."""
    gsd_m: float | None = None
    """Ground size of the image's pixels in metres, in place of what the image says. Null: what the image says."""
    rescale: tuple[float, float] | Literal["auto"] | None = None
    """Values of the image that become 0 and 255, for pixels that are not 8 bit; auto: those between which 98 of 100
    lie, in a sample of all images."""
    nodata: float | Literal["auto"] | None = None
    """Value of pixels without data, in all bands read, where the image does not say so: 255 for white holes. auto:
    white or black areas, as a sample of the image shows them, with what compression left of them around."""
    ignore_alpha: bool = False
    """Take the band that the image calls alpha for a band like any other, such as near infrared."""
    fill: Fill | None = None
    """What the network sees where there is no data. mirror: the image mirrored at its edges and those of holes in it;
    holes: mirrored at holes, black around the image; black: black. Null: mirror."""
    min_confidence: int | float = 0
    """Pixels whose class is less probable than this many percent become nodata."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot predict."""
        super().__post_init__()
        check(self.block_px >= 32, f"block_px must be at least 32, got {self.block_px}; try 4096")
        check((self.overlap_px or 0) >= 0, f"overlap_px must be 0 or more, got {self.overlap_px}; try 128")
        overlaps = not self.blend or self.overlap_px != 0
        check(overlaps, "blend needs tiles that overlap, got overlap_px=0; leave overlap_px out")
        check(min(self.bands or (1,)) >= 1, f"bands must be numbers from 1, got {self.bands}; try 1 2 3")
        check(self.gsd_m is None or self.gsd_m > 0, f"gsd_m must be above 0, got {self.gsd_m}; try 0.25")
        percent = self.min_confidence
        check(0 <= percent <= 100, f"min_confidence must be a percentage, 0 to 100, got {percent}; try 70")
        # 1 % leaves out nothing, not even of a hundred classes.
        check(not 0 < percent <= 1, f"min_confidence must be a percentage, not a share, got {percent}; try 70")
        fills = get_args(Fill)
        check(self.fill in (None, *fills), f"fill must be one of {', '.join(fills)}, got {brief(self.fill)}")
        value = self.nodata
        check(value is None or value == "auto" or not isinstance(value, str),
              f"nodata must be a number or auto, got {brief(value)}; try 255")  # fmt: skip
        low, high = self.rescale if isinstance(self.rescale, tuple) else (0, 255)
        check(low < high, f"rescale must be two numbers, the lower one first, got {self.rescale}")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Files written beside the map."""

    confidence: str | None = None
    """GeoTIFF of the probability of the predicted class, 0-100."""
    probabilities: str | None = None
    """GeoTIFF of the probabilities of all classes, 0-100, one band each."""
    vector: str | None = field(default=None, metadata=KEEPS_MAP)
    """Polygons of the map: a file that ends in .gpkg, .parquet or .geojson."""
    background: bool = field(default=False, metadata=KEEPS_MAP)
    """Write polygons of background too: of classes named background or other, or so marked in the class table."""
    classes: str | None = field(default=None, metadata=KEEPS_MAP)
    """Names or ids of the classes whose polygons are written, with commas between: building,road. Null: all but
    background."""
    separate: str | None = field(default=None, metadata=KEEPS_MAP)
    """Names or ids of classes whose touching polygons are cut apart at their necks, such as building. An estimate."""
    min_area: float = field(default=0.0, metadata=KEEPS_MAP)
    """Polygons below this many square metres are left out."""
    simplify: float = field(default=0.0, metadata=KEEPS_MAP)
    """Metres below which corners of polygons are straightened, without gaps between neighbours. 0: pixel edges."""
    # Acts on the finished parts, so that it may differ when a run goes on; the map's tags name it all the same.
    sieve: float = field(default=0.0, metadata=KEEPS_MAP)
    """Areas of the map below this many square metres become part of their largest neighbour; polygons follow."""

    def __post_init__(self) -> None:
        """Refuse sizes below zero and files that are no GeoTIFFs."""
        for name in ("min_area", "simplify", "sieve"):
            check(getattr(self, name) >= 0, f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("min_area", "simplify", "background", "classes", "separate"):
            check(self.vector is not None or not getattr(self, name), f"{name} is about polygons; add --vector FILE")
        for name in ("confidence", "probabilities"):
            file = getattr(self, name)
            fits = file is None or file.lower().endswith((".tif", ".tiff"))
            check(fits, f"{name} is a GeoTIFF, got {file}; give a name that ends in .tif")


@dataclass(frozen=True, kw_only=True)
class MapRunConfig:
    """Settings of a run over many blocks."""

    aoi: str | None = None
    """Vector file with the area of interest: outside its polygons, the map is nodata."""
    restart: bool = field(default=False, metadata=KEEPS_MAP)
    """Discard the finished blocks of an earlier run with this output."""
    overwrite: bool = field(default=False, metadata=KEEPS_MAP)
    """Replace files with the names of the outputs even if caswit did not write them."""
    yes: bool = field(default=False, metadata=KEEPS_MAP)
    """Begin even if the image has more than a million blocks."""
    on_error: OnError = field(default="stop", metadata=KEEPS_MAP)
    """What to do if a block cannot be read: stop the run, or skip the block (nodata; exit status 3)."""
    engine: Engine = field(default="local", metadata=KEEPS_MAP)
    """local: this process; ray: workers on a Ray cluster, or on all of this machine."""
    devices: str | None = field(default=None, metadata=KEEPS_MAP)
    """Devices of this machine that map blocks at the same time, one process each: numbers of GPUs, as in 0,1, or torch
    devices, as in cuda:0,cpu. Null: one process, on --device."""
    address: str | None = field(default=None, metadata=KEEPS_MAP)
    """Running Ray cluster: HOST:PORT, or auto. Null: $RAY_ADDRESS, else a cluster on this machine for this run."""
    workers: int | None = field(default=None, metadata=KEEPS_MAP)
    """Processes that hold the model, with --engine ray. Null: one per GPU; without GPUs one per worker_cpus cores."""
    worker_cpus: int = field(default=4, metadata=KEEPS_MAP)
    """Cores of each worker on machines without GPUs; fewer if no machine has that many."""

    def __post_init__(self) -> None:
        """Refuse impossible workers and devices, and settings of a cluster without one."""
        check(
            all(_DEVICE.fullmatch(name) for name in self.device_names),
            f"devices must be numbers of GPUs or torch devices with commas between, got {brief(self.devices)}; try 0,1",
        )
        both = self.devices is not None and self.engine == "ray"
        check(not both, "devices are those of this machine, the ray engine finds its own; leave one of them out")
        for name in ("workers", "worker_cpus"):
            number = getattr(self, name)
            check(number is None or number >= 1, f"{name} must be at least 1, got {number}")
        for name in ("address", "workers"):
            used = self.engine == "ray" or getattr(self, name) is None
            check(used, f"{name} is a setting of the ray engine; add --engine ray")

    @property
    def device_names(self) -> tuple[str, ...]:
        """Return ``devices`` as torch names them; none where there is one process."""
        names = () if self.devices is None else (name.strip() for name in self.devices.split(","))
        return tuple(f"cuda:{name}" if name.isdecimal() else name for name in names)
