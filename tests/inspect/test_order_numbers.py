"""`recsys init`: whole numbers that order the events where no column has times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.inspect.look import Look, look
from recsys.sources import open_source
from recsys.sources.base import read_all
from tests.inspect.test_public_forms import source_of, write

NUM_USERS, NUM_ITEMS = 40, 50
Rows = list[tuple[object, ...]]


def logged(names: tuple[str, ...], numbers: list[int], tmp_path: Path) -> Look:
    """Events whose third column numbers those of each user; every user repeats items."""
    random = np.random.default_rng(0)
    rows: Rows = [names]
    for user in range(NUM_USERS):
        rows += [(f"u{user}", f"p{random.integers(NUM_ITEMS)}", number) for number in numbers]
    return look([write(tmp_path / "log.csv", rows)])


def test_step_of_a_session_orders_its_events(tmp_path: Path) -> None:
    found = logged(("user_id", "product_id", "session_step"), [*range(1, 31)], tmp_path)
    data = found.config.data
    assert data.order == "time" and data.split.kind == "leave-last"
    assert not found.config.evaluate.exclude_seen  # a repeated product is an event of its own
    events = read_all(open_source(data.source).pieces()["events"])
    assert len(events) == NUM_USERS * 30
    days = events["timestamp"].to_numpy().astype("datetime64[D]")[:30]
    assert (np.diff(days).astype(int) == 1).all()


def test_day_numbers_of_a_study_are_times_of_all_users(tmp_path: Path) -> None:
    days = [*range(1, 712, 15)]
    found = logged(("household_key", "PRODUCT_ID", "DAY"), days, tmp_path)
    assert source_of(found).rename["events"]["DAY"] == "timestamp"
    assert source_of(found).time_format == "serial"
    assert found.config.data.split.kind == "temporal"


def test_numbers_from_zero_are_seconds(tmp_path: Path) -> None:
    seconds = [*range(0, 900_000, 20_000)]
    found = logged(("uid", "campaign", "timestamp"), seconds, tmp_path)
    assert found.config.data.order == "time" and source_of(found).time_format == ""


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("day_of_week", [*range(7)] * 3),
        ("day", [*range(1, 31)]),
        ("quantity", [*range(1, 31)]),
        ("tagID", [*range(1, 2000, 60)]),  # "Tag" is also a German day
    ],
)
def test_numbers_that_start_again_are_no_order(
    name: str, numbers: list[int], tmp_path: Path
) -> None:
    found = logged(("user_id", "product_id", name), numbers, tmp_path)
    assert found.config.data.order == "none"


def test_number_of_the_order_is_that_of_its_lines(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    orders: Rows = [("order_id", "user_id", "eval_set", "order_number", "order_dow")]
    lines: dict[str, Rows] = {
        kind: [("order_id", "product_id", "add_to_cart_order")] for kind in ("prior", "train")
    }
    ids = iter(random.permutation(NUM_USERS * 12).tolist())
    for user in range(1, NUM_USERS + 1):
        for number in range(1, 9):
            kind, order = ("prior" if number < 8 else "train"), next(ids)
            orders.append((order, user, kind, number, random.integers(7)))
            bought = random.permutation(NUM_ITEMS)[: random.integers(3, 12)]
            lines[kind] += [(order, f"p{item}", place) for place, item in enumerate(bought, 1)]
    paths = [write(tmp_path / f"order_products__{kind}.csv", lines[kind]) for kind in lines]
    source = source_of(look([*paths, write(tmp_path / "orders.csv", orders)]))
    assert source.events == paths  # both files, as their orders differ
    assert source.rename["events"]["order_number"] == "timestamp"
    assert source.lookup == {"order_id": [str(tmp_path / "orders.csv")]}
    events = read_all(open_source(source).pieces()["events"])
    assert events["timestamp"].null_count == 0 and len({*events["timestamp"].to_pylist()}) == 8


def test_month_and_day_with_leading_zeros_order_the_events(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    days = [f"{month:02}{day:02}" for month in (5, 9, 11) for day in range(1, 31, 2)]
    rows: Rows = [("user_id", "item_id", "time_stamp")]
    rows += [(u, f"p{random.integers(NUM_ITEMS)}", day) for u in range(NUM_USERS) for day in days]
    found = look([write(tmp_path / "log.csv", rows)])
    assert found.config.data.order == "time" and source_of(found).time_format == "serial"
    read = read_all(open_source(source_of(found)).pieces()["events"])["timestamp"].to_pylist()
    assert read[: len(days)] == sorted(read[: len(days)]) and len({*read}) == len(days)
