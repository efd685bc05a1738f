"""HTML and Markdown pages from the templates of the package."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from caswit.viz.pictures import WRONG_COLOUR

TEMPLATES = Path(__file__).parent / "templates"


def render(template_name: str, **values: Any) -> str:
    """Fill a template of ``caswit/viz/templates``; a missing value is an error."""
    return _environment().get_template(template_name).render(**values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        # Names of classes and files come from users: HTML escapes them, Markdown pages use the filter `cell`.
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=percent, duration=duration, cell=table_cell, numbers=numbers)
    environment.globals["wrong_colour"] = hex_colour(WRONG_COLOUR)
    return environment


def hex_colour(colour: Iterable[int]) -> str:
    """Write red, green and blue (0..255) as #rrggbb."""
    return "#" + "".join(f"{value:02x}" for value in colour)


def percent(fraction: float, digits: int = 2) -> str:
    """Write a fraction of 0..1 in percent, without the percent sign."""
    return f"{100 * fraction:.{digits}f}"


def duration(seconds: float) -> str:
    """Write seconds for a reader: 12.3 s, 4 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def numbers(values: int | Sequence[int]) -> str:
    """Write a number, or several: 2, 4 and 8."""
    *others, last = (str(value) for value in (values if isinstance(values, Sequence) else [values]))
    return f"{', '.join(others)} and {last}" if others else last


def table_cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return text.replace("|", "\\|")
