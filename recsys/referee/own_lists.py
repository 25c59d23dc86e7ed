"""Our own lists for a protocol: the baselines with every setting of their grids, and models of
runs.

Why every setting: the referee chooses the best one by the lists of the validation split. A protocol
without validation queries cannot choose, so it gets the default settings.

Legend: B queries, K list length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import EvaluateConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Queries, Split
from recsys.errors import ArtifactError, ConfigError
from recsys.evaluation.baselines import build_baseline, left_out
from recsys.evaluation.ranking import Ranking, Scorer, rank
from recsys.referee.protocol import Protocol
from recsys.referee.tables import write_table


def write_baselines(
    protocol: Protocol,
    names: Sequence[str],
    config: EvaluateConfig,
    folder: Path,
    form: str,
    command: str,
) -> list[Path]:
    """Write NAME/SETTING and NAME/SETTING.valid of every baseline; without validation queries only
    NAME/SETTING of the default settings.

    Parameters
    ----------
    protocol : Protocol
        The queries to answer; it must rank all items.
    names : Sequence[str]
        Names of the baselines, without those of :func:`ruled_out`.
    config : EvaluateConfig
        The section ``evaluate``.
    folder : Path
        Where the lists are written.
    form : str
        Format of the lists; also the ending of the files.
    command : str
        The command that makes the lists, recorded in them.

    Returns
    -------
    list[Path]
        The written files.

    Raises
    ------
    ConfigError
        The protocol ranks sampled items, so it needs scores and not lists.
    """
    check_full(protocol)
    tables: dict[Path, list[pa.Table]] = {}
    chooses = protocol.has_validation
    for index in range(len(protocol.windows)):
        for name in names:
            for setting, split, scorer in _fits(protocol, index, name, config, chooses):
                path = folder / name / f"{setting}{'.valid' if split == Split.VALID else ''}.{form}"
                tables.setdefault(path, []).append(
                    list_of(protocol, index, split, scorer, config.chunk_users)
                )
    for path, found in tables.items():
        write_table(stamped(pa.concat_tables(found), protocol, command, form), path)
    return list(tables)


def ruled_out(protocol: Protocol, names: Sequence[str], config: EvaluateConfig) -> dict[str, str]:
    """The baselines that the events of a window or the mask rule out, each with what is missing.

    Why one window is enough: lists must answer all windows.

    Parameters
    ----------
    protocol : Protocol
        The events and the mask.
    names : Sequence[str]
        Names of baselines.
    config : EvaluateConfig
        Settings of the baselines; the protocol decides about seen items.
    """
    config = config.model_copy(update={"exclude_seen": protocol.masks_seen})
    found: dict[str, str] = {}
    for window in protocol.windows:
        for name, why in left_out(names, protocol.histories(window), config).items():
            found.setdefault(name, f"{why} in {window.name}" if window.name else why)
    return found


def _fits(
    protocol: Protocol, index: int, name: str, config: EvaluateConfig, chooses: bool
) -> Iterator[tuple[str, Split, Scorer]]:
    """Fit every setting: on training events for validation, and on the protocol's events for
    test; or the default setting for test alone, if no setting can be chosen.

    Parameters
    ----------
    protocol : Protocol
        The queries and events.
    index : int
        Number of the window, from 0.
    name : str
        Name of the baseline.
    config : EvaluateConfig
        Settings of the baselines.
    chooses : bool
        Whether the protocol has validation queries, which choose among the settings.

    Yields
    ------
    tuple of (str, Split, Scorer)
        Constants as text, the split to rank, and the fitted baseline.
    """
    histories = protocol.histories(protocol.windows[index])
    last_fitted = {Split.TEST: Split[protocol.rules["fit"].upper()]}
    if chooses:
        last_fitted[Split.VALID] = Split.TRAIN
    for split, through in last_fitted.items():
        baseline = build_baseline(name, config)
        fits = baseline.fits(histories.through(through), len(protocol.items))
        for constants in fits if chooses else islice(fits, 1):  # the first is the default
            yield (
                ",".join(f"{key}={value}" for key, value in constants.items()) or "default",
                split,
                baseline,
            )


def check_full(protocol: Protocol) -> None:
    """Raise :class:`ConfigError` if a protocol does not rank the whole catalogue."""
    if protocol.rules["sample"]:
        raise ConfigError(
            f"the protocol ranks {protocol.rules['sample']} sampled items, but these lists rank the"
            " whole catalogue; prepare a protocol with --referee.sample 0"
        )


def evaluated_by(protocol: Protocol, dataset: PreparedDataset) -> Queries:
    """The test queries of the protocol's evaluated users, from the dataset that it was made of.

    Why not those that a run evaluates: its own sample of users may be smaller, and users without
    a list count as missed.

    Raises
    ------
    ArtifactError
        The dataset does not have one of the users.
    """
    (window,) = protocol.windows
    users = dataset.user_ids.cast(pa.string())
    missing = window.ask.filter(pc.invert(pc.is_in(window.ask, value_set=users)))
    if len(missing):
        raise ArtifactError(
            f"{len(missing):,} evaluated users of the protocol are not in {dataset.root}, e.g."
            f" {missing[0].as_py()!r}; prepare the protocol again with the configuration of the run"
        )
    asked_V = np.asarray(pc.is_in(users, value_set=window.ask))
    return dataset.histories(asked_V).queries(Split.TEST)


def list_of(protocol: Protocol, index: int, split: Split, scorer: Scorer, chunk: int) -> pa.Table:
    """The lists of all evaluated users of a window.

    Parameters
    ----------
    protocol : Protocol
        The protocol.
    index : int
        Number of the window, from 0.
    split : Split
        Split of the targets.
    scorer : Scorer
        The recommender.
    chunk : int
        Queries that are scored at a time.

    Returns
    -------
    pa.Table
        As :func:`table_of` returns it; a list has at most as many items as the largest cut-off of
        the protocol.
    """
    queries = protocol.queries(protocol.windows[index], split)
    ranking = rank(scorer, queries, max(protocol.ks), protocol.masks_seen, chunk)
    users = protocol.users.take(pa.array(ranking.queries.histories.users_U))
    return table_of(ranking, users, protocol.items, protocol.windows[index].name)


def table_of(ranking: Ranking, users: pa.Array, items: pa.Array, window: str = "") -> pa.Table:
    """Lists as a table: user_id, item_id, rank, score, and window if there are several.

    Parameters
    ----------
    ranking : Ranking
        Lists of B queries.
    users : pa.Array, [B] str
        Id of the user of each query.
    items : pa.Array, [N] str
        Id of every item, in dense order.
    window : str
        Name of the window; "" if the protocol has only one.

    Returns
    -------
    pa.Table
        One row per listed item; ranks begin at 1.
    """
    rows, ranks = np.nonzero(ranking.items_BK >= 0)
    columns = {
        "user_id": users.take(pa.array(rows)),
        "item_id": items.take(pa.array(ranking.items_BK[rows, ranks])),
        "rank": pa.array(ranks + 1, pa.int32()),
        "score": pa.array(ranking.scores_BK[rows, ranks]),
    }
    return pa.table(
        columns | ({"window": pa.array([window] * len(rows), pa.string())} if window else {})
    )


def stamped(table: pa.Table, protocol: Protocol, command: str, form: str) -> pa.Table:
    """The table with the protocol's hash and the command, as metadata or, in a text file, as
    columns.

    Parameters
    ----------
    table : pa.Table
        The lists.
    protocol : Protocol
        The protocol that they are for.
    command : str
        The command that made them.
    form : str
        ``parquet`` for metadata; every other form gets the columns ``protocol`` and ``command``.
    """
    metadata = {"protocol": protocol.hash, "command": command}
    if form == "parquet":
        return table.replace_schema_metadata(metadata)
    for name, value in metadata.items():
        table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table
