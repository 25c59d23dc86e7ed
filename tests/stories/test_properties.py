"""Properties for any input: hostile bytes and trees are refused, fast code equals a naive
reference.

Every run draws the same examples (``derandomize``), so that CI fails because of a change and not by
chance.
"""

from __future__ import annotations

import importlib
import json
import math
import string
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.config import Config, build_config, dump_config, parse_value, set_path
from recsys.data.batches import every_position, last_position, whole_history
from recsys.data.first_touch import with_first_touches
from recsys.data.hashing import string_hashes
from recsys.data.hidden import Hidden
from recsys.data.histories import Histories, Split
from recsys.data.look_ahead import with_look_ahead
from recsys.data.split import SplitPlan, assign, bin_counts, cut_off
from recsys.data.ties import with_shuffled_ties
from recsys.data.vocabulary import Vocabulary, dense, extend, union
from recsys.errors import ConfigError
from recsys.evaluation.metrics import list_metrics, query_metrics
from tests.fuzz.__main__ import TARGETS

pytestmark = pytest.mark.usefixtures("one_thread")

Tree = dict[str, Any]
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)


def examples(count: int) -> Any:
    """Settings for the number of examples that take a second or two: no deadline, no database, no
    randomness.
    """
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=SLOW,
    )


# ---------------------------------------------------------------------------- any bytes of a source

BITS = (
    b"\r",
    b"\n",
    b'"',
    b"\t",
    b",",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"nan",
    b"1e999",
    b"\\ud800",
    b"null",
    b"{}",
)


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A good input in which a few pieces are deleted, doubled or inserted."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(start + 12, len(content))))
        put = st.sampled_from(BITS) | st.binary(max_size=4) | st.just(bytes(content[start:end] * 2))
        content[start:end] = draw(put)
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused(name: str) -> None:
    """Every row is good with its keys or bad with a reason, or one clear message refuses the whole
    input."""
    target = importlib.import_module(f"tests.fuzz.{name}")

    @examples(40)
    @given(damaged(target.SEEDS) | st.binary(max_size=200))
    def check(data: bytes) -> None:
        target.run(data)

    check()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
FIELDS = (
    "user_id",
    "history",
    "friends",
    "attributes",
    "k",
    "exclude_seen",
    "context",
    "horizon",
    "item_id",
    "params",
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)


@examples(40)
@given(
    JSON
    | st.fixed_dictionaries({"user_id": st.just("u0")}, optional=dict.fromkeys(FIELDS[1:8], JSON))
)
def test_any_json_is_answered_or_refused(content: Any) -> None:
    from tests.fuzz.requests import run

    run(b"\x00" + json.dumps(content).encode())
    run(b"\x01" + json.dumps({"instances": content}).encode())


# ------------------------------------------------------------------------------------ configuration

GOOD: Tree = {"model": {"granularities": {"evolution": {"enabled": True}}}}


def paths(node: Tree, prefix: str = "") -> list[str]:
    """Every dotted path of a tree."""
    found = []
    for key, child in node.items():
        found += [
            f"{prefix}{key}",
            *(paths(child, f"{prefix}{key}.") if isinstance(child, dict) else []),
        ]
    return found


PATHS = paths(build_config(GOOD).model_dump(mode="json"))
PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8)
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([path.split(".")[-1] for path in PATHS])
            | st.text(max_size=3)
            | st.integers(),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def checked(tree: Tree) -> None:
    """Build a configuration that survives a round trip through YAML, or get a refusal."""
    try:
        config = build_config(tree)
    except ConfigError as error:
        assert str(error).strip()
        return
    assert isinstance(config, Config)
    assert dump_config(build_config(yaml.safe_load(dump_config(config)))) == dump_config(config)


@examples(80)
@given(VALUES.filter(lambda value: isinstance(value, dict)))
def test_any_tree_is_a_configuration_or_refused(tree: Tree) -> None:
    checked(tree)


@examples(120)
@given(
    st.lists(st.tuples(st.sampled_from(PATHS) | st.text("abc.", max_size=6), VALUES), max_size=3)
)
def test_any_values_at_any_paths_are_a_configuration_or_refused(
    changes: list[tuple[str, Any]],
) -> None:
    tree = build_config(GOOD).model_dump(mode="json")
    try:
        for path, value in changes:
            set_path(tree, path, value)
    except ConfigError:
        return
    checked(tree)


@examples(100)
@given(
    st.text(max_size=20)
    | st.sampled_from(["!!int x", "2020-13-45", "!!timestamp x", "!!float a", "[" * 200])
)
def test_any_text_of_an_override_is_a_value_or_refused(text: str) -> None:
    try:
        parse_value("train.lr", text)
    except ConfigError as error:
        assert "--train.lr" in str(error)


