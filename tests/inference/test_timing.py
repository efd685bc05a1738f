"""Which way a network is computed in: by features, by timing, from the cache."""

import json
import re
import threading
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from caswit.cli.main import main
from caswit.inference.cpu import timing
from caswit.inference.cpu.kernels import usual
from conftest import georeference, picture
from networks import random_network

NEEDS_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CASWIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def network():
    return random_network(decoder_channels=16)


def found(network, **changes):
    facts = timing.about(network, 64, bf16=False)
    kernels = replace(usual(openvino=False), **changes)
    return timing.Found(kernels=kernels, about=facts, ratios={"runtime": {"torch": 1.0}})


def never(*args, **kwargs):
    raise AssertionError("timed")


FEATURES = [(True, True), (False, True), (False, False)]
"""AMX and AVX-512: of newer processors of Intel, of newer ones of AMD, of older ones."""


def test_features_decide_first():
    chosen = [(ways.attention, ways.winograd) for ways in (usual(amx=a, avx512=w) for a, w in FEATURES)]
    assert chosen == [("torch", False), ("groups", True), ("torch", True)]


def test_another_way_has_to_be_clearly_faster():
    assert timing.fastest({"now": 1.0, "other": 0.97}, "now") == "now"
    assert timing.fastest({"now": 1.0, "other": 0.9, "third": 0.8}, "now") == "third"


def test_runs_take_turns(monkeypatch):
    order, clock = [], iter(range(100))
    monkeypatch.setattr(timing.time, "process_time", lambda: float(next(clock)))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    spent = timing.time_in_turn({name: lambda name=name: order.append(name) for name in "ab"})
    assert "".join(order) == "ab" * 4
    assert spent == {"a": 1.0, "b": 1.0}


class TestRemembering:
    def test_what_was_found_is_used_under_the_same_facts_alone(self, network, monkeypatch):
        monkeypatch.setattr(timing, "timed", never)
        unusual = found(network, winograd=not usual().winograd)
        assert timing.remember(unusual)
        assert timing.choose(network, 64, bf16=False, map_px=10**12) == unusual
        assert timing.choose(network, 64, bf16=True).kernels == usual()
        assert timing.choose(network, 128, bf16=False).kernels == usual()
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
        assert timing.choose(network, 64, bf16=False).kernels == usual()

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"kernels": {}}', b"\xff\xfe", None])
    def test_a_broken_file_is_none(self, network, content):
        file = timing.file_of(found(network).about)
        file.parent.mkdir(parents=True)
        if content is None:
            wrong = asdict(found(network)) | {"about": {}}
            content = json.dumps(wrong).encode()
        file.write_bytes(content)
        assert timing.choose(network, 64, bf16=False).kernels == usual()
        assert timing.remember(found(network))
        assert timing.remembered(found(network).about) == found(network)

    def test_nothing_is_timed_where_it_cannot_be_remembered(self, network, cache, monkeypatch):
        """Else a map that goes on later could be computed in another way than it began."""
        cache.write_text("a file in place of the folder")
        monkeypatch.setattr(timing, "timed", never)
        assert timing.choose(network, 64, bf16=False, map_px=10**12).kernels == usual()
        assert not timing.remember(found(network))

    def test_processes_that_write_at_once_leave_a_whole_file(self, network):
        first, second = found(network, winograd=True), found(network, winograd=False)
        seen = []

        def write(what):
            for _ in range(20):
                assert timing.remember(what)
                seen.append(timing.remembered(what.about))

        threads = [threading.Thread(target=write, args=(what,)) for what in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 40
        assert all(each in (first, second) for each in seen)
        assert [file.suffix for file in timing.file_of(first.about).parent.iterdir()] == [".json"]


class TestTiming:
    def test_only_large_maps_are_worth_it_and_once(self, network, monkeypatch, caplog):
        caplog.set_level("INFO")
        calls = []
        monkeypatch.setattr(timing, "timed", lambda *args, **kwargs: calls.append(args) or found(network))
        assert timing.choose(network, 64, bf16=False, map_px=timing.PAYS_PX - 1).kernels == usual()
        assert not calls
        assert "timing" not in caplog.text
        for _ in range(2):
            assert timing.choose(network, 64, bf16=False, map_px=timing.PAYS_PX) == found(network)
        assert len(calls) == 1
        assert caplog.text.count("timing what is fastest on this processor") == 1

    @pytest.mark.parametrize("openvino", [False, pytest.param(True, marks=NEEDS_OPENVINO)])
    def test_what_is_chosen_is_not_clearly_slower_than_anything(self, openvino, monkeypatch):
        monkeypatch.setattr(timing, "MANY_KEYS", 64)
        monkeypatch.setattr(timing, "WIDE", 16)
        monkeypatch.setattr(timing, "LARGE", 64)
        result = timing.timed(random_network(decoder_channels=16), 64, bf16=False, openvino=openvino)
        assert set(result.ratios) == ({"runtime"} if openvino else set()) | {"convolutions"} | (
            {"attention", "windows"} if result.kernels.openvino else set()
        )
        for times in result.ratios.values():
            assert 1.0 in times.values()
            assert min(times.values()) >= 1 / timing._CLEARLY
        assert result.kernels.openvino in (openvino, False)

    def test_the_pages_lines_name_every_choice(self, network):
        lines = list(timing.describe(found(network), "by hand"))
        assert re.search("runtime +torch +usual for these features", "\n".join(lines))
        assert lines[-1].endswith("by hand")


def test_info_times_and_predict_follows(model_folder, tmp_path, capsys, make_raster, monkeypatch):
    main(["info", str(model_folder), "--speed"])
    said = capsys.readouterr().out
    assert "processor" in said
    assert "times as long" in said
    file = Path(re.search(r"remembered in (\S+\.json)", said)[1])
    stored = json.loads(file.read_text())
    image = make_raster(picture(70, 90), **georeference())
    monkeypatch.setattr(timing, "timed", never)
    monkeypatch.setattr(timing, "PAYS_PX", 1)
    maps = []
    for openvino in {False, stored["kernels"]["openvino"], find_spec("openvino") is not None}:
        changed = stored | {"kernels": stored["kernels"] | {"openvino": openvino}}
        file.write_text(json.dumps(changed))
        out = tmp_path / f"map{openvino}.tif"
        main(["predict", str(image), str(out), "--model", str(model_folder), "--device", "cpu"])
        with rasterio.open(out) as src:
            maps.append(src.read(1))
    assert all(np.mean(maps[0] == other) > 0.99 for other in maps)
    assert "nothing to choose" not in capsys.readouterr().out


def test_info_says_where_there_is_nothing_to_choose(monkeypatch, model_folder, capsys):
    monkeypatch.setattr("caswit.inference.load.can_be_arranged", lambda network: False)
    main(["info", str(model_folder), "--speed"])
    assert "nothing to choose on a CPU" in capsys.readouterr().out
