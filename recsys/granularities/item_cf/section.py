"""Settings of ``item_cf``: a closed-form item–item model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig, Several, Types
from recsys.config.workload import FLOAT, Estimate, Workload, histories, singular_vectors

MOST_LINKS = 2**23  # links in the model: 64 MB
_LEAST_NEIGHBOURS = 50
FULL_SIDE = 2048  # users plus text width, or items: up to this size all factors take seconds


class ItemCFConfig(GranularityConfig):
    """A ridge regression of each item on the others, as EASE."""

    module: ClassVar[str] = "recsys.granularities.item_cf.model:ItemCF"
    always_closed_form: ClassVar[bool] = True
    effort: ClassVar[float] = 5.0
    candidates: ClassVar[tuple[str, ...]] = ("regularisation", "types", "itself", "recency")
    smaller: ClassVar[str] = "rank or neighbours"

    form: Literal["auto", "factors", "neighbours"] = Field(
        "auto",
        description=(
            "factors: one vector per user; neighbours: a few weights per item; auto: factors if a"
            f" rank is set or the data has at most {FULL_SIDE} factors, else neighbours"
        ),
    )
    rank: int = Field(0, ge=0, description="number of factors; 0: all, or as many as fit in max_mb")
    max_mb: int = Field(256, ge=1, description="memory limit of the factors in MB, for rank 0")
    neighbours: int = Field(
        200,
        ge=1,
        description=(
            "number of similar items that predict an item; with more than"
            f" {MOST_LINKS // 200:,} items fewer, at least {_LEAST_NEIGHBOURS}"
        ),
    )
    regularisation: Annotated[list[Annotated[float, Field(gt=0)]], Several, Field(min_length=1)] = (
        Field([100.0, 30.0, 300.0, 1000.0], description="λ, one or several")
    )
    recency: Annotated[list[Annotated[float, Field(ge=0)]], Several, Field(min_length=1)] = Field(
        [0.0, 0.5, 1.0],
        description=(
            "p: at inference an event with n later events has weight (n + 1)^-p; ordered data only"
        ),
    )
    types: Types = Field(
        ["all", "targets"],
        description="events that count: all, or only those of predicted types; one or both",
    )
    itself: Annotated[list[bool], Several, Field(min_length=1)] = Field(
        [True, False],
        description=(
            "whether an item of the history raises its own score (factors only; false is EASE),"
            " which matters if lists may contain items of the history; one or both"
        ),
    )
    text_weight: float = Field(
        0.0, ge=0, description="weight of item texts relative to events; 0: events alone"
    )
    event_weights: Literal["none", "rank"] = Field(
        "none", description="rank: by the rank of an event's value among the user's events"
    )

    def largest_rank(self, users: int, items: int, text_width: int) -> int:
        """The largest number of factors that the data has.

        Parameters
        ----------
        users, items : int
            Number of users and of items.
        text_width : int
            Width of the text vectors; it counts only with a ``text_weight``.
        """
        return min(users + (text_width if self.text_weight else 0), items)

    def by_neighbours(self, users: int, items: int, text_width: int) -> bool:
        """Whether the form is neighbours: a few weights per item.

        Parameters
        ----------
        users, items : int
            Number of users and of items.
        text_width : int
            Width of the text vectors.
        """
        if self.form == "auto":
            return not self.rank and self.largest_rank(users, items, text_width) > FULL_SIDE
        return self.form == "neighbours"

    def num_neighbours(self, items: int) -> int:
        """The number of neighbours of each item that is fitted."""
        return min(self.neighbours, max(_LEAST_NEIGHBOURS, MOST_LINKS // max(items, 1)))

    def num_factors(self, users: int, items: int, text_width: int) -> int:
        """The rank that is fitted.

        Parameters
        ----------
        users, items : int
            Number of users and of items.
        text_width : int
            Width of the text vectors.

        Returns
        -------
        int
            The configured rank, or as many factors as fit in ``max_mb``; at most
            :meth:`largest_rank`.
        """
        most = self.rank or max(1, self.max_mb * 2**20 // (FLOAT * max(items, 1)))
        return min(most, self.largest_rank(users, items, text_width))

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the singular vectors with QR's copies, or of co-occurring pairs and the weights
        of each λ.
        """
        data = work.data
        if self.by_neighbours(data.users, data.items, data.text_width):
            pairs = min(
                data.items**2, data.events * max(data.events / max(data.users, 1), 1.0) * 4, 2**26
            )
            neighbours = self.num_neighbours(data.items)
            fitting = pairs * 8 * 2 + data.items * neighbours * FLOAT * (
                len(self.regularisation) + 4
            )
            fitting += min(data.items * neighbours**2, 2**26) * FLOAT
        else:
            rank = self.num_factors(data.users, data.items, data.text_width) + 32
            fitting = singular_vectors(data, rank)
        fitting += histories(self.types, work)
        return Estimate(layers=0.0, reads_events=True, fitting=fitting)
