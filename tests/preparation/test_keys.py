"""Texts as codes and sorted rows: the same results as plain Arrow and numpy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.preparation.keys import (
    coded,
    codes_in,
    compact,
    lex_order,
    own_codes,
    parts_of,
    text_counts,
    used_texts,
)

LOWEST, HIGHEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
NUMBERS = st.one_of(
    st.integers(-2, 2), st.sampled_from([LOWEST, HIGHEST, 10**15]), st.integers(LOWEST, HIGHEST)
)
TEXTS = st.lists(st.one_of(st.none(), st.sampled_from(["", "a", " a", "b", "ü"])), max_size=40)


@settings(deadline=None)
@given(st.data(), st.integers(0, 60), st.integers(1, 4))
def test_order_equals_numpy_for_numbers_of_any_size(
    data: st.DataObject, rows: int, width: int
) -> None:
    keys = [
        np.array(data.draw(st.lists(NUMBERS, min_size=rows, max_size=rows)), dtype=np.int64).view(
            kind
        )
        for kind in data.draw(
            st.lists(st.sampled_from([np.int64, np.uint64]), min_size=width, max_size=width)
        )
    ]
    assert lex_order(keys).tolist() == np.lexsort(keys[::-1]).tolist()


@settings(deadline=None)
@given(TEXTS, st.integers(0, 40))
def test_coded_texts_keep_values_counts_and_order_of_the_texts(
    texts: list[str | None], cut: int
) -> None:
    whole = pa.table({"x": coded(pa.chunked_array([pa.array(texts, pa.string())]))}).slice(cut)
    kept = texts[cut:]
    for column in (whole.column("x"), pa.chunked_array([compact(whole.column("x"))])):
        assert column.to_pylist() == kept
        found = sorted({text for text in kept if text is not None})
        assert used_texts(column).to_pylist() == found
        assert text_counts(column, "none") == {
            text if text is not None else "none": kept.count(text) for text in dict.fromkeys(kept)
        }
        assert codes_in(column, pa.array(["b", "a"])).tolist() == [
            {"b": 0, "a": 1}.get(text, -1) if text is not None else -1 for text in kept
        ]
        numbers = own_codes(column, trimmed=True)
        for text, number in zip(kept, numbers.tolist(), strict=True):
            assert (number == 0) == (text is None)
            for other, another in zip(kept, numbers.tolist(), strict=True):
                if text is not None and other is not None:
                    assert (number < another) == (text.strip() < other.strip())


@pytest.mark.parametrize("distinct", [1, 1000])
def test_compacted_slice_has_only_its_own_texts(distinct: int) -> None:
    column = coded(pa.chunked_array([pa.array([f"user {i % distinct}" for i in range(2000)])]))
    piece = pa.chunked_array([compact(pa.chunked_array([column.slice(10, 5)]))])
    assert piece.to_pylist() == column.slice(10, 5).to_pylist()
    assert len(parts_of(piece)[0]) == min(distinct, 5)
