"""Digits of other scripts are digits in numbers and times; ids and texts keep them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from recsys import schema
from recsys.config import CanonicalSource
from recsys.inspect.look import look
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.sources.validate import CellRules, extra, ids
from recsys.values.cells import graded, measured, numbers
from recsys.values.moment import moment
from recsys.values.times import timestamps
from tests.inspect.test_unusual_files import at, columns_of_events, pairs, write

ZEROS = {"Arabic-Indic": "٠", "Persian": "۰", "Devanagari": "०", "full width": "０", "Thai": "๐"}


def script(zero: str) -> Callable[[str], str]:
    """Write the digits of a text in the script of a zero."""
    return lambda text: text.translate({ord("0") + n: chr(ord(zero) + n) for n in range(10)})


@pytest.mark.parametrize("zero", ZEROS.values(), ids=ZEROS)
def test_digits_of_a_script_are_numbers_and_times(zero: str) -> None:
    written = script(zero)
    plain = ["4", "-2.5", "1e3", "about 7", "", None]
    foreign = pa.array([text if text is None else written(text) for text in plain])
    assert numbers(foreign)[0].to_pylist() == [4.0, -2.5, 1000.0, None, None, None]
    assert numbers(foreign)[1].to_pylist() == [False, False, False, True, False, False]
    assert measured(pa.array([written("$1,299.00"), written("4/5")])).to_pylist() == [1299.0, 4.0]
    for text in ("2024-05-01 10:30:00", "20240501", "1714559400", "1 May 2024"):
        times, wrong = timestamps(pa.array([written(text)]))
        assert times.equals(timestamps(pa.array([text]))[0]) and wrong.to_pylist() == [False]
        assert moment(written(text)) == moment(text)
    rules = CellRules(time_format="%d/%m/%Y")
    given = timestamps(pa.array([written("01/05/2024")]), rules)[0]
    assert given.equals(timestamps(pa.array(["01/05/2024"]), rules)[0])


@pytest.mark.parametrize("decimal", [".", ","])
def test_arabic_marks_of_decimals_and_thousands_need_no_setting(decimal: str) -> None:
    rules = CellRules(decimal=decimal)
    given = pa.array(["١٬٢٣٤٫٥", "۱۲٫۵", "\u200f٧"])
    assert numbers(given, rules)[0].to_pylist() == [1234.5, 12.5, 7.0]
    assert measured(pa.array(["١٬٢٣٤٫٥ €"]), rules).to_pylist() == [1234.5]


def test_full_width_signs_belong_to_the_digits() -> None:
    times, _ = timestamps(pa.array(["２０２４／０５／０１　１０：３０"]))
    assert times.equals(timestamps(pa.array(["2024/05/01 10:30"]))[0])
    assert numbers(pa.array(["－２．５"]))[0].to_pylist() == [-2.5]


def test_given_texts_of_values_come_before_digits() -> None:
    rules = CellRules(values=(("٥", 1.0),))
    assert graded(pa.array(["٥", "٤"]), rules)[0].to_pylist() == [1.0, 4.0]


def test_ids_and_texts_keep_their_digits() -> None:
    given = ["۱۲۳", "商品１２", "12"]
    assert ids(pa.array(given)).to_pylist() == given
    assert extra(pa.array(given), pa.string()).to_pylist() == given
    assert extra(pa.array(given), pa.float64()).to_pylist() == [123.0, None, 12.0]


@pytest.mark.parametrize("zero", ZEROS.values(), ids=ZEROS)
def test_init_finds_times_and_ratings_in_a_script(zero: str, tmp_path: Path) -> None:
    written = script(zero)
    rows = [
        (written(f"{u + 100}"), written(f"{i + 5000}"), written(at(t)), written(f"{1 + n % 5}"))
        for n, (u, i, t) in enumerate(pairs())
    ]
    names = ["customer", "product", "rated_at", "rating"]
    found = look([str(write(tmp_path / "ratings.csv", names, rows))])
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    wanted = {"customer": "user_id", "product": "item_id", "rated_at": "timestamp"}
    assert columns_of_events(source) == {**wanted, "rating": "value"}
    read = read_all(open_source(source).pieces()["events"])
    assert read.column(schema.REASON).null_count == read.num_rows
    assert read.column(schema.USER_ID).to_pylist() == [row[0] for row in rows]
    times = [time.timestamp() for time in read.column(schema.TIMESTAMP).to_pylist()]
    assert times == [t for _, _, t in pairs()]
    assert read.column(schema.VALUE).to_pylist() == [1 + n % 5 for n in range(len(rows))]
