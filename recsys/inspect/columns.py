"""The kind of a column: ids, numbers, times, texts, HTML, addresses, category paths, lists,
coordinates.

Why it matters: a web address, a price or a latitude is no text for a language model, a list of
genres is several triples, and numbers in text files must be read as numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.inspect.common_names import (
    CURRENCIES,
    ITEM,
    LATITUDE,
    LONGITUDE,
    RATING,
    TEXT,
    TIME,
    USER,
    VALUE,
    has_id,
    lists_codes,
    similarity,
)
from recsys.inspect.decimal_marks import (
    COMMA_NUMBER,
    LEAST_LISTS,
    SOME,
    are_few_lists,
    has_decimal_comma,
    has_points,
    share_of,
)
from recsys.inspect.scales import MOST_GRADES, Scale, scale_of
from recsys.inspect.time_formats import TimeForm, time_form
from recsys.sources.validate import CellRules, ids, numbers
from recsys.values import cells as cell_values
from recsys.values.arrow_types import is_cell, is_list, is_plain_number, is_string
from recsys.values.digits import ascii_digits
from recsys.values.rated import RATED

Kind = Literal[
    "empty", "constant", "number", "price", "time", "text", "html", "url", "image", "path", "list",
    "lists", "vector", "token", "flag", "object", "rating",
]  # fmt: skip
OBJECTS: Final = "nested objects or lists, lists of numbers, or bytes that are no text"
_SAMPLED: Final = 20_000  # cells that are searched for patterns
_MOST: Final = 0.8
_NEARLY: Final = 0.98
_URL: Final = r"(?i)^(?:https?://|ftp://|s3://|gs://|www\.)\S+$"
_URL_STARTS: Final = r"(?i)^(?:https?://|www\.)"
_IMAGE: Final = r"(?i)\.(?:jpe?g|png|gif|webp|bmp)(?:\?.*)?$"
_TAGS: Final = (
    r"(?i)</?(?:p|br|b|i|em|strong|div|span|ul|ol|li|a|h[1-6]|table|tr|td|img|font|hr)\b[^<>]*>"
    r"|&(?:amp|nbsp|lt|gt|quot|#\d+);"
)
_CURRENCY: Final = "|".join((r"\p{Sc}", r"US\$", *CURRENCIES))
_PRICE_COMMA: Final = r",\d{1,2}\D*$"
_PRICE: Final = rf"^[+-]?(?:{_CURRENCY})\s?\d[\d.,]*$|^\d[\d.,]*\s?(?:{_CURRENCY}|kr|zł)$"
_FIELDS: Final = r"^\s*[A-Za-z_]{2,20}[:=][^|;,&]*[|;,&]\s*[A-Za-z_]{2,20}[:=]"
_SENTENCE: Final = r"[.!?]\s"
# JSON or Python in text; a TSV file may have it in quotes, with the inner ones twice
_OBJECTS: Final = r"""^\s*"?\[?\s*\{\s*["']+[^"']+["']+\s*:"""
_FLAGS: Final = ({"0", "1"}, {"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})
# as NumPy prints them: ['B07' 'B12'] or [7 12]
_PRINTED_LIST: Final = r"""^\[\s*(?:(?:'[^']*'|"[^"]*"|\d+)(?:\s+|\]$))+\]?$"""
_LIST_MARKS: Final = ("|", ";", ", ", ",")
_PATH_MARKS: Final = (" > ", ">", " / ", " » ", "/", "\\")
# one or two characters are a word in Chinese, Japanese and Korean
_WORD: Final = r"\p{L}{3,}|[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]{2,}"
_CJK: Final = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_WORDY: Final = 2.0  # mean number of words from which a column is text
_VECTOR: Final = 8  # smallest length of a list of numbers that is a vector


@dataclass(frozen=True)
class Column:
    """A column of a sample."""

    name: str
    position: int  # in the file, from 0
    kind: Kind
    values: pa.Array = field(compare=False, repr=False)  # ids as text, null where missing
    num_rows: int = 0
    num_values: int = 0  # number of non-missing values
    num_distinct: int = 0
    is_whole: bool = False  # all numbers are whole
    words: float = 0.0  # mean number of words per value
    mark: str = ""  # separator of list members or path steps
    time: TimeForm | None = None
    low: float = 0.0  # smallest number
    high: float = 0.0
    share_negative: float = 0.0
    decimal_comma: bool = False  # text has numbers like 2,5
    decimal_point: bool = False  # text has numbers like 2.5
    is_wordy: bool = False  # values are words for people, not codes
    is_list: bool = False  # cells are lists, whose texts are no ids before they are opened
    example: str = ""
    scale: Scale | None = None  # of ratings that are texts

    @property
    def filled(self) -> float:
        """Share of rows with a value."""
        return self.num_values / max(self.num_rows, 1)

    @property
    def is_key(self) -> bool:
        """Whether nearly all values are distinct."""
        return (
            self.num_values > 1
            and self.num_distinct >= _NEARLY * self.num_values
            and self.filled >= _NEARLY
        )

    @property
    def constant_words(self) -> str:
        """Why a column with one value is not used."""
        if self.num_values == self.num_rows:
            return "the same value in every row"
        return (
            f"one value, {self.example}, in {self.filled:.0%} of the rows; empty cells and texts"
            " such as NONE are no values"
        )

    @property
    def may_be_id(self) -> bool:
        """Whether the values can be ids: short and without fractions."""
        if self.kind in ("token", "flag"):
            return self.num_distinct > 1 or self.num_values == 1
        return self.kind == "number" and self.is_whole

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers or prices."""
        return self.kind in ("number", "price", "rating")

    @property
    def is_latitude(self) -> bool:
        """Whether the column has latitudes, by name and range."""
        return self._is_coordinate(LATITUDE, 90.0)

    @property
    def is_longitude(self) -> bool:
        """Whether the column has longitudes, by name and range."""
        return self._is_coordinate(LONGITUDE, 180.0)

    def _is_coordinate(self, words: tuple[str, ...], limit: float) -> bool:
        if self.kind != "number" or max(abs(self.low), abs(self.high)) > limit:
            return False
        return similarity(self.name, words) >= 0.8

    def looks_like_coordinate(self, limit: float) -> bool:
        """Whether unnamed numbers may be degrees: most have four or more decimals."""
        if self.kind != "number" or self.is_whole or max(abs(self.low), abs(self.high)) > limit:
            return False
        digits = [
            len(text.rpartition(".")[2])
            for text in self.values.drop_null()[:200].to_pylist()
            if "." in text
        ]
        return bool(digits) and sum(count >= 4 for count in digits) >= _MOST * len(digits)


def column_of(
    name: str, position: int, cells: pa.Array, rules: CellRules, decimal: str = ""
) -> Column:
    """Classify one column of a sample.

    Parameters
    ----------
    name : str
        Name of the column.
    position : int
        Position in the file, from 0.
    cells : pa.Array
        Values of the sample.
    rules : CellRules
        Rules for missing values, times and numbers.
    decimal : str
        The decimal mark of the table; empty: the one that the cells have.

    Returns
    -------
    Column
        The column with its kind and statistics.
    """
    kind = cells.type
    if is_list(kind):
        return _of_lists(name, position, cells)
    if not is_cell(kind):
        return Column(name, position, "object", pa.nulls(len(cells), pa.string()), len(cells))
    if pa.types.is_boolean(kind):
        cells = pc.if_else(cells, "true", "false")
    texts = ids(cells, rules)
    present = texts.drop_null()
    distinct = int(pc.count_distinct(present).as_py())
    base: dict[str, Any] = {
        "values": texts,
        "num_rows": len(texts),
        "num_values": len(present),
        "num_distinct": distinct,
        "example": present[0].as_py()[:60] if len(present) else "",
    }
    if not len(present):
        return Column(name, position, "empty", **base)
    is_named = similarity(name, TIME) >= 0.8
    # ids keep their digits; numbers and times are read from a copy
    raw = cells.drop_null() if not pa.types.is_string(kind) else ascii_digits(present)
    # before numbers, because times are often written as numbers
    form = time_form(raw, rules, is_named, has_id(name))
    if form is not None:
        return Column(name, position, "time", time=form, **base)
    sample = ascii_digits(present.slice(0, _SAMPLED))
    if not pa.types.is_string(kind) and not pa.types.is_boolean(kind):
        measured = _measured(
            pc.cast(raw, pa.float64(), safe=False)
            if not pa.types.is_temporal(kind)
            else pa.nulls(0, pa.float64())
        )
        return Column(
            name,
            position,
            "constant" if distinct == 1 and len(present) > 1 else "number",
            **base,
            **measured,
        )
    return _number_in_texts(name, position, sample, base, decimal) or _of_texts(
        name, position, sample, base, decimal
    )


def _is_id(name: str) -> bool:
    return has_id(name) and similarity(name, VALUE) < 0.8


def _is_owner(name: str) -> bool:
    """Whether a name is that of users or items, and not of what they have (``price_per_item``)."""
    return max(similarity(name, USER), similarity(name, ITEM)) > 0.8


def _measured(values: pa.Array) -> dict[str, Any]:
    known: Any = pl.Series(pl.from_arrow(values)).fill_nan(None).drop_nulls()
    if not len(known):
        return {}
    return {
        "is_whole": bool((known == known.floor()).all()),
        "low": float(known.min()),
        "high": float(known.max()),
        "share_negative": float((known < 0).mean()),
    }


def _number_in_texts(
    name: str, position: int, sample: pa.Array, base: dict[str, Any], decimal: str
) -> Column | None:
    """Classify a column of texts that are numbers; None for other texts."""
    comma = decimal != "." and has_decimal_comma(name, sample, 0.0 if decimal else SOME)
    # in a table with decimal commas, 1.234 is a whole number
    is_read_so = comma or decimal == "," and not share_of(sample, COMMA_NUMBER)
    values, wrong = numbers(sample, CellRules(decimal="," if is_read_so else "."))
    if (pc.mean(wrong.cast(pa.int8())).as_py() or 0.0) > 1 - _NEARLY:
        return None
    # leading zeros belong to ids, such as postcodes, and a number would lose them
    if share_of(sample, r"^0\d") >= 0.01 and not comma:
        return None
    measured = _measured(values)
    if base["num_distinct"] == 1 and base["num_values"] > 1:
        kind: Kind = "constant"
    else:
        kind = "flag" if {*pc.unique(sample.slice(0, 1000)).to_pylist()} <= {"0", "1"} else "number"
    if not (measured.get("is_whole") or comma) and kind == "number" and _is_id(name):
        return Column(name, position, "token", **base)  # such as 1026932.0858862293
    marks: dict[str, Any] = {
        "decimal_comma": comma,
        "decimal_point": not is_read_so and has_points(sample),
    }
    return Column(name, position, kind, **base, **measured, **marks)


def _of_texts(
    name: str, position: int, sample: pa.Array, base: dict[str, Any], decimal: str
) -> Column:
    """Classify a column of texts that are neither times nor numbers."""
    distinct = base["num_distinct"]
    lowered = {text.lower() for text in pc.unique(sample.slice(0, 1000)).to_pylist()}
    if distinct == 1 and base["num_values"] > 1:
        return Column(name, position, "constant", **base)
    members = sample.filter(pc.invert(pc.is_in(sample, value_set=pa.array(["[]", "{}"]))))
    if len(members) and share_of(members, _OBJECTS) >= _MOST:
        return Column(name, position, "object", **base)
    # before flags: "yes" and "no" may be a rating, which the column's name decides later
    base["scale"] = _scale(base["values"], distinct)
    if share_of(pc.utf8_lower(sample), RATED) >= _NEARLY and _are_ratings(name, base["scale"]):
        return Column(name, position, "rating", **base, **_measured(cell_values.measured(sample)))
    if any(lowered <= flags for flags in _FLAGS):
        return Column(name, position, "flag", **base)
    if share_of(sample, _PRICE) >= _MOST and not _is_owner(name):
        comma = decimal != "." and share_of(sample, _PRICE_COMMA) > SOME
        point = not comma and has_points(sample)
        return Column(name, position, "price", **base, decimal_comma=comma, decimal_point=point)
    if mark := _mark_of_urls(sample):
        return Column(name, position, "url", mark=mark, is_list=True, **base)
    if share_of(sample, _URL) >= _MOST:
        return Column(
            name, position, "image" if share_of(sample, _IMAGE) >= _MOST else "url", **base
        )
    if share_of(sample, _IMAGE) >= _MOST:
        return Column(name, position, "image", **base)
    blanks = pc.mean(pc.count_substring(pc.utf8_trim_whitespace(sample), " ")).as_py() or 0.0
    # Chinese and Japanese have no blanks; a word has about two characters, and a code often four
    words = float(blanks) + 1 + float(pc.mean(pc.count_substring_regex(sample, _CJK)).as_py()) / 4
    letters = share_of(sample, _WORD)
    # codes have digits, and words for people mostly do not
    wordy = letters >= 0.7 and share_of(sample, r"\d") <= 0.5
    base |= {"words": words, "is_wordy": wordy or (words >= _WORDY and letters >= 0.5)}
    if share_of(sample, _PRINTED_LIST) >= _MOST and share_of(sample, r"\S\s+\S"):
        return Column(name, position, "list", mark=" ", is_list=True, **base)
    # few descriptions have tags, but a single one makes the cleaning necessary
    if share_of(sample, _TAGS) >= 0.03 and words >= _WORDY:
        return Column(name, position, "html", **base)
    # such as name:Lamp|product_id:7|quantity:1 of a shop's export
    if share_of(sample, _FIELDS) >= _MOST and share_of(sample, _SENTENCE) < 0.5:
        return Column(name, position, "object", **base)
    if found := _members(sample, similarity(name, TEXT) >= 0.8):
        return Column(name, position, found[0], mark=found[1], **base)
    is_text = letters >= 0.5 and words >= _WORDY
    return Column(name, position, "text" if is_text else "token", **base)


def _scale(values: pa.Array, distinct: int) -> Scale | None:
    if not 2 <= distinct <= MOST_GRADES:
        return None
    counted = pc.value_counts(values.drop_null())
    texts, counts = (counted.field(place).to_pylist() for place in (0, 1))
    return scale_of(dict(zip(texts, counts, strict=True)))


def _are_ratings(name: str, scale: Scale | None) -> bool:
    """Whether texts such as 3/5 are ratings: they say so, or the column's name does."""
    return (
        bool(scale and scale.is_plain)
        or max(similarity(name, VALUE), similarity(name, RATING)) >= 0.8
    )


def _members(sample: pa.Array, is_title: bool) -> tuple[Kind, str] | None:
    """Find lists and paths in texts: their members occur in several values. A comma in a title is
    part of it.
    """
    written = sample.slice(0, 5000)
    inner = pc.replace_substring_regex(written, r"^\s*\[|\]\s*$", "")
    # lists that a program wrote as text have brackets, and quotes around their members
    unquoted = pc.replace_substring_regex(inner, r"['\"]", "")
    few = pc.if_else(pc.equal(inner, written), inner, unquoted)
    for kind, marks in (
        ("list", _LIST_MARKS[:2]),
        ("path", _PATH_MARKS),
        ("list", () if is_title else _LIST_MARKS[2:]),
    ):
        for mark in marks:
            share = float(pc.mean(pc.match_substring(few, mark).cast(pa.int8())).as_py() or 0.0)
            if share < 0.3 and not (kind == "list" and are_few_lists(few, mark)):
                continue
            members = [
                member.strip()
                for text in few.to_pylist()
                for member in text.split(mark)
                if member.strip()
            ]
            if not members:
                continue
            if kind == "path" and not _has_branches(few, mark):
                continue
            long = sum(len(member.split()) > 5 for member in members)
            # members of lists repeat and are short; the parts of a sentence are neither
            if len(set(members)) <= 0.5 * len(members) and long <= 0.1 * len(members):
                return ("path" if kind == "path" else "list"), mark
    return None


def _mark_of_urls(sample: pa.Array) -> str:
    """The separator of cells that list web addresses; "" if they do not, or list images.

    >>> _mark_of_urls(pa.array(["https://a.b/1 https://a.b/2", "https://a.b/2"]))
    ' '
    """
    if share_of(sample, _URL_STARTS) < _MOST or share_of(sample, _IMAGE) >= _MOST:
        return ""
    return next(
        (
            mark
            for mark in (*_LIST_MARKS, " ")
            if share_of(sample, rf"(?i)^\S+{re.escape(mark)}\s*https?://\S+") > LEAST_LISTS
        ),
        "",
    )


def are_lists(column: Column) -> bool:
    """Whether cells with a separator are lists, not titles with commas: the separator is none of
    titles, the cells have brackets, or the members are cells of their own, too.
    """
    texts = column.values.drop_null()
    return (
        column.mark not in _LIST_MARKS[2:]
        or share_of(texts, r"^\s*\[.*\]\s*$") >= _MOST
        or are_few_lists(texts, column.mark)
    )


def _has_branches(texts: pa.Array, mark: str) -> bool:
    """Whether a first step has several second steps, as in a tree; "Entire home/apt" has one."""
    steps = [text.split(mark)[:2] for text in pc.unique(texts).to_pylist() if mark in text]
    return len({first.strip() for first, _ in steps}) < len(steps)


def _of_lists(name: str, position: int, cells: pa.Array) -> Column:
    kind = cells.type.value_type
    lengths = pc.list_value_length(cells)
    base: dict[str, Any] = {"num_rows": len(cells), "num_values": len(cells) - cells.null_count}
    nothing = pa.nulls(len(cells), pa.string())
    if is_plain_number(kind):
        sizes = pc.unique(lengths.drop_null()).to_pylist()
        # a vector has one length in all rows
        is_vector = len(sizes) == 1 and sizes[0] >= _VECTOR
        if is_vector or not (pa.types.is_integer(kind) and lists_codes(name)):
            return Column(name, position, "vector" if is_vector else "object", nothing, **base)
    elif not is_string(kind):
        return Column(name, position, "object", nothing, **base)
    members = pc.list_flatten(cells).cast(pa.string()).drop_null()
    if not len(members):
        return Column(name, position, "empty", nothing, **base)
    cells = cells.cast(pa.list_(pa.string()))
    joined = pc.binary_join(cells, " | ")
    wordy = (
        share_of(members.slice(0, _SAMPLED), _WORD) >= 0.7
        and share_of(members.slice(0, _SAMPLED), r"\d{3,}") < 0.3
    )
    distinct = int(pc.count_distinct(members).as_py())
    spaces = (
        float(pc.mean(pc.count_substring(members.slice(0, _SAMPLED), " ")).as_py() or 0.0)
        if len(members)
        else 0.0
    )
    is_text = spaces >= 5  # a description in one or several paragraphs
    if is_text:
        kind_found: Kind = "html" if share_of(members.slice(0, _SAMPLED), _TAGS) >= 0.03 else "text"
    else:
        kind_found = "lists"
    if distinct == 1 and len(members) > 1:
        kind_found = "constant"
    elif share_of(members.slice(0, _SAMPLED), _URL) >= _MOST:
        kind_found = "url"
    base |= {"num_distinct": distinct, "is_wordy": wordy, "words": spaces + 1}
    base["example"] = members[0].as_py()[:60] if len(members) else ""
    return Column(name, position, kind_found, joined, is_list=True, **base)


def bare_tokens(column: Column) -> list[str]:
    """The distinct values of a column with few values, sorted; for event types and splits."""
    return sorted(pc.unique(column.values.drop_null()).to_pylist())


def has_known(text: str, words: tuple[str, ...]) -> bool:
    """Whether an event type contains one of the words, e.g. ``Product_View`` contains ``view``.

    >>> has_known("Product_View", ("view",)), has_known("preview", ("view",))
    (True, False)
    >>> has_known("items_purchased", ("purchase",)), has_known("swipe-left", ("swipe_left",))
    (True, True)
    """
    found = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).lower())
    return text.lower() in words or any(
        f"_{word}{ending}_" in f"_{found}_" for word in words for ending in ("", "s", "d", "ed")
    )
