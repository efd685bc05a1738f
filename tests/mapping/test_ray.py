"""Maps made by two workers of a Ray cluster on this machine, beside those of this process."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import rasterio

import caswit
from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.errors import ConfigError, install
from caswit.mapping.local import LocalEngine
from caswit.mapping.plan import make_plan
from caswit.mapping.run import predict
from conftest import georeference, picture

EXACT = {"precision": "fp32", "batch": 1, "device": "cpu"}
SETTINGS = PredictConfig(**EXACT, block_px=40)
TWO = {"engine": "ray", "workers": 2, "worker_cpus": 1}
BAND_KINDS = ("map", "confidence", "probabilities")

# What Ray's own code warns of, now or in a later version, is not what is tested here; nor are the processes and logs
# of its cluster, which outlive the objects that Python sees.
_IGNORED = "DeprecationWarning", "FutureWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning"
pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in _IGNORED)]


@pytest.fixture(scope="module")
def cluster():
    """Two cores' worth of cluster, started once, as a run without an address starts it."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    import ray

    from caswit.mapping.ray.cluster import connect

    assert connect(MapRunConfig(**TWO))
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def path(make_raster) -> Path:
    return make_raster(picture(90, 90), **georeference())


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read()


class Interrupted(BaseException):
    """Nothing catches it."""


@contextmanager
def interrupted(engine: type, after: int):
    """Within this context runs of an engine end when so many blocks are done."""
    original = engine.run

    def run(self, todo, journal):
        yield from islice(original(self, todo, journal), after)
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "run", run)
        with pytest.raises(Interrupted):
            yield


def test_every_output_is_that_of_this_process_though_a_worker_is_killed(
    cluster, path, model_folder, tmp_path, monkeypatch, caplog
):
    settings = PredictConfig(**EXACT, block_px=48, blend=True)

    def outputs(folder: Path) -> tuple[Path, OutputConfig]:
        folder.mkdir()
        names = {kind: str(folder / f"{kind}.tif") for kind in BAND_KINDS[1:]}
        return folder / "map.tif", OutputConfig(**names, vector=str(folder / "map.geojson"))

    out, asked = outputs(tmp_path / "local")
    predict(path, out, model_folder, settings, asked)

    from caswit.mapping.ray.engine import RayEngine

    killed = []
    original = RayEngine.run

    def kill_one_midway(self, todo, journal):
        for number, outcome in enumerate(original(self, todo, journal)):
            if number == 1:
                killed.append(self.processes[0])
                os.kill(killed[0], signal.SIGKILL)
            yield outcome

    monkeypatch.setattr(RayEngine, "run", kill_one_midway)
    out, asked = outputs(tmp_path / "ray")
    predict(path, out, model_folder, settings, asked, MapRunConfig(**TWO))
    assert killed
    assert "its blocks go to others" in caplog.text
    for kind in BAND_KINDS:
        found, expected = (read(tmp_path / engine / f"{kind}.tif") for engine in ("ray", "local"))
        np.testing.assert_array_equal(found, expected)
    found, expected = ((tmp_path / engine / "map.geojson").read_bytes() for engine in ("ray", "local"))
    assert found == expected
    assert not list(out.parent.glob("*.parts"))


def test_engines_go_on_from_each_others_blocks(cluster, path, model_folder, tmp_path, capsys):
    from caswit.mapping.ray.engine import RayEngine

    predict(path, tmp_path / "expected.tif", model_folder, SETTINGS)
    out = tmp_path / "map.tif"
    for engine, run, after in ((LocalEngine, MapRunConfig(), 3), (RayEngine, MapRunConfig(**TWO), 2)):
        with interrupted(engine, after):
            predict(path, out, model_folder, SETTINGS, run=run)
    assert "going on, 3 of 16 blocks are done" in capsys.readouterr().err
    predict(path, out, model_folder, SETTINGS)
    assert "going on, 5 of 16 blocks are done" in capsys.readouterr().err
    np.testing.assert_array_equal(read(out), read(tmp_path / "expected.tif"))


