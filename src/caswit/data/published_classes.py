"""Class tables of published datasets, with their official names and colours."""

from caswit.data.classes import ClassTable, LandClass


def _table(*rows: tuple[str, str], ignored: int = 0) -> ClassTable:
    """Names and colours of ids from 0; the last ones are ignored."""
    first_ignored = len(rows) - ignored
    return ClassTable(
        tuple(LandClass(id=i, name=n, color=c, ignore=i >= first_ignored) for i, (n, c) in enumerate(rows))
    )


FLAIR_HUB_CLASSES = _table(
    ("building", "#db0e9a"),
    ("greenhouse", "#9999ff"),
    ("swimming pool", "#3de6eb"),
    ("impervious surface", "#f80c00"),
    ("pervious surface", "#938e7b"),
    ("bare soil", "#a97101"),
    ("water", "#1553ae"),
    ("snow", "#ffffff"),
    ("herbaceous vegetation", "#55ff00"),
    ("agricultural land", "#fff30d"),
    ("plowed land", "#e4df7c"),
    ("vineyard", "#660082"),
    ("deciduous", "#46e483"),
    ("coniferous", "#194a26"),
    ("brushwood", "#f3a60d"),
    ("clear cut", "#8ab3a0"),
    ("ligneous", "#c5dc42"),
    ("mixed", "#6b714f"),
    ("undefined", "#000000"),
    ignored=4,
)
"""COSIA's 19 ids, of which FLAIR-HUB scores the first 15."""

URUR_CLASSES = _table(
    ("others", "#000000"),
    ("building", "#e6e6e6"),
    ("farmland", "#5fa307"),
    ("greenhouse", "#646464"),
    ("woodland", "#c8e6a0"),
    ("bareland", "#ffff64"),
    ("water", "#96c8fa"),
    ("road", "#f06450"),
)
"""All 8 count, "others" included: the convention of the papers that report on URUR."""

DEEPGLOBE_CLASSES = _table(
    ("urban", "#00ffff"),
    ("agriculture", "#ffff00"),
    ("rangeland", "#ff00ff"),
    ("forest", "#00ff00"),
    ("water", "#0000ff"),
    ("barren", "#ffffff"),
    ("unknown", "#000000"),
    ignored=1,
)
"""The official names and colours; clouds and others are unknown, which is not scored."""


def _against_background(name: str, color: str, id_: int) -> ClassTable:
    return ClassTable(
        (LandClass(id=0, name="background", color="#e6e6e6"), LandClass(id=id_, name=name, color=color)),
    )


OFFICIAL_CLASSES = {
    "flair_hub": FLAIR_HUB_CLASSES,
    "urur": URUR_CLASSES,
    "swissimage": ClassTable(()),
    "inria": _against_background("building", "#db0e9a", 255),
    "deepglobe": DEEPGLOBE_CLASSES,
    "isic": _against_background("lesion", "#0072b2", 255),
    "crag": _against_background("gland", "#009e73", 1),
}
"""By kind of source; SWISSIMAGE has no labels. Masks of 0 and 255 keep their values as ids."""
