"""Progress bars under the progress lines, in a terminal only.

Why: a count that changes several times a second is good on a screen and useless in a log file. So
lines stay what they are (:mod:`pipelines.plumbing.progress`), and bars disappear when their work
ends. A bar appears only for work of more than a second, so that short work does not flicker.

The cursor stays visible: a killed process could not bring it back.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TextIO

from pipelines.plumbing.terminal import printable
from recsys.pace import Count, duration

if TYPE_CHECKING:
    from rich.console import ConsoleOptions
    from rich.live import Live
    from rich.table import Table

_TICK_S: Final = 0.25
_SHORT_S: Final = 1.0  # shorter work gets no bar
_MOST_ROWS: Final = 4
_NAME_WIDTH: Final = 22  # so that bars of different names start in the same column
_LENGTH: Final = 24  # characters of a bar in a wide terminal
_GAP: Final = 2
_WIDE: Final = 100
_LEAST_NOTE: Final = 16
_LEAST_NAME: Final = 18
_DRAWN: Final = "drawn"

_of_stream: dict[TextIO, Bars] = {}


def bars_of(stream: TextIO | None) -> Bars | None:
    """The bars of a stream, or None if it is no terminal that can show them.

    All that write to a terminal share its bars, so that they do not draw over each other.
    """
    stream = getattr(stream, "rich_proxied_file", stream)  # sys.stdout while bars are shown
    if stream is None or not shows_bars(stream):
        return None
    return _of_stream.setdefault(stream, Bars(stream))


def shows_bars(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the stream is a terminal that can move its cursor, and not that of a CI service.

    >>> import io; shows_bars(io.StringIO(), {"TERM": "xterm"})
    False
    """
    if environment.get("TERM", "").lower() in ("", "dumb", "unknown"):
        return False
    if environment.get("CI", "").lower() not in ("", "0", "false"):
        return False
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # a closed stream
        return False


@dataclass
class _Bar:
    """The newest count of some work."""

    count: Count
    remains: str  # the line that it leaves on the screen
    since: float
    begun_at: float  # the share when it started
    at: float

    def left_s(self, now: float) -> float:
        """Remaining seconds: the estimate of the work, or else by the pace of its share."""
        if math.isfinite(self.count.left_s):
            return max(self.count.left_s - (now - self.at), 0.0)
        gained = self.count.share - self.begun_at
        return (self.at - self.since) * (1 - self.count.share) / gained if gained > 0 else math.nan


