"""Convert HTML in item columns to plain text, because a language model reads tags as words."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import ConfigError, choices
from recsys.preparation.items import PROVENANCE

_HIDDEN: Final = r"(?is)<script\b.*?</script\s*>|<style\b.*?</style\s*>|<!--.*?-->"
_TAG: Final = r"</?[A-Za-z!][^<>]*>"
_BLANKS: Final = r"[\s\x{a0}]+"


def without_html(
    features: pa.Table, columns: Sequence[str], rows: pa.ChunkedArray | None = None
) -> pa.Table:
    """The table with the given columns (texts or lists of texts) as plain text.

    Parameters
    ----------
    features : pa.Table
        Table of the items.
    columns : Sequence[str]
        Columns with HTML.
    rows : pa.ChunkedArray | None
        Which rows have HTML; None: all.

    Raises
    ------
    ConfigError
        A column does not exist or has no texts.
    """
    for name in columns:
        if name not in features.column_names:
            raise ConfigError(
                f"data.text.html: {name} not among the columns of items; columns:"
                f" {choices({*features.column_names} - {*PROVENANCE})}"
            )
        column = features.column(name).combine_chunks()
        position = features.column_names.index(name)
        bare = _plain_column(column, name)
        if rows is not None:
            bare = pc.if_else(rows.combine_chunks(), bare, column)
        features = features.set_column(position, name, bare)
    return features


def _plain_column(column: pa.Array, name: str) -> pa.Array:
    kind = column.type
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return pa.ListArray.from_arrays(
            column.offsets, plain(column.values), mask=pc.is_null(column)
        )
    if not pa.types.is_string(kind):
        raise ConfigError(f"data.text.html: {name} is {kind}; expected texts or lists of texts")
    return plain(column)


def plain(texts: pa.Array) -> pa.Array:
    """Texts without tags, scripts and comments, with characters for entities and single blanks.

    >>> plain(pa.array(["<p>Fish &amp; chips</p><br/>now", "a < b", None])).to_pylist()
    ['Fish & chips now', 'a < b', None]
    """
    bare = pc.replace_substring_regex(pc.replace_substring_regex(texts, _HIDDEN, " "), _TAG, " ")
    if pc.any(pc.match_substring(bare, "&")).as_py():
        bare = pa.array(
            [None if text is None else html.unescape(text) for text in bare.to_pylist()],
            pa.string(),
        )
        bare = pc.replace_substring_regex(bare, _TAG, " ")  # tags that were written as entities
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(bare, _BLANKS, " "))
