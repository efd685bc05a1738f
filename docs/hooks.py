"""Pages of the site that are made of files elsewhere; mkdocs.yml names this file."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the Markdown of a page: CHANGELOG.md, whose links are relative to the root, in place of changelog.md."""
    if page.file.src_uri != "changelog.md":
        return markdown
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
