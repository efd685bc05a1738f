"""The measurements of a GPU, tried where there may be none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import caswit

ROOT = Path(caswit.__file__).parents[2]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_gpu_sh_measures_everything_it_lists(tmp_path):
    pytest.importorskip("transformers", reason="what caswit is compared with: pip install '.[bench]'")
    environment = {**os.environ, "PYTHON": sys.executable}
    ended = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", tmp_path, "--small"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    pages = json.loads((tmp_path / "gpu.json").read_text())
    assert not [row for rows in pages.values() for row in rows if "failed" in row], pages
    assert [(row["network"], row["batch"]) for row in pages["inference"]] == [
        (network, batch) for batch in (1, 2) for network in ("ours", "plain", "(a) eager")
    ]
    assert all(row["pixels as plain"] > 0.9 for row in pages["inference"] if row["network"] == "ours")
    assert [row["network"] for row in pages["training"]] == ["ours", "(a) eager"]
    assert [row["tiles"] for row in pages["raster"]] == [16]
    assert all(row["largest difference"] <= 1e-6 for row in pages["resume"])
    assert (tmp_path / "gpu.md").read_text().count("\n| --- |") == len(pages)
