"""Runs as jobs: stopped by signals and time limits, queued again, locked, started by srun, resumed on a GPU."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.accelerators import CPUAccelerator
from lightning.fabric.strategies import SingleDeviceStrategy
from safetensors.torch import load_file

from caswit.cli.main import main
from caswit.errors import ConfigError, Stopped
from caswit.progress import Progress
from caswit.training.fabric import launch, noting_signals, stop_signal
from caswit.training.loop import Loop
from caswit.training.run_folder import RunFolder
from caswit.training.supervised import SupervisedTask
from caswit.weights.model_folder import is_complete
from shallow import COMMAND, ENVIRONMENT
from training.test_loop import Line, line_network, make_recipe, read_log, run

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

TINY = [
    *("--train.accelerator", "cpu", "--train.precision", "fp32", "--train.pictures", "0", "--train.batch", "2"),
    *("--train.val_every_steps", "4", "--model.size", "pico", "--model.decoder_norm", "group"),
    *("--tile.tile_px", "32", "--data.val_split", "test", "--train.deterministic", "true"),
]


def command(dataset_file: Path, out: Path, *more: str, name: str = "train") -> list[str]:
    recipe = out.with_name("recipe.yaml")
    recipe.write_text(yaml.safe_dump({"data": {"dataset": str(dataset_file)}}))
    return [*COMMAND, name, str(recipe), "--out", str(out), *TINY, *more]


def start(words: list[str], **environment: str) -> subprocess.Popen:
    env = {**ENVIRONMENT, **environment}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_steps(out: Path, count: int, process: subprocess.Popen) -> None:
    log = out / "log.csv"
    while not log.exists() or len(log.read_text().splitlines()) < count + 1:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def losses(out: Path, column: str = "loss") -> list[str]:
    return [row[column] for row in read_log(out / "log.csv")]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(out / "model" / "model.safetensors") for out in (one, other))
    return first.keys() == second.keys() and all(torch.equal(x, second[name]) for name, x in first.items())


# Resuming on a GPU


class NoDevice(CPUAccelerator):
    """Takes any device: the meta device stands for a GPU, its tensors have a place and no content."""

    def setup_device(self, device: torch.device) -> None:
        pass


def test_what_is_resumed_lies_where_the_parameters_are(tmp_path, monkeypatch):
    with pytest.raises(KeyError):
        run(tmp_path, fails_at=4)
    folder, network = RunFolder(tmp_path), line_network()
    gpu = Fabric(strategy=SingleDeviceStrategy(torch.device("meta"), accelerator=NoDevice()))
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    # Parameters that move to a GPU stay the same objects; on the way to the meta device only with this.
    torch.__future__.set_swap_module_params_on_conversion(True)
    generator = torch.Generator()
    monkeypatch.setattr(torch, "Generator", lambda device: generator)  # timm's EMA wants one; meta devices have none
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*meta parameter.* is a no-op")
            loop = Loop(gpu, make_recipe(), folder, Line(folder), network)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
    states = [x for state in loop.optimizer.state.values() for name, x in state.items() if name != "step"]
    assert states
    for x in [*states, *network.state_dict().values(), *loop.ema.module.state_dict().values()]:
        assert x.device.type == "meta"
    assert loop.step == 3


# Stopping and going on


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on_as_if_it_had_not_stopped(dataset_file, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    settings = ["--train.max_steps", "12", "--train.save_every_s", "1000"]
    main(command(dataset_file, whole, *settings)[3:])
    process = start(command(dataset_file, out, *settings))
    wait_for_steps(out, 2, process)
    process.send_signal(signal.SIGTERM)
    status, _, said = finish(process)
    assert status == 0
    step = torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"]
    last = said.strip().splitlines()[-1]
    assert f"stopped by SIGTERM after step {step} of 12, which is saved; go on with: caswit train " in last
    assert "Traceback" not in said
    assert not (out / "model").exists()
    assert finish(start(command(dataset_file, out, *settings, "--resume")))[0] == 0
    assert losses(out) == losses(whole)
    assert losses(out, "val_miou") == losses(whole, "val_miou")
    assert same_weights(whole, out)


@pytest.mark.parametrize("validating", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_reading_process_is_one_line_and_the_run_goes_on(
    dataset_file, tmp_path, monkeypatch, capsys, killing, validating
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    settings = ["--train.max_steps", "8", "--train.save_every_s", "1000"]
    main(command(dataset_file, whole, *settings)[3:])
    step, score = Loop._step, SupervisedTask._counts

    def killed_in_a_step(loop, passes):
        if loop.step == 2 and not validating:
            killing.kill()
        return step(loop, passes)

    def killed_in_a_validation(task, predictor):
        forward = predictor.network.forward
        predictor.network.forward = lambda *inputs: [validating and killing.kill(), forward(*inputs)][1]
        return score(task, predictor)

    monkeypatch.setattr(Loop, "_step", killed_in_a_step)
    monkeypatch.setattr(SupervisedTask, "_counts", killed_in_a_validation)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(command(dataset_file, out, *settings, "--data.workers", "2")[3:])
    assert killing.killed
    assert left.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "a process that reads ahead was ended from outside" in said
    assert "is saved, --resume goes on from it" in said
    assert not (out / "model").exists()
    main(command(dataset_file, out, *settings, "--resume")[3:])
    assert losses(out) == losses(whole)
    assert losses(out, "val_miou") == losses(whole, "val_miou")
    assert same_weights(whole, out)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)])
def test_exit_status_and_message_of_a_signal(dataset_file, tmp_path, monkeypatch, capsys, number, status):
    words = command(dataset_file, tmp_path / "out", "--train.max_steps", "4")[3:]
    numbers = iter([number])
    monkeypatch.setattr(Progress, "advance", lambda *_: [os.kill(os.getpid(), each) for each in numbers])
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == status
    said = capsys.readouterr().err
    again = shlex.join(["caswit", *map(str, words), "--resume"])
    assert said.endswith(f"stopped by {number.name} after step 2 of 4, which is saved; go on with: {again}\n")


class Signals:
    """Stands for signals that arrive while a step is validated: the first ``times`` validations are cut short."""

    def __init__(self, monkeypatch, times: int) -> None:
        self.left = times
        validate = Line.validate

        def cut(task: Line, network: torch.nn.Module, step: int) -> dict[str, float]:
            if step == 4 and self.left:
                self.left -= 1
                os.kill(os.getpid(), signal.SIGTERM)
                return {}
            return validate(task, network, step)

        monkeypatch.setattr(Line, "validate", cut)


def test_a_validation_that_was_cut_short_is_done_again(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", val_every_steps=2)
    Signals(monkeypatch, 2)
    for _ in range(2):
        with noting_signals(), pytest.raises(Stopped, match="SIGTERM after step 4 of 6"):
            run(tmp_path / "out", val_every_steps=2)
        assert len(losses(tmp_path / "out")) == 3  # the row of step 4 is complete only with its scores
    task = run(tmp_path / "out", val_every_steps=2)
    for column in ("loss", "val_miou", "step"):
        assert losses(tmp_path / "out", column) == losses(tmp_path / "whole", column)
    assert all(torch.equal(x, whole.seen[-1][name]) for name, x in task.seen[-1].items())


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: in a suite that a shell started in the background it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_ends_at_once():
    with noting_signals():
        signal.raise_signal(signal.SIGINT)  # os.kill may reach another thread first
        assert stop_signal() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # os.kill may reach another thread first
    assert stop_signal() is None


def test_stop_minutes_end_a_job_and_not_the_schedule(tmp_path):
    run(tmp_path / "whole")
    # Each of these jobs has used up its time after its first step.
    for step in range(1, 6):
        with pytest.raises(Stopped, match=rf"stop_minutes=1e-09 after step {step} of 6"):
            run(tmp_path / "out", stop_minutes=1e-9)
    run(tmp_path / "out", stop_minutes=1e-9)
    for column in ("loss", "lr", "val_miou"):
        assert losses(tmp_path / "out", column) == losses(tmp_path / "whole", column)


def test_workers_outlive_the_signals_of_their_run(dataset_file, tmp_path):
    """A cluster's signals reach every process of a job; the training must not lose its readers before it saves."""
    out = tmp_path / "out"
    words = command(dataset_file, out, "--train.max_steps", "100000", "--data.workers", "1")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True)
    wait_for_steps(out, 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    status, _, said = finish(process)
    assert (status, "Traceback" in said) == (0, False), said
    assert "which is saved" in said


@pytest.mark.parametrize("change", [{"accumulate": 2}, {"stop_minutes": 60.0}, {"devices": 2}])
def test_how_a_batch_is_shared_out_may_change_on_resuming(tmp_path, change):
    with pytest.raises(KeyError):
        run(tmp_path, fails_at=4)
    RunFolder(tmp_path).check(make_recipe(**change), resume=True)
    with pytest.raises(ConfigError, match=r"train\.batch=4, got 8"):
        RunFolder(tmp_path).check(make_recipe(batch=8, **change), resume=True)


# One run in a folder


def test_two_runs_in_one_folder(dataset_file, tmp_path, capsys):
    out = tmp_path / "out"
    with RunFolder(out).opened(make_recipe(), resume=False), pytest.raises(SystemExit) as left:
        main(command(dataset_file, out, "--resume")[3:])
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1)
    assert f"another run is at work in it (process {os.getpid()} on " in said
    assert not (out / "recipe.yaml").exists()


