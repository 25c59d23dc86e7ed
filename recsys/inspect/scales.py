"""Ratings that are not written as numbers: stars, ``4 of 5``, words such as Good and Poor, thumbs.

Why: sites and surveys export what a person saw. As text such a column is no rating, and the run
would count a bad review as interest. The mapping goes to ``data.source.values``, where a person can
see and change it. Words without a known order get no number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from recsys.values.rated import (
    BEFORE,
    FULL_STARS,
    LIMITS,
    NO_STARS,
    NUMBER,
    OF,
    STARS,
    UNIT,
    stars_of,
)

MOST_GRADES: Final = 101  # distinct texts of a column of ratings, as 0.0 to 10.0 in steps of 0.1
_FEW_WORDS: Final = 12  # distinct words of a scale
_MOST: Final = 0.98  # least share of the rows whose text has a grade

# grade on a scale of five → words; all in lower case
_GRADES: Final[Mapping[float, str]] = {
    1: "terrible|awful|horrible|worst|very bad|very poor|extremely poor|abysmal|hated it|hate it"
    "|did not like it|didn't like it|very dissatisfied|extremely dissatisfied|strongly disagree"
    "|very unlikely|very negative|unacceptable"
    "|sehr schlecht|ungenügend|furchtbar|schrecklich|sehr unzufrieden"
    "|très mauvais|très mal|horrible|nul|exécrable|très insatisfait"
    "|pésimo|muy malo|muy mal|terrible|horrible|muy insatisfecho|péssimo|muito ruim|muito mau"
    "|pessimo|terribile|orribile|molto scarso|heel slecht|zeer slecht|verschrikkelijk"
    "|okropny|fatalny|bardzo zły|bardzo źle|tragiczny|hrozné|velmi špatné|mycket dåligt"
    "|meget dårlig"
    "|ужасно|ужасный|очень плохо|отвратительно|çok kötü|berbat|жахливо|дуже погано"
    "|非常差|很差|極差|最悪|とても悪い|매우 나쁨|최악|سيء جدا",
    2: "poor|bad|below average|dissatisfied|disagree|unlikely|disappointing|unsatisfactory|weak"
    "|it was ok|schlecht|mangelhaft|unzufrieden|enttäuschend"
    "|mauvais|mal|médiocre|insatisfait|décevant|malo|mal|insatisfecho|ruim|mau|insatisfeito"
    "|scarso|cattivo|insufficiente|insoddisfatto|slecht|matig|ontevreden|zły|słaby|źle|słabo"
    "|niezadowolony|špatné|špatný|dåligt|dårlig|rossz|плохо|плохой|неудовлетворительно|kötü|погано"
    "|差|不好|悪い|나쁨|سيء",
    2.5: "fair|mediocre|ausreichend|passable|regular|sufficiente|mierny|dostateczny",
    3: "average|ok|okay|neutral|medium|mixed|so-so|so so|neither|satisfactory|acceptable|adequate"
    "|moderate|liked it|neither agree nor disagree|neither satisfied nor dissatisfied|decent"
    "|mittel|mittelmäßig|befriedigend|durchschnittlich|geht so|neutre|moyen|correct"
    "|aceptable|normal|neutro|razoável|médio|neutrale|discreto|medio|gemiddeld|voldoende|neutraal"
    "|średni|przeciętny|neutralny|průměrné|průměrný|medel|közepes|нормально|средне|нейтрально"
    "|удовлетворительно|orta|fena değil|нормально|一般|普通|보통|عادي|متوسط",
    4: "good|satisfied|agree|likely|nice|above average|really liked it|like it|liked"
    "|gut|zufrieden|bon|bien|satisfait|bueno|satisfecho|bom|satisfeito|buono|soddisfatto"
    "|goed|tevreden|dobry|dobrze|dobra|zadowolony|dobré|dobrý|bra|bra!|god|jó|хорошо|хороший"
    "|iyi|добре|好|良い|좋음|جيد",
    4.5: "very good|great|sehr gut|très bon|très bien|muy bueno|muy bien|muito bom|molto buono"
    "|zeer goed|heel goed|bardzo dobry|bardzo dobrze|velmi dobré|mycket bra|meget god|nagyon jó"
    "|очень хорошо|çok iyi|дуже добре|很好|とても良い|매우 좋음|جيد جدا",
    5: "excellent|outstanding|perfect|exceptional|amazing|awesome|fantastic|superb|wonderful"
    "|brilliant|love it|loved it|it was amazing|best|very satisfied|extremely satisfied"
    "|strongly agree|very likely|very positive|hervorragend|ausgezeichnet|exzellent|super|perfekt"
    "|sehr zufrieden|parfait|très satisfait|excelente|muy satisfecho|muito satisfeito|ótimo"
    "|ottimo|eccellente|uitstekend|doskonały|wspaniały|celujący|znakomity|świetny|výborné|výborný"
    "|vynikající|utmärkt|fremragende|kiváló|отлично|отличный|превосходно|mükemmel|harika|відмінно"
    "|非常好|极好|優秀|优秀|最高|최고|ممتاز",
}
_REACTIONS: Final[Mapping[float, str]] = {
    -1: "dislike|dislikes|disliked|thumbs down|thumb down|thumbs-down|thumbsdown|thumbs_down"
    "|thumb_down|down|downvote|downvoted|negative|not recommended|unhappy|hate|👎|😞|☹|😠"
    "|gefällt mir nicht|daumen runter|negativ|nicht empfohlen|je n'aime pas|négatif|no me gusta"
    "|negativo|não gostei|não gosto|non mi piace|niet leuk|negatief|nie lubię|negatywny|negatywna"
    "|не нравится|дизлайк|отрицательный|отрицательно|beğenmedim|olumsuz|不喜欢|踩|不喜歡",
    0: "neutral|no opinion|undecided|mixed|😐|neutre|neutro|neutraal|neutralny|нейтрально|nötr",
    1: "like|likes|liked|thumbs up|thumb up|thumbs-up|thumbsup|thumbs_up|thumb_up|up|upvote"
    "|upvoted|positive|recommended|happy|love|👍|❤|😀|😊|🙂|gefällt mir|daumen hoch|positiv"
    "|empfohlen|j'aime|positif|me gusta|positivo|gostei|gosto|mi piace|leuk|positief|lubię"
    "|pozytywny|pozytywna|нравится|лайк|положительный|положительно|beğendim|olumlu|喜欢|赞|喜歡",
}
_YES_NO: Final[Mapping[float, str]] = {
    0: "no|n|false|f|nein|non|nee|nie|não|нет",
    1: "yes|y|true|t|ja|oui|sí|si|sì|tak|sim|да",
}
_UNRATED: Final = frozenset((
    "unrated", "not rated", "no rating", "not yet rated", "none given", "-", "–", "?",
    "keine bewertung", "nicht bewertet", "non noté", "sin calificación", "sem avaliação",
    "brak oceny", "без оценки", "нет оценки",
))  # fmt: skip
_COUNT: Final = {
    word: count
    for count, words in enumerate(
        (
            "zero",
            "one eins un uno um",
            "two zwei deux dos",
            "three drei trois tres",
            "four vier quatre cuatro",
            "five fünf cinq cinco",
        )  # fmt: skip
    )
    for word in words.split()
}
_PERCENT: Final = re.compile(rf"({NUMBER})\s*%")
_LABELED: Final = re.compile(r"(-?\d{1,2})\s*(?:[-–—:=.)]|\s\()\s*\(?[^\W\d].{0,60}")
_OF: Final = re.compile(OF)
_UNITS: Final = re.compile(rf"(?:{BEFORE}\s*)?({NUMBER}|[^\W\d_]{{2,6}}){UNIT}")
_SAYS_STARS: Final = re.compile(rf"{STARS}|out of|rated|^[{FULL_STARS}]")


@dataclass(frozen=True)
class Scale:
    """The grades of a column of texts."""

    grades: Mapping[str, float] = field(hash=False)  # text as in the files → number
    words: str  # for people
    # the texts alone say that they are ratings (stars, 4 out of 5); else the column's name must
    is_plain: bool = False

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest grade."""
        return min(self.grades.values()), max(self.grades.values())

    @property
    def is_whole(self) -> bool:
        """Whether all grades are whole numbers."""
        return all(float(grade).is_integer() for grade in self.grades.values())


