"""Average the weights of several models, which often gives a better model than each of them.

python recipes/zoo/average.py OUT RUN/model RUN/checkpoints/best.pt ...

After Wortsman et al. 2022, "Model soups". All runs must have trained the same network, each from the weights of the one
before. A file that is given twice counts twice. The config of OUT is that of the last run's model.
"""

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from caswit.training.run_folder import RunFolder
from caswit.weights.model_folder import CONFIG, WEIGHTS, read_config, torch_load, write_folder


def weights(file: Path) -> tuple[dict[str, Any], int]:
    """Read the weights of a model folder or a checkpoint, and the training step they were saved at."""
    if file.suffix == ".pt":
        found = torch_load(file)
        return found["model"], found["step"]
    return load_file(file / WEIGHTS), read_config(file / CONFIG)["provenance"]["step"]


def run_of(file: Path) -> Path:
    """Return the folder of the run that wrote a file."""
    return file.parent.parent if file.suffix == ".pt" else file.parent


def main(out: Path, *files: Path) -> None:
    """Write a model folder with the mean of the weights."""
    states, steps = zip(*map(weights, files), strict=True)
    model = RunFolder(run_of(files[-1])).model
    mean = {
        name: sum(state[name] for state in states) / len(states) if x.is_floating_point() else x
        for name, x in load_file(model / WEIGHTS).items()
    }
    config = read_config(model / CONFIG)
    config["provenance"]["mean_of"] = [
        {"run": run_of(file).name, "step": step} for file, step in zip(files, steps, strict=True)
    ]
    for name in ("best_val_miou", "validation_confidence"):  # of the last run; push takes the latter from the report
        config["provenance"].pop(name, None)
    write_folder(out, mean, config)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
