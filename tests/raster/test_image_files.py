"""The files behind an image: all that the gate follows, however a virtual raster names them."""

import html

import pytest

from caswit.raster.gate import Gate, _Visit
from caswit.raster.image_files import files_behind
from caswit.raster.vrt import Part, mosaic_files
from caswit.raster.windows import Window
from conftest import picture
from trees import write_tiff


def virtual(named: str) -> str:
    place = '<SrcRect xOff="0" yOff="0" xSize="8" ySize="8"/><DstRect xOff="0" yOff="0" xSize="8" ySize="8"/>'
    source = f"<SimpleSource>{named}<SourceBand>1</SourceBand>{place}</SimpleSource>"
    band = f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
    return f'<VRTDataset rasterXSize="8" rasterYSize="8">{band}</VRTDataset>'


@pytest.fixture
def folder(tmp_path):
    write_tiff(tmp_path / "a.tif", picture(8, 8), x=0, y=0)
    return tmp_path.resolve()


@pytest.mark.parametrize(
    "how",
    [
        '<SourceFilename relativeToVRT="1">a.tif</SourceFilename>',
        '<sourcefilename RELATIVETOVRT="1">a.tif</sourcefilename>',
        "<SOURCEFILENAME>{folder}/a.tif</SOURCEFILENAME>",
        '<SourceFilename relativeToVRT="1">inner.vrt</SourceFilename>',
        "<SourceFilename>{inline}</SourceFilename>",
    ],
)
def test_what_the_gate_follows_is_listed(folder, monkeypatch, how):
    inner = virtual(f"<SourceFilename>{folder}/a.tif</SourceFilename>")
    (folder / "inner.vrt").write_text(inner)
    (folder / "outer.vrt").write_text(virtual(how.format(folder=folder, inline=html.escape(inner))))
    followed = []
    original = _Visit.raster
    monkeypatch.setattr(
        _Visit, "raster", lambda self, path, depth: (followed.append(path), original(self, path, depth))[1]
    )
    Gate(folder).driver(folder / "outer.vrt")
    assert folder / "a.tif" in followed
    assert set(followed) <= set(files_behind([str(folder / "outer.vrt")]))


def test_the_sheets_of_a_mosaic_and_their_files_are_listed(folder):
    parts = [Part(str(folder / "a.tif"), Window(0, 8 * number, 8, 8)) for number in range(100)]
    where = {"transform": (1, 0, 0, 0, -1, 0), "crs": "EPSG:2154"}
    files = mosaic_files("large", parts, (8, 800), bands=3, **where)
    for file, xml in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(xml)
    assert set(files_behind([str(folder / "large.vrt")])) == {folder / "a.tif", *(folder / file for file in files)}
