"""Friendships built in parts equal a reference that is computed at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys import schema
from recsys.preparation.friend_edges import EDGE_SCHEMA, SocialRules, merge_shard, number_rows

USERS = pa.array([f"u{number:02}" for number in range(12)])
BEFORE = 900


def friend_rows(seed: int) -> pa.Table:
    """Rows of two files with duplicates, pairs from both sides, unknown users, bad rows and times,
    some too late.
    """
    random = np.random.default_rng(seed)
    count = 160
    ends = random.integers(0, 14, (2, count))  # 12 and 13 are unknown users
    return pa.table(
        {
            schema.SRC_USER_ID: [f"u{end:02}" for end in ends[0]],
            schema.DST_USER_ID: [f"u{end:02}" for end in ends[1]],
            schema.WEIGHT: random.integers(1, 4, count).astype(np.float64),
            schema.TIMESTAMP: (
                pa.array(random.integers(0, 1000, count), mask=random.random(count) < 0.3).cast(
                    pa.timestamp("us", "UTC")
                )
            ),
            schema.FILE: [f"f{number}" for number in random.integers(0, 2, count)],
            schema.ROW: random.permutation(count),
            schema.REASON: pa.array(["bad weight"] * count, mask=random.random(count) > 0.1),
            schema.RAW: pa.nulls(count, pa.string()),
        }
    )


def by_hand(
    rows: pa.Table, directed: bool
) -> tuple[dict[tuple[str, str], float], set[tuple[str, int, str]]]:
    """Weights of the edges, and file, row and reason of the bad rows."""
    seen, bad, weights = set(), set(), dict[tuple[str, str], float]()
    known = set(USERS.to_pylist())
    for row in sorted(rows.to_pylist(), key=lambda row: (row[schema.FILE], row[schema.ROW])):
        pair = (row[schema.SRC_USER_ID], row[schema.DST_USER_ID])
        place = (
            row[schema.FILE],
            row[schema.ROW],
        )
        time = row[schema.TIMESTAMP]
        if row[schema.REASON]:
            bad.add((*place, row[schema.REASON]))
        elif not known.issuperset(pair):
            bad.add((*place, "unknown user"))
        elif time is not None and time.microsecond >= BEFORE:
            continue
        elif pair in seen:
            bad.add((*place, "duplicate"))
        else:
            seen.add(pair)
            for edge in [pair] if directed else [pair, pair[::-1]]:
                weights[edge] = max(weights.get(edge, 0.0), row[schema.WEIGHT])
    return weights, bad


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize(("num_blocks", "num_parts"), [(1, 1), (3, 4)])
def test_edges_and_bad_rows_equal_those_by_hand(
    num_blocks: int, num_parts: int, directed: bool
) -> None:
    for seed in range(20):
        rows = friend_rows(seed)
        cuts = np.linspace(0, rows.num_rows, num_blocks + 1).astype(int)
        rules = SocialRules(directed, BEFORE)
        numbered = [
            number_rows(USERS, rules, num_parts, rows[a:b])
            for a, b in zip(cuts, cuts[1:], strict=False)
        ]
        merged = [
            merge_shard(USERS, *(parts[2 + part] for parts in numbered))
            for part in range(num_parts)
        ]
        edges = pa.concat_tables([part for part, _ in merged])
        bad = pa.concat_tables(
            [parts[1] for parts in numbered] + [repeated for _, repeated in merged]
        )
        weights, expected_bad = by_hand(rows, directed)
        assert edges.schema == EDGE_SCHEMA
        ends = list(
            zip(edges.column("src").to_pylist(), edges.column("dst").to_pylist(), strict=True)
        )
        assert ends == sorted(set(ends))
        named = {
            (USERS[src].as_py(), USERS[dst].as_py()): weight
            for (src, dst), weight in zip(ends, edges.column("weight").to_pylist(), strict=True)
        }
        assert named == weights
        found = list(
            zip(*(bad.column(name).to_pylist() for name in ("file", "row", "reason")), strict=True)
        )
        assert set(found) == expected_bad and len(found) == len(expected_bad)
        assert {reason for _, _, reason in found} == {"bad weight", "unknown user", "duplicate"}
        raws = [
            raw
            for raw, reason in zip(
                bad.column("raw").to_pylist(), bad.column("reason").to_pylist(), strict=True
            )
            if reason == "duplicate"
        ]
        assert all(raw.startswith("src_user_id=u") and "weight=" in raw for raw in raws)


@pytest.mark.parametrize("num_blocks", [0, 1])
def test_no_friendships_give_no_edges(num_blocks: int) -> None:
    parts = number_rows(USERS, SocialRules(), 2, *[friend_rows(0)[:0]] * num_blocks)
    edges, repeated = merge_shard(USERS, *parts[2:])
    assert edges.num_rows == repeated.num_rows == 0 and edges.schema == EDGE_SCHEMA
