"""The gate of the viewer: what a folder's rasters may be made of."""

import os
from xml.sax.saxutils import escape

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.vrt import WarpedVRT

from caswit.errors import DataError
from caswit.raster.gate import MAX_DEPTH, Gate
from caswit.raster.overviews import Overviews
from caswit.raster.reader import write_raster
from caswit.raster.vrt import Part, mosaic_files
from caswit.raster.windows import Window
from conftest import picture


@pytest.fixture
def root(tmp_path):
    """A folder with a raster, and a raster outside it."""
    inside = tmp_path / "shown"
    inside.mkdir()
    write_raster(inside / "a.tif", picture(40, 50), crs="EPSG:2154")
    write_raster(tmp_path / "secret.tif", picture(40, 50, 3), crs="EPSG:2154")
    return inside


def virtual(*lines: str, attributes: str = "") -> str:
    band = "".join(lines)
    return f'<VRTDataset rasterXSize="50" rasterYSize="40"{attributes}>{band}</VRTDataset>'


def source(name: str, kind: str = "SimpleSource", flag: str = ' relativeToVRT="0"') -> str:
    inner = f"<SourceFilename{flag}>{escape(name)}</SourceFilename><SourceBand>1</SourceBand>"
    return f'<VRTRasterBand dataType="Byte" band="1"><{kind}>{inner}</{kind}></VRTRasterBand>'


def warped(name: str) -> str:
    options = f'<GDALWarpOptions><SourceDataset relativeToVRT="0">{name}</SourceDataset></GDALWarpOptions>'
    return virtual('<VRTRasterBand dataType="Byte" band="1"/>', options, attributes=' subClass="VRTWarpedDataset"')