def scale_of(counts: Mapping[str, int]) -> Scale | None:
    """The scale of a column; None if its texts are no ratings, or have no known order.

    Parameters
    ----------
    counts : Mapping[str, int]
        Distinct texts of the column with their numbers of rows.

    >>> scale_of({"★★☆☆☆": 3, "★★★★★": 9}).grades
    {'★★☆☆☆': 2, '★★★★★': 5}
    >>> scale_of({"4 out of 5": 3, "4,5 out of 5": 9}).grades
    {'4 out of 5': 4, '4,5 out of 5': 4.5}
    >>> scale_of({"Poor": 1, "Good": 5, "Excellent": 9}).grades
    {'Poor': 2, 'Good': 4, 'Excellent': 5}
    >>> scale_of({"Thumbs down": 1, "Thumbs up": 5}).grades
    {'Thumbs down': -1, 'Thumbs up': 1}
    >>> scale_of({"Not rated": 3, "2": 1, "5": 5}).grades
    {'2': 2, '5': 5, 'Not rated': 5}
    >>> scale_of({"meh": 1, "wow": 5}) is None
    True
    """
    if not 2 <= len(counts) <= MOST_GRADES:
        return None
    plain = {text: _plain(text) for text in counts}
    rated = {text: word for text, word in plain.items() if word not in _UNRATED}
    if len(rated) < 2:
        return None
    every = sum(counts.values())
    # numbers are no texts, unless some cells say that there is no rating
    numbers = ((_of_numbers, True),) if len(rated) < len(plain) else ()
    for read, is_number in (
        *numbers,
        (_of_stars, True),
        (_of_parts, True),
        (_of_units, True),
        (_of_percents, True),
        (_of_labels, False),
        (_of_words, False),
    ):
        found = read(rated)
        known = {text: grade for text, grade in found.items() if grade is not None}
        # one grade for all rows is no scale
        if len({*known.values()}) < 2:
            continue
        usual = median({grade: counts[text] for text, grade in known.items()})
        unrated = {text: usual for text in plain if text not in rated}
        share = sum(counts[text] for text in (*known, *unrated)) / every
        # a word more than the known ones makes the order unknown
        if share < (_MOST if is_number else 1.0):
            continue
        grades = {text: _number(grade) for text, grade in {**unrated, **known}.items()}
        grades = dict(sorted(grades.items(), key=lambda pair: (pair[1], pair[0])))
        order = [text for text in grades if text in known]
        is_plain = is_number and all(_SAYS_STARS.search(rated[text]) for text in order)
        words = f"{len(order)} grades from {order[0]} to {order[-1]}"
        if unrated:
            words += f"; {', '.join(unrated)} counts as the median grade"
        return Scale(grades, words, is_plain)
    return None


