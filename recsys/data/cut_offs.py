"""The cut-offs in time of a temporal split, over all buckets: exact quantiles, and no bucket leaves its place."""

from __future__ import annotations

from typing import Any

import numpy as np

from recsys.config import SplitConfig
from recsys.data.blocks import fetch, task
from recsys.data.events import BucketSummary
from recsys.data.histories import Array
from recsys.data.shards import time_bins
from recsys.data.split import cut_off, parse_time
from recsys.errors import DataError


def cut_offs(
    split: SplitConfig, encoded: list[list[Any]], summaries: list[BucketSummary], target_types: tuple[int, ...] = ()
) -> tuple[int, int]:
    """Microseconds from which events are validation and test: given, or exact quantiles of the times of events of the
    types that are predicted (all without any).

    Raises:
        DataError: they leave no validation.
    """
    counter = task(time_bins)
    first = min(summary.first for summary in summaries if summary.interactions)
    last = max(summary.last for summary in summaries if summary.interactions)

    def bins(start: int, width: int, below: int) -> Array:
        total: Array = np.sum(
            fetch([counter.remote(refs[0], start, width, below, target_types) for refs in encoded]), axis=0
        )
        return total

    everything = int(bins(first, last - first + 1, last + 1)[0])
    if split.test_from:
        test_from = parse_time(split.test_from, "data.split.test_from")
    else:
        rank = max(round(everything * split.test), 1)
        test_from = cut_off(lambda start, width: bins(start, width, last + 1), first, last, rank)
    before_test = int(bins(first, last - first + 1, test_from)[0])
    if split.valid_from:
        valid_from = parse_time(split.valid_from, "data.split.valid_from")
    elif before_test == 0:
        valid_from = test_from
    else:
        rank = min(max(round(everything * split.valid), 1), before_test)
        valid_from = cut_off(lambda start, width: bins(start, width, test_from), first, last, rank)
    if valid_from >= test_from:
        raise DataError(
            f"data.split: validation would start at {valid_from} and test at {test_from} (microseconds), which "
            "leaves no validation; choose an earlier data.split.valid_from, or another data.split.test"
        )
    return valid_from, test_from
