"""caswit reconstruct: what pretrained weights make of an image of which most is hidden."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser
from caswit.config import ComputeConfig


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser("reconstruct", "Draw tiles of an image, what is hidden of them, and their reconstruction.")
    command.add_argument("model", type=str, help="model/ of a caswit pretrain run, or hf:owner/name")
    command.add_argument("image", type=str, help="RGB uint8 raster, any format GDAL reads")
    command.add_argument("--out", type=str, required=True, help="PNG to write")
    command.add_argument("--tiles", type=int, default=4, help="tiles to draw, spread over the image")
    command.add_argument("--seed", type=int, default=0, help="chooses the hidden cells")
    command.add_argument("--device", type=str, default=ComputeConfig.device, help="torch device")
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the picture is."""
    from caswit.config import check
    from caswit.inference.devices import pick_device, uses_bf16
    from caswit.training.reconstruct import reconstruct

    check(arguments.tiles >= 1, f"tiles must be at least 1, got {arguments.tiles}")
    check(arguments.seed >= 0, f"seed must be 0 or more, got {arguments.seed}")
    check(arguments.out.endswith(".png"), f"out must end in .png, got {arguments.out}")
    device = pick_device(arguments.device)
    reconstruct(
        arguments.model,
        Path(arguments.image),
        Path(arguments.out),
        count=arguments.tiles,
        seed=arguments.seed,
        device=device,
        bf16=uses_bf16("auto", device),
    )
    print(arguments.out)
