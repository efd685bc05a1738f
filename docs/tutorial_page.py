"""Write docs/tutorial.md and its pictures: the notebook docs/tutorial.ipynb, run, with what each cell shows.

python docs/tutorial_page.py    # trains for several minutes
"""

import base64
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from PIL import Image

DOCS = Path(__file__).parent
PAGE = DOCS / "tutorial.md"
INTRODUCTION = """\
<!-- Made by `python docs/tutorial_page.py` from tutorial.ipynb: edit that, not this page. -->

*This page is the notebook [tutorial.ipynb](tutorial.ipynb), as it ran on two CPU cores; figures differ a little
between processors.*
"""


def sources(notebook: Any) -> list[str]:
    """Return the Markdown of every cell, without what it shows."""
    return [f"```python\n{c.source}\n```" if c.cell_type == "code" else c.source for c in notebook.cells]


def shown(cell: Any, number: int) -> str:
    """Return the Markdown of what a cell shows; its picture is written to docs/images."""
    said = "".join(out.text for out in cell.get("outputs", []) if out.get("name") == "stdout").strip()
    parts = [f"```text\n{said}\n```"] if said else []
    for out in cell.get("outputs", []):
        if "image/png" in out.get("data", {}):
            picture = Image.open(io.BytesIO(base64.b64decode(out.data["image/png"]))).convert("RGB")
            file = DOCS / "images" / f"tutorial{number}.jpg"
            picture.save(file, quality=85)
            parts.append(f"![What the cell above draws](images/{file.name})")
    return "\n\n".join(parts)


def main() -> None:
    """Run the notebook and write the page."""
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=7200, startup_timeout=300, resources=resources).execute()
    blocks = []
    for number, (cell, source) in enumerate(zip(notebook.cells, sources(notebook), strict=True)):
        blocks += [source, shown(cell, number)]
    first, *others = filter(None, blocks)
    # The introduction goes below the page's title.
    title, _, rest = first.partition("\n")
    text = "\n\n".join([title, INTRODUCTION.strip(), rest.strip(), *others])
    PAGE.write_text(re.sub(r"\n{3,}", "\n\n", text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