def test_a_plan_names_its_model_and_images_so_that_every_machine_finds_them(path, model_folder, tmp_path, monkeypatch):
    """A model of the zoo went to the workers as a folder that did not exist."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    from caswit.mapping.ray.engine import _anywhere

    monkeypatch.chdir(model_folder.parent)
    for model, sent in ((model_folder.name, str(model_folder)), ("swin-nano-dubai", "swin-nano-dubai")):
        names = [os.path.relpath(path)]
        plan, _ = make_plan(names, model, PredictConfig(), OutputConfig(), MapRunConfig())
        found = _anywhere(plan)
        assert (found.model, Path(found.sources[0].path).resolve()) == (sent, path.resolve())
        assert Path(found.sources[0].path).is_absolute()


def test_a_block_over_which_every_worker_dies(cluster, path, model_folder, tmp_path, monkeypatch):
    from caswit.mapping.ray import engine
    from caswit.mapping.worker import Worker

    class Dying(Worker):
        def block(self, *_):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(engine, "Worker", Dying)
    monkeypatch.setattr(engine, "_DEATHS", 1)
    run = MapRunConfig(engine="ray", workers=1, worker_cpus=1)
    with pytest.raises(ConfigError, match="died over the same block"):
        predict(path, tmp_path / "map.tif", model_folder, SETTINGS, run=run)


def test_more_workers_than_cores(cluster, path, model_folder, tmp_path):
    run = MapRunConfig(engine="ray", workers=40, worker_cpus=1)
    with pytest.raises(ConfigError, match=r"40 workers with 1 cores each do not fit .*: 2 do; try fewer --workers"):
        predict(path, tmp_path / "map.tif", model_folder, SETTINGS, run=run)


def test_what_a_worker_cannot_read_is_skipped_and_listed(cluster, path, make_raster, model_folder, tmp_path):
    """By the command, on a running cluster, with names relative to a folder in which no worker is."""
    cut = make_raster(read(path), "cut.tif", **georeference(), tiled=True, blockxsize=16, blockysize=16)
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * 0.7)])
    words = ["predict", "cut.tif", "map.tif", "--model", model_folder, "--on-error", "skip", "--block-px", 40]
    words += ["--precision", "fp32", "--batch", 1, "--device", "cpu"]
    words += ["--engine", "ray", "--address", cluster, "--workers", 1, "--worker-cpus", 1]
    command = [sys.executable, "-m", "caswit", *map(str, words)]
    here = {**os.environ, "PYTHONPATH": str(Path(caswit.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("map.tif\n")
    expected = predict(cut, tmp_path / "local.tif", model_folder, SETTINGS, run=MapRunConfig(on_error="skip"))
    assert expected.skipped
    assert [line.strip() for line in done.stderr.splitlines() if line.startswith("  rows")] == [*expected.skipped]
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "local.tif"))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", r"no Ray cluster at 127\.0\.0\.1:9 .*ray start --head"),
        ("somewhere", "address must be HOST:PORT of a Ray cluster, or auto, got somewhere"),
    ],
)
def test_where_no_cluster_is(address, said):
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    from caswit.mapping.ray.cluster import check_answers

    with pytest.raises(ConfigError, match=said):
        check_answers(address)


def test_without_ray_the_command_says_what_to_install(path, model_folder, tmp_path):
    code = "import sys; sys.modules['ray'] = None; from caswit.cli.main import main; main(sys.argv[1:])"
    words = ["predict", path, tmp_path / "map.tif", "--model", model_folder, "--engine", "ray"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"caswit: predict needs ray, which comes with the extra ray: {install('ray')}\n"


def test_settings_of_a_cluster_need_the_engine():
    with pytest.raises(ConfigError, match="workers is a setting of the ray engine; add --engine ray"):
        MapRunConfig(workers=2)
