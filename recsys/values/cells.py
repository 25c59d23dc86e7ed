"""The meaning of cells: ids, numbers and extra columns; vectorised. Which cells are missing values:
:mod:`recsys.values.absent`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.values.absent import DEFAULT_RULES, CellRules, absent_set, present_only
from recsys.values.arrow_types import is_bytes
from recsys.values.digits import ascii_digits
from recsys.values.rated import NUMBER, RATED, stars_of

_GROUPED: Final = r"^([+-]?\d{1,3})((?:[.\x{a0}\x{202f} ']\d{3})+)(,\d*)?$"  # 1.234.567,8
_DIGITS_AND_COMMA: Final = r"^[+-]?(?:\d+(?:,\d*)?|,\d+)(?:[eE][+-]?\d+)?$"  # 1234,5
_CURRENCY: Final = r"(?:[\p{Sc}%]|[A-Z]{3}|US\$|kr\.?|zł|Fr\.)"
_UNIT_BEFORE: Final = rf"^([+-]?){_CURRENCY}\s*"
_UNIT_BEHIND: Final = rf"^(.*\d)\s*{_CURRENCY}$"
_COMMA_GROUPED: Final = r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?$"
# a column is rewritten if at least this share of its numbers has a decimal comma
_MOST: Final = 0.5


# ------------------------------------------------------------------------------------ typed columns


def ids(column: pa.Array, rules: CellRules = DEFAULT_RULES) -> pa.Array:
    """Ids as trimmed strings; null if missing. Integers that are stored as floats lose ``.0``.

    >>> ids(pa.array([" a ", "", "NaN", "7"])).to_pylist()
    ['a', None, None, '7']
    >>> ids(pa.array([1.0, float("nan"), 2.5])).to_pylist()
    ['1', None, '2.5']
    """
    if pa.types.is_floating(column.type):
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        whole = np.isfinite(values) & (np.abs(values) < 2**53) & (values == np.floor(values))
        # through integers: the text of a float is "7.0" or has an exponent
        whole_text = pa.array(np.where(whole, values, 0).astype(np.int64)).cast(pa.string())
        text = pc.if_else(pa.array(whole), whole_text, pa.array(values).cast(pa.string()))
        return pc.if_else(pa.array(np.isfinite(values)), text, None)
    # an integer can only be a missing value if the configuration names a number
    if pa.types.is_integer(column.type) and not any(
        form.strip("+-").isdigit() for form in rules.absent
    ):
        return column.cast(pa.string())
    text = pc.utf8_trim_whitespace(as_text(column))
    absent = pc.is_in(text, value_set=absent_set(rules))
    return pc.if_else(absent, None, text) if pc.any(absent).as_py() else text


def numbers(column: pa.Array, rules: CellRules = DEFAULT_RULES) -> tuple[pa.Array, pa.Array]:
    """Numbers as float64 (null if missing or wrong), and a mask of wrong cells, which are not
    finite numbers.

    With a decimal comma "3,5" is 3.5 and "1.234,5" is 1234.5; a point that does not separate
    thousands is wrong. With a decimal point "1,234.5" is 1234.5. Digits of other scripts are
    digits.

    >>> values, wrong = numbers(pa.array(["2.5", "", "nan", "inf", "x"]))
    >>> values.to_pylist(), wrong.to_pylist()
    ([2.5, None, None, None, None], [False, False, False, True, True])
    >>> numbers(pa.array(["3,5", "1.234,5", "3.5"]), CellRules(decimal=","))[0].to_pylist()
    [3.5, 1234.5, None]
    >>> numbers(pa.array(["٤٫٥", "۱٬۲۰۰", "１２"]))[0].to_pylist()
    [4.5, 1200.0, 12.0]
    >>> numbers(pa.array(["1,234.5", "12,804", "3,5"]))[0].to_pylist()
    [1234.5, 12804.0, None]
    >>> numbers(pa.array([b"2", b"x"], pa.binary(1)))[0].to_pylist()
    [2.0, None]
    """
    if is_text(column.type) or is_bytes(column.type):
        texts = ascii_digits(as_text(column), rules.decimal)
        series = pl.Series(pl.from_arrow(texts)).str.strip_chars()
        plain = _with_points(series) if rules.decimal == "," else series
        values = plain.cast(pl.Float64, strict=False)
        fine = values.is_finite().fill_null(False)
        present = series.is_not_null() & (series != "")
        # with a decimal comma, a comma between digits is not a separator of thousands
        if rules.decimal == "." and (present & ~fine).any():
            grouped = series.str.contains(_COMMA_GROUPED).fill_null(False)
            bare = series.str.replace_all(",", "", literal=True).cast(pl.Float64, strict=False)
            values = pl.select(pl.when(grouped).then(bare).otherwise(values)).to_series()
            fine = values.is_finite().fill_null(False)
        if (
            rules.has_numbers or (present & ~fine).any()
        ):  # "nan" is parsed as a number, but is a missing value
            present &= ~series.is_in(list(rules.absent))
            values = pl.select(pl.when(present).then(values)).to_series()
    elif (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or pa.types.is_decimal(column.type)
    ):
        values = pl.Series(pl.from_arrow(column.cast(pa.float64(), safe=False))).fill_nan(None)
        present = values.is_not_null()
    else:
        return pa.nulls(len(column), pa.float64()), pc.is_valid(column)
    fine = values.is_finite().fill_null(False)
    cleaned = pl.select(pl.when(fine).then(values)).to_series()
    return cleaned.to_arrow(), (present.fill_null(False) & ~fine).to_arrow()


def graded(column: pa.Array, rules: CellRules = DEFAULT_RULES) -> tuple[pa.Array, pa.Array]:
    """Numbers as those of :func:`numbers`; texts of ``rules.values`` have the numbers given there,
    and so do missing values if the empty text is one of them.

    >>> rules = CellRules(values=(("good", 4.0), ("★★", 2.0)))
    >>> values, wrong = graded(pa.array(["Good ", "★★", "3", "bad", None]), rules)
    >>> values.to_pylist(), wrong.to_pylist()
    ([4.0, 2.0, 3.0, None, None], [False, False, False, True, False])
    """
    if not rules.values or pa.types.is_nested(column.type):
        return numbers(column, rules)
    given = pa.array([text for text, _ in rules.values], pa.string())
    texts = as_text(column)
    rows = pc.index_in(pc.utf8_lower(pc.utf8_trim_whitespace(texts)), value_set=given)
    found = pa.array([number for _, number in rules.values], pa.float64()).take(rows)
    is_given = pc.is_valid(rows)
    # a flag is a number only if it has one
    rest = texts if pa.types.is_boolean(column.type) else column
    values, wrong = numbers(pc.if_else(is_given, pa.scalar(None, rest.type), rest), rules)
    found = pc.coalesce(found, values)
    blank = dict(rules.values).get("")
    if blank is not None:
        found = pc.if_else(pc.or_(pc.is_valid(found), wrong), found, blank)
    return found, wrong


def measured(column: pa.Array, rules: CellRules = DEFAULT_RULES) -> pa.Array:
    """Numbers as float64, also with a currency, a percent sign or commas between thousands; null
    for anything else.

    Ratings in texts are numbers too.

    >>> measured(pa.array(["$1,299.00", "12 EUR", "7", "about 7"])).to_pylist()
    [1299.0, 12.0, 7.0, None]
    >>> measured(pa.array(["4.5 out of 5 stars", "★★★☆☆", "Rated 2 of 5"])).to_pylist()
    [4.5, 3.0, 2.0]
    """
    if is_text(column.type):
        column = ascii_digits(as_text(column), rules.decimal)
    values, wrong = numbers(column, rules)
    if not is_text(column.type) or not pc.any(wrong).as_py():
        return values
    # only cells that are no plain number pay for the regular expressions
    rows = pa.array(np.flatnonzero(np.asarray(wrong)))
    bare = pl.Series(pl.from_arrow(as_text(column).take(rows))).str.strip_chars()
    bare = bare.str.replace(_UNIT_BEFORE, "$1").str.replace(_UNIT_BEHIND, "$1")
    bare = _ratings_as_numbers(bare, rules)
    found = numbers(bare.to_arrow().cast(pa.string()), rules)[0]
    complete = pl.Series(pl.from_arrow(values)).scatter(
        pl.Series(pl.from_arrow(rows)), pl.Series(pl.from_arrow(found))
    )
    return complete.to_arrow()


def _ratings_as_numbers(texts: pl.Series, rules: CellRules) -> pl.Series:
    """Texts that are ratings, such as 4 of 5, as their numbers; other texts stay."""
    lowered = texts.str.to_lowercase().str.replace_all("\ufe0f", "", literal=True)
    rows = lowered.str.contains(RATED).fill_null(False).arg_true()
    if not len(rows):
        return texts
    rated = lowered.gather(rows)
    first = rated.str.extract(f"({NUMBER})")
    first = first.str.replace_all(r"[.,]", rules.decimal)
    stars = pl.Series([stars_of(text) for text in rated], dtype=pl.Float64).cast(pl.String)
    stars = stars.str.replace(".", rules.decimal, literal=True)
    return texts.scatter(rows, first.fill_null(stars))


def _with_points(texts: pl.Series) -> pl.Series:
    """Numbers with a decimal comma as numbers with a point; null for any other text."""
    plain = pl.select(pl.when(texts.str.contains(_DIGITS_AND_COMMA)).then(texts)).to_series()
    # grouped numbers are rare, so the second expression runs only on the rest
    left = plain.is_null() & texts.is_not_null()
    if left.any():
        grouped = pl.select(pl.when(left & texts.str.contains(_GROUPED)).then(texts)).to_series()
        plain = plain.fill_null(grouped.str.replace_all(r"[^\d+,-]", ""))
    return plain.str.replace(",", ".", literal=True)


def extra(column: pa.Array, kind: pa.DataType, rules: CellRules = DEFAULT_RULES) -> pa.Array:
    """An extra column in its declared type; missing and unsuitable cells are null.

    Missing members of lists of texts are removed.

    Parameters
    ----------
    column : pa.Array
        The cells as they were read.
    kind : pa.DataType
        The declared type.
    rules : CellRules
        Which cells are missing values, and the decimal sign.
    """
    if pa.types.is_floating(kind):
        if column.type.equals(kind):
            return (
                pc.if_else(pc.is_nan(column), None, column)
                if pc.any(pc.is_nan(column)).as_py()
                else column
            )
        return measured(column, rules).cast(kind)
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return _lists_of_texts(column.cast(kind), rules)
    if pa.types.is_list(kind) and pa.types.is_floating(kind.value_type) and is_text(column.type):
        series = pl.Series(pl.from_arrow(present_only(as_text(column), rules))).str.strip_chars()
        series = series.str.replace_all(",", ".", literal=True) if rules.decimal == "," else series
        return series.str.split(" ").cast(pl.List(pl.Float64), strict=False).to_arrow().cast(kind)
    if pa.types.is_string(kind):
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        texts = present_only(as_text(column), rules)
        return _numbers_rewritten(texts) if rules.decimal == "," else texts
    return column if column.type.equals(kind) else column.cast(kind, safe=False)


def _lists_of_texts(lists: pa.ListArray, rules: CellRules) -> pa.ListArray:
    """The lists without missing members."""
    members = lists.flatten()
    absent = pc.is_in(pc.utf8_trim_whitespace(members), value_set=absent_set(rules))
    dropped = np.asarray(pc.or_(absent, pc.is_null(members)))
    if not dropped.any():
        return lists
    parents = np.asarray(pc.list_parent_indices(lists))[~dropped]
    lengths = np.bincount(parents, minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets),
        members.filter(pa.array(~dropped)),
        type=lists.type,
        # a missing list must not become an empty one
        mask=pc.is_null(lists),
    )


def _numbers_rewritten(texts: pa.Array) -> pa.Array:
    """Rewrite numbers with a decimal comma with a point, in a text column that mostly has such
    numbers.

    Later stages expect the point.
    """
    series = pl.Series(pl.from_arrow(texts)).str.strip_chars()
    plain = _with_points(series)
    known = len(series) - series.null_count()
    has_comma = series.str.contains(",", literal=True).any()
    if not has_comma or len(plain) - plain.null_count() < _MOST * known:
        return texts
    return plain.fill_null(series).to_arrow().cast(pa.string())


# ------------------------------------------------------------------------------------------- shapes


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is text, also in dictionaries or as a column of nulls."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_null(kind)
        or pa.types.is_string_view(kind)
        or (pa.types.is_dictionary(kind) and is_text(kind.value_type))
    )


def as_text(column: pa.Array) -> pa.Array:
    """A column of any type as strings."""
    if pa.types.is_string(column.type):
        return column
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pa.array(
            [None if cell is None else str(cell) for cell in column.to_pylist()], pa.string()
        )
