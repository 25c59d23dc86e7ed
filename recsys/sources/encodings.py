"""The encoding of text that is not UTF-8, from the letters above ASCII.

Why: a table that is read in a wrong encoding gives no error, but broken words. Files of shops and
libraries are in the encodings of old Windows, DOS and Unix programs. General detectors need running
text: charset-normalizer 3.5 takes short French titles in cp1252 for cp1257 and Japanese in
shift_jis for cp949. Here each encoding is judged by the letters of the languages that it was made
for: the best mean log-probability of a letter above ASCII wins, and Western European wins unless
another is clearly better.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_MOSTLY_OTHER_LETTERS: Final = 0.5
_HANZI: Final = r"[\u4e00-\u9fff\u3000-\u303f\uff01-\uff5e¥·—…“”]"
_KANA: Final = r"[\u3040-\u30ff]"
# encoding, its letters, usual ones among them and their least share; the most distinctive first
_EAST_FIRST: Final = (
    ("shift_jis", rf"{_KANA}|{_HANZI}", _KANA, 0.1),
    ("euc_jp", rf"{_KANA}|{_HANZI}", _KANA, 0.1),
)
_EAST_LAST: Final = (
    ("cp874", r"[\u0e01-\u0e5b]", r"[านรอกเงมยลวดทสต\u0e48\u0e49\u0e34\u0e35]", 0.5),
    ("euc_kr", r"[\uac00-\ud7a3]", r".", 1.0),
    ("gb18030", _HANZI, r".", 1.0),
    ("big5", _HANZI, r".", 1.0),
)
_OTHER_SCRIPTS: Final = (
    ("cp1251", r"[а-яА-ЯёЁіїєґІЇЄҐ№«»—–]", r"[а-яё]", 0.5),
    ("koi8_r", r"[а-яА-ЯёЁ]", r"[а-яё]", 0.5),
    ("cp866", r"[а-яА-ЯёЁ№]", r"[а-яё]", 0.5),
    ("cp1253", r"[α-ωΑ-ΩάέήίόύώϊϋΐΰΆΈΉΊΌΎΏ«»–—’]", r"[α-ωάέήίόύώ]", 0.5),
    ("cp1255", r"[א-ת\u05b0-\u05c3״׳–—]", r"[א-ת]", 0.8),
    ("cp1256", r"[ء-يپچژگکی\u064b-\u0652،؛؟–—]", r"[ء-ي]", 0.8),
)
# letters of a language, the most frequent first
_FREQUENT: Final[Mapping[str, str]] = {
    "cp1251": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
    "koi8_r": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
    "cp866": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
    "cp1253": "αοιετσνηυρπκμλςωγδίθέχόάφύήώβξζψϊ",
    "cp1255": "יוהלארתמבשנעדקםפחטזגןכצסךףץ",
    "cp1256": "اليمنرتوبةعدسفهكقحجأشطصخإذىضزءثغئظؤآ",
}
# language → weight of its letters above ASCII
_WESTERN: Final = (
    {"ä": 25, "ö": 14, "ü": 31, "ß": 14, "é": 1},  # German
    {"é": 60, "è": 12, "à": 13, "ê": 5, "ç": 3, "â": 2, "ù": 1, "î": 2, "ô": 2, "û": 1, "ë": 1,
     "ï": 1, "œ": 1},  # French
    {"ó": 33, "í": 24, "á": 18, "é": 15, "ñ": 9, "ú": 6, "ü": 1},  # Spanish
    {"ã": 25, "ç": 15, "á": 12, "é": 14, "í": 9, "õ": 6, "ó": 7, "ê": 8, "ú": 4, "â": 3,
     "à": 3, "ô": 2},  # Portuguese
    {"à": 30, "è": 30, "ò": 15, "ù": 12, "ì": 8, "é": 6},  # Italian
    {"ä": 40, "å": 25, "ö": 30, "é": 1},  # Swedish, Finnish
    {"å": 35, "ø": 35, "æ": 30, "é": 1},  # Danish, Norwegian
    {"ð": 35, "á": 15, "í": 14, "þ": 12, "ó": 8, "é": 6, "ú": 5, "ö": 7, "æ": 7, "ý": 2},
    {"ë": 40, "é": 35, "ï": 15, "è": 5, "ö": 3, "ü": 2},  # Dutch
    {"à": 20, "è": 15, "é": 15, "í": 10, "ó": 15, "ò": 8, "ú": 5, "ç": 8, "ï": 3, "·": 2},
)  # fmt: skip
_CENTRAL: Final = (
    {"ł": 25, "ą": 13, "ę": 14, "ż": 11, "ó": 12, "ś": 9, "ć": 6, "ń": 3, "ź": 1},  # Polish
    {"í": 18, "á": 14, "ě": 10, "é": 9, "ř": 9, "č": 8, "ž": 7, "š": 7, "ý": 7, "ů": 5, "ú": 1,
     "ň": 1, "ť": 1, "ď": 1, "ó": 1},  # Czech
    {"á": 18, "č": 11, "í": 10, "ž": 10, "ý": 10, "š": 9, "ú": 9, "é": 8, "ť": 6, "ľ": 4,
     "ô": 2, "ň": 2, "ď": 1, "ä": 1, "ó": 1},  # Slovak
    {"é": 28, "á": 27, "ö": 9, "ó": 9, "ő": 8, "ü": 5, "í": 5, "ú": 3, "ű": 2},  # Hungarian
    {"ă": 38, "ş": 20, "ţ": 18, "î": 14, "â": 9},  # Romanian
    {"č": 30, "š": 30, "ž": 18, "ć": 15, "đ": 7},  # Croatian, Slovene
)  # fmt: skip
_TURKISH: Final = ({"ı": 38, "ş": 14, "ü": 15, "ğ": 9, "ç": 9, "ö": 7, "İ": 4, "â": 1},)
_BALTIC: Final = (
    {"ė": 20, "š": 17, "ų": 16, "ž": 12, "į": 9, "ū": 8, "ą": 8, "č": 5, "ę": 3},  # Lithuanian
    {"ā": 36, "ī": 17, "ē": 14, "š": 9, "ū": 6, "ņ": 5, "ļ": 5, "ž": 3, "č": 2, "ķ": 1, "ģ": 1},
    {"ä": 33, "õ": 33, "ü": 22, "ö": 8, "š": 1, "ž": 1},  # Estonian
)  # fmt: skip
# encoding, its languages, whether it is of programs before Windows
_LATIN: Final = (
    ("cp1252", _WESTERN, False),
    ("cp1250", _CENTRAL, False),
    ("iso8859_2", _CENTRAL, False),
    ("cp1254", _TURKISH, False),
    ("cp1257", _BALTIC, False),
    ("cp850", _WESTERN, True),
    ("cp852", _CENTRAL, True),
    ("cp857", _TURKISH, True),
    ("mac_roman", _WESTERN, True),
)
_MARKS: Final = frozenset("’‘“”„–—…«»°€£©®™§²³½¼·\xa0¿¡№•×±µ÷¢¬¦¤¥ªº¹¾´¨¸¯¶\xad")
_BEHIND_LETTERS: Final = frozenset("’”“–—…·\xa0\xad»©®™²³ºª´")  # marks that often follow a letter
_MARK: Final = 0.02  # probability of a mark
_OTHER: Final = 0.002  # of a letter of another language
_NEVER: Final = 1e-5  # of any other character
_IN_WORD: Final = 0.02  # factor for a capital letter after a small one
_AFTER_LETTER: Final = 0.1  # factor for another mark after a letter
_CLEARLY: Final = 0.5  # least advantage over Western European, as a difference of logarithms
_OLD: Final = 0.5  # further advantage that encodings of old programs need
_UNKNOWN: Final = math.log(_OTHER) + 0.5  # below it, a mean log-probability fits no encoding
_LEAST_LETTERS: Final = 2  # distinct ones inside words that another encoding needs
_LOOKED_AT: Final = 20_000  # characters


@dataclass(frozen=True)
class FoundEncoding:
    """An encoding, how well it fits, and a text that shows it."""

    name: str
    example: str = ""
    other: str = ""  # the second best encoding, if it fits nearly as well
    is_known: bool = True  # False: no encoding fits well


def is_utf8(line: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def encoding_of(head: bytes) -> str:
    r"""Return ``utf-8``, or the encoding that fits the bytes above ASCII best.

    >>> encoding_of("Amélie".encode()), encoding_of("Amélie".encode("latin-1"))
    ('utf-8', 'latin-1')
    >>> encoding_of(b"it\x92s")
    'cp1252'
    >>> encoding_of("购买时间".encode("gb18030")), encoding_of("購買時間".encode("big5"))
    ('gb18030', 'big5')
    >>> encoding_of("товар,дата".encode("cp1251")), encoding_of("상품,날짜".encode("euc_kr"))
    ('cp1251', 'euc_kr')
    >>> encoding_of("Zażółć gęślą jaźń".encode("cp1250"))
    'cp1250'
    """
    return found_encoding(head).name


def found_encoding(head: bytes) -> FoundEncoding:
    """The encoding of the first bytes of a file, with an example of its words."""
    lines = head.split(b"\n")
    # without the last line, which may end in the middle of a character
    high = [line for line in lines[:-1] or lines if not line.isascii()]
    wrong = [line for line in high if not is_utf8(line)]
    # a few damaged lines do not make another encoding
    if not wrong or len(wrong) < 0.1 * len(high):
        return FoundEncoding("utf-8")
    data = b"\n".join(wrong)
    if _share_above_ascii(data) > _MOSTLY_OTHER_LETTERS and (name := _of_other_script(data)):
        return FoundEncoding(name, _example(data, name))
    return _of_latin_letters(data)


def _share_above_ascii(data: bytes) -> float:
    """Share of bytes above ASCII among these and the letters, in the cells that have any."""
    cells = [cell for cell in re.split(rb"[,;|\t\n]", data) if not cell.isascii()]
    letters = b"".join(cells)
    above = sum(code >= 0x80 for code in letters)
    return above / max(above + sum(chr(code).isalpha() for code in letters if code < 0x80), 1)


def _of_other_script(data: bytes) -> str:
    """The encoding of letters that are not Latin; empty if none fits."""
    return (
        next(_fitting(data, _EAST_FIRST), "")
        or max(
            _fitting(data, _OTHER_SCRIPTS),
            key=lambda name: _likelihood(data, name, _by_rank(name)),
            default="",
        )
        or next(_fitting(data, _EAST_LAST), "")
    )


def _fitting(data: bytes, rules: Sequence[tuple[str, str, str, float]]) -> Iterator[str]:
    return (rule[0] for rule in rules if _fits(data, *rule))


def _fits(data: bytes, encoding: str, letters: str, usual: str, least: float) -> bool:
    """Whether most characters above ASCII are letters of an encoding's language, with at least this
    share of the usual ones.
    """
    text = data.decode(encoding, errors="replace")
    above = "".join(character for character in text if ord(character) >= 0x80)
    num_good, num_usual = len(re.findall(letters, above)), len(re.findall(usual, above))
    return num_good >= 0.9 * len(above) and num_usual >= least * len(above)


def _by_rank(encoding: str) -> dict[str, float]:
    return _shares({letter: 1 / (rank + 3) for rank, letter in enumerate(_FREQUENT[encoding])})


def _of_latin_letters(data: bytes) -> FoundEncoding:
    """The encoding of Latin letters: Western European, unless another fits clearly better."""
    scores: dict[str, float] = {}
    for name, languages, is_old in _LATIN:
        every: dict[str, float] = {}
        for weights in languages:
            for letter, weight in weights.items():
                every[letter] = every.get(letter, 0.0) + weight
        # each language alone fits its own text better; all together fit a catalogue in several
        # languages
        best = max(_likelihood(data, name, _shares(of_one)) for of_one in (*languages, every))
        scores[name] = best - (_OLD if is_old else 0.0)
    western = scores.pop("cp1252")
    name, best = max(scores.items(), key=lambda pair: pair[1])
    # single marks such as a degree sign are letters in another encoding
    if best < western + _CLEARLY or not _has_words(data, name):
        second, best, name = name, western, "cp1252"
        is_near = scores[second] > western and _decoded(data, second) != _decoded(data, name)
    else:
        second = max((other for other in scores if other != name), key=lambda key: scores[key])
        is_near = scores[second] > best - _CLEARLY / 2
        is_near = is_near and _decoded(data, second) != _decoded(data, name)
    # the Windows encodings differ from the ISO ones only in these bytes
    has_controls = any(0x80 <= code < 0xA0 for code in data)
    if not has_controls:
        name = {"cp1252": "latin-1", "cp1254": "iso8859_9"}.get(name, name)
    is_known = best > _UNKNOWN or "\ufffd" not in _decoded(data, "cp1252")
    return FoundEncoding(name, _example(data, name), second if is_near else "", is_known)


def _has_words(data: bytes, encoding: str) -> bool:
    """Whether several small letters above ASCII are inside words, so that they are no marks."""
    inside = re.findall(r"(?<=[^\W\d_])[^\W\d_a-zA-Z]", _decoded(data, encoding))
    return len({letter for letter in inside if letter.islower()}) >= _LEAST_LETTERS


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {letter: weight / total for letter, weight in weights.items()}


def _likelihood(data: bytes, encoding: str, shares: Mapping[str, float]) -> float:
    """The mean log-probability of the characters above ASCII in a language."""
    logs = [math.log(share) for share in _probabilities(_decoded(data, encoding), shares)]
    return sum(logs) / max(len(logs), 1)


def _probabilities(text: str, shares: Mapping[str, float]) -> Iterator[float]:
    before = " "
    for character in text:
        if ord(character) >= 0x80:
            small = character if character in shares else character.lower()
            share = shares.get(small, 0.0)
            if not share:
                share = _MARK if character in _MARKS else _OTHER if character.isalpha() else _NEVER
                if character in _MARKS and character not in _BEHIND_LETTERS and before.isalpha():
                    share *= _AFTER_LETTER
            if character.isupper() and before.islower():
                # a wrong encoding often gives a capital letter in the middle of a word
                share *= _IN_WORD
            elif character.islower() and before.isupper() and ord(before) >= 0x80:
                share *= 0.5
            yield max(share, _NEVER)
        before = character


def _decoded(data: bytes, encoding: str) -> str:
    return data[:_LOOKED_AT].decode(encoding, errors="replace")


def _example(data: bytes, encoding: str) -> str:
    """The words of the first cell with letters above ASCII."""
    for cell in re.split(r"[,;|\t\n\"]", _decoded(data, encoding)):
        if not cell.isascii():
            return " ".join(cell.split())[:40]
    return ""