def test_the_lock_ends_with_the_run(tmp_path):
    recipe, folder = make_recipe(), RunFolder(tmp_path)
    with (
        folder.opened(recipe, resume=False),
        pytest.raises(ConfigError, match="at work"),
        RunFolder(tmp_path).opened(recipe, resume=False),
    ):
        pass
    with folder.opened(recipe, resume=False):
        pass


def test_what_killed_saves_left_is_removed_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    for file in (folder.last, folder.best, folder.log, folder.model / "model.safetensors"):
        file.parent.mkdir(exist_ok=True)
        file.with_name(f".{file.name}.0123abcd.tmp").touch()
    mine = folder.last.with_name(".notes.tmp")
    mine.touch()
    with folder.opened(make_recipe(), resume=False):
        assert [p.name for p in tmp_path.rglob("*.tmp")] == [mine.name]


@pytest.mark.parametrize(
    ("harm", "keep"), [("folder", "best"), ("folder", "last"), ("weights", "best"), ("config", "best"), ("cut", "last")]
)
def test_a_finished_run_writes_its_model_again(dataset_file, tmp_path, harm, keep):
    out, kept = tmp_path / "out", tmp_path / "kept"
    words = command(dataset_file, out, "--train.max_steps", "2", "--train.keep", keep)[3:]
    main(words)
    shutil.copytree(out / "model", kept / "model")
    weights = out / "model" / "model.safetensors"
    if harm == "folder":
        shutil.rmtree(out / "model")
    elif harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        (weights if harm == "weights" else weights.with_name("config.json")).unlink()
    assert not is_complete(out / "model")
    main([*words, "--resume"])
    assert same_weights(out, kept)
    configs = [json.loads((folder / "model" / "config.json").read_text()) for folder in (out, kept)]
    assert configs[0] == configs[1]


