"""Services that keep the numbers of a run: told the same as log.csv, resumed, and never the end of a training."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from caswit.config import DataConfig, PretrainConfig, Recipe, TrainConfig
from caswit.errors import ConfigError
from caswit.training.loggers import Loggers, check_loggers
from caswit.training.run_folder import RunFolder


def make_recipe(**settings) -> Recipe:
    return Recipe(data=DataConfig(dataset="x"), train=TrainConfig(lr=2e-3, **settings))


class FakeWandb(ModuleType):
    """As much of wandb as is used; ``said`` is everything that it was told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.said: list = []
        self.down = False

    def init(self, **settings):
        self.said.append(("init", settings))
        if self.down:
            raise RuntimeError("no route\nto host")

        def keep(numbers, step):
            if self.down:
                raise OSError("gone")
            self.said.append((step, numbers))

        def finish(exit_code):
            self.said.append(("finish", exit_code))

        return SimpleNamespace(id=settings["id"] or "made", log=keep, finish=finish)


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


class FakeClient:
    """The store of MLflow, in a class of its own: every client sees the same."""

    experiments: dict
    runs: dict

    def get_experiment_by_name(self, name):
        number = self.experiments.get(name)
        return None if number is None else SimpleNamespace(experiment_id=number)

    def create_experiment(self, name):
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, number, run_name):
        key = f"run{len(self.runs)}"
        self.runs[key] = {"experiment": number, "name": run_name, "params": {}, "metrics": [], "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=key))

    def log_param(self, key, name, value):
        self.runs[key]["params"][name] = value

    def log_batch(self, key, metrics):
        self.runs[key]["metrics"] += [(m.key, m.value, m.step) for m in metrics]

    def update_run(self, key, status):
        self.runs[key]["status"] = status

    def set_terminated(self, key, status):
        self.runs[key]["status"] = status


@pytest.fixture
def mlflow(monkeypatch) -> type[FakeClient]:
    client = type("Client", (FakeClient,), {"experiments": {}, "runs": {}})
    fake = ModuleType("mlflow")
    fake.tracking = SimpleNamespace(MlflowClient=client)
    fake.entities = SimpleNamespace(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return client


def log_two(folder: RunFolder, *names: str, step: int = 0, finished: bool = True) -> Loggers:
    folder.path.mkdir(exist_ok=True)
    with Loggers(make_recipe(), folder, step, names) as loggers:
        loggers.log({"loss": 0.5, "lr": 1e-3}, step + 1)
        loggers.log({"loss": 0.25, "val_miou": 0.125}, step + 2)
        loggers.finished = finished
    return loggers


def test_wandb_is_told_settings_and_numbers_and_goes_on_after_a_stop(tmp_path, wandb, monkeypatch):
    folder = RunFolder(tmp_path / "mine")
    log_two(folder, "wandb", finished=False)
    init, one, two, end = wandb.said
    assert init[1]["project"] == "caswit"
    assert init[1]["name"] == "mine"
    assert init[1]["dir"] == str(folder.path)
    assert init[1]["config"]["train.lr"] == 2e-3
    assert init[1]["id"] is None
    assert one == (1, {"train/loss": 0.5, "train/lr": 1e-3})
    assert two == (2, {"train/loss": 0.25, "val/miou": 0.125})
    assert end == ("finish", 1)
    assert json.loads((folder.path / "loggers.json").read_text()) == {"wandb": "made"}
    monkeypatch.setenv("WANDB_PROJECT", "other")
    log_two(folder, "wandb", step=2)
    assert wandb.said[4][1]["id"] == "made"
    assert wandb.said[4][1]["project"] == "other"
    assert wandb.said[-1] == ("finish", 0)
    log_two(folder, "wandb", step=0)  # begins anew: nothing had been saved
    assert wandb.said[8][1]["id"] is None


def test_mlflow_is_told_settings_and_numbers_and_goes_on_after_a_stop(tmp_path, mlflow):
    folder = RunFolder(tmp_path / "mine")
    log_two(folder, "mlflow", finished=False)
    assert mlflow.experiments == {"caswit": "0"}
    (run,) = mlflow.runs.values()
    assert (run["name"], run["experiment"], run["status"]) == ("mine", "0", "KILLED")
    assert run["params"]["train.lr"] == 2e-3
    assert ("train/loss", 0.5, 1) in run["metrics"]
    assert ("val/miou", 0.125, 2) in run["metrics"]
    log_two(folder, "mlflow", step=2)
    assert mlflow.runs == {"run0": run}
    assert run["status"] == "FINISHED"
    assert ("train/loss", 0.25, 4) in run["metrics"]


def test_a_run_that_fails_is_not_called_finished(tmp_path, wandb):
    loggers = Loggers(make_recipe(), RunFolder(tmp_path), 0, ["wandb"])
    loggers.finished = True
    with pytest.raises(KeyError), loggers:
        raise KeyError
    assert wandb.said[-1] == ("finish", 1)


def test_a_service_that_goes_down_does_not_end_the_training(tmp_path, wandb, mlflow, caplog):
    with Loggers(make_recipe(), RunFolder(tmp_path), 0, ["wandb", "mlflow"]) as loggers:
        wandb.down = True
        loggers.log({"loss": 0.5}, 1)
        loggers.log({"loss": 0.25}, 2)
    assert [m for m in caplog.messages if "wandb" in m] == ["wandb: gone; nothing more is logged there"]
    assert len(mlflow.runs["run0"]["metrics"]) == 2


def test_a_service_that_does_not_start_is_one_line(tmp_path, wandb):
    wandb.down = True
    said = r"train\.loggers: wandb did not start \(no route to host\); set WANDB_MODE=offline, or leave it out"
    with pytest.raises(ConfigError, match=said):
        Loggers(make_recipe(), RunFolder(tmp_path), 0, ["wandb"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_refused_before_the_run(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"train\.loggers: {name} is not installed; install the package {name}, or"):
        check_loggers(("csv", "tensorboard", name))
    check_loggers(("csv", "tensorboard"))
    check_loggers(())


def test_no_logger_leaves_no_file(tmp_path):
    log_two(RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [TrainConfig, PretrainConfig])
def test_other_loggers_are_refused(config):
    with pytest.raises(ConfigError, match="loggers must be some of csv, tensorboard, wandb, mlflow, got 'comet'"):
        config(loggers=("comet",))


# With the packages themselves, where they are installed: nothing leaves this machine.


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = RunFolder(tmp_path / "mine")
    log_two(folder, "wandb")
    wandb.teardown()  # ends the process that writes the file
    (file,) = folder.path.glob("wandb/offline-run-*/run-*.wandb")
    assert json.loads((folder.path / "loggers.json").read_text())["wandb"] in file.name
    assert b"train/loss" in file.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # which mlflow-skinny leaves out
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'store.db'}")
    folder = RunFolder(tmp_path / "mine")
    log_two(folder, "mlflow", finished=False)
    log_two(folder, "mlflow", step=2)
    client = mlflow.tracking.MlflowClient()
    run = client.get_run(json.loads((folder.path / "loggers.json").read_text())["mlflow"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
    assert run.data.params["train.lr"] == "0.002"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]
