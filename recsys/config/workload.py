"""What a training works on, and what one granularity adds to its memory and time: the terms of the preflight.

Legend: B queries of a step, U rows, L history length, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FLOAT: Final = 4  # bytes


@dataclass(frozen=True)
class DataSizes:
    """What is known of the data."""

    users: int
    items: int
    events: int  # of training and validation
    text_width: int = 0
    entities: int = 0
    facts: int = 0
    friends: int = 0
    ordered: bool = True
    exact: bool = True  # of a prepared dataset


@dataclass(frozen=True)
class Workload:
    """The sizes of one worker's step and of one chunk of validation, as a granularity meets them."""

    data: DataSizes
    width: int
    max_history: int
    rows: float  # of a step
    length: float  # of such a row, on average
    queries: float  # of a step
    longest: float  # row of a step that a query looks at
    validation_rows: float
    validation_length: float  # of the longest rows


@dataclass(frozen=True)
class Estimate:
    """What one granularity adds in a worker: numbers, bytes and multiplications, all from the sizes of its tensors."""

    parameters: float = 0.0  # numbers in embedding tables, which have a gradient and two moments each
    layers: float = 1.0  # dense layers of the width, each of about 12 D² numbers
    holds_events: bool = False  # whether it holds all events of training in memory
    graph: float = 0.0  # bytes of what it reads beside events
    step: float = 0.0  # bytes that the backward pass of a step needs
    validation: float = 0.0  # bytes while a chunk of users is ranked
    fitting: float = 0.0  # bytes while it is fitted
    flops: float = 0.0  # multiplications of a step beside those of the layers
