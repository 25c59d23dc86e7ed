"""The self-test of a bundle: stored requests with the answers of the time of writing, checked again
on every load.

Why: checksums show that the files are those that were written, not that this installation computes
the same from them. Another release of a library, or a damaged copy of the code next to the bundle,
would give wrong answers without any error. The requests cover every kind: known users; new users
with a history, friends or attributes; known users with newer events; unknown users.

The answers come from the files as read back, in one batch, and without the language model for
histories, which is optional where a model is served.

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
from recsys.bundle.checksums import damaged, describe_error
from recsys.bundle.description import SELF_TEST, write_description
from recsys.bundle.layout import Bundle, read_files
from recsys.data.context_columns import ContextColumn
from recsys.errors import ArtifactError, UserError
from recsys.granularities.profile.attribute_encoding import encoding_of
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Answer

# of the largest score of a list: rounding depends on the processor and number of threads
TOLERANCE: Final = 1e-4
_K: Final = 10
_HISTORY: Final = 5  # items in the history of a new user


def add_self_test(folder: Path) -> None:
    """Answer the test requests from a finished bundle, store requests and answers in it, and renew
    its checksums.
    """
    bundle = read_files(folder)
    rows = questions(bundle)
    content = {
        "release": __version__,
        "torch": torch.__version__,
        "tests": [
            {
                "request": row,
                "item_ids": answer.item_ids,
                "scores": answer.scores,
                "source": answer.source,
            }
            for row, answer in zip(rows, _answers(bundle, rows), strict=True)
        ],
    }
    (folder / SELF_TEST).write_text(
        json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8"
    )
    write_description(folder, bundle.info)


def run_self_test(folder: Path, bundle: Bundle) -> None:
    """Answer the stored requests again and compare.

    Raises
    ------
    ArtifactError
        An answer differs: other scores, or other items except between equal scores.
    """  # noqa: DOC501
    try:
        stored = json.loads((folder / SELF_TEST).read_text(encoding="utf-8"))
        tests = [
            (dict(t["request"]), list(t["item_ids"]), list(t["scores"]), t["source"])
            for t in stored["tests"]
        ]
        made_by = f"release {stored['release']}, torch {stored['torch']}"
    except Exception as error:  # the file may contain anything
        raise damaged(folder, f"{SELF_TEST}: {describe_error(error)}") from None
    try:
        answers = _answers(bundle, [request for request, *_ in tests])
        wrong = [difference(*test[1:], answer) for test, answer in zip(tests, answers, strict=True)]
    except UserError as error:
        raise _self_test_error(folder, f"a stored request is refused: {error}", made_by) from None
    except (
        Exception
    ) as error:  # a bundle that was changed together with its checksums can fail in any library
        raise damaged(
            folder, f"a stored request cannot be answered ({describe_error(error)})"
        ) from None
    for (request, *_), why in zip(tests, wrong, strict=True):
        if why:
            raise _self_test_error(folder, f"for the request {_short_json(request)} {why}", made_by)


def difference(
    item_ids: Sequence[str], scores: Sequence[float], source: str, answer: Answer
) -> str:
    """How an answer differs from the stored one; empty where it does not.

    Scores are compared within :data:`TOLERANCE`; items may be exchanged where their scores are
    equal within it. Earlier releases stored the source "model" for popularity by a member; its
    scores differ from those of all-time popularity.

    Parameters
    ----------
    item_ids : Sequence[str]
        Stored items, best first.
    scores : Sequence[float]
        Their stored scores.
    source : str
        Stored source.
    answer : Answer
        The answer of this installation.
    """
    sources = {source, "popularity"} if source == "model" else {source}
    if answer.source not in sources or len(answer.item_ids) != len(item_ids):
        return (
            f"it gives {len(answer.item_ids)} items from the source {answer.source}; expected"
            f" {len(item_ids)} items from {source}"
        )
    if not item_ids:
        return ""
    slack = TOLERANCE * max(max(abs(score) for score in scores), 1e-12)
    gap_R = np.abs(np.array(answer.scores) - np.array(scores))
    stored = dict(zip(item_ids, scores, strict=True))
    for rank, (item, score) in enumerate(zip(answer.item_ids, answer.scores, strict=True)):
        # an item that was not in the stored list may appear only with the same score as the last
        # stored item
        if not (gap_R[rank] <= slack and abs(score - stored.get(item, scores[-1])) <= slack):
            return (
                f"it gives {item!r} with score {score:.6g} at rank {rank + 1}; expected"
                f" {item_ids[rank]!r} with {scores[rank]:.6g}"
            )
    return ""


def questions(bundle: Bundle) -> list[dict[str, Any]]:
    """The test requests of a bundle, as :func:`~recsys.serving.request_parsing.parse_requests`
    reads them.
    """
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
    at = datetime.fromtimestamp(
        Recommender(bundle).newest, UTC
    ).isoformat()  # the same answer at any time
    return [{**row, "k": _K, "at": at} for row in rows]


def _known_users(bundle: Bundle) -> list[str]:
    """The users with the longest, the median and the shortest history, each once."""
    lengths_U = bundle.histories.lengths_U
    by_length = np.argsort(lengths_U, kind="stable")
    rows = (len(by_length) - 1, len(by_length) // 2, 0) if len(by_length) else ()
    return list(dict.fromkeys(bundle.user_ids[by_length[row]] for row in rows))


def _contexts(bundle: Bundle) -> list[dict[str, Any]]:
    """One context with a value for every context column; none without context columns."""
    return [{column.name: _value(column) for column in bundle.context}] if bundle.context else []


def _value(column: ContextColumn) -> Any:
    if column.values is None:
        return column.mean
    return column.values[0] if column.values else None


def _answers(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Answer without an index, and without a language model for the texts of histories."""
    plain = replace(bundle, info=bundle.info.model_copy(update={"user_text": {}}), index=None)
    # as in every release since the self-test exists
    rows_with_default = [{"exclude_seen": True, **row} for row in rows]
    return Recommender(plain).recommend(parse_requests(rows_with_default))


def _self_test_error(folder: Path, why: str, made_by: str) -> ArtifactError:
    return ArtifactError(
        f"the model bundle {folder} fails its self-test: it does not answer as it did when it was"
        f" written ({made_by}; here release {__version__}, torch {torch.__version__}): {why};"
        " install the requirements that it was registered with, or register it again with this"
        " release"
    )


def _short_json(request: Mapping[str, Any]) -> str:
    text = json.dumps(request, ensure_ascii=False)
    return text if len(text) <= 160 else text[:159] + "…"
