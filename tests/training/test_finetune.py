"""caswit finetune: what it picks, that it goes on, repeats and never returns worse than it began without saying so."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from caswit.cli.main import main
from caswit.config import FinetuneConfig, InitConfig, ModelConfig, PredictConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.errors import ConfigError, DataError
from caswit.inference.load import load_predictor
from caswit.nn.caswit import CASWiT
from caswit.raster.windows import Window, tile_grid
from caswit.training.finetune import RECIPE, choose, result
from caswit.training.loop import Loop
from caswit.weights.initialize import _by_class, start_from
from caswit.weights.model_folder import ModelInfo, build, load_model, save_model
from conftest import CLASSES, georeference, picture

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

MODEL = {"size": "pico", "stem": "conv", "fusion_stages": (2,), "gated": True, "decoder_channels": 16}


@pytest.fixture
def model(tmp_path) -> Path:
    info = ModelInfo(
        model=ModelConfig(**MODEL), tile=TileConfig(tile_px=64, context_factor=2, read_gsd_m=0.5), classes=CLASSES
    )
    torch.manual_seed(0)
    save_model(build(info), info, tmp_path / "before" / "model")
    return tmp_path / "before"


@pytest.fixture
def with_val(dataset_file) -> Path:
    """The dataset with a split val that has labels."""
    content = yaml.safe_load(dataset_file.read_text())
    content["scenes"][1]["split"] = "val"
    dataset_file.write_text(yaml.safe_dump(content))
    return dataset_file


def picked(model: str | Path, dataset: Path, **settings) -> dict:
    return yaml.safe_load(choose(str(model), str(dataset), FinetuneConfig(**settings)).recipe)


def scores(run: Path) -> list[tuple[int, float]]:
    with (run / "log.csv").open() as file:
        return [(int(row["step"]), float(row["val_miou"])) for row in csv.DictReader(file) if row["val_miou"]]


def test_the_choices_follow_from_the_data(model, dataset_file, make_raster):
    recipe = picked(model, dataset_file)
    assert recipe["data"]["val_split"] is None
    assert "hold_out" not in recipe["data"]
    assert recipe["data"]["crop_px"] == 64
    assert recipe["tile"] == {"tile_px": 64, "read_gsd_m": 0.5}
    assert recipe["train"]["max_steps"] == 60
    assert recipe["train"]["lr"] == pytest.approx(1e-4)
    assert recipe["train"]["average_with_start"] == 0.5
    assert recipe["train"]["loss"] == {"cross_entropy": 1, "dice": 1}
    assert recipe["train"]["keep"] == "last"
    content = yaml.safe_load(dataset_file.read_text())
    content["scenes"][1]["split"] = "val"
    dataset_file.write_text(yaml.safe_dump(content))
    recipe = picked(model, dataset_file, steps=7, minutes=3.0, seed=5)
    assert recipe["data"]["val_split"] == "val"
    assert "hold_out" not in recipe["data"]
    assert recipe["train"]["validate_start"] is True
    assert (recipe["train"]["keep"], recipe["train"]["average_with_start"]) == ("best", 0.5)
    assert (recipe["train"]["max_steps"], recipe["train"]["max_minutes"], recipe["train"]["seed"]) == (7, 3.0, 5)
    # Of more labels a part can be spared.
    content["scenes"][1]["split"] = "test"
    dataset_file.write_text(yaml.safe_dump(content))
    make_raster(picture(512, 512), "scene.tif", **georeference(0.5))
    make_raster(np.ones((1, 512, 512), np.uint8), "scene_label.tif", **georeference(0.5))
    recipe = picked(model, dataset_file)
    assert (recipe["data"]["val_split"], recipe["data"]["hold_out"]) == ("held_out", 0.25)
    assert (recipe["train"]["keep"], recipe["train"]["validate_start"]) == ("best", True)
    assert not {"average_with_start", "loss"} & recipe["train"].keys()


def test_larger_scenes_are_learned_in_larger_crops_and_more_steps(dataset_file, make_raster):
    zoo = "swin-nano-buildings"
    crops, steps = [], []
    for side in (70, 200, 600):
        make_raster(picture(side, 2 * side), "scene.tif", **georeference(0.26))
        make_raster(np.ones((1, side, 2 * side), np.uint8), "scene_label.tif", **georeference(0.26))
        recipe = picked(zoo, dataset_file)
        crops.append(recipe["data"]["crop_px"])
        steps.append(recipe["train"]["max_steps"])
        assert recipe["tile"]["tile_px"] == 512
    assert crops == [64, 96, 256]  # four crops of 128 px are more than three quarters of 200 x 400
    assert steps == sorted(steps)


def test_it_says_where_the_images_are_smaller_than_the_context(model, dataset_file, make_raster):
    for side, said in ((100, ["128 px, and the smallest scene has 100: what lies outside is black"]), (130, [])):
        make_raster(picture(side, 140), "scene.tif", **georeference(0.5))
        make_raster(np.ones((1, side, 140), np.uint8), "scene_label.tif", **georeference(0.5))
        lines = [line for line in choose(str(model), str(dataset_file)).lines if line.startswith("context:")]
        assert [line.removeprefix("context:    ").partition(";")[0] for line in lines] == said
    assert not any(line.startswith("context:") for line in choose("swin-nano-buildings", str(dataset_file)).lines)


def test_few_labels_in_a_large_image_are_few(model, dataset_file, make_raster):
    make_raster(picture(512, 512), "scene.tif", **georeference(0.5))
    labels = np.zeros((1, 512, 512), np.uint8)
    labels[:, 40:140, 300:400] = 1
    make_raster(labels, "scene_label.tif", **georeference(0.5))
    choice = choose(str(model), str(dataset_file))
    recipe = yaml.safe_load(choice.recipe)
    assert "0.01 Mpx of 0.5 m" in choice.lines[1]
    assert "labelled on 3.8% of the ground" in choice.lines[1]
    assert (recipe["data"]["sampling"], recipe["data"]["val_split"]) == ("labelled", None)
    assert recipe["train"]["average_with_start"] == 0.5
    # As much by areas: what lies around them is seen as context.
    make_raster(np.ones((1, 512, 512), np.uint8), "scene_label.tif", **georeference(0.5))
    content = yaml.safe_load(dataset_file.read_text())
    content["scenes"][0]["areas"] = [[40, 300, 100, 100]]
    dataset_file.write_text(yaml.safe_dump(content))
    choice = choose(str(model), str(dataset_file))
    by_areas = yaml.safe_load(choice.recipe)["train"]
    assert by_areas | {"logit_adjustment": recipe["train"]["logit_adjustment"]} == recipe["train"]
    assert yaml.safe_load(choice.recipe)["data"]["sampling"] == "random"
    assert not any(line.startswith("context:") for line in choice.lines)


def test_what_few_labels_lack_is_not_unlearned(model_folder, dataset_file, make_raster):
    """What has no label counts as the model maps it; pixels without data are of no class."""
    pixels = picture(120, 200)
    pixels[:, :, 170:] = 0
    make_raster(pixels, "scene.tif", **georeference(0.5), nodata=0)
    labels = np.zeros((1, 120, 200), np.uint8)
    labels[:, 20:80, 20:120] = 1
    labels[:, 20:30, 20:120] = 2
    make_raster(labels, "scene_label.tif", **georeference(0.5))
    loaded = load_model(model_folder)
    predictor = load_predictor(loaded, PredictConfig())
    whole, there = np.zeros((120, 200), np.uint8), np.squeeze(labels) > 0
    with SceneReader(Scene(image=dataset_file.parent / "scene.tif")) as scene:
        for tile in tile_grid(120, 200, loaded.info.tile.tile_px, 0):
            whole[tile.owned.inside(Window(0, 0, 120, 200))] = predictor.tile(scene, tile.window)[
                tile.owned.inside(tile.window)
            ]
    whole[there] = np.squeeze(labels)[there] - 1  # ids 1 and 2 are the first two classes
    part, whole = (np.bincount(x, minlength=256)[:3] for x in (whole[there], whole.ravel()))
    part, whole = part / part.sum(), whole / whole.sum()
    assert (whole > 0).all()
    choice = choose(str(model_folder), str(dataset_file))
    adjusted = yaml.safe_load(choice.recipe)["train"]["logit_adjustment"]
    assert list(adjusted) == ["building", "land", "water"]
    assert [*adjusted.values()] == pytest.approx(np.log((part + 1e-3) / (whole + 1e-3)), abs=0.006)
    said = next(line for line in choice.lines if line.startswith("classes: "))
    each = re.findall(r"(\w+) ([\d.]+)% \(of the labels ([\d.]+)%\)", said)
    percents = {name: (float(x), float(y)) for name, x, y in each}
    for name, *numbers in zip(adjusted, 100 * whole, 100 * part, strict=True):
        assert percents[name] == pytest.approx(numbers, abs=0.06)


def test_classes_without_a_label_are_said(model, dataset_file, make_raster):
    labels = np.ones((1, 90, 130), np.uint8)
    make_raster(labels, "scene_label.tif", **georeference(0.5))
    said = next(line for line in choose(str(model), str(dataset_file)).lines if line.startswith("labels:"))
    assert "all are building, so the model learns that everything is" in said
    labels[:, :40] = 2
    make_raster(labels, "scene_label.tif", **georeference(0.5))
    said = next(line for line in choose(str(model), str(dataset_file)).lines if line.startswith("labels:"))
    assert "none is water, of which nothing can be learned" in said
    labels[:, :20] = 7
    make_raster(labels, "scene_label.tif", **georeference(0.5))
    assert not any(line.startswith("labels:") for line in choose(str(model), str(dataset_file)).lines)


def test_where_everything_is_labelled_classes_are_as_frequent_as_they_are(model, dataset_file, make_raster):
    make_raster(np.ones((1, 90, 130), np.uint8), "scene_label.tif", **georeference(0.5))
    adjusted = picked(model, dataset_file)["train"]["logit_adjustment"]
    assert [*adjusted.values()] == [0, 0, 0]


def test_labels_here_and_there_leave_no_end_to_hold_out(model, dataset_file, make_raster):
    make_raster(picture(1024, 1024), "scene.tif", **georeference(0.5))
    labels = np.zeros((1, 1024, 1024), np.uint8)
    labels[:, :600, :600] = 1
    make_raster(labels, "scene_label.tif", **georeference(0.5))
    choice = choose(str(model), str(dataset_file))
    recipe = yaml.safe_load(choice.recipe)
    assert recipe["data"] | {"sampling": "labelled", "val_split": None} == recipe["data"]
    assert "hold_out" not in recipe["data"]
    said = next(line for line in choice.lines if line.startswith("validation:"))
    assert "may have no label; all is learned" in said
    labels[:] = 0
    make_raster(labels, "scene_label.tif", **georeference(0.5))
    with pytest.raises(DataError, match="no pixel of split train has a label that counts"):
        choose(str(model), str(dataset_file))


@pytest.mark.parametrize(("source", "read"), [(0.13, 0.26), (0.5, 0.26), (2.0, 2.0), (None, None)])
def test_the_ground_size_is_the_models_unless_the_images_are_far_coarser(dataset_file, make_raster, source, read):
    where = {} if source is None else georeference(source)
    make_raster(picture(90, 130), "scene.tif", **where)
    make_raster(np.ones((1, 90, 130), np.uint8), "scene_label.tif", **where)
    assert picked("swin-nano-buildings", dataset_file)["tile"]["read_gsd_m"] == read


def test_it_says_what_it_picked_trains_repeats_and_goes_on(model, with_val, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    words = ["finetune", str(model), str(with_val), "--out", str(run), "--steps", "2"]
    finished = Loop._write_model
    with monkeypatch.context() as dying:
        dying.setattr(Loop, "_write_model", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            main(words)
    said = capsys.readouterr().out
    for begin in (
        "model: ",
        "data: ",
        "validation: ",
        "crop: ",
        "rate: ",
        "steps: ",
        "loss: ",
        "weights: ",
        "recipe: ",
    ):
        assert any(line.startswith(begin) for line in said.splitlines()), begin
    assert "it knows the classes building, land, water" in said
    assert Loop._write_model is finished
    assert not (run / "model").exists()
    main(words)
    said = capsys.readouterr().out
    assert "validation: mIoU " in said
    assert "crop: " not in said  # chosen and said once
    assert [step for step, _ in scores(run)] == [0, 1, 2]
    main(["train", str(run / RECIPE), "--out", str(tmp_path / "again")])
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (run, tmp_path / "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*words[:-1], "3"])
    assert "holds another fine-tuning" in capsys.readouterr().err


def test_another_fine_tuning_in_the_folder_is_refused(model, dataset_file, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECIPE).write_text("# caswit finetune other my.yaml --seed 0\n")
    with pytest.raises(SystemExit):
        main(["finetune", str(model), str(dataset_file), "--out", str(tmp_path / "run")])
    assert "holds another fine-tuning ('# caswit finetune other my.yaml --seed 0')" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_the_model_comes_first(tmp_path, capsys, command):
    with pytest.raises(SystemExit):
        main([command, "my.yaml", "swin-nano-dubai", "--out", str(tmp_path / "run")])
    assert "my.yaml: is a dataset; the model comes first: swin-nano-dubai my.yaml" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_where_nothing_is_better_the_model_stays_as_it_was(model, with_val, tmp_path, capsys, monkeypatch):
    """The start is scored 0.9, every later step less."""
    from caswit.training import supervised

    validate = supervised.SupervisedTask.validate

    def worse(self, network, step):
        return validate(self, network, step) | {"val_miou": 0.9 - 0.1 * min(step, 1)}

    monkeypatch.setattr(supervised.SupervisedTask, "validate", worse)
    main(["finetune", str(model), str(with_val), "--out", str(tmp_path / "run"), "--steps", "2"])
    said = capsys.readouterr().out
    assert "mIoU 0.9000 at the start, 0.8000 after 2 steps: no better, so the model stays as it was" in said
    before, after = (load_file(f / "model" / "model.safetensors") for f in (model, tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_model(tmp_path / "run" / "model").info.provenance["step"] == 0
    assert result(tmp_path / "run") == [line for line in said.splitlines() if line.startswith("validation: mIoU")]


def test_few_labels_are_all_learned_and_the_model_is_the_mean_of_before_and_after(
    model, dataset_file, tmp_path, capsys
):
    main(["finetune", str(model), str(dataset_file), "--out", str(tmp_path / "run"), "--steps", "2"])
    said = capsys.readouterr().out
    assert "validation: none: a part of what fills 2 crops only would be missed" in said
    assert "validation: none; only labels that it has not learned tell whether 2 steps made it better" in said
    recipe = str(tmp_path / "run" / RECIPE)
    main(["train", recipe, "--out", str(tmp_path / "end"), "--train.average_with_start", "null"])
    before, mean, end = (
        load_file(f / "model" / "model.safetensors") for f in (model, tmp_path / "run", tmp_path / "end")
    )
    moved = [name for name in before if not torch.equal(before[name], end[name])]
    assert len(moved) > 50
    for name in moved:
        torch.testing.assert_close(mean[name], (before[name] + end[name]) / 2)
    main(["info", str(tmp_path / "run" / "model")])
    said = capsys.readouterr().out
    assert f"the mean of the weights of that step (50%) and of its start, {model} (50%)" in said


def test_other_classes_go_on_by_name(model, dataset_file, tmp_path, capsys):
    content = yaml.safe_load(dataset_file.read_text())
    names = {1: "Water", 2: "orchard", 7: "building"}
    content["classes"] = [c | {"name": names.get(c["id"], c["name"])} for c in content["classes"]]
    dataset_file.write_text(yaml.safe_dump(content))
    recipe = picked(model, dataset_file)
    assert (recipe["data"]["val_split"], recipe["data"]["hold_out"]) == ("held_out", 0.25)
    assert not {"average_with_start", "loss"} & recipe["train"].keys()  # a mean with what began at random is no model
    main(["finetune", str(model), str(dataset_file), "--out", str(tmp_path / "run"), "--steps", "1"])
    said = capsys.readouterr().out
    assert "it knows Water, building; new: orchard" in said
    assert "the model had other classes before" in said
    assert [step for step, _ in scores(tmp_path / "run")] == [1]
    assert load_model(tmp_path / "run" / "model").info.classes.names == ("Water", "orchard", "building")


@pytest.mark.parametrize("decoder", ["upernet", "segformer"])
def test_rows_of_the_last_layer_follow_the_names_of_classes(tmp_path, decoder):
    """The same scores for classes of the same name, in whatever order; what is new starts at random."""
    settings = ModelConfig(**MODEL, decoder=decoder)
    info = ModelInfo(model=settings, tile=TileConfig(tile_px=64), classes=CLASSES)
    torch.manual_seed(0)
    before = build(info).eval()
    save_model(before, info, tmp_path / "model")
    after = CASWiT(num_classes=3, **MODEL, decoder=decoder, context_head=False)
    random = after.decoder.classify.weight.detach().clone()
    start = InitConfig(path=str(tmp_path / "model"), decoder=True)
    start_from(after, start, "pico", classes=("WATER", "orchard", "building"))
    images = [torch.from_numpy(picture(64, 64, seed))[None] for seed in (1, 2)]
    with torch.no_grad():
        one, two = before(*images), after.eval()(*images)
    assert CLASSES.names == ("building", "land", "water")
    assert torch.allclose(two[:, [0, 2]], one[:, [2, 0]], atol=1e-5)
    assert torch.equal(after.decoder.classify.weight[1], random[1])
    # Another number of classes, and none of the same name.
    other = CASWiT(num_classes=2, **MODEL, decoder=decoder, context_head=False)
    random = other.decoder.classify.weight.detach().clone()
    fit = start_from(other, start, "pico", classes=("a", "b"))
    assert "decoder.classify.weight" in fit.missing
    assert torch.equal(other.decoder.classify.weight, random)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_context_head_starts_as_the_main_decoder(tmp_path, caplog, norm):
    """Models are stored without it: 62 weights of it started at random beside a decoder that has learned."""
    caplog.set_level("INFO")
    settings = ModelConfig(**MODEL | {"decoder_norm": norm, "fusion_stages": (2, 4)})
    info = ModelInfo(model=settings, tile=TileConfig(tile_px=64), classes=CLASSES)
    save_model(build(info), info, tmp_path / "model")
    path, classes = str(tmp_path / "model"), ("water", "orchard", "building", "land")
    table = ClassTable(tuple(LandClass(id=i, name=name, color=f"#00000{i}") for i, name in enumerate(classes)))
    after = build(replace(info, classes=table), context_head=True)
    random = after.context_decoder.classify.weight.detach().clone()
    fit = start_from(after, InitConfig(path=path, decoder=True), "pico", classes=classes)
    for tiles, head in ((after.decoder, after.context_decoder), (after.hr_norms, after.context_norms)):
        for name, weight in tiles.state_dict().items():
            if not name.startswith("classify."):
                assert torch.equal(weight, head.state_dict()[name]), name
    last = after.context_decoder.classify.weight
    assert torch.equal(last[[0, 2, 3]], after.decoder.classify.weight[[0, 2, 3]])
    assert torch.equal(last[1], random[1])  # the class that the model lacks
    assert fit.copied
    assert not fit.missing
    (line,) = [line for line in caplog.messages if "takes" in line]
    assert line == (
        f"init: {path}: takes hr encoder, context encoder, fusion, decoder (100% of the encoders); copies of the hr "
        "branch: context decoder"
    )
    # Without the main decoder, and without that head, there is nothing to copy.
    for head, decoder in ((True, False), (False, True)):
        other = build(info, context_head=head)
        fit = start_from(other, InitConfig(path=path, decoder=decoder), "pico", classes=CLASSES.names)
        assert not fit.copied
        assert any(n.startswith("context_decoder.") for n in fit.missing) == head


def test_a_model_of_early_fusion_is_a_start_too(tmp_path, caplog):
    """Its context encoder is stored up to that stage: 'only 60% of the encoders' weights are there'."""
    caplog.set_level("INFO")
    info = ModelInfo(model=ModelConfig(**MODEL), tile=TileConfig(tile_px=64), classes=CLASSES)
    before = build(info)
    save_model(before, info, tmp_path / "model")
    after = build(info, context_head=True)
    fit = start_from(after, InitConfig(path=str(tmp_path / "model")), "pico")
    theirs, ours = before.state_dict(), after.state_dict()
    deep = [name for name in ours if name.startswith("context_encoder.") and name not in theirs]
    assert deep
    assert set(deep) == set(fit.copied)
    for name in (n for n in ours if n.startswith("context_encoder.")):
        expected = theirs[name if name in theirs else name.replace("context_", "hr_", 1)]
        assert torch.equal(ours[name], expected), name
    whole = sum(n.startswith("context_encoder.") and not n.endswith("num_batches_tracked") for n in ours)
    assert f"; copies of the hr branch: {len(deep)} of {whole} of context encoder" in caplog.text


def test_networks_of_others_are_refused(tmp_path, dataset_file):
    info = ModelInfo(model=ModelConfig(arch="unet", encoder="resnet18"), tile=TileConfig(tile_px=64), classes=CLASSES)
    save_model(build(info), info, tmp_path / "model")
    with pytest.raises(ConfigError, match="fine-tuning is for networks of arch caswit, got unet"):
        choose(str(tmp_path / "model"), str(dataset_file))


def test_rows_of_the_last_layer_follow_names_with_underscores():
    ours, theirs = torch.zeros(2, 3), torch.arange(6.0).reshape(2, 3)
    found = _by_class(theirs, ours, ("Swimming_pool", "roof"), ("water", "swimming pool"))
    assert torch.equal(found, torch.stack([theirs[1], ours[1]]))
