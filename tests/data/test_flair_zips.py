"""caswit prepare flair_hub: from the zip files to the very files that were packed, whatever happens on the way."""

import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from caswit.cli.main import main
from caswit.data.dataset import load_dataset
from caswit.data.sources import flair_zips
from caswit.data.sources.flair_zips import prepare_flair_hub
from caswit.errors import DataError
from conftest import picture
from trees import PATCH_PX, make_flair_hub, write_dataset, write_flair_geopackage

KINDS = "AERIAL_RGBI", "AERIAL_LABEL-COSIA"


def contents(root: Path) -> dict[str, bytes]:
    """Every file but zips, by path."""
    files = (f for f in root.rglob("*") if f.is_file() and f.suffix != ".zip")
    return {str(f.relative_to(root)): f.read_bytes() for f in files}


@pytest.fixture
def unpacked(tmp_path):
    """Two domains of 3 x 4 patches, and the splits."""
    root = tmp_path / "unpacked"
    pixels = picture(3 * PATCH_PX, 4 * PATCH_PX)
    pixels = np.concatenate([pixels, 255 - pixels[:1]])
    ids = (np.indices(pixels.shape[1:]).sum(0) // 9 % 15).astype(np.uint8)[None]
    patches = [p for domain in ("D012-2019", "D034-2021") for p in make_flair_hub(root, pixels, ids, domain=domain)]
    splits = {patch: ("train", "valid", "test")[i % 3] for i, patch in enumerate(patches)}
    write_flair_geopackage(root / "GLOBAL_ALL_MTD" / "GLOBAL_ALL_MTD_SPLIT.gpkg", splits)
    return root


@pytest.fixture
def root(tmp_path, unpacked):
    """The zips as downloaded: one for each domain and kind, in data/; each with other folders inside."""
    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    for folder in sorted(unpacked.iterdir()):
        with zipfile.ZipFile(data / f"{folder.name}_IMS.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    outside = f"./x/{folder.name}" if "D034" in folder.name else file.parent.name
                    packed.write(file, f"{outside}/{file.name}")
            packed.writestr("readme.txt", "not needed")
            packed.writestr("../D012-2019_AERIAL_RGBI_.._1-1.tif", "goes nowhere")
            packed.writestr("D012-2019_DEM_ELEV/A/D012-2019_DEM_ELEV_A_1-1.tif", "another kind")
    return tmp_path / "hub"


def test_what_was_packed_is_unpacked_and_nothing_else(root, unpacked, tmp_path, capsys):
    main(["prepare", "flair_hub", str(root)])
    assert capsys.readouterr().out == f"{root}\n"
    assert contents(root) == contents(unpacked)
    assert {f.name for f in tmp_path.iterdir()} == {"hub", "unpacked"}
    file = write_dataset(tmp_path / "d.yaml", source={"kind": "flair_hub", "root": "hub"})
    dataset = load_dataset(file)
    assert sum(len(s.areas) for s in dataset.scenes) == 24


def test_a_folder_of_zips_alone_says_how_to_go_on(root, tmp_path):
    file = write_dataset(tmp_path / "d.yaml", source={"kind": "flair_hub", "root": "hub"})
    with pytest.raises(DataError, match=r"unpack: caswit prepare flair_hub \S+hub$"):
        load_dataset(file)


def test_interrupted_anywhere_it_continues(root, unpacked, monkeypatch):
    """No half file under its final name; what is there is not written again."""
    original, written = shutil.copyfileobj, []

    def cut_off(packed, to, length):
        to.write(packed.read(100))
        raise KeyboardInterrupt

    expected = contents(unpacked)
    chance = random.Random(0)
    for _ in range(6):
        stop = len(written) + chance.randrange(1, 9)

        def copy(packed, to, length, stop=stop):
            (cut_off if len(written) >= stop else original)(packed, to, length)
            written.append(to.name)

        monkeypatch.setattr(flair_zips.shutil, "copyfileobj", copy)
        with pytest.raises(KeyboardInterrupt):
            prepare_flair_hub(root, workers=1)
        there = contents(root)
        assert all(content == expected[path] for path, content in there.items())
        assert len(there) == len(written) == stop
    monkeypatch.setattr(flair_zips.shutil, "copyfileobj", lambda *a: (written.append(a[1].name), original(*a)))
    for workers in (2, 1):  # the second time there is nothing left
        prepare_flair_hub(root, workers=workers)
        assert contents(root) == expected
        assert len(written) == len(expected)


def test_a_file_of_another_size_is_unpacked_again(root, unpacked):
    prepare_flair_hub(root)
    image = next(root.glob("D012-2019_AERIAL_RGBI/*/*.tif"))
    image.write_bytes(image.read_bytes()[:-10])
    prepare_flair_hub(root)
    assert contents(root) == contents(unpacked)


@pytest.mark.parametrize("damage", ["cut off", "a flipped byte", "no zip"])
def test_a_damaged_zip_is_named(root, unpacked, damage, caplog):
    file = root / "data" / "D034-2021_AERIAL_RGBI_IMS.zip"
    content = bytearray(file.read_bytes())
    if damage == "a flipped byte":
        content[len(content) // 2] ^= 0xFF
    file.write_bytes({"cut off": content[:-2000], "no zip": b"<html>not found</html>"}.get(damage, content))
    with pytest.raises(DataError, match=r"D034-2021_AERIAL_RGBI_IMS\.zip: a damaged or incomplete zip file \(.*again$"):
        prepare_flair_hub(root)
    prepare_flair_hub(root, skip_broken=True)
    assert file.name in caplog.text
    expected, there = contents(unpacked), contents(root)
    assert all(content == expected[path] for path, content in there.items())
    assert {p for p in expected if "D034-2021_AERIAL_RGBI/" not in p} <= there.keys()


def test_no_zips(tmp_path):
    with pytest.raises(DataError, match="none of its 0 zip files holds patches of AERIAL_RGBI"):
        prepare_flair_hub(tmp_path)


def test_no_room(root, monkeypatch):
    monkeypatch.setattr(flair_zips.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DataError, match=r"unpacking takes 0\.\d GB, 0\.0 GB are free"):
        prepare_flair_hub(root)
    assert contents(root) == {}
