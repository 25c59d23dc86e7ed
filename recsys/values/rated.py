"""Numbers in texts of ratings: ``★★★★☆``, ``4.5 out of 5 stars``, ``Rated 4 of 5``."""

from __future__ import annotations

from typing import Final

FULL_STARS: Final = "★⭐🌟✭✮✯✪●♥❤"
NO_STARS: Final = "☆✩✰○♡"
LIMITS: Final = (3, 4, 5, 6, 7, 10, 20, 100)
"""The highest grades of usual scales."""

# Patterns for texts in lower case, with the same meaning in Python, Polars and Arrow.
NUMBER: Final = r"\d{1,3}(?:[.,]\d+)?"
BEFORE: Final = (
    r"(?:rated|rating|rates|score|scored|grade|note|noté|bewertet mit|bewertung|puntuación"
    r"|calificación|valoración|nota|avaliação|valutazione|voto|beoordeling|ocena|hodnocení|betyg"
    r"|оценка|рейтинг|評価|评分|平均):?"
)
STARS: Final = (
    r"(?:stars?|sterne?n?|étoiles?|estrellas?|estrelas?|stelle|stella|sterren|gwiazdk[aió]"
    r"|gwiazdek|звезд[аы]?|звёзд[аы]?|hvězdičk[ay]?|hvězdiček|hvězd[ay]?|stjärn[ao]r?|stjerner?"
    r"|csillag|yıldız|つ星|星|★|⭐)"
)
UNIT: Final = rf"(?:[-\s]?(?:{STARS}|points?|pts?|punkte?|puntos?|punti|点))"
_LIMITED: Final = r"\s*(?:/|of|out of|von|sur|de|su|di|van|z|ze|из|av|ud af)\s*"
OF: Final = rf"(?:{BEFORE}\s*)?({NUMBER}){UNIT}?{_LIMITED}(\d{{1,3}}){UNIT}?"
RATED: Final = (
    rf"^(?:(?:{BEFORE}\s*)?(?:{NUMBER})(?:{_LIMITED}"
    rf"(?:{'|'.join(map(str, LIMITS))})(?:[-\s]?{STARS})?|[-\s]?{STARS})"
    rf"|[{FULL_STARS}]{{1,10}}[{NO_STARS}]{{0,10}}½?)$"
)
"""A whole text that is a rating; its first number, or its number of full stars, is the grade."""


def stars_of(text: str) -> float | None:
    """The number of full stars; None if the text has other characters.

    >>> stars_of("★★★☆☆"), stars_of("★★½"), stars_of("☆☆☆"), stars_of("3")
    (3, 2.5, 0, None)
    """
    stars = text.replace(" ", "").replace("\ufe0f", "")
    if not stars or len(stars) > 20 or stars.strip(FULL_STARS + NO_STARS + "½"):
        return None
    half = 0.5 if "½" in stars else 0
    return sum(character in FULL_STARS for character in stars) + half
