"""Seconds to index the files of FLAIR-HUB: a generated tree of 20,000 tiny patches, extrapolated to 241,100.

python benchmarks/index.py FOLDER    makes the tree in FOLDER if it is not there (a few minutes)
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from caswit.data.dataset import load_dataset
from common import trees

PATCHES, FULL = 20_000, 241_100
PER_SIDE, PATCH_PX = 10, 16


def main(folder: Path) -> None:
    """Print seconds of the first and of later loads."""
    root = folder / "flair"
    if not (root / "GENERATED_TRAIN.csv").exists():
        for number in range(PATCHES // PER_SIDE**2):
            domain = f"D{number // 40 + 1:03}-2020"
            # Regions of a domain lie apart.
            first_px = number * (PER_SIDE + 1) * PATCH_PX
            trees.region(root, f"AA-S1-{number}", PER_SIDE, PER_SIDE, PATCH_PX, {}, domain, first_px)
    file = folder / "dataset.yaml"
    file.write_text("name: generated\nsource: {kind: flair_hub, root: flair}\n")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CASWIT_CACHE"] = cache
        for what in ("first", "again", "one file changed"):
            if what == "one file changed":
                next(root.glob("*_AERIAL_RGBI/*/*.tif")).touch()
            began_s, cpu_s = time.perf_counter(), time.process_time()
            areas = sum(len(scene.areas or ()) for scene in load_dataset(file).scenes)
            wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
            scale = FULL / areas
            print(
                f"{what:17} {areas} patches: {wall_s:.1f} s ({cpu_s:.1f} s of a core); "
                f"{FULL} patches: {wall_s * scale:.0f} s ({cpu_s * scale:.0f} s)"
            )
        size = sum(f.stat().st_size for f in Path(cache).rglob("*") if f.is_file())
        print(f"cache {size / 1e6:.0f} MB; {FULL} patches: {size * scale / 1e6:.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
