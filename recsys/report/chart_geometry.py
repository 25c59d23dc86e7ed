"""Geometry of the report's charts: axes, curves and stacked bars in percent, which HTML and CSS
then draw.

Why not images: charts in CSS keep the size of their text at any width, follow light and dark mode,
and need no script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A linear axis with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Position of a value in percent of the axis, clipped to its ends."""
        return round(100.0 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 3)

    def labels(self) -> list[tuple[float, str]]:
        """Ticks as (percent, text), with as many decimals as their distance needs."""
        step = self.ticks[1] - self.ticks[0]
        # the small number keeps 0.1 from rounding to two decimals
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(self.at(tick), f"{tick:.{decimals}f}") for tick in self.ticks]


def axis(values: Sequence[float], from_zero: bool = False, count: int = 4) -> Axis:
    """An axis over the finite values with about ``count`` steps of 1, 2 or 5 times a power of ten.

    >>> axis([0.1, 0.27], from_zero=True).ticks
    (0.0, 0.1, 0.2, 0.3)

    Parameters
    ----------
    values : Sequence[float]
        Values that the axis must cover; NaN and infinity are left out. Without any other, 0 counts.
    from_zero : bool
        Whether the axis also covers 0.
    count : int
        Wanted number of steps.

    Returns
    -------
    Axis
        The axis; it starts at its first tick and ends at its last one.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    # equal values would divide by zero
    if high - low < 1e-12:
        low, high = (low - 0.5, high + 0.5) if not from_zero or high == 0 else (0.0, high * 1.25)
        low = max(low, 0.0) if from_zero else low
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(index * step, 12) for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Line:
    """A polyline as an SVG path in a box of 100 × 100, and its points in percent from the left and
    the top.
    """

    path: str
    points: Points


@dataclass(frozen=True)
class Curves:
    """Lines over epochs on common axes, and the marked point of the first line."""

    lines: tuple[Line, ...]
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    mark: tuple[float, float] | None


def curves(
    lines: Sequence[Sequence[tuple[float, float]]], mark_x: float | None = None
) -> Curves | None:
    """Lay out lines of (x, y) with whole numbers x; points that are not finite and empty lines are
    left out.

    The point of the first line at ``mark_x`` is marked. None if no line is left.
    """
    finite = [[(x, y) for x, y in line if math.isfinite(x) and math.isfinite(y)] for line in lines]
    drawn = [line for line in finite if line]
    if not drawn:
        return None
    xs = [x for line in drawn for x, _ in line]
    first, last = min(xs), max(xs)
    across = (
        Axis(first, last, (first, last))
        if last > first
        else Axis(first - 1, first + 1, (first - 1, first))
    )
    up = axis([y for line in drawn for _, y in line])
    laid = []
    for line in drawn:
        points = tuple((across.at(x), round(100 - up.at(y), 3)) for x, y in line)
        laid.append(Line("M" + " L".join(f"{x:g} {y:g}" for x, y in points), points))
    mark = next(
        (point for point, (x, _) in zip(laid[0].points, drawn[0], strict=True) if x == mark_x), None
    )
    shown = range(int(first), int(last) + 1, max(1, math.ceil((last - first) / 6)))
    x_labels = [(across.at(x), str(x)) for x in shown]
    return Curves(
        tuple(laid), x_labels, [(100 - position, text) for position, text in up.labels()], mark
    )


def areas(bands: Sequence[Sequence[float]]) -> list[str]:
    """Bands of shares over L steps, stacked from the bottom, as closed SVG paths in a box of 100 ×
    100.

    >>> areas([[0.5, 1.0], [0.5, 0.0]])
    ['M0 50 L100 0 L100 100 L0 100Z', 'M0 0 L100 0 L100 0 L0 50Z']
    """
    ground = [0.0] * len(bands[0]) if bands else []
    across = [100.0 * step / max(len(ground) - 1, 1) for step in range(len(ground))]
    paths = []
    for band in bands:
        top = [low + share for low, share in zip(ground, band, strict=True)]
        there = [f"{x:.5g} {100 * (1 - y):.5g}" for x, y in zip(across, top, strict=True)]
        back = [f"{x:.5g} {100 * (1 - y):.5g}" for x, y in zip(across, ground, strict=True)]
        paths.append("M" + " L".join([*there, *back[::-1]]) + "Z")
        ground = top
    return paths


@dataclass(frozen=True)
class Piece:
    """A piece of a stacked bar, in percent of the track."""

    name: str
    value: float
    left: float
    width: float


def stacked(shares: Sequence[Mapping[str, float]]) -> tuple[float, list[list[Piece]]]:
    """Stack signed shares around one zero line: positive parts to the right, negative ones to the
    left.

    All bars have one scale. Returns the position of zero in percent, and the pieces of every bar.

    >>> zero, bars = stacked([{"a": 3.0, "b": -1.0}])
    >>> zero, [(piece.name, piece.left, piece.width) for piece in bars[0]]
    (25.0, [('a', 25.0, 75.0), ('b', 0.0, 25.0)])
    """
    right = max((sum(v for v in bar.values() if v > 0) for bar in shares), default=0.0)
    left = max((sum(-v for v in bar.values() if v < 0) for bar in shares), default=0.0)
    scale = 100.0 / (right + left) if right + left > 0 else 0.0
    zero = left * scale
    bars = []
    for bar in shares:
        ahead, behind, pieces = zero, zero, []
        for name, value in bar.items():
            width = abs(value) * scale
            behind -= width if value < 0 else 0.0
            pieces.append(
                Piece(name, value, round(ahead if value >= 0 else behind, 3), round(width, 3))
            )
            ahead += width if value >= 0 else 0.0
        bars.append(pieces)
    return round(zero, 3), bars
