"""The table of commands. ``caswit --help``, every command's help and docs/settings.md are made from it.

A command is a function, its docstring the help. Its options are the fields of config classes, whose docstrings are
their help; only arguments that are no settings stand here.
"""

from caswit.cli import maps, models, training
from caswit.cli.parsing import Command, argument
from caswit.config import (
    ComputeConfig,
    DemoConfig,
    EvaluateConfig,
    ExplainConfig,
    FiguresConfig,
    FinetuneConfig,
    InspectConfig,
    MapRunConfig,
    OutputConfig,
    PredictConfig,
    PretrainRecipe,
    Recipe,
    ServeConfig,
    TableConfig,
)

_MODEL = argument("model", "folder of a model or run, hf:owner/name or name (caswit models)")
_IMAGE = argument("image", "raster with the bands of the model, any format GDAL reads")
_LABELLED = argument("dataset", "dataset.yaml with labelled scenes")
_OUT_PNG = argument("--out", "PNG to write", required=True, metavar="FILE.png")
_OUT_FOLDER = argument("--out", "folder to write", required=True, metavar="DIR")
_SKIP_BROKEN = argument("--skip_broken", "leave out what is missing or broken, and list it", bool, default=False)
_RUN = (
    argument("--out", "run folder; its model/ is the result", required=True, metavar="DIR"),
    argument("--resume", "continue the run in --out from its last checkpoint", bool, default=False),
)

