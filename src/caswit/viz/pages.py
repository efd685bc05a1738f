"""HTML and Markdown pages from the templates of the package."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from caswit.viz import pictures as viz

TEMPLATES = Path(__file__).parent / "templates"


def render(template_name: str, **values: Any) -> str:
    """Fill a template of `caswit/viz/templates`; a value it needs and does not get is an error."""
    return _environment().get_template(template_name).render(**values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=percent, duration=duration, cell=table_cell)
    environment.globals["wrong_colour"] = hex_colour(viz.WRONG_COLOUR)
    return environment


def hex_colour(colour: Iterable[int]) -> str:
    """#rrggbb."""
    return "#" + "".join(f"{value:02x}" for value in colour)


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction in percent, without the sign."""
    return f"{100 * fraction:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as one reads them: 12.3 s, 4 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def table_cell(text: str) -> str:
    """Text that cannot end a Markdown table cell."""
    return text.replace("|", "\\|")