@examples(100)
@given(
    st.fixed_dictionaries(
        {
            "train.lr": st.floats(1e-6, 1),
            "seed": st.integers(0, 2**40),
            "train.epochs": st.integers(1, 99),
        }
    )
)
def test_override_is_the_same_value_in_yaml(values: Tree) -> None:
    by_words, by_tree = dict(GOOD), dict(GOOD)
    for path, value in values.items():
        set_path(by_words, path, parse_value(path, repr(value)))
        set_path(by_tree, path, value)
    assert build_config(by_words) == build_config(by_tree)


# ---------------------------------------------------------------------------- histories and batches

ROWS = st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=6)


def named(rows: list[list[int]]) -> Histories:
    return Histories.of_items(rows, users=list(range(len(rows))))


@examples(100)
@given(ROWS, st.integers(1, 6), st.data())
def test_every_position_is_the_naive_list_of_prefixes(
    rows: list[list[int]], limit: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    batch = every_position(named(rows), limit, np.array(chosen))
    expected = []
    for place, row in enumerate(chosen):
        kept = rows[row][-(limit + 1) :]
        expected += [(place, kept[: end + 1], kept[end + 1]) for end in range(len(kept) - 1)]
    found = [
        (
            int(batch.rows_B[query]),
            batch.history_UL[batch.rows_B[query], : batch.seen_B[query]].tolist(),
            int(target),
        )
        for query, target in zip(batch.pairs_P, batch.targets_P, strict=True)
    ]
    assert found == expected
    assert (batch.history_UL[~batch.mask_UL] == 0).all()


@examples(100)
@given(ROWS, st.integers(1, 6), st.floats(0, 0.9), st.integers(0, 99))
def test_whole_history_equals_naive_list_with_hidden_items(
    rows: list[list[int]], limit: int, share: float, seed: int
) -> None:
    hidden = Hidden(share, seed)
    batch = whole_history(named(rows), limit, np.arange(len(rows)), hidden)
    pairs = [(user, item) for user, row in enumerate(rows) for item in row]
    assert list(zip(batch.pairs_P.tolist(), batch.targets_P.tolist(), strict=True)) == pairs
    for user, row in enumerate(rows):
        seen = [
            item for item in row if not (share and hidden.of(np.array([user]), np.array([item]))[0])
        ][-limit:]
        assert batch.history_UL[user, : batch.lengths_U[user]].tolist() == seen


@examples(100)
@given(ROWS, st.integers(2, 6))
def test_windows_have_every_event_once_in_order(rows: list[list[int]], size: int) -> None:
    numbered = named(
        [[10 * user + place for place in range(len(row))] for user, row in enumerate(rows)]
    )
    windows = numbered.windows(size)
    assert windows.lengths_U.max(initial=0) <= size
    behind = Counter()
    for start, end in zip(windows.offsets_U1[:-1], windows.offsets_U1[1:], strict=True):
        behind.update(windows.items_E[start + 1 : end].tolist())
    assert behind == Counter(
        10 * user + place for user, row in enumerate(rows) for place in range(1, len(row))
    )


VISITS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 4)), max_size=12),
    min_size=1,
    max_size=4,
)


@examples(300)
@given(VISITS, st.integers(2, 5), st.integers(0, 9), st.integers(0, 9))
def test_no_query_sees_its_target_or_a_touch_of_it_in_the_same_visit(
    rows: list[list[tuple[int, bool, int]]], limit: int, seed: int, most: int
) -> None:
    """In windows of long histories, with events of one time in a new order, and with queries that
    look ahead."""
    rows = [sorted(row, key=lambda event: event[2]) for row in rows]
    events = [event for row in rows for event in row]
    histories = replace(
        named([[item for item, _, _ in row] for row in rows]),
        types_E=np.array([is_bought for _, is_bought, _ in events], dtype=np.uint8),
        times_E=np.array([hour * 3600 for _, _, hour in events], dtype=np.int64),
        targets_T=np.array([False, True]),
    )
    windows = with_first_touches(histories).windows(limit + 1)
    batch = every_position(
        with_look_ahead(with_shuffled_ties(windows, seed), most, seed) if most else windows, limit
    )
    for query, target in zip(batch.pairs_P.tolist(), batch.targets_P.tolist(), strict=True):
        row, seen = batch.rows_B[query], int(batch.seen_B[query])
        touched = {hour for item, _, hour in rows[batch.users_U[row]] if item == target}
        assert seen > 0 and target not in batch.history_UL[row, :seen].tolist()
        assert (batch.times_UL[row, :seen] <= min(touched) * 3600).all(), "all is one visit"


