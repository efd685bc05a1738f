"""A model with the mean of the best weights of some runs, often better than each of them.

python recipes/box/average.py OUT RUN RUN [RUN ...]

After Wortsman et al. 2022, "Model soups". The runs trained one network, each from the weights of the one before. A run
given twice counts twice. OUT says of itself what the model of the last run says.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file

from caswit.checkpoint import CONFIG, WEIGHTS, read_config, torch_load, write_folder
from caswit.runfolder import RunFolder


def main(out: Path, *runs: Path) -> None:
    """Write OUT, a model folder."""
    best = [torch_load(RunFolder(run).best) for run in runs]
    model = RunFolder(runs[-1]).model
    mean = {
        name: sum(found["model"][name] for found in best) / len(best) if x.is_floating_point() else x
        for name, x in load_file(model / WEIGHTS).items()
    }
    config = read_config(model / CONFIG)
    config["provenance"]["mean_of"] = [{"run": run.name, "step": b["step"]} for run, b in zip(runs, best, strict=True)]
    write_folder(out, mean, config)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
