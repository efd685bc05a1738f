"""Folders of parts, and what a user may call images."""

import json
import shutil
import subprocess
import sys

import pytest

from caswit.errors import ConfigError, DataError
from caswit.mapping.journal import open_journal, write_loose
from caswit.mapping.plan import fingerprint
from caswit.mapping.seal import sealed
from caswit.raster.image_list import list_images

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
        assert journal.part(3).read_bytes() == sealed(b"part", 3)
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
        assert journal.part(3).read_bytes() == sealed(b"part", 3)


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
        assert json.loads((journal.folder / "manifest.json").read_text()) == RUN | {"parts": "sealed"}
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


@pytest.mark.parametrize("names", [["photo.jpg"], ["0000001.tif"], ["manifest.json"], ["lock", "a.tif"]])
@pytest.mark.parametrize("restart", [False, True])
def test_a_users_folder_of_that_name_is_left_alone(tmp_path, names, restart):
    """It was emptied and deleted."""
    folder = tmp_path / "map.tif.parts"
    folder.mkdir()
    for name in names:
        (folder / name).write_text('{"name": "somebody\'s"}')
    with (
        pytest.raises(ConfigError, match=r"map\.tif\.parts: is needed for parts .* that are not caswit's \("),
        open_journal(tmp_path / "map.tif", RUN, restart=restart),
    ):
        pass
    assert {file.name: file.read_text() for file in folder.iterdir()} == dict.fromkeys(names, '{"name": "somebody\'s"}')


def test_a_users_file_among_the_parts_stays(tmp_path):
    out = tmp_path / "map.tif"
    with open_journal(out, RUN, restart=False) as journal:
        journal.finish(0, b"x")
        (journal.folder / "notes.txt").write_text("mine")
        (journal.folder / "sub").mkdir()
    with open_journal(out, RUN, restart=True) as journal:
        assert not journal.done
        journal.finish(0, b"x")
        journal.remove()
    assert names(tmp_path / "map.tif.parts") == {"notes.txt", "sub"}


@pytest.mark.parametrize("left", [["lock"], ["lock", ".manifest.json.12ab.tmp"], ["lock", "0000001.tif"], []])
def test_what_a_kill_leaves_without_a_manifest_is_ours(tmp_path, left):
    """The last: version 0.1.0, killed while it removed its parts."""
    (tmp_path / "map.tif.parts").mkdir()
    for name in left:
        (tmp_path / "map.tif.parts" / name).touch()
    with open_journal(tmp_path / "map.tif", RUN, restart=False) as journal:
        assert not journal.done
    assert not names(tmp_path)


def damage(folder, how):
    one, other = folder / "0000001.tif", folder / "0000002.tif"
    content = one.read_bytes()
    if how == "missing":
        one.unlink()
    elif how == "swapped":
        one.write_bytes(other.read_bytes())
    elif how == "empty":
        one.rename(folder / "0000001.none")
    elif how == "truncated":
        one.write_bytes(content[:-1])
    else:
        at = {"first": 0, "middle": len(content) // 2, "last": -1}[how]
        changed = bytearray(content)
        changed[at] ^= 1
        one.write_bytes(changed)


DAMAGES = ["missing", "swapped", "empty", "truncated", "first", "middle", "last"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_part_is_not_done(tmp_path, how, caplog):
    out = tmp_path / "map.tif"
    with open_journal(out, RUN, restart=False) as journal:
        for number in range(4):
            journal.finish(number, None if number == 3 else bytes([number]) * 1000)
        damage(journal.folder, how)
        assert journal.discard_damaged() == [1]
        assert journal.done == {0, 2, 3}
        assert [r.message.partition(": ")[2] for r in caplog.records] == [
            "parts are missing or damaged; computing these blocks again: 1"
        ]
        journal.finish(1, b"again")
        assert not journal.discard_damaged()
        damage(journal.folder, how)
    with open_journal(out, RUN, restart=False) as journal:
        assert journal.done == {0, 2, 3}
        assert names(journal.folder) == {"lock", "manifest.json", "0000000.tif", "0000002.tif", "0000003.none"}


def test_a_mark_of_no_data_belongs_to_its_block(tmp_path):
    with open_journal(tmp_path / "map.tif", RUN, restart=False) as journal:
        journal.finish(1, None)
        journal.finish(2, b"part")
        (journal.folder / "0000002.tif").unlink()
        shutil.copy(journal.folder / "0000001.none", journal.folder / "0000002.none")
        assert journal.discard_damaged() == [2]


def test_parts_without_seals_are_looked_at_once(tmp_path):
    """Those of version 0.1.0; a run that was killed meanwhile looks at the rest."""
    out, folder = tmp_path / "map.tif", tmp_path / "map.tif.parts"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(RUN))
    for name, content in {"0000000.tif": b"good", "0000001.tif": b"bad", "0000002.none": b""}.items():
        (folder / name).write_bytes(content)
    (folder / "0000003.tif").write_bytes(sealed(b"good", 3))
    looked = []

    def is_part(number, file):
        looked.append(number)
        return file.read_bytes() == b"good"

    for _ in range(2):
        with open_journal(out, RUN, restart=False, is_part=is_part) as journal:
            assert journal.done == {0, 2, 3}
            assert journal.part(0).read_bytes() == sealed(b"good", 0)
    assert looked == [0, 1]


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