@examples(100)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=6),
        min_size=1,
        max_size=5,
    )
)
def test_queries_see_only_earlier_splits(rows: list[list[tuple[int, int]]]) -> None:
    rows = [sorted(row, key=lambda event: event[1]) for row in rows]
    plain = named([[item for item, _ in row] for row in rows])
    parts = np.array([part for row in rows for _, part in row], dtype=np.uint8)
    histories = Histories(**{**plain.__dict__, "splits_E": parts})
    for target in (Split.VALID, Split.TEST):
        queries = histories.queries(target)
        expected = {
            user: (
                [i for i, part in row if part < target],
                [i for i, part in row if part == target],
            )
            for user, row in enumerate(rows)
            if any(part == target for _, part in row)
        }
        batch = last_position(queries, 100)
        found = {
            int(user): (
                batch.history_UL[row, : batch.lengths_U[row]].tolist(),
                batch.targets_P[batch.pairs_P == row].tolist(),
            )
            for row, user in enumerate(queries.histories.users_U)
        }
        assert found == expected


# ------------------------------------------------------------------------------------------- splits

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=8)
SHARES = st.sampled_from([0.05, 0.1, 0.25, 0.4])


@examples(80)
@given(
    LENGTHS,
    st.sampled_from(["leave-last", "ratio", "temporal", "given"]),
    st.booleans(),
    SHARES,
    SHARES,
    st.data(),
)
def test_split_covers_all_events_and_tests_the_latest(
    lengths: list[int], kind: str, ordered: bool, valid: float, test: float, data: st.DataObject
) -> None:
    """Every event is in one split; test and validation have the latest events; every user keeps
    training events."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    size = int(offsets[-1])
    times = np.concatenate([np.sort(data.draw(_times(length))) for length in lengths]).astype(
        np.int64
    )
    marks = np.array(
        data.draw(st.lists(st.sampled_from([0, 2]), min_size=size, max_size=size)), dtype=np.uint8
    )
    uniform = np.random.default_rng(size).random(size)
    plan = SplitPlan(kind, valid, test, 50, 80, ordered or kind == "leave-last")
    parts = assign(plan, offsets, times, marks, uniform)
    assert parts.shape == (size,) and set(parts.tolist()) <= {0, 1, 2}
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        own = parts[start:end]
        if kind == "given":
            assert (own == 2).tolist() == (marks[start:end] == 2).tolist()
            own = own[own != 2]
        if kind != "given" or len(own):
            assert kind == "temporal" or not len(own) or 0 in own.tolist()
        if plan.ordered:
            assert own.tolist() == sorted(own.tolist())  # the data are in order of time
    if kind == "temporal":
        assert parts.tolist() == [0 if t < 50 else 1 if t < 80 else 2 for t in times.tolist()]


def _times(length: int) -> Any:
    return st.lists(st.integers(0, 100), min_size=length, max_size=length)


@examples(100)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.data())
def test_cut_off_is_the_value_at_its_rank(values: list[int], data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, len(values)))
    found = cut_off(
        lambda start, width: bin_counts(np.array(values), start, width),
        min(values),
        max(values),
        rank,
    )
    assert found == sorted(values, reverse=True)[rank - 1]


# ------------------------------------------------------------------------------- vocabulary, hashes

IDS = st.lists(st.text(max_size=5), max_size=12)


@examples(100)
@given(IDS, IDS)
def test_vocabularies_survive_a_round_trip(before: list[str], now: list[str]) -> None:
    base = union([pa.array(before, pa.string())])
    assert base.to_pylist() == sorted(set(before), key=str.encode)
    grown = extend(base, pa.array(now, pa.string()))
    assert grown.to_pylist()[: len(base)] == base.to_pylist() and len(
        set(grown.to_pylist())
    ) == len(grown)
    parts = [pa.array(before, pa.string()), pa.array(now, pa.string())]
    for numbers, names in zip(dense(parts, grown), (before, now), strict=True):
        assert [grown[int(number)].as_py() for number in numbers] == names
    again = Vocabulary(base, grown, ("a",))
    assert again.digest() == Vocabulary(base, grown, ("a",)).digest()


@examples(100)
@given(st.lists(st.none() | st.text(max_size=6), max_size=10), st.integers(0, 9))
def test_hash_depends_only_on_the_text(texts: list[str | None], cut: int) -> None:
    """The hash does not depend on the position or on slices of the column; it equals the naive
    polynomial with Python's integers."""
    column = pa.array(texts, pa.string())
    whole = string_hashes(column)
    assert string_hashes(column.slice(cut)).tolist() == whole[cut:].tolist()
    assert whole.tolist() == [naive_hash((text or "").encode()) for text in texts]


