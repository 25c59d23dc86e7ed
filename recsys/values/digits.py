"""Digits of other scripts in numbers and times, as ASCII digits: ``١٢٫٥`` is 12.5.

Why: shops in Arabic, Persian, Hindi or Japanese write ratings, prices and dates with their own
digits. Only numbers and times are read in this way; ids and texts keep their characters.
"""

from __future__ import annotations

import unicodedata
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

_DIGITS: Final = {
    character: str(digit)
    for character in map(chr, range(0x0660, 0xFFFF))
    if (digit := unicodedata.decimal(character, None)) is not None
}
_DECIMAL: Final = "\u066b"  # the decimal mark of Arabic scripts
_SIGNS: Final = {
    "\u066c": "",  # the mark between thousands of Arabic scripts
    **dict.fromkeys("\u061c\u200e\u200f", ""),  # marks of the direction of text
    **{chr(0xFEE0 + ord(sign)): sign for sign in "+-./:,%"},  # of full width
    "\u3000": " ",
}
_TABLE: Final = {ord(character): to for character, to in {**_DIGITS, **_SIGNS}.items()}
_PATTERN: Final = f"[{''.join(_DIGITS)}{_DECIMAL}\u066c]"


def ascii_digits(texts: pa.Array, decimal: str = ".") -> pa.Array:
    """Texts with ASCII digits; those without digits or decimal marks of other scripts stay.

    >>> ascii_digits(pa.array(["١٬٢٣٤٫٥", "۱۴۰۳", "२०२४-०५-०१", "１２：３０", "é 7"])).to_pylist()
    ['1234.5', '1403', '2024-05-01', '12:30', 'é 7']

    Parameters
    ----------
    texts : pa.Array
        Strings. Usual files, which are ASCII, cost one look at the bytes.
    decimal : str
        The mark that replaces ``٫``.
    """
    if pc.all(pc.string_is_ascii(texts)).as_py() is not False:
        return texts
    foreign = pc.fill_null(pc.match_substring_regex(texts, _PATTERN), False)
    if not pc.any(foreign).as_py():
        return texts
    given = texts.filter(foreign).dictionary_encode()
    plain = [ascii_digits_of(text, decimal) for text in given.dictionary.to_pylist()]
    return pc.replace_with_mask(texts, foreign, pa.array(plain, texts.type).take(given.indices))


def ascii_digits_of(text: str, decimal: str = ".") -> str:
    """One text, as :func:`ascii_digits`.

    >>> ascii_digits_of("۲۰۲۴-۰۵-۰۱"), ascii_digits_of("，")
    ('2024-05-01', '，')
    """
    if text.isascii() or not any(c in _DIGITS or c in (_DECIMAL, "\u066c") for c in text):
        return text
    return text.translate({**_TABLE, ord(_DECIMAL): decimal})
