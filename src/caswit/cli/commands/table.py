"""caswit table: rows of the paper's tables."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser, settings_of
from caswit.cli.commands.recipe import merge, parse_recipe, parse_row, read_recipe
from caswit.config import TableConfig


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "table", "Train and score the rows of the paper's tables, and print ours beside the paper's. Continues."
    )
    command.add_argument("recipes", type=str, nargs="+", help="recipe files, in the order of the rows")
    command.add_argument(
        "--out", type=str, required=True, help="folder of runs, reports and table.md, or to continue in"
    )
    command.add_argument("--over", type=str, default=None, help="recipe file whose settings replace those of every row")
    command.add_class_arguments(TableConfig, skip={"seeds", "max_steps"})
    # jsonargparse would want --seeds '[0, 1]'; the dash is what people type.
    command.add_argument("--seeds", type=int, nargs="+", default=[0], help="train and score every row once with each")
    command.add_argument(
        "--max-steps", "--max_steps", type=int, default=None, help="training steps of every row; default: the recipe's"
    )
    return command


def run(arguments: Namespace) -> None:
    """Do it and print the tables."""
    from caswit.experiments.paper_tables import TableRow, table
    from caswit.experiments.table_format import markdown

    over = {} if arguments.over is None else read_recipe(Path(arguments.over))
    rows = []
    for file in map(Path, arguments.recipes):
        content = merge(read_recipe(file), over)
        rows.append(TableRow(file=file, row=parse_row(content, file), recipe=parse_recipe(content, file)))
    results = table(rows, Path(arguments.out), settings_of(TableConfig, arguments))
    print(markdown(results))
    print(f"written to {arguments.out}/table.md, table.csv and classes.csv")
