"""Progress of long work: a bar on a terminal, plain lines elsewhere; both fit the terminal's width."""

import shutil
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

_LINE_EVERY_S = 10.0
_MANY = 1000
"""Numbers from here on are shown without decimals."""
_WIDTH, _WIDE = 110, 100
"""Columns where there is no terminal to ask; columns from which on a bar has room for a note."""
_BESIDE_LABEL, _NOTE = 64, 30
"""Columns of a bar that its numbers and its note may need."""
_SHORT = 12
"""Columns that a label keeps, however narrow the terminal is."""


class Progress:
    """Shows how far work is, its rate and the time left. Use as a context manager.

    Args:
        label: Name of the work.
        total: Amount of work, in ``unit``.
        unit: Unit of ``total``, e.g. "step" or "Mpx".
        done: Amount that was done before, when resuming.
        quiet: Show nothing.
    """

    def __init__(self, label: str, total: float, unit: str, *, done: float = 0, quiet: bool = False) -> None:
        self.label, self.total, self.unit, self.first, self.done = label, total, unit, done, done
        self.quiet = quiet
        self.printed: float | None = None
        self.started_s = self.printed_s = time.perf_counter()
        self.bar = None
        if not quiet and sys.stderr.isatty():
            width = _columns()
            digits = ",.0f" if total >= _MANY else ".4g"
            shape = f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n:{digits}}}/{{total:{digits}}} {{unit}}"
            shape += " [{elapsed}<{remaining}, {rate_fmt}" + ("{postfix}]" if width >= _WIDE else "]")
            label = shortened(label, width - _BESIDE_LABEL - _NOTE * (width >= _WIDE))
            # One column less: many terminals wrap a line that fills the last.
            self.bar = tqdm(desc=label, total=total, unit=unit, initial=done, bar_format=shape, ncols=width - 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None and not self.quiet and self.printed != self.done:
            self._line("")

    def advance(self, amount: float, note: str = "") -> None:
        """Add ``amount`` to what is done; ``note`` is shown beside the rate."""
        self.done += amount
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(amount)
        elif not self.quiet and time.perf_counter() - self.printed_s >= _LINE_EVERY_S:
            self._line(note)

    def end_here(self) -> None:
        """Take what is done for all there was to do: the work ended before its last step, as it was asked to."""
        self.total = self.done
        if self.bar is not None:
            self.bar.total = self.done
            self.bar.refresh()

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    def _line(self, note: str) -> None:
        self.printed_s, self.printed = time.perf_counter(), self.done
        rate = (self.done - self.first) / max(self.printed_s - self.started_s, 1e-9)
        left = self.total - self.done
        left_s = left / rate if rate > 0 else float("inf")
        more = left > 1e-9 * self.total  # amounts that come in another order add up to a little less
        parts = [
            f"{_number(self.done)}/{_number(self.total)} {self.unit}",
            f"{_number(rate, digits=3)} {self.unit}/s",
            f"{clock(left_s)} left" if more else f"took {clock(self.printed_s - self.started_s)}",
            note,
        ]
        width = _columns()
        numbers = ", ".join(part for part in parts if part)
        # The note can be missed; a label is shortened only where that is not enough.
        if len(self.label) + 2 + len(numbers) > width:
            numbers = ", ".join(parts[:-1])
        self.say(f"{shortened(self.label, width - len(numbers) - 2)}: {numbers}")


def _columns() -> int:
    return shutil.get_terminal_size((_WIDTH, 24)).columns


def shortened(label: str, most: int) -> str:
    """Return a label with what is in its middle left out where it has more than so many characters."""
    most = max(most, _SHORT)
    if len(label) <= most:
        return label
    end = (most - 3) // 3
    return f"{label[: most - 3 - end]}...{label[len(label) - end :]}"


def _number(value: float, digits: int = 4) -> str:
    return f"{value:,.0f}" if value >= _MANY else f"{value:.{digits}g}"


def clock(seconds: float) -> str:
    """Return seconds as H:MM:SS or M:SS."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
