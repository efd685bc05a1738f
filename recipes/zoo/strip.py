"""Take the context branch out of a model whose gates are all but closed.

python recipes/zoo/strip.py OUT MODEL

What is left is Swin + UPerNet on the tile alone, with the weights that it had; it takes about half the time.
"""

import sys
from dataclasses import replace
from pathlib import Path

from caswit.weights.model_folder import build, load_model, save_model


def main(out: Path, model: str) -> None:
    """Write the model folder."""
    loaded = load_model(model)
    info = replace(loaded.info, model=replace(loaded.info.model, fusion_stages=(), gated=False))
    network = build(info)
    weights = loaded.network.state_dict()
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    save_model(network, info, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
