"""`recsys init`: ratings that are stars, fractions, words or thumbs become numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import CanonicalSource
from recsys.inspect.look import Look, look
from recsys.inspect.scales import scale_of
from recsys.sources import open_source
from recsys.sources.base import read_all

NUM_ROWS = 1200
WORDS = ["Terrible", "Poor", "Average", "Good", "Excellent"]


def rows_of(texts: list[Any], name: str = "rating") -> dict[str, list[Any]]:
    """Events whose ratings are the texts, one after the other."""
    random = np.random.default_rng(0)
    return {
        "user_id": [f"u{u}" for u in random.integers(0, 60, NUM_ROWS)],
        "item_id": [f"i{i}" for i in random.integers(0, 40, NUM_ROWS)],
        name: [texts[row] for row in random.integers(0, len(texts), NUM_ROWS)],
        "timestamp": [1_700_000_000 + 60 * row for row in range(NUM_ROWS)],
    }


def written(path: Path, rows: dict[str, list[Any]]) -> Path:
    """The rows in the format of the file's name."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(rows), path)
    elif path.suffix == ".jsonl":
        lines = [dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines_of_text = [mark.join(rows)]
        lines_of_text += [mark.join(map(str, cells)) for cells in zip(*rows.values(), strict=True)]
        path.write_text("\n".join(lines_of_text) + "\n")
    return path


def values_of(found: Look) -> list[float]:
    read = read_all(open_source(found.config.data.source).pieces()["events"])
    assert read.column(schema.REASON).null_count == read.num_rows
    return read.column(schema.VALUE).to_pylist()


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["★☆☆☆☆", "★★★★★"], [1, 5]),
        (["⭐⭐", "⭐⭐⭐"], [2, 3]),
        (["★★", "★★½"], [2, 2.5]),
        (["☆☆", "☆☆☆"], [2, 3]),
        (["1 star", "4 stars"], [1, 4]),
        (["one star", "Five Stars"], [1, 5]),
        (["3,5 Sterne", "5 Sterne"], [3.5, 5]),
        (["1/5", "4.5/5"], [1, 4.5]),
        (["4/5", "7/10"], [8, 7]),
        (["2 von 5", "5 von 5"], [2, 5]),
        (["Rated 4 of 5", "Rated 2 of 5"], [4, 2]),
        (["4 out of 5 stars", "5 out of 5 stars"], [4, 5]),
        (["80 %", "100%"], [80, 100]),
        (["1 - Very bad", "5 - Excellent"], [1, 5]),
        (["Poor", "GOOD!"], [2, 4]),
        (["Excellent", "Very good", "Good", "Fair", "Poor"], [5, 4.5, 4, 2.5, 2]),
        (["mangelhaft", "sehr gut"], [2, 4.5]),
        (["très bon", "moyen", "mauvais"], [4.5, 3, 2]),
        (["bueno", "malo"], [4, 2]),
        (["słaby", "dobry", "doskonały"], [2, 4, 5]),
        (["плохо", "отлично"], [2, 5]),
        (["like", "dislike"], [1, -1]),
        (["👍🏽", "👎"], [1, -1]),
        (["Thumbs Up", "thumbs-down"], [1, -1]),
        (["love", "like", "dislike"], [5, 4, 2]),
        (["true", "False"], [1, 0]),
        (["Good", "Bad", "not rated"], [4, 2, 4]),
    ],
)
def test_texts_of_a_scale_have_numbers(texts: list[str], numbers: list[float]) -> None:
    found = scale_of(dict.fromkeys(texts, 5))
    assert found is not None
    assert [found.grades[text] for text in texts] == numbers


@pytest.mark.parametrize(
    "texts",
    [
        ["meh", "wow"],
        ["Good", "Poor", "zebra"],
        ["1/2", "3/8"],
        ["5/3", "4/3"],
        ["12 EUR", "3 EUR"],
        ["a", "b"],
        ["2024-01-01", "2024-01-02"],
        ["Season 1 of 3", "Season 2 of 3"],
        ["like"],
    ],
)
def test_texts_without_a_known_order_have_no_numbers(texts: list[str]) -> None:
    assert scale_of(dict.fromkeys(texts, 5)) is None


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_words_are_read_as_numbers_in_every_format(suffix: str, tmp_path: Path) -> None:
    rows = rows_of(WORDS)
    found = look([str(written(tmp_path / f"ratings.{suffix}", rows))])
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    assert source.values == {word: grade for grade, word in enumerate(WORDS, 1)}
    assert values_of(found) == [WORDS.index(word) + 1 for word in rows["rating"]]
    assert "# 5 grades from Terrible to Excellent" in found.draft.text()


def test_stars_need_no_name_of_a_rating(tmp_path: Path) -> None:
    rows = rows_of(["★" * full + "☆" * (5 - full) for full in range(1, 6)], "given")
    found = look([str(written(tmp_path / "log.csv", rows))])
    assert values_of(found) == [text.count("★") for text in rows["given"]]


def test_flags_of_json_named_as_ratings_are_numbers(tmp_path: Path) -> None:
    rows = rows_of([True, False, True])
    found = look([str(written(tmp_path / "ratings.jsonl", rows))])
    assert values_of(found) == [float(flag) for flag in rows["rating"]]


def test_dislikes_are_negative_and_do_not_count(tmp_path: Path) -> None:
    rows = rows_of(["like", "like", "dislike"], "feedback")
    found = look([str(written(tmp_path / "feedback.csv", rows))])
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    assert source.values == {"dislike": -1, "like": 1}
    assert found.config.data.min_value == 1.0


def test_likes_in_a_column_of_actions_stay_event_types(tmp_path: Path) -> None:
    rows = rows_of(["like", "like", "dislike"], "action")
    found = look([str(written(tmp_path / "log.csv", rows))])
    assert found.config.data.interactions == ["like"]


def test_words_of_unknown_order_become_a_comment_in_the_yaml(tmp_path: Path) -> None:
    found = look([str(written(tmp_path / "ratings.csv", rows_of(["meh", "wow", "lol"])))])
    text = found.draft.text()
    assert "# values: {lol: 1, meh: 2, wow: 3}" in text and "rating: value to the rename" in text
    assert {*values_of(found)} == {1.0}


def test_ratings_of_items_are_numbers_and_no_text(tmp_path: Path) -> None:
    events = rows_of(["x"])
    items = {
        "item_id": [f"i{i}" for i in range(40)],
        "average": [f"{i % 50 / 10} out of 5 stars" for i in range(40)],
        "stars": ["★" * (i % 5 + 1) for i in range(40)],
    }
    files = [
        str(written(tmp_path / "events.csv", events)),
        str(written(tmp_path / "items.csv", items)),
    ]
    found = look(files)
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    assert source.numbers == {"items": ["average", "stars"]} and not found.config.data.text.enabled
    read = read_all(open_source(source).pieces()["items"])
    assert read.column("average").to_pylist() == [i % 50 / 10 for i in range(40)]
    assert read.column("stars").to_pylist() == [i % 5 + 1 for i in range(40)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"good": "much"}, "valid number"),
        ({"good": float("nan")}, "finite"),
        ({"good": 1, "GOOD": 2}, "given twice"),
        ({"good": True}, "expected a number"),
    ],
)
def test_values_that_are_no_numbers_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CanonicalSource(events=["a.csv"], values=values)


def test_flags_of_yaml_are_both_spellings() -> None:
    values = CanonicalSource(events=["a.csv"], values={True: 1, False: 0}).values  # type: ignore[dict-item]
    assert values == {"true": 1, "yes": 1, "false": 0, "no": 0}