_TABLE = (
    Command(
        training.demo,
        (argument("--out", "folder to write, or to continue in", default="demo", metavar="DIR"),),
        (DemoConfig,),
    ),
    Command(
        training.train,
        (
            *_RUN,
            argument(
                "--dry_run",
                "only try: take a few steps, print memory and the time of the whole run, write nothing",
                bool,
                default=False,
            ),
            argument(
                "--find_lr",
                "only test learning rates: 100 steps at rising rates, a suggestion, and a picture in --out",
                bool,
                default=False,
            ),
        ),
        (Recipe,),
        reads_recipe=True,
    ),
    Command(training.pretrain, _RUN, (PretrainRecipe,), reads_recipe=True),
    Command(
        training.recipe,
        (
            _LABELLED,
            argument(
                "--from", "model to fine-tune: folder, run, hf:... or name; default: random weights", metavar="MODEL"
            ),
            argument("--out", "file to write; without it the recipe is printed", metavar="RECIPE.yaml"),
        ),
    ),
    Command(
        training.finetune,
        (
            argument("model", "model to start from: folder, run, hf:owner/name or name (caswit models)"),
            _LABELLED,
            argument("--out", "run folder; its model/ is the result", required=True, metavar="DIR"),
        ),
        (FinetuneConfig,),
    ),
    Command(
        training.reconstruct,
        (
            argument("model", "run of caswit pretrain or its model/, or hf:owner/name"),
            _IMAGE,
            _OUT_PNG,
            argument("--tiles", "tiles to draw, spread over the image", int, default=4),
            argument("--seed", "chooses the masked cells", int, default=0),
            argument("--device", "torch device", default=ComputeConfig.device),
        ),
    ),
    Command(
        training.evaluate,
        (
            _MODEL,
            _LABELLED,
            argument("--split", "split whose scenes are scored", default="test"),
            argument("--out", "folder of the report", required=True, metavar="DIR"),
        ),
        (EvaluateConfig,),
    ),
    Command(
        training.table,
        (
            argument("recipes", "recipe files, in the order of the rows", nargs="+"),
            argument("--out", "folder of runs, reports and table.md, or to continue in", required=True, metavar="DIR"),
            argument("--over", "recipe file whose settings replace those of every row"),
        ),
        (TableConfig,),
    ),
    Command(
        maps.predict,
        (
            argument("images", "rasters of one grid: files, addresses, folders, patterns, lists in .txt", nargs="+"),
            argument(
                "out",
                "Cloud-Optimized GeoTIFF to write, on the grid of the images; left out with --out-dir and --list",
                nargs="?",
                metavar="OUT.tif",
            ),
            argument("--out_dir", "folder of maps instead: each image gets its own, with its name", metavar="DIR"),
            argument("--list", "map nothing: list the models of caswit, and which fits the image", bool, default=False),
            argument(
                "--model", "folder of a model or run, hf:owner/name or name (caswit models); default: by ground size"
            ),
        ),
        (PredictConfig, OutputConfig, MapRunConfig),
    ),
    Command(
        maps.explain,
        (
            _IMAGE,
            argument("--row", "row of the pixel, from 0", int),
            argument("--col", "column of the pixel, from 0", int),
            argument("--x", "instead: easting in the image's CRS", float),
            argument("--y", "northing in the image's CRS", float),
            argument("--lon", "instead: longitude in degrees", float),
            argument("--lat", "latitude in degrees", float),
            argument(
                "--model", "folder of a model or run, hf:owner/name or name (caswit models); default: by ground size"
            ),
            argument("--gsd_m", "ground size of the image's pixels in metres, where the file does not say it", float),
            _OUT_PNG,
        ),
        (ExplainConfig,),
    ),
    Command(
        maps.serve,
        (
            argument("where", "folders, images and maps; of one image, what belongs to it is shown too", nargs="+"),
            argument(
                "--model", "folder of a model or run, hf:owner/name or name, for confidence and attention at a click"
            ),
        ),
        (ServeConfig,),
    ),
    Command(
        training.figures,
        (
            argument("model", "a model that reads its context: folder of a model or run, hf:owner/name or name"),
            _LABELLED,
            _OUT_FOLDER,
            argument("--baseline", "model of the column beside it; default: the same with masked context"),
            argument("--split", "split whose scenes are drawn", default="test"),
        ),
        (FiguresConfig,),
    ),
    Command(models.models, (argument("name", "print this model's card instead", nargs="?"),)),
    Command(
        models.info,
        (
            _MODEL,
            argument(
                "--speed",
                "time the ways to compute this model on this processor (seconds), remember the fastest, and print them",
                bool,
                default=False,
            ),
        ),
    ),
    Command(
        maps.inspect,
        (
            argument("dataset", "dataset.yaml"),
            argument("--split", "split to show", default="train"),
            argument("--n", "tiles to show, spread over the split", int, default=6),
            _OUT_FOLDER,
            _SKIP_BROKEN,
        ),
        (InspectConfig,),
    ),
    Command(
        training.prepare,
        (
            argument("kind", "the dataset: flair_hub or urur"),
            argument("root", "folder of the zip files; of URUR, the one that holds train/, val/ and test/"),
            argument("--workers", "files written at the same time", int, default=2),
            _SKIP_BROKEN,
        ),
    ),
    Command(
        models.quantize,
        (
            _MODEL,
            _LABELLED,
            argument("--out", "model folder to write", required=True, metavar="DIR"),
            argument("--split", "split on which labels and scores are compared", default="val"),
            argument("--tiles", "tiles of split train to take ranges from, at most", int, default=300),
        ),
    ),
    Command(
        models.export,
        (
            _MODEL,
            argument("out", "ONNX file to write", metavar="OUT.onnx"),
            argument(
                "--single_input",
                "the file takes one wider window, of which it makes tile and context itself",
                bool,
                default=False,
            ),
            argument(
                "--deepness",
                "for the QGIS plugin Deepness: one window of 0-1 in, probabilities of the same size out, and its "
                "metadata",
                bool,
                default=False,
            ),
        ),
    ),
    Command(
        models.push,
        (
            argument("model", "folder of a model or run, trained or pretrained"),
            argument("repo", "owner/name on the hub; or a folder as ./name, to check before publishing"),
            argument("--report", "report of caswit evaluate, for the card's scores"),
            argument("--license", "licence of the weights for the card, e.g. cc-by-4.0"),
            argument("--about", "YAML file of what the card says: data, limits, ..."),
            argument("--half", "store weights in 16 bits: half the size", bool, default=False),
            argument("--private", "make a new repository private", bool, default=False),
            argument("--overwrite", "replace the model, config and card that a folder holds", bool, default=False),
        ),
    ),
)

COMMANDS = {command.name: command for command in _TABLE}
"""Every command by name, in the order in which ``caswit --help`` lists them."""