def naive_hash(data: bytes) -> int:
    total = sum(
        (byte + 1) * pow(0x100000001B3, place + 1, 2**64) for place, byte in enumerate(data)
    )
    mixed = (total + 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return mixed ^ (mixed >> 31)


def test_hashes_do_not_depend_on_the_process() -> None:
    """Fixed values: a change would put users into other shards and events into other splits."""
    code = (
        "import pyarrow as pa; from recsys.data.hashing import string_hashes, uniform; h ="
        " string_hashes(pa.array(['a', 'é', None])); print(h.tolist(), uniform(h, h[::-1],"
        " 7).tolist())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


# ------------------------------------------------------------------------------------------ metrics


@examples(150)
@given(
    st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5),
    st.integers(0, 4),
)
def test_metrics_are_their_formulas(hits: list[list[bool]], more: int) -> None:
    targets = [max(sum(row) + more, 1) for row in hits]
    found = query_metrics(np.array(hits), np.array(targets), [1, 3, 6])
    for k in (1, 3, 6):
        for row, (listed, count) in enumerate(zip(hits, targets, strict=True)):
            places = [place for place, hit in enumerate(listed[:k], 1) if hit]
            ideal = sum(1 / math.log2(place + 1) for place in range(1, min(count, k) + 1))
            expected = {
                "recall": len(places) / count,
                "precision": len(places) / k,
                "hit": float(bool(places)),
                "mrr": 1 / places[0] if places else 0.0,
                "ndcg": sum(1 / math.log2(place + 1) for place in places) / ideal,
                "map": (
                    sum(number / place for number, place in enumerate(places, 1)) / min(count, k)
                ),
            }
            for kind, value in expected.items():
                assert found[f"{kind}@{k}"][row] == pytest.approx(value, abs=1e-12), f"{kind}@{k}"


@examples(100)
@given(
    st.lists(st.lists(st.integers(0, 7), unique=True, max_size=5), min_size=1, max_size=5),
    st.integers(0, 9),
)
def test_list_metrics_are_their_formulas(lists: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, vectors = rng.integers(0, 9, 8), rng.normal(size=(8, 3))
    items = np.array([row + [-1] * (5 - len(row)) for row in lists])
    found = list_metrics(items, counts, vectors, [2, 5])
    for k in (2, 5):
        cut = [row[:k] for row in lists]
        shown = Counter(item for row in cut for item in row)
        assert found[f"coverage@{k}"] == len(shown) / 8
        chance = (counts + 1) / (counts + 1).sum()
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        exposures = sorted(shown[item] for item in range(8))
        total = sum(exposures)
        gini = (
            sum((2 * i - 9) * x for i, x in enumerate(exposures, 1)) / (8 * total) if total else 0.0
        )
        assert found[f"gini@{k}"] == pytest.approx(gini)
        for row, listed in enumerate(cut):
            bits = sum(-math.log2(chance[item]) for item in listed) / max(len(listed), 1)
            cosines = [float(unit[a] @ unit[b]) for a in listed for b in listed if a != b]
            distance = 1 - sum(cosines) / len(cosines) if cosines else 0.0
            assert found[f"novelty@{k}"][row] == pytest.approx(bits)  # type: ignore[index]
            assert found[f"diversity@{k}"][row] == pytest.approx(distance, abs=1e-9)  # type: ignore[index]


# ------------------------------------------------------------------------------------------- fusion


@examples(60)
@given(
    st.sampled_from(["weighted", "learned", "gated"]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 999),
)
def test_shares_of_the_granularities_sum_to_the_score(
    kind: str, size: int, count: int, seed: int
) -> None:
    from recsys.config import FusionConfig
    from recsys.fusion import FUSIONS

    generator = torch.Generator().manual_seed(seed)
    fusion = FUSIONS[kind](FusionConfig(kind=kind), [0.5] * count, 3).eval()
    z_BKD = torch.randn(size, count, 3, generator=generator)
    present_BK = torch.rand(size, count, generator=generator) < 0.7
    items_ND = torch.randn(4, 3, generator=generator)
    with torch.no_grad():
        users_BD, weights_BK = fusion(z_BKD, present_BK)
    assert (
        not weights_BK[~present_BK].any()
        and torch.isfinite(weights_BK).all()
        and (weights_BK >= 0).all()
    )
    shares_BKN = torch.einsum("bk,bkd,nd->bkn", weights_BK, z_BKD, items_ND)
    torch.testing.assert_close(shares_BKN.sum(1), users_BD @ items_ND.T, rtol=1e-4, atol=1e-5)
    if kind == "gated":
        has_any_B = present_BK.any(1)
        torch.testing.assert_close(
            weights_BK[has_any_B].sum(1), torch.full((int(has_any_B.sum()),), float(count))
        )