# Under srun


def srun(rank: int, tasks: int, nodes: int = 1, **more: str) -> dict[str, str]:
    """Return what SLURM's srun tells a process; the master's port is one that nobody else has."""
    each = tasks // nodes
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "caswit",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(each),
        "SLURM_NNODES": str(nodes),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % each),
        "SLURM_NODEID": str(rank // each),
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        **more,
    }


@pytest.fixture
def port() -> str:
    """A port that is free now, for processes to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_processes_of_srun_train_one_run_and_the_first_speaks(dataset_file, tmp_path, port, nodes):
    """Stopped by a signal to both, as before a time limit, and queued again."""
    out = tmp_path / "out"
    settings = ["--train.max_steps", "8", "--train.devices", "2", "--model.drop_path", "0"]
    both = [start(command(dataset_file, out, *settings), **srun(r, 2, nodes, MASTER_PORT=port)) for r in (0, 1)]
    wait_for_steps(out, 1, both[0])
    for process in both:
        process.send_signal(signal.SIGUSR1)
    (status, _, said), (other, *silent) = map(finish, both)
    assert (status, other) == (0, 0), (said, silent)
    assert "stopped by SIGUSR1" in said
    assert silent == ["", ""]
    both = [
        start(command(dataset_file, out, *settings, "--resume"), **srun(r, 2, nodes, MASTER_PORT=port)) for r in (0, 1)
    ]
    (status, printed, said), (other, *silent) = map(finish, both)
    assert (status, other) == (0, 0), (said, silent)
    assert printed.startswith("model: ")
    assert f"2 processes, one for each device, on {nodes} machine" in said
    assert silent == ["", ""]
    assert losses(out, "step") == [str(step) for step in range(1, 9)]


@pytest.mark.slow
def test_a_folder_that_is_taken_ends_all_processes_of_srun(dataset_file, tmp_path, port):
    out = tmp_path / "out"
    settings = ["--train.max_steps", "2", "--train.devices", "2"]
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "last.pt").touch()
    both = [start(command(dataset_file, out, *settings), **srun(r, 2, MASTER_PORT=port)) for r in (0, 1)]
    (status, _, said), (other, *silent) = map(finish, both)
    assert (status, other) == (2, 2), (said, silent)
    assert said.count("\n") == 1
    assert "already holds a run" in said
    assert silent == ["", ""]


@pytest.mark.slow
def test_one_process_of_srun_starts_the_others_itself(dataset_file, tmp_path):
    """``--ntasks-per-node=1`` with two devices."""
    words = command(dataset_file, tmp_path / "out", "--train.max_steps", "2", "--train.devices", "2")
    status, printed, said = finish(start(words, **srun(0, 1)))
    assert status == 0, said
    assert printed.startswith("model: ")
    assert "2 processes, one for each device, on 1 machine\n" in said


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "devices"), [(2, 1), (2, 4)])
def test_other_numbers_of_processes_and_devices(dataset_file, tmp_path, tasks, devices):
    words = command(dataset_file, tmp_path / "out", "--train.devices", str(devices), "--train.batch", "4")
    status, _, said = finish(start(words, **srun(0, tasks)))
    assert (status, said.count("\n")) == (2, 1), said
    assert f"srun started {tasks} processes, but train.devices is {devices}; set --train.devices {tasks}" in said


def test_devices_that_nodes_do_not_share_evenly(tmp_path, monkeypatch):
    for name, value in (srun(0, 3) | {"SLURM_NNODES": "2"}).items():
        monkeypatch.setenv(name, value)
    recipe = make_recipe(devices=3, batch=3, accelerator="cpu")
    with (
        pytest.raises(ConfigError, match="3 processes on 2 machines; start as many on each"),
        launch(recipe, RunFolder(tmp_path / "x"), resume=False),
    ):
        pass


@pytest.mark.slow
def test_a_table_is_made_by_one_process(dataset_file, tmp_path):
    recipe = tmp_path / "row.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"dataset": str(dataset_file)}, "row": {"name": "x"}}))
    words = [*COMMAND, "table", str(recipe), "--out", str(tmp_path / "table")]
    (status, _, said), (other, *silent) = (finish(start(words, **srun(rank, 2))) for rank in (0, 1))
    assert (status, other) == (2, 2), (said, silent)
    assert "srun started 2; use srun --ntasks=1" in said
    assert silent == ["", ""]
