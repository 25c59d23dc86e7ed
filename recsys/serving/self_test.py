"""A bundle's test of itself: stored questions with the answers it gave when it was written, asked again on every load.

Why: checksums show that files are what was written, not that this installation reads them as they were meant; another
release of a library, or a damaged copy of the code beside the bundle, would answer wrongly without a word. The
questions cover every way of asking: known users, newcomers by history, friends and attributes, later events, unknown
users.

Answers are of the files read back, in one batch, without the language model that requests may bring texts to, which is
optional where a model is served.

Legend: R list length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from recsys import __version__
from recsys.bundle.checksums import damaged, said_by
from recsys.bundle.description import SELF_TEST, seal
from recsys.bundle.files import Bundle, read_files
from recsys.data.context import ContextColumn
from recsys.errors import ArtifactError, UserError
from recsys.granularities.profile.encoding import encoding_of
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Answer, parse_requests

TOLERANCE: Final = 1e-4  # of the largest score of a list: processors and numbers of threads round differently
_K: Final = 10
_HISTORY: Final = 5  # items that a newcomer brings


def add_self_test(folder: Path) -> None:
    """Ask a sealed bundle, store questions and answers in it, and seal it again."""
    bundle = read_files(folder)
    rows = questions(bundle)
    content = {
        "release": __version__,
        "torch": torch.__version__,
        "tests": [
            {"request": row, "item_ids": answer.item_ids, "scores": answer.scores, "source": answer.source}
            for row, answer in zip(rows, _answers(bundle, rows), strict=True)
        ],
    }
    (folder / SELF_TEST).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    seal(folder, bundle.info)


def run_self_test(folder: Path, bundle: Bundle) -> None:
    """Ask the stored questions again.

    Raises
    ------
    ArtifactError
        an answer is another one: other items, but for equal scores, or other scores.
    """
    try:
        stored = json.loads((folder / SELF_TEST).read_text(encoding="utf-8"))
        tests = [(dict(t["request"]), list(t["item_ids"]), list(t["scores"]), t["source"]) for t in stored["tests"]]
        made_by = f"release {stored['release']}, torch {stored['torch']}"
    except Exception as error:  # whatever its content is
        raise damaged(folder, f"{SELF_TEST}: {said_by(error)}") from None
    try:
        answers = _answers(bundle, [request for request, *_ in tests])
        wrong = [difference(*test[1:], answer) for test, answer in zip(tests, answers, strict=True)]
    except UserError as error:
        raise _failed(folder, f"a stored question is refused: {error}", made_by) from None
    except Exception as error:  # a bundle that was changed and sealed anew fails in any library
        raise damaged(folder, f"a stored question cannot be answered ({said_by(error)})") from None
    for (request, *_), why in zip(tests, wrong, strict=True):
        if why:
            raise _failed(folder, f"asked {_shown(request)}, {why}", made_by)


def difference(item_ids: Sequence[str], scores: Sequence[float], source: str, answer: Answer) -> str:
    """How an answer differs from the stored one, empty where it does not: scores to :data:`TOLERANCE`, items but for
    those whose scores are as equal. Earlier releases called popularity by a member "model"; scores tell it from the
    popularity of all times.
    """
    sources = {source, "popularity"} if source == "model" else {source}
    if answer.source not in sources or len(answer.item_ids) != len(item_ids):
        return f"it gave {len(answer.item_ids)} items by {answer.source}; expected {len(item_ids)} items by {source}"
    if not item_ids:
        return ""
    slack = TOLERANCE * max(max(abs(score) for score in scores), 1e-12)
    gap_R = np.abs(np.array(answer.scores) - np.array(scores))
    stored = dict(zip(item_ids, scores, strict=True))
    for place, (item, score) in enumerate(zip(answer.item_ids, answer.scores, strict=True)):
        # an item that was not listed may stand here only as an equal of the last one
        if not (gap_R[place] <= slack and abs(score - stored.get(item, scores[-1])) <= slack):
            return (
                f"place {place + 1} holds {item!r} with {score:.6g}; expected {item_ids[place]!r} with "
                f"{scores[place]:.6g}"
            )
    return ""


def questions(bundle: Bundle) -> list[dict[str, Any]]:
    """What the bundle is asked: rows as :func:`~recsys.serving.requests.parse_requests` reads them."""
    known = _known_users(bundle)
    popular = np.argsort(-bundle.popularity_N, kind="stable")[:_HISTORY]
    history = [bundle.item_ids[item] for item in popular]
    rows: list[dict[str, Any]] = [{"user_id": user} for user in known]
    rows += [{"user_id": user, "exclude_seen": False} for user in known[:1]]
    rows += [{"user_id": user, "history": history[:1]} for user in known[:1]]
    rows += [{"history": history}, {"history": history[-1:]}] if history else []
    rows += [{"friends": known}] if known else []
    profile = encoding_of(bundle.model.sizes)
    if profile is not None and profile.users:
        rows.append({"attributes": {field.name: field.example for field in profile.users}})
    rows += [{"history": history, "context": context} for context in _contexts(bundle) if history]
    if bundle.model.rolls_forward and bundle.info.model.max_history > 1 and history:
        rows.append({"history": history, "horizon": 2})
    unknown, ids = "nobody", set(bundle.user_ids)
    while unknown in ids:
        unknown += "?"
    rows.append({"user_id": unknown})
    at = datetime.fromtimestamp(Recommender(bundle).newest, UTC).isoformat()  # the same answer at any time
    return [{**row, "k": _K, "at": at} for row in rows]


def _known_users(bundle: Bundle) -> list[str]:
    """Users with the longest history, one of the median length and one of the shortest, each once."""
    lengths_U = bundle.histories.lengths_U
    by_length = np.argsort(lengths_U, kind="stable")
    places = (len(by_length) - 1, len(by_length) // 2, 0) if len(by_length) else ()
    return list(dict.fromkeys(bundle.user_ids[by_length[place]] for place in places))


def _contexts(bundle: Bundle) -> list[dict[str, Any]]:
    """A value of every context column, if there are any."""
    return [{column.name: _value(column) for column in bundle.context}] if bundle.context else []


def _value(column: ContextColumn) -> Any:
    if column.values is None:
        return column.mean
    return column.values[0] if column.values else None


def _answers(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Answers without a language model for the texts of pasts."""
    plain = replace(bundle, info=bundle.info.model_copy(update={"user_text": {}}), index=None)
    said = [{"exclude_seen": True, **row} for row in rows]  # as every release has asked
    return Recommender(plain).recommend(parse_requests(said))


def _failed(folder: Path, why: str, made_by: str) -> ArtifactError:
    return ArtifactError(
        f"the model bundle {folder} does not answer as it did when it was written ({made_by}; here release "
        f"{__version__}, torch {torch.__version__}): {why}; install the requirements that it was registered with, or "
        "register it again with this release"
    )


def _shown(request: Mapping[str, Any]) -> str:
    text = json.dumps(request, ensure_ascii=False)
    return text if len(text) <= 160 else text[:159] + "…"
