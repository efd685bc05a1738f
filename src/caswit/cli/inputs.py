"""A look at the inputs of a command before torch is imported, which takes seconds: a missing file should not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caswit.cli.recipe import check_recipe
from caswit.errors import DataError
from caswit.files import check_place, expand_path


def check_inputs(settings: Sequence[Any], arguments: Mapping[str, Any]) -> None:
    """Raise CaswitError if a file, a folder or a model that a command reads is not there.

    Args:
        settings: Of the command; a recipe names its dataset.
        arguments: Of the command, by the names that the table of commands gives them.
    """
    dataset, model = arguments.get("dataset"), arguments.get("model")
    if isinstance(dataset, str) and isinstance(model, str) and model.endswith((".yaml", ".yml")):
        raise DataError(f"{model}: is a dataset; the model comes first: {dataset} {model}")
    _check_files(settings, arguments)
    image, images = arguments.get("image"), arguments.get("images") or ()
    if image or images:
        from caswit.raster.image_list import list_images

        # The last of several words is the map that is to be written, unless an option says that there is none.
        last_is_map = len(images) > 1 and not (arguments.get("out_dir") or arguments.get("list"))
        list_images([image] if image else images[:-1] if last_is_map else images)
    for name in (model, arguments.get("baseline")):
        if name is not None:
            from caswit.weights.zoo import check_there

            check_there(name)


def _check_files(settings: Sequence[Any], arguments: Mapping[str, Any]) -> None:
    data = next((each.data for each in settings if hasattr(each, "data")), None)
    datasets = [arguments.get("dataset"), getattr(data, "dataset", None)]
    for file in datasets:
        if isinstance(file, str) and not expand_path(file).exists():
            raise DataError(f"{file}: no such file")
    for recipe in arguments.get("recipes") or ():
        check_recipe(Path(recipe))
    for place in arguments.get("where") or ():
        check_place(Path(place))