class TestAllowed:
    @pytest.mark.parametrize(("name", "driver"), [("x.png", "PNG"), ("x.jpg", "JPEG"), ("x.tif", "GTiff")])
    def test_pictures(self, root, name, driver):
        Image.fromarray(np.moveaxis(picture(40, 50), 0, -1)).save(root / name)
        assert Gate(root).driver(root / name) == driver

    def test_jpeg_2000(self, root):
        rasterio.shutil.copy(root / "a.tif", root / "x.jp2", driver="JP2OpenJPEG")
        assert Gate(root).driver(root / "x.jp2") == "JP2OpenJPEG"
        assert Overviews(root / "x.jp2", Gate(root)).info.bands == 3

    def test_virtual_rasters_that_gdal_writes(self, root):
        """A copy, a warped one, one of the warped one, and one with overviews and statistics beside it."""
        with rasterio.open(root / "a.tif") as src:
            rasterio.shutil.copy(src, root / "copy.vrt", driver="VRT")
            with WarpedVRT(src, crs="EPSG:4326") as warp:
                rasterio.shutil.copy(warp, root / "warped.vrt", driver="VRT")
        rasterio.shutil.copy(root / "warped.vrt", root / "twice.vrt", driver="VRT")
        rasterio.shutil.copy(root / "a.tif", root / "copy.vrt.ovr", driver="GTiff")
        (root / "copy.vrt.aux.xml").write_text("<PAMDataset><Metadata><MDI key='a'>b</MDI></Metadata></PAMDataset>")
        for name in ("copy.vrt", "warped.vrt", "twice.vrt"):
            opened = Overviews(root / name, Gate(root))
            pixels, _ = opened.read(Window(0, 0, 20, 20), 20, 20, (1, 2, 3))
            assert pixels.any()
            opened.close()

    def test_mosaics_of_ours(self, root):
        for name, count in (("mosaic", 1), ("of_sheets", 100)):
            parts = [Part(str(root / "a.tif"), Window(0, 50 * number, 40, 50)) for number in range(count)]
            size, where = (40, 50 * count), {"transform": (1, 0, 0, 0, -1, 0), "crs": "EPSG:2154"}
            files = mosaic_files(name, parts, size, bands=3, filled=True, **where)
            assert len(files) == (1 if count == 1 else 1 + -(-count // 8))
            for file, xml in files.items():
                (root / file).parent.mkdir(exist_ok=True)
                (root / file).write_text(xml)
            window = Window(0, 50 * (count - 1), 40, 50)
            pixels, valid = Overviews(root / f"{name}.vrt", Gate(root)).read(window, 40, 50, (1, 2, 3))
            np.testing.assert_array_equal(pixels, picture(40, 50))
            assert valid.all()

    def test_xmp_of_a_drone(self, root):
        xmp = "<?xpacket begin='\ufeff' id='W5M0'?><x:xmpmeta xmlns:x='adobe:ns'><x:a/></x:xmpmeta><?xpacket end='w'?>"
        tags = f'<Metadata domain="xml:XMP" format="xml">{xmp}</Metadata>'
        (root / "x.vrt").write_text(virtual(tags, source("a.tif", flag=' relativeToVRT="1"')))
        assert Overviews(root / "x.vrt", Gate(root)).read(Window(0, 0, 40, 50), 40, 50)[0].any()

    def test_a_directory_of_a_tiff_and_a_file_that_is_missing(self, root):
        (root / "x.vrt").write_text(virtual(source(f"GTIFF_DIR:1:{root / 'a.tif'}"), source(str(root / "none.tif"))))
        assert Gate(root).driver(root / "x.vrt") == "VRT"


OUTSIDE = {
    "a path": lambda out: virtual(source(str(out))),
    "a path beside": lambda out: virtual(source("../secret.tif", flag=' relativeToVRT="1"')),
    "a flag that GDAL takes for true": lambda out: virtual(source("../secret.tif", flag=' relativeToVRT="2"')),
    "a blank in front, which GDAL drops": lambda out: virtual(source(f" {out}")),
    "a path by entities": lambda out: virtual(source(str(out)).replace("/secret", "&#47;secret")),
    "an attribute": lambda out: virtual(
        f'<VRTRasterBand band="1" dataType="Byte"><SimpleSource SourceFilename="{out}"/></VRTRasterBand>'
    ),
    "small letters": lambda out: virtual(source(str(out)).lower()),
    "a link to the folder above": lambda out: virtual(source("up/secret.tif", flag=' relativeToVRT="1"')),
    "a warped raster": lambda out: warped(f"GTIFF_DIR:1:{out}"),
    "an overview": lambda out: virtual(
        source("a.tif", flag=' relativeToVRT="1"').replace(
            "</VRTRaster", f"<Overview><SourceFilename>{out}</SourceFilename></Overview></VRTRaster"
        )
    ),
    "raw bytes": lambda out: virtual(
        f'<VRTRasterBand band="1" dataType="Byte" subClass="VRTRawRasterBand"><SourceFilename>{out}</SourceFilename>'
        "</VRTRasterBand>"
    ),
    "pansharpening": lambda out: virtual(
        f"<PansharpeningOptions><PanchroBand><SourceFilename>{out}</SourceFilename></PanchroBand></PansharpeningOptions>",
        attributes=' subClass="VRTPansharpenedDataset"',
    ),
    "a processed dataset": lambda out: virtual(
        f"<Input><SourceFilename>{out}</SourceFilename></Input>", attributes=' subClass="VRTProcessedDataset"'
    ),
    "XML within XML": lambda out: virtual(source(virtual(source(str(out))))),
    "a relative path in XML within XML": lambda out: virtual(source(virtual(source("../secret.tif")))),
    "a derived dataset": lambda out: virtual(source(f"DERIVED_SUBDATASET:AMPLITUDE:{out}")),
    "the vrt protocol": lambda out: virtual(source(f"vrt://{out}?bands=1")),
    "a part of a file": lambda out: virtual(source(f"/vsisubfile/0_9999,{out}")),
    "a server": lambda out: virtual(source("/vsicurl/http://127.0.0.1:9/x.tif")),
    "an address": lambda out: virtual(source("http://127.0.0.1:9/x.tif")),
    "a web map": lambda out: virtual(source("<GDAL_WMS><Service name='TMS'/></GDAL_WMS>")),
    "a web map by itself": lambda out: "<GDAL_WMS><Service name='TMS'/></GDAL_WMS>",
    "tags about overviews": lambda out: virtual(
        f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{out}</MDI></Metadata>', source("a.tif")
    ),
    "a document type": lambda out: f'<!DOCTYPE VRTDataset [<!ENTITY o "{out}">]>' + virtual(source("&o;")),
    "CDATA": lambda out: virtual(source("X")).replace("X", f"<![CDATA[{out}]]>"),
    "a tile index": lambda out: f"<GDALTileIndexDataset><IndexDataset>{out}</IndexDataset></GDALTileIndexDataset>",
    "text": lambda out: "just text",
}


@pytest.mark.parametrize("case", OUTSIDE)
@pytest.mark.parametrize("name", ["x.vrt", "x.tif"])
def test_what_reaches_outside_is_refused(root, case, name):
    (root / "up").symlink_to(root.parent)
    (root / name).write_text(OUTSIDE[case](root.parent / "secret.tif"))
    with pytest.raises(DataError, match=name):
        Overviews(root / name, Gate(root))
    # Nor through another virtual raster.
    (root / "outer.vrt").write_text(virtual(source(name, flag=' relativeToVRT="1"')))
    with pytest.raises(DataError, match=name):
        Gate(root).driver(root / "outer.vrt")


@pytest.mark.parametrize("name", ["a.tif.ovr", "a.tif.msk", "a.tif.aux.xml", "a.aux", "a.tfw", "a_rpc.txt"])
def test_sidecars_are_ordinary_files_of_the_folder(root, name):
    (root / name).symlink_to(root.parent / "secret.tif")
    with pytest.raises(DataError, match=f"{name} beside it is not a file"):
        Gate(root).driver(root / "a.tif")
    (root / name).unlink()
    os.mkfifo(root / name)
    with pytest.raises(DataError, match=f"{name} beside it is not a file"):
        Gate(root).driver(root / "a.tif")


@pytest.mark.parametrize("name", ["a.tif.ovr", "a.tif.msk", "A.TIF.OVR"])
def test_sidecars_are_no_virtual_rasters(root, name):
    (root / name).write_text(virtual(source(str(root.parent / "secret.tif"))))
    with pytest.raises(DataError, match="is no GeoTIFF"):
        Gate(root).driver(root / "a.tif")


def test_no_sidecar_names_overviews(root):
    item = f'<MDI key="&#79;VERVIEW_FILE">{root.parent / "secret.tif"}</MDI>'
    (root / "a.tif.aux.xml").write_text(f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>')
    with pytest.raises(DataError, match="names another file for overviews"):
        Gate(root).driver(root / "a.tif")


def test_no_tag_names_overviews(root):
    """Not of the raster, of its overviews, or of what a virtual raster is made of; and GDAL does not open that file."""
    os.mkfifo(root.parent / "pipe")  # whoever opens it hangs
    (root / "x.vrt").write_text(virtual(source("a.tif", flag=' relativeToVRT="1"')))
    (root / "b.tif").write_bytes((root / "a.tif").read_bytes())
    (root / "b.tif.ovr").write_bytes((root / "a.tif").read_bytes())
    for name in ("a.tif", "b.tif.ovr"):
        with rasterio.open(root / name, "r+") as dst:
            dst.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(root.parent / "pipe"))
    for name in ("a.tif", "x.vrt", "b.tif"):
        with pytest.raises(DataError, match="its tags name another file"):
            Gate(root).driver(root / name)


def test_virtual_rasters_end(root):
    (root / "me.vrt").write_text(virtual(source("me.vrt", flag=' relativeToVRT="1"')))
    with pytest.raises(DataError, match=f"more than {MAX_DEPTH} virtual rasters"):
        Gate(root).driver(root / "me.vrt")
    (root / "twice.vrt").write_text(
        virtual(*(source(f"{name}.vrt", flag=' relativeToVRT="1"') for name in ("twice", "me")))
    )
    with pytest.raises(DataError, match=f"more than {MAX_DEPTH} virtual rasters"):
        Gate(root).driver(root / "twice.vrt")


def test_many_rasters_keep_few_files_open(root):
    """As many as are looked at, and no more than the pool holds, however many rasters there are."""
    rasters = []
    for k in range(60):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / f"{k}.png")
        rasters.append(Overviews(root / f"{k}.png", Gate(root)))
    links = [os.path.realpath(link) for link in os.scandir("/proc/self/fd")] if os.path.isdir("/proc/self/fd") else []  # noqa: PTH112
    assert sum(link.endswith(".png") for link in links) <= 32
    assert all(raster.read(Window(0, 0, 4, 4), 4, 4)[0].shape == (1, 4, 4) for raster in rasters)
    for raster in rasters:
        raster.close()
