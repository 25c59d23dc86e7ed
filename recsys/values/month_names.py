"""Names of months in several languages, and dates with such names as English ones."""

from __future__ import annotations

import re
from typing import Final

from recsys.values.time_forms import MONTHS

_NAMES: Final = (
    "january jan januar jänner jän janvier janv enero ene janeiro gennaio gen januari styczeń"
    " stycznia sty leden ledna január ocak январь января янв",
    "february feb februar feber février févr fév febrero fevereiro fev febbraio februari luty"
    " lutego lut únor února február şubat февраль февраля фев",
    "march mar märz mär mrz mars marzo março maart mrt marzec marca březen března mart"
    " март марта мар",
    "april apr avril avr abril abr aprile kwiecień kwietnia kwi duben dubna nisan"
    " апрель апреля апр",
    "may mai mayo maio maggio mag mei maj maja květen května mayıs май мая",
    "june jun juni juin junio junho jun giugno giu czerwiec czerwca cze červen června haziran"
    " июнь июня июн",
    "july jul juli juillet juil julio julho luglio lug lipiec lipca lip červenec července temmuz"
    " июль июля июл",
    "august aug août aout agosto ago augustus sierpień sierpnia sie srpen srpna augusti ağustos"
    " август августа авг",
    "september sep sept septembre septiembre setembro set settembre wrzesień września wrz"
    " září eylül сентябрь сентября сен",
    "october oct oktober okt octobre octubre outubro out ottobre ott październik października paź"
    " říjen října ekim октябрь октября окт",
    "november nov novembre noviembre novembro listopad listopada lis kasım ноябрь ноября ноя",
    "december dec dezember dez décembre déc diciembre dic dezembro dicembre grudzień grudnia gru"
    " prosinec prosince aralık декабрь декабря дек",
)
_PLAIN: Final = str.maketrans(
    "äáàâãéèêëíîóôöúûüçñńśźřýěčšžůğşıę", "aaaaaeeeeiiooouuucnnszryecszugsie"
)
MONTH_NAMES: Final = {
    spelling: number
    for number, names in enumerate(_NAMES, 1)
    for name in names.split()
    for spelling in (name, name.translate(_PLAIN))
}
"""Names and short names of months, in lower case, also without accents → number."""
_ENGLISH: Final = MONTHS.split("|")
_KEPT: Final = ("AM", "PM", "UTC", "GMT", "Z")
_LETTERS: Final = re.compile(r"[^\W\d_]+\.?")
_ORDINAL: Final = re.compile(r"(\d)(?:er|ER|º|ª)\b|(\d)\.(?=\s)")
_SHORT_CLOCK: Final = re.compile(r"(\s\d{1,2}:\d{2})(?=\s*$)")
DATE_WITH_NAME: Final = (
    rf"(?i)\d.*(?:^|[^\p{{L}}])(?:{'|'.join(sorted(MONTH_NAMES))})(?:[^\p{{L}}]|$)"
)
"""Pattern of Arrow for a text with a number before the name of a month."""


def in_english(text: str) -> str:
    """A date with the name of a month as an English one; a text without such a name as it is.

    >>> in_english("3. März 2020 10:30"), in_english("lunes, 3 de marzo de 2020")
    ('3 MAR 2020 10:30:00', '3 MAR 2020')
    """
    found = [word.rstrip(".").lower() for word in _LETTERS.findall(text)]
    if not any(word in MONTH_NAMES for word in found):
        return text

    def rewritten(match: re.Match[str]) -> str:
        word = match[0].rstrip(".")
        if word.lower() in MONTH_NAMES:
            return f" {_ENGLISH[MONTH_NAMES[word.lower()] - 1]} "
        return word if word.upper() in _KEPT else " "

    plain = _LETTERS.sub(rewritten, _ORDINAL.sub(r"\1\2", text))
    plain = " ".join(plain.replace(",", " ").split())
    return _SHORT_CLOCK.sub(r"\1:00", plain)