def median(counts: Mapping[float, int]) -> float:
    """The median grade, one of the grades; of two middle ones the higher.

    Why: an event without a grade shows interest. As the lowest grade it would count as a dislike.

    >>> median({1: 2, 4: 3, 5: 4})
    4
    """
    middle, seen = sum(counts.values()) / 2, 0
    for grade in sorted(counts):
        seen += counts[grade]
        if seen > middle:
            return grade
    return max(counts)


def _of_numbers(rated: Mapping[str, str]) -> dict[str, float | None]:
    found = {text: re.fullmatch(NUMBER, word) for text, word in rated.items()}
    return {text: _float(match[0]) if match else None for text, match in found.items()}


def _plain(text: str) -> str:
    """A text in lower case, with ASCII digits, without variants of emoji and full stops."""
    # NFKC turns 4½ into 41⁄2
    text = text if "½" in text else unicodedata.normalize("NFKC", text)
    text = text.replace("\ufe0f", "").replace("\u2019", "'")
    text = re.sub("[\U0001f3fb-\U0001f3ff]", "", text)  # colours of skin
    return " ".join(text.lower().split()).rstrip(".!")


def _number(grade: float) -> float:
    return int(grade) if float(grade).is_integer() else round(float(grade), 4)


def _float(text: str) -> float:
    return float(text.replace(",", "."))