class Bars:
    """Draws the counts of running work at the bottom of a terminal, and lines above them."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._lock = threading.RLock()
        self._bars: dict[str, _Bar] = {}
        self._live: Live | None = None
        self._ticker: threading.Thread | None = None

    @property
    def names(self) -> set[str]:
        """Names of the running work."""
        with self._lock:
            return set(self._bars)

    def count(self, count: Count, remains: str = "") -> None:
        """Show a count; when its work ends, only the line ``remains`` stays on the screen."""
        with self._lock:
            now, bar = self._clock(), self._bars.get(count.what)
            if bar is None:
                bar = self._bars[count.what] = _Bar(count, remains, now, count.share, now)
            bar.count, bar.remains, bar.at = count, remains, now
            if count.ended:
                self.end([count.what])
            elif self._ticker is None:
                self._ticker = threading.Thread(target=self._tick, daemon=True, name="bars")
                self._ticker.start()

    def end(self, names: Iterable[str]) -> None:
        """Remove the bars of these names."""
        with self._lock:
            remains = [bar.remains for name in names if (bar := self._bars.pop(name, None))]
            if not self._bars:
                self._hide()
            for line in filter(None, remains):
                self.write(line)

    def write(self, text: str) -> None:
        """Write lines, above the bars if there are any."""
        with self._lock:
            if self._live is None:
                print(text, file=self._stream, flush=True)
            else:
                self._live.console.print(
                    text, markup=False, highlight=False, emoji=False, soft_wrap=True
                )

    def _tick(self) -> None:
        """Redraw until there are no bars."""
        while True:
            time.sleep(_TICK_S)
            with self._lock:
                try:
                    if self._bars:
                        self._draw()
                        continue
                    self._hide()
                except OSError:  # the terminal is gone
                    self._live = None
                self._ticker = None
                return

    def _draw(self) -> None:
        if self._rows():
            if self._live is None:
                self._live = _live(self._stream)
                self._live.start()
            self._live.update(self._table(self._live.console.options), refresh=True)
        else:
            self._hide()

    def _hide(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _rows(self) -> list[_Bar]:
        """The bars of work that is not short."""
        now = self._clock()
        return [bar for bar in self._bars.values() if now - bar.since >= _SHORT_S][:_MOST_ROWS]

    def _table(self, options: ConsoleOptions) -> Table:
        """One row per bar, with the columns that fit into the terminal."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        now, wide = self._clock(), options.max_width >= _WIDE
        rows = [
            _cells(bar, bar.left_s(now), _NAME_WIDTH if wide else 0, _LENGTH // (1 if wide else 2))
            for bar in self._rows()
        ]
        fitting = _fitting(rows, options.max_width)
        overflow: Any = "crop" if options.ascii_only else "ellipsis"
        table = Table.grid(padding=(0, _GAP, 0, 0))
        for width in fitting.values():
            table.add_column(no_wrap=True, overflow=overflow, width=width)
        for bar, cells in zip(self._rows(), rows, strict=True):
            drawn = ProgressBar(
                total=1.0 if bar.count.total else None,
                completed=min(max(bar.count.share, 0.0), 1.0),
                pulse=not bar.count.total,
                animation_time=now,
                complete_style="cyan",
                finished_style="cyan",
                pulse_style="cyan",
            )
            table.add_row(*(drawn if column == _DRAWN else cells[column] for column in fitting))
        return table


def _cells(bar: _Bar, left_s: float, name_width: int, length: int) -> dict[str, str]:
    """The text of each column of a bar; the bar itself as blanks."""
    count = bar.count
    return {
        "what": printable(count.what).ljust(name_width),
        _DRAWN: " " * length,
        "share": f"{100 * count.share:3.0f} %" if count.total else "",
        "counts": (
            f"{count.done:,} of {count.total:,}" if count.total else f"{count.done:,} so far"
        ),
        "left": f"{duration(left_s)} left" if math.isfinite(left_s) else "",
        "note": printable(count.note),
    }


def _fitting(rows: list[dict[str, str]], width: int) -> dict[str, int]:
    """The columns that fit into a width, and the width of each; the note may be cut, and is the
    first to go.

    >>> row = {"what": "epochs", "drawn": " " * 12, "share": "50 %", "note": "loss 5.1234 ndcg 0.2"}
    >>> _fitting([row], 47)
    {'what': 6, 'drawn': 12, 'share': 4, 'note': 17}
    >>> [list(_fitting([row], width)) for width in (30, 10)]
    [['what', 'drawn', 'share'], ['what']]
    """
    from rich.cells import cell_len

    widths = {column: max(cell_len(row[column]) for row in rows) for column in rows[0]}
    widths["what"] = min(widths["what"], max(width // 3, _LEAST_NAME))
    for dropped in ("note", _DRAWN, "left", "counts", "share"):
        rest = width - sum(widths.values()) - _GAP * len(widths)
        if dropped == "note" and rest + widths["note"] >= _LEAST_NOTE:
            widths["note"] = min(widths["note"], rest + widths["note"])
            break
        if rest >= 0:
            break
        widths.pop(dropped, None)
    return widths


def _live(stream: TextIO) -> Live:
    """A live display of rich that also shows what others write to the same terminal."""
    from rich.console import Console
    from rich.live import Live

    class Plain(Console):
        """A console that leaves the cursor visible."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    console = Plain(file=stream, force_terminal=True, force_interactive=True, highlight=False)
    return Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout is stream,
        redirect_stderr=sys.stderr is not None and shows_bars(sys.stderr),
    )
