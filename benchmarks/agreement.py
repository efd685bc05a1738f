"""Print how many pixels of a split the network arranged for the CPU labels as the plain fp32 network does.

python benchmarks/agreement.py MODEL DATASET [SPLIT TILES]
"""

import sys
from itertools import islice
from pathlib import Path

from caswit.config import EvaluateConfig
from caswit.data.dataset import load_dataset
from caswit.evaluation.evaluate import scored_tiles
from caswit.evaluation.metrics import Counts, score
from caswit.inference.cpu.network import ArrangedCASWiT
from caswit.inference.load import load_predictor
from caswit.weights.model_folder import load_model


def main(model: Path, dataset: Path, split: str = "test", tiles: int = 10**9) -> None:
    """Print the share of pixels labelled alike and both mIoU, for every way that is installed."""
    loaded, data = load_model(model), load_dataset(dataset)
    data = data.read_at(loaded.info.tile.read_gsd_m)
    plain = load_predictor(loaded, EvaluateConfig(device="cpu", precision="fp32"))
    ways = {"autocast": load_predictor(loaded, EvaluateConfig(device="cpu", precision="fp32"))}
    ways["autocast"].bf16 = True
    for name in ("torch", "OpenVINO"):
        ways[name] = load_predictor(loaded, EvaluateConfig(device="cpu", precision="bf16"))
        ways[name].arranged = ArrangedCASWiT(loaded.network, bf16=True, openvino=name == "OpenVINO")  # type: ignore[arg-type]
    runs = {
        name: islice(
            scored_tiles(way, data, data.split(split), tile_px=loaded.info.tile.tile_px, band_px=3), int(tiles)
        )
        for name, way in {"plain": plain, **ways}.items()
    }
    counts = {name: Counts.zeros(len(loaded.info.classes)) for name in runs}
    alike, pixels = dict.fromkeys(runs, 0), 0
    for found in zip(*runs.values(), strict=True):
        pixels += found[0].prediction.size
        for name, tile in zip(runs, found, strict=True):
            counts[name] += tile.counts
            alike[name] += int((tile.prediction == found[0].prediction).sum())
    for name in runs:
        print(f"{name}: {alike[name] / pixels:.4%} of {pixels} px as plain, mIoU {100 * score(counts[name]).miou:.3f}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *sys.argv[3:])  # type: ignore[arg-type]
