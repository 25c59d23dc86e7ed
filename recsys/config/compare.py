"""``compare``: two finished runs on the same test users, or the model versions in logs of a
server.
"""

from __future__ import annotations

from pydantic import Field

from recsys.config.section import PathOrUri, Section


class CompareConfig(Section):
    """A comparison of two runs, or of the models in logs of a server."""

    runs: list[PathOrUri] = Field([], description="the two run folders (recsys compare RUN RUN)")
    out: PathOrUri = Field(
        "",
        description=(
            "file of the comparison; default: compare.json in the first run's folder or next to the"
            " first log"
        ),
    )
    logs: list[PathOrUri] = Field(
        [],
        description=(
            "files, folders or globs that `recsys serve` wrote to serve.log (short: --logs FILE…)"
        ),
    )
    feedback: list[PathOrUri] = Field(
        [], description="files, folders or globs of events on shown items (short: --feedback FILE…)"
    )
    rewards: dict[str, float] = Field(
        {"click": 1.0, "purchase": 3.0, "skip": 0.0},
        description="event type → reward of an event on a shown item",
    )
    window_hours: float = Field(
        24.0,
        gt=0,
        description=(
            "hours after an answer in which an event counts for it; it counts for the "
            "newest answer with the item"
        ),
    )
    target: PathOrUri = Field(
        "",
        description=(
            "models:/NAME@ALIAS, models:/NAME/VERSION or a pulled folder: a model whose value is"
            " estimated off policy, from the lists that other models showed"
        ),
    )
