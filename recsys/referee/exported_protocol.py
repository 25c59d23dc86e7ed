"""Make a protocol from a prepared dataset: with its split, or with several windows of a temporal
split.

Legend: E events, V users, N items.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import Config
from recsys.data.bounded import evaluated_users_V
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import COLD_VALID, Array, Histories, Split
from recsys.data.split import parse_time
from recsys.errors import ConfigError, DataError
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.referee.negatives import drawn
from recsys.referee.protocol import EVENTS, PAIRS, SPLITS, Protocol, Window

_SECOND: Final = 1_000_000


def protocol_of(dataset: PreparedDataset, config: Config) -> Protocol:
    """The protocol for the sections ``data``, ``evaluate`` and ``referee`` of a configuration.

    Raises
    ------
    ConfigError
        The split has cold-start users, or is too short for the windows, or the referee does not
        compute ``train.metric``.
    DataError
        No user can be evaluated.
    """
    settings, manifest = config.referee, dataset.manifest
    main, kinds = parse_metric(config.train.metric), list(QUERY_METRICS)
    if main.kind not in kinds:  # whoever scores the lists may not have a metric of another package
        raise ConfigError(
            f"train.metric: the referee computes {', '.join(kinds)}, got {config.train.metric!r};"
            f" give one of them for the protocol, such as --train.metric ndcg@{main.k}"
        )
    histories = dataset.histories()
    if (histories.splits_E == COLD_VALID).any():
        raise ConfigError(
            "data.split.cold_users: a protocol cannot hold out the events of whole users; set it"
            " to 0"
        )
    splits = (
        _windows_of(dataset, histories, settings.windows)
        if settings.windows > 1
        else [("", histories.splits_E)]
    )
    evaluated_V = evaluated_users_V(dataset, config.evaluate, config.seed)
    rules: dict[str, Any] = {
        "name": config.run.name or manifest.name,
        "split": manifest.split,
        "targets": manifest.targets,
        "event_types": manifest.event_types,
        "mask": settings.mask or ("seen" if config.evaluate.exclude_seen else "none"),
        "ks": sorted({*config.evaluate.ks, main.k}),
        "metric": config.train.metric,
        "sample": settings.sample,
        "sampler": settings.sampler if settings.sample else "",
        "seed": config.seed,
        "fit": "valid" if config.train.refit else "train",
        "exposed": (
            "a list for test may use the training and the validation events, one for validation"
            " only training"
        ),
    }
    about = {
        "dataset": manifest.content_hash,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    protocol = Protocol(rules, dataset.item_ids.cast(pa.string()), [], about)
    for name, splits_E in splits:
        window = _window(dataset, histories, splits_E, name)
        protocol.windows.append(
            _with_evaluated(protocol, window, dataset.user_ids.filter(pa.array(evaluated_V)))
        )
    return protocol


def _window(dataset: PreparedDataset, histories: Histories, splits_E: Array, name: str) -> Window:
    users_E = np.repeat(histories.users_U, histories.lengths_U)
    positions_E = np.arange(len(users_E)) - np.repeat(
        histories.offsets_U1[:-1], histories.lengths_U
    )
    times_E = pa.array(histories.times_E, mask=histories.times_E == 0)
    columns = (
        dataset.user_ids.take(pa.array(users_E)).cast(pa.string()),
        dataset.item_ids.take(pa.array(histories.items_E)).cast(pa.string()),
        times_E.cast(pa.timestamp("s", "UTC")),
        pa.array(dataset.manifest.event_types, pa.string()).take(pa.array(histories.types_E)),
        pa.array(histories.values_E, pa.float32()),
        pa.array(positions_E, pa.int32()),
    )
    table = pa.table(dict(zip(EVENTS.names, columns, strict=True)), schema=EVENTS)
    splits = {split: table.filter(pa.array(splits_E == number)) for split, number in SPLITS.items()}
    return Window(name, splits, pa.array([], pa.string()))


def _with_evaluated(protocol: Protocol, window: Window, allowed: pa.Array) -> Window:
    """The window with the evaluated users (those with a target that counts) and the sampled
    negatives.

    Raises
    ------
    DataError
        No user has a target that counts.
    """
    alone = replace(protocol, windows=[window])
    tested = pc.unique(window.splits["test"].column("user_id"))
    tested = tested.filter(pc.is_in(tested, value_set=allowed.cast(pa.string())))
    queries = alone.queries(replace(window, ask=tested))
    if not len(queries):
        raise DataError(
            f"no user can be evaluated{f' in {window.name}' if window.name else ''}: the test split"
            " has no target that counts; check data.split, or set referee.mask none to predict"
            " repeated items too"
        )
    window = replace(window, ask=alone.users.take(pa.array(queries.histories.users_U)))
    if not protocol.rules["sample"]:
        return window
    rows, items = drawn(queries, alone.histories(window), len(protocol.items), protocol.rules)
    pairs = (window.ask.take(pa.array(rows)), protocol.items.take(pa.array(items)))
    return replace(
        window, negatives=pa.table(dict(zip(PAIRS.names, pairs, strict=True)), schema=PAIRS)
    )


def _windows_of(
    dataset: PreparedDataset, histories: Histories, number: int
) -> list[tuple[str, Array]]:
    """The split of every event in each window, 255 for none; windows are as long as the dataset's
    test split.

    Why windows: one test period is one season; the best method in December may not be the best in
    May.

    Raises
    ------
    ConfigError
        The split is not by time, or the first window would have no training events.
    """
    split = dataset.manifest.split
    if split.get("kind") != "temporal":
        raise ConfigError(
            f"referee.windows: {number} windows need data.split.kind temporal, got"
            f" {split.get('kind')}; set it, or set referee.windows 1"
        )
    valid_from, test_from = (
        parse_time(str(split[key]), key) // _SECOND for key in ("valid_from", "test_from")
    )
    length = int(histories.times_E.max()) + 1 - test_from
    found = []
    for back in range(number - 1, -1, -1):
        start, end = test_from - back * length, test_from - (back - 1) * length
        before = start - (test_from - valid_from)
        splits_E = (histories.times_E >= before).astype(np.uint8) + (histories.times_E >= start)
        splits_E = np.where(histories.times_E >= end, 255, splits_E)
        if not (splits_E == Split.TRAIN).any():
            first = datetime.fromtimestamp(int(histories.times_E.min()), UTC).date()
            raise ConfigError(
                f"referee.windows: {number} windows of {length / 86400:.1f} days leave no training"
                f" events for the first one (the data begin {first}); use fewer windows, or a later"
                " data.split.test_from"
            )
        found.append((f"window-{number - back}", splits_E))
    return found
