"""What a virtual raster (VRT) is made of: the files that its XML names, told as GDAL tells them.

GDAL takes elements and attributes in any case, and a virtual raster may stand in place of the name of one. The gate,
which must refuse, and the list of the files behind an image, which must be complete, both read names here.
"""

from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

FILES = frozenset({"sourcefilename", "sourcedataset"})
"""Elements that name a source, in lower case."""


class Named(NamedTuple):
    """A source of a virtual raster, as its XML names it."""

    text: str
    relative: str
    """Whether the name begins in the folder of the virtual raster: "1" or "0", or whatever else stands there."""

    @property
    def is_xml(self) -> bool:
        """Return whether the text is a virtual raster itself, not the name of a file."""
        return self.text.startswith("<VRTDataset")


def named(element: ElementTree.Element) -> Named | None:
    """Return the source that an element names; None if it names none."""
    if element.tag.lower() not in FILES:
        return None
    flags = {key.lower(): value for key, value in element.attrib.items()}
    return Named(element.text or "", flags.get("relativetovrt", "0"))


def elements(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Yield all elements, without those inside tags that are XML themselves, such as XMP, which GDAL only hands on."""
    pending = [root]
    while pending:
        element = pending.pop()
        yield element
        if not (element.tag.lower() == "metadata" and element.get("format") == "xml"):
            pending += element
