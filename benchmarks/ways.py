"""Print the files of the package that a map, and a training step, go through.

python benchmarks/ways.py predict IMAGE [--model MODEL ...]
python benchmarks/ways.py train RECIPE [--data.dataset DATASET ...]

A file counts where one of its functions is called between the command line and the finished map, or the first training
step; importing it does not count. Docs decision 11 quotes the counts: they are what one opens to follow the way.
"""

import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import caswit

SOURCE = Path(caswit.__file__).parent
SHORT = ["--train.max_steps", "1", "--train.batch", "2", "--data.workers", "0", "--data.val_split", "null"]
"""One step without validation."""


def files_of(words: list[str]) -> list[str]:
    """Run a command of caswit in this process; the files, relative to the package, whose functions it called."""
    from caswit.cli.main import main

    found: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(str(SOURCE)):
            # The body of a class runs when its module is imported; so do decorators, which are calls of other files.
            if not code.co_flags & 0x2 or _importing(frame):  # not CO_NEWLOCALS: no function
                return
            found.add(str(Path(code.co_filename).relative_to(SOURCE)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        main(words)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return sorted(found)


def _importing(frame: FrameType) -> bool:
    above: FrameType | None = frame
    while above is not None:
        if above.f_code.co_name == "<module>" and above.f_code.co_filename.startswith(str(SOURCE)):
            return above.f_code.co_filename != str(SOURCE / "__main__.py")
        above = above.f_back
    return False


def main(words: list[str]) -> None:
    """Print the files and how many there are."""
    with tempfile.TemporaryDirectory() as folder:
        if words[0] == "predict":
            image, *options = words[1:]
            found = files_of(["predict", image, f"{folder}/map.tif", "--precision", "fp32", *options])
        else:
            found = files_of([*words, "--out", f"{folder}/run", *SHORT])
    print("\n".join(found))
    print(len(found), "files")


if __name__ == "__main__":
    main(sys.argv[1:])
