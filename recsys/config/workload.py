"""The sizes of a training, and the memory and time that one granularity adds: the terms of the
preflight.

Legend: B queries of a step, U rows, L history length, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FLOAT: Final = 4  # bytes
HISTORY: Final = 60  # bytes per event in order, with the copies that a fit makes


@dataclass(frozen=True)
class DataSizes:
    """Numbers of users, items, events and side data, measured or estimated."""

    users: int
    items: int
    events: int  # of training and validation
    text_width: int = 0
    entities: int = 0
    triples: int = 0
    friends: int = 0
    ordered: bool = True
    exact: bool = True  # of a prepared dataset


@dataclass(frozen=True)
class Workload:
    """The sizes of one worker's step and of one chunk of validation users."""

    data: DataSizes
    width: int
    max_history: int
    rows: float  # of a step
    length: float  # of such a row, on average
    queries: float  # of a step
    longest: float  # longest row of a step that a query reads
    validation_rows: float
    validation_length: float  # of the longest rows
    fit_events: int  # events in order that a fit reads at most, see ``evaluate.max_fit_events``


@dataclass(frozen=True)
class Estimate:
    """Parameters, bytes and multiplications that one granularity adds in a worker, from the sizes
    of its tensors.
    """

    # numbers in embedding tables, which have a gradient and two moments each
    parameters: float = 0.0
    layers: float = 1.0  # dense layers of the width, each of about 12 D² numbers
    reads_events: bool = False  # whether it reads the table of training events, which is in files
    graph: float = 0.0  # bytes of its graph or other side signal
    step: float = 0.0  # bytes that the backward pass of a step needs
    validation: float = 0.0  # bytes while a chunk of users is ranked
    fitting: float = 0.0  # bytes while it is fitted
    flops: float = 0.0  # multiplications of a step in addition to those of the layers


def indexed(events: int) -> int:
    """Bytes of the graph convolution's index of events; above 2^24 events it reads blocks."""
    return min(events, 2**24) * 60


def histories(types: Sequence[str], work: Workload) -> int:
    """Bytes of the events in order, which tell the types of a pair's events, if types count."""
    return work.fit_events * HISTORY * ("targets" in types)


def singular_vectors(data: DataSizes, rank: int) -> int:
    """Bytes of singular vectors of the events with the copies of a decomposition, or of a Gram
    matrix; and of a block of users.
    """
    side = min(data.items, data.users + data.text_width)
    gram = side**2 * 8 * 3 if side <= 5000 else 0
    return max(data.items * rank * FLOAT * 5, gram) + min(data.users * rank, 2**24) * 12
