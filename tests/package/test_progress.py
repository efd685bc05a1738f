"""Progress where it is not shown on a terminal."""

import pytest

from caswit import progress
from caswit.progress import Progress, clock


@pytest.fixture
def time_s(monkeypatch):
    """A clock that stands still; set [0]."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_plain_lines_now_and_then_and_one_at_the_end(capsys, time_s):
    with Progress("predict a.tif", 10, "Mpx") as shown:
        for _ in range(4):
            time_s[0] += 4
            shown.advance(2.5, "note")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "predict a.tif: 7.5/10 Mpx, 0.625 Mpx/s, 0:04 left, note",
        "predict a.tif: 10/10 Mpx, 0.625 Mpx/s, took 0:16",
    ]


def test_work_done_before_counts_for_progress_and_not_for_the_rate(capsys, time_s):
    with Progress("train", 100, "step", done=90) as shown:
        time_s[0] += 20
        shown.advance(5)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "train: 95/100 step, 0.25 step/s, 0:20 left"


def test_quiet_says_nothing(capsys, time_s):
    with Progress("x", 1, "step", quiet=True) as shown:
        time_s[0] += 60
        shown.advance(1)
        shown.say("hello")
    assert capsys.readouterr() == ("", "")


def test_after_an_error_there_is_no_last_line(capsys):
    with pytest.raises(KeyError), Progress("x", 1, "step"):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_say_prints_a_line_on_stderr(capsys):
    with Progress("x", 1, "step") as shown:
        shown.say("validated")
        shown.advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "validated"


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("predict a.tif", 4, "Mpx") as shown:
        shown.advance(3, "fine")
    shown = capsys.readouterr().err
    assert "predict a.tif:  75%" in shown
    assert "3/4 Mpx" in shown


def test_nothing_done_has_no_rate(capsys, time_s):
    with Progress("x", 2, "step"):
        time_s[0] += 1
    assert capsys.readouterr().err == "x: 0/2 step, 0 step/s, ? left\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (9, "0:09"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.9, "1:00:00"),
        (3723, "1:02:03"),
        (360_000, "100:00:00"),
        (float("inf"), "?"),
    ],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_large_numbers_are_written_out(monkeypatch, capsys):
    """40,000 files were 4e+04."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.Progress("index", 40_000, "files") as shown:
        now[0] = 10.0
        shown.advance(12_345)
        now[0] = 20.0
        shown.advance(27_655)
    assert capsys.readouterr().err.splitlines() == [
        "index: 12,345/40,000 files, 1,234 files/s, 0:22 left",
        "index: 40,000/40,000 files, 2,000 files/s, took 0:20",
    ]


LONG = "predict D034_2021_montpellier_ouest_ortho_20cm.tif with caswit-nano-herault-landcover"


@pytest.mark.parametrize("columns", [80, 110])
@pytest.mark.parametrize(
    ("label", "unit", "total", "note"),
    [
        (LONG, "Mpx", 1_234_567, "123,456 of 123,456 blocks"),
        ("predict a.tif with mine", "Mpx", 12.5, "1 of 1 blocks"),
        ("train", "step", 320_000, "loss 12.345, 1234.5 tiles/s"),
        ("evaluate flair_hub val, masked context", "Mpx", 12_345, ""),
    ],
)
def test_lines_fit_the_terminal(capsys, monkeypatch, time_s, columns, label, unit, total, note):
    """The longest realistic ones; a bar that wraps fills the screen with copies of itself."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        with Progress(label, total, unit) as shown:
            time_s[0] += 3600 * 30
            shown.advance(total * 0.43, note)
            if shown.bar is not None:
                shown.bar.refresh()
        said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
        assert said
        assert max(map(len, said)) <= columns - terminal
        # What matters is there at 80 columns: the beginning of the name, how much is done.
        assert all(line.startswith(label[:9]) for line in said)
        assert any(f" {unit}" in line for line in said)


def test_a_label_keeps_its_beginning_and_its_end():
    assert progress.shortened(LONG, 200) == LONG
    short = progress.shortened(LONG, 40)
    assert len(short) == 40
    assert short.startswith("predict D034_2021")
    assert short.endswith("...t-landcover"[3:])


def test_work_that_ends_early_is_not_left_unfinished(capsys, time_s):
    """After max_minutes the last line was "2/100 step"."""
    with Progress("train", 100, "step") as shown:
        time_s[0] += 4
        shown.advance(2)
        shown.end_here()
    assert capsys.readouterr().err == "train: 2/2 step, 0.5 step/s, took 0:04\n"