def _of_stars(rated: Mapping[str, str]) -> dict[str, float | None]:
    """The number of full stars; of empty ones if the column has no full ones."""
    has_full = any(character in FULL_STARS for word in rated.values() for character in word)
    if not has_full:
        return {
            text: len(word) if word and not word.strip(NO_STARS) else None
            for text, word in rated.items()
        }
    return {text: stars_of(word) for text, word in rated.items()}


def _of_parts(rated: Mapping[str, str]) -> dict[str, float | None]:
    """4/5, 4 of 5, Rated 4.5 out of 5; several scales are brought to the longest one."""
    found = {text: _OF.fullmatch(word) for text, word in rated.items()}
    limits = {int(match[2]) for match in found.values() if match}
    if not limits or not limits <= {*LIMITS}:
        return {}
    # so that 4/5 and 8/10 are the same grade
    longest = max(limits)
    return {
        text: _float(match[1]) * longest / int(match[2])
        if match and _float(match[1]) <= int(match[2])
        else None
        for text, match in found.items()
    }


def _of_units(rated: Mapping[str, str]) -> dict[str, float | None]:
    """4 stars, five stars, 3 Sterne."""
    found: dict[str, float | None] = {}
    for text, word in rated.items():
        match = _UNITS.fullmatch(word)
        given = match[1] if match else ""
        number = _float(given) if given[:1].isdigit() else _COUNT.get(given)
        found[text] = number if number is not None and number <= 100 else None
    return found


def _of_percents(rated: Mapping[str, str]) -> dict[str, float | None]:
    found = {text: _PERCENT.fullmatch(word) for text, word in rated.items()}
    return {text: _float(match[1]) if match else None for text, match in found.items()}


def _of_labels(rated: Mapping[str, str]) -> dict[str, float | None]:
    """5 - Excellent, 1 (bad): a number of the scale with its meaning."""
    found = {text: _LABELED.fullmatch(word) for text, word in rated.items()}
    grades = {text: float(match[1]) if match else None for text, match in found.items()}
    distinct = [grade for grade in grades.values() if grade is not None]
    # two texts with one number are not labels of grades, but for example addresses
    is_scale = len({*distinct}) == len(distinct) <= _FEW_WORDS
    return grades if is_scale and all(abs(grade) <= 10 for grade in distinct) else {}


def _of_words(rated: Mapping[str, str]) -> dict[str, float | None]:
    """Words of one scale: yes and no, reactions, or grades."""
    if len(rated) > _FEW_WORDS:
        return {}
    words = {*rated.values()}
    for scale, has_ties in ((_YES_NO, False), (_REACTIONS, False), (_GRADES, True)):
        grades = _by_word(scale)
        found = {grades[word] for word in words if word in grades}
        if words <= {*grades} and (has_ties or len(found) == len(words)):
            return {text: grades[word] for text, word in rated.items()}
    both = _by_word(_GRADES)  # also with reactions in between: love, like, ok, dislike, hate
    both |= {"hate": 1, "dislike": 2, "disliked": 2, "negative": 2, "like": 4, "positive": 4}
    both |= {"love": 5, "loved": 5, "hated": 1}
    return {text: both.get(word) for text, word in rated.items()}


def _by_word(scale: Mapping[float, str]) -> dict[str, float]:
    return {word: grade for grade, words in scale.items() for word in words.split("|")}


def is_short(texts: Sequence[str]) -> bool:
    """Whether texts may be the words of a scale, whose order a person must give."""
    return 2 <= len(texts) <= _FEW_WORDS and all(len(text) <= 40 for text in texts)
