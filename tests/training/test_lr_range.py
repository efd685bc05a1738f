"""The learning-rate range test: what it suggests, what it writes."""

import csv

import numpy as np
import pytest
import yaml
from PIL import Image

from caswit.cli.main import main
from caswit.errors import ConfigError
from caswit.training.lr_range import STEPS, broke, smooth, suggested
from caswit.viz.curves import Mark, log_curve
from caswit.viz.pictures import INK

RATES = list(np.geomspace(1e-7, 1, STEPS))


def losses_of(lowest: float, fall: float, noise: float = 0.01, seed: int = 0) -> list[float]:
    """A loss of 1 that falls from a hundredth of a rate to this rate, and rises after it."""
    log = np.log10(np.array(RATES) / lowest)
    shape = 1 - fall * np.clip(1 + log / 2, 0, 1) + np.clip(log, 0, None) ** 2 * 3
    return list(shape + np.random.default_rng(seed).normal(0, noise, STEPS))


@pytest.mark.parametrize("lowest", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("seed", range(3))
def test_the_suggestion_is_a_tenth_of_where_the_loss_is_lowest(lowest, seed):
    found = suggested(RATES, losses_of(lowest, 0.5, seed=seed))
    assert found.fell
    assert lowest / 1.5 < found.lowest < 6 * lowest  # the smoothing is late
    assert found.suggestion == pytest.approx(found.lowest / 10, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_where_the_loss_never_falls_it_is_a_tenth_of_where_it_rises(seed):
    found = suggested(RATES, losses_of(1e-3, 0.0, seed=seed))
    assert not found.fell
    assert 3e-4 < found.lowest < 1e-2
    assert "never fell" in found.lines(1e-4)[0]


def test_the_smoothed_loss_is_the_mean_of_the_past_with_falling_weights():
    losses = [3.0, 1.0, 2.0, 5.0]
    for n, value in enumerate(smooth(losses), 1):
        weights = 0.9 ** np.arange(n)[::-1]
        assert value == pytest.approx((weights * losses[:n]).sum() / weights.sum())


def test_the_test_ends_when_the_loss_gets_out_of_hand():
    assert not broke([1.0] * 30)
    assert broke([1.0] * 30 + [40.0])
    assert broke([1.0, float("nan")])
    assert not broke([1.0] * 5 + [40.0])


def test_a_loss_that_is_never_finite_is_said():
    with pytest.raises(ConfigError, match="the loss is not finite after 1 steps"):
        suggested(RATES, [1.0, float("nan")])


def test_a_mark_stands_where_its_value_is():
    x = [1e-4, 1e-3, 1e-2]
    red = (250, 0, 0)
    picture = log_curve(x, [3, 2, 1], [3, 2, 1], title="t", names=("x", "y"), marks=[Mark(1e-3, "", red)])
    cols = np.flatnonzero((picture[200] == red).all(-1))
    frame = (picture[60:470] == INK).all(-1).mean(0) > 0.9
    left, right = np.flatnonzero(frame)[[0, -1]]
    assert abs(cols.mean() - (left + right) / 2) < 3  # in the middle of a logarithmic axis


@pytest.mark.e2e
def test_the_command_writes_picture_and_table_and_the_run_can_begin(dataset_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("caswit.training.lr_range.STEPS", 24)
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(
            {
                "data": {"dataset": str(dataset_file), "val_split": None, "sampling": "random"},
                "model": {"size": "pico", "decoder_channels": 16, "fusion_stages": [2]},
                "tile": {"tile_px": 32},
                "train": {"batch": 2, "max_steps": 1, "accelerator": "cpu", "lr": 1e-3},
            }
        )
    )
    words = ["train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")]
    main([*words, "--find-lr"])
    said = capsys.readouterr().out
    assert "suggestion: train.lr " in said
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["find_lr.csv", "find_lr.png"]
    with (tmp_path / "run" / "find_lr.csv").open() as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["lr"]) for row in rows]
    assert rates == pytest.approx(list(np.geomspace(1e-7, 1, 24))[: len(rows)], rel=1e-4)
    assert len(rows) > 20
    with Image.open(tmp_path / "run" / "find_lr.png") as picture:
        assert picture.size == (960, 540)
    main(words)
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    with pytest.raises(SystemExit):
        main([*words, "--find-lr"])
    assert "already holds a run" in capsys.readouterr().err
