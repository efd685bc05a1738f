"""Styles of QGIS: how a map, its confidence and its polygons are drawn, with the names of the classes.

QGIS looks for a style in the file of a layer's name that ends in .qml, whatever kind of layer it is, and takes of it
what draws its kind: a ``pipe`` draws rasters, a ``renderer-v2`` vectors. Background is transparent.
"""

from collections.abc import Iterable
from xml.sax.saxutils import quoteattr

from caswit.data.classes import ClassTable

MARK = "<!-- written by caswit -->"
"""QGIS drops it when it saves a style, so it tells our styles from those that somebody changed."""

_VIRIDIS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""Its lightness rises evenly for everybody, colour-blind people included."""
_FILL_ALPHA = 150
"""Of 255: the image can be seen through polygons."""
_FILL = (
    '<symbol type="fill" name="{number}" alpha="1" clip_to_extent="1" force_rhr="0">'
    '<layer class="SimpleFill" enabled="1" locked="0" pass="0">{properties}</layer></symbol>'
)


def style_file(parts: Iterable[str]) -> bytes:
    """Return the content of a style file (.qml) with these parts."""
    text = (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        f'<qgis styleCategories="Symbology" version="3.28">{MARK}{"".join(parts)}</qgis>\n'
    )
    return text.encode()


def map_style(table: ClassTable) -> str:
    """Draw class ids in the colours of their classes."""
    entries = "".join(
        f'<paletteEntry value="{c.id}" label={quoteattr(c.name)} color="{c.color}" '
        f'alpha="{0 if c.is_background else 255}"/>'
        for c in table.mapped
    )
    return (
        '<pipe><rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">'
        f"<colorPalette>{entries}</colorPalette></rasterrenderer></pipe>"
    )


def confidence_style() -> str:
    """Draw percentages from dark to bright."""
    percent = [100 * i // (len(_VIRIDIS) - 1) for i in range(len(_VIRIDIS))]
    items = "".join(
        f'<item value="{p}" label="{p} %" color="{color}" alpha="255"/>'
        for p, color in zip(percent, _VIRIDIS, strict=True)
    )
    return (
        '<pipe><rasterrenderer type="singlebandpseudocolor" band="1" opacity="1" alphaBand="-1" nodataColor="" '
        'classificationMin="0" classificationMax="100"><rastershader>'
        '<colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" minimumValue="0" '
        f'maximumValue="100">{items}</colorrampshader></rastershader></rasterrenderer></pipe>'
    )


def polygon_style(table: ClassTable) -> str:
    """Draw polygons by their column ``class``."""
    categories = "".join(
        f'<category symbol="{number}" value="{c.id}" label={quoteattr(c.name)} render="true"/>'
        for number, c in enumerate(table.mapped)
    )
    symbols = ""
    for number, c in enumerate(table.mapped):
        rgb = ",".join(map(str, c.rgb))
        looks = {
            "color": f"{rgb},{0 if c.is_background else _FILL_ALPHA}",
            "outline_color": f"{rgb},255",
            "outline_style": "solid",  # of background too: its polygons are in a file only if somebody asked for them
            "outline_width": "0.26",
            "outline_width_unit": "MM",
            "style": "solid",
        }
        options = "".join(f'<Option type="QString" name="{name}" value="{value}"/>' for name, value in looks.items())
        # Both spellings, as QGIS 3.22 writes them: older versions read prop, newer ones Option.
        properties = f'<Option type="Map">{options}</Option>'
        properties += "".join(f'<prop k="{name}" v="{value}"/>' for name, value in looks.items())
        symbols += _FILL.format(number=number, properties=properties)
    return (
        '<renderer-v2 type="categorizedSymbol" attr="class" symbollevels="0" forceraster="0" enableorderby="0">'
        f"<categories>{categories}</categories><symbols>{symbols}</symbols></renderer-v2>"
    )
