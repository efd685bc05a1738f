"""Folders of parts, and what a user may call images."""

import json
import subprocess
import sys

import pytest

from caswit.errors import ConfigError, DataError
from caswit.mapping.journal import open_journal, write_loose
from caswit.mapping.plan import fingerprint, list_images

RUN = {"images": "a.tif", "overlap_px": "8"}


def names(folder) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_what_is_finished_is_there_next_time(tmp_path):
    out = tmp_path / "map.tif"
    with open_journal(out, RUN, restart=False) as journal:
        journal.finish(3, b"part")
        journal.finish(4, None)
        journal.skip(5, "truncated")
    with open_journal(out, RUN, restart=False) as journal:
        assert journal.done == {3, 4}
        assert journal.part(3).read_bytes() == b"part"
        assert journal.part(4) is None
        journal.finish(5, b"now it could be read")
        journal.remove()
    assert not names(tmp_path)


def test_what_others_write_counts_once_it_is_adopted(tmp_path):
    out = tmp_path / "map.tif"
    with open_journal(out, RUN, restart=False) as journal:
        late, written = (write_loose(journal.folder, 3, part) for part in (b"of a run that was killed", b"part"))
        journal.skip(3, "truncated")
        assert journal.part(3) is None
        journal.adopt(3, written)
        assert journal.done == {3}
        with pytest.raises(FileNotFoundError):
            journal.adopt(4, "written-elsewhere.tmp")
        assert late in names(journal.folder)
    with open_journal(out, RUN, restart=False) as journal:
        assert names(journal.folder) == {"manifest.json", "lock", "0000003.tif"}
        assert journal.part(3).read_bytes() == b"part"


def test_a_run_that_finished_nothing_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), open_journal(tmp_path / "map.tif", RUN, restart=False):
        raise KeyError
    assert not names(tmp_path)


def test_another_run_is_told_what_differs_and_may_restart(tmp_path):
    out = tmp_path / "map.tif"
    with open_journal(out, RUN, restart=False) as journal:
        journal.finish(0, b"x")
    other = RUN | {"overlap_px": "10", "blend": "True"}
    with (
        pytest.raises(
            ConfigError, match=r"holds 1 finished .*blend was not set, now True; overlap_px was 8, now 10; .*--re"
        ),
        open_journal(out, other, restart=False),
    ):
        pass
    with open_journal(out, RUN, restart=False) as journal:
        assert journal.done == {0}
    with open_journal(out, other, restart=True) as journal:
        assert not journal.done
        journal.finish(1, b"y")
    with open_journal(out, other, restart=False) as journal:
        assert journal.done == {1}


def test_two_runs_on_one_output(tmp_path):
    out = tmp_path / "map.tif"
    code = """
import sys
from pathlib import Path
from caswit.errors import ConfigError
from caswit.mapping.journal import open_journal, write_loose
try:
    with open_journal(Path(sys.argv[1]), {}, restart=True):
        print("came in")
except ConfigError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(out)]
    with open_journal(out, RUN, restart=False) as journal:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "another run is writing this map (process " in said
        journal.finish(0, b"x")  # untouched by the other's --restart
        assert json.loads((journal.folder / "manifest.json").read_text()) == RUN
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "came in\n"


def test_the_lock_ends_with_its_process(tmp_path):
    out = tmp_path / "map.tif"
    code = """
import sys
from pathlib import Path
from caswit.mapping.journal import open_journal
with open_journal(Path(sys.argv[1]), {}, restart=False) as journal:
    journal.finish(0, b"x")
    print("inside", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "inside\n"
        with pytest.raises(ConfigError, match=f"process {other.pid} on"), open_journal(out, {}, restart=False):
            pass
        other.kill()
    with open_journal(out, {}, restart=False) as journal:
        assert journal.done == {0}
        assert names(journal.folder) == {"lock", "manifest.json", "0000000.tif"}


def test_predict_imports_without_what_only_posix_has():
    """Windows has neither fcntl nor resource."""
    code = "import sys; sys.modules.update(dict.fromkeys(['fcntl', 'resource', 'pwd', 'grp'])); " \
           "import caswit.mapping.run, caswit.cli.maps"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)


def test_leftovers_of_a_killed_run_are_cleared_and_other_files_are_not(tmp_path):
    out = tmp_path / "map.tif"
    with open_journal(out, RUN, restart=False) as journal:
        journal.finish(0, b"x")
        (journal.folder / ".0000001.tif.ab.tmp").write_bytes(b"ha")
    for name in (".map.tif.12ab.tmp", ".map.tif.12ab.tmp.ovr.tmp", ".other.tif.12ab.tmp"):
        (tmp_path / name).write_bytes(b"ha")
    with open_journal(out, RUN, restart=False) as journal:
        assert names(journal.folder) == {"lock", "manifest.json", "0000000.tif"}
    assert names(tmp_path) == {"map.tif.parts", ".other.tif.12ab.tmp"}


def test_a_manifest_that_was_damaged(tmp_path):
    out = tmp_path / "map.tif"
    with open_journal(out, RUN, restart=False) as journal:
        journal.finish(0, b"x")
        (journal.folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="--restart"), open_journal(out, RUN, restart=False):
        pass


@pytest.fixture
def folder(tmp_path):
    for name in ("b.tif", "a.TIF", "c.jp2", "notes.xml", "d.tif.aux.xml"):
        (tmp_path / name).write_text(name)
    (tmp_path / "list.txt").write_text(f"b.tif\n\n{tmp_path}/a.TIF\nhttps://x.org/y.tif\n")
    return tmp_path


def test_ways_to_name_images(folder):
    def found(*words):
        return [name.replace(f"{folder}/", "") for name in list_images([str(word) for word in words])]

    assert found(folder) == ["a.TIF", "b.tif", "c.jp2"]
    assert found(folder / "*.tif") == ["b.tif"]
    assert found(folder / "c.jp2", folder / "b.tif") == ["c.jp2", "b.tif"]
    assert found(folder / "list.txt") == ["b.tif", "a.TIF", "https://x.org/y.tif"]
    assert found("s3://bucket/*.tif", "/vsizip/a.zip/b.tif") == ["s3://bucket/*.tif", "/vsizip/a.zip/b.tif"]
    (folder / "odd[1].tif").write_text("")
    assert found(folder / "odd[1].tif") == ["odd[1].tif"]


@pytest.mark.parametrize(("word", "message"), [("none*.tif", "no file matches"), ("", "folder without images"),
                                               ("empty.txt", "empty list")])  # fmt: skip
def test_names_of_nothing(tmp_path, word, message):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=message):
        list_images([str(tmp_path / word)])


def test_an_image_given_twice(folder):
    with pytest.raises(DataError, match="given more than once"):
        list_images([str(folder), str(folder / "b.tif")])


def test_a_fingerprint_changes_with_a_file(folder):
    images = list_images([str(folder)])
    before = fingerprint(images)
    assert fingerprint(images) == before
    (folder / "b.tif").write_text("changed")
    assert fingerprint(images) != before
    assert fingerprint(images[::-1]) != fingerprint(images)  # the order decides overlaps
