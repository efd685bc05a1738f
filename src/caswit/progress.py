"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

_LINE_EVERY_S = 10.0
_MANY = 1000
"""Numbers from here on are shown without decimals."""


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
            digits = ",.0f" if total >= _MANY else ".4g"
            shape = f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n:{digits}}}/{{total:{digits}}} {{unit}}"
            shape += " [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            self.bar = tqdm(desc=label, total=total, unit=unit, initial=done, bar_format=shape)

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
            f"{self.label}: {_number(self.done)}/{_number(self.total)} {self.unit}",
            f"{_number(rate, digits=3)} {self.unit}/s",
            f"{clock(left_s)} left" if more else f"took {clock(self.printed_s - self.started_s)}",
            note,
        ]
        self.say(", ".join(p for p in parts if p))


def _number(value: float, digits: int = 4) -> str:
    return f"{value:,.0f}" if value >= _MANY else f"{value:.{digits}g}"


def clock(seconds: float) -> str:
    """Return seconds as H:MM:SS or M:SS."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
