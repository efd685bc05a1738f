"""Colours of classes for which none are given: told apart by colour-blind readers too."""

import colorsys

OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#f0e442", "#d55e00", "#56b4e9", "#cc79a7", "#3c3c3c")
IGNORED = "#9b9b9b"
_LIGHTNESS = (0.55, 1.4, 0.35, 1.2)
"""Factors of the rounds after the first."""


def default_color(index: int) -> str:
    """Colour of the ``index``-th class (from 0), as #rrggbb."""
    turn, place = divmod(index, len(OKABE_ITO))
    base = OKABE_ITO[place]
    if turn == 0:
        return base
    hue, light, strength = colorsys.rgb_to_hls(*(int(base[i : i + 2], 16) / 255 for i in (1, 3, 5)))
    factor = _LIGHTNESS[(turn - 1) % len(_LIGHTNESS)]
    shifted = (hue + 0.03 * ((turn - 1) // len(_LIGHTNESS))) % 1
    rgb = colorsys.hls_to_rgb(shifted, min(0.92, max(0.08, light * factor)), strength)
    return "#" + "".join(f"{round(255 * v):02x}" for v in rgb)
