"""Settings of ``place``: distance to the places of the history, and similarity in numbers of
items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig, HalfLives, Several
from recsys.config.workload import FLOAT, HISTORY, Estimate, Workload
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.granularities.base import ModelSizes


class PlaceConfig(GranularityConfig):
    """Distance of items to where the user was; similarity in price and other numbers."""

    module: ClassVar[str] = "recsys.granularities.place.model:Place"
    reads: ClassVar[str] = "place"
    effort: ClassVar[float] = 2.0
    always_closed_form: ClassVar[bool] = True
    candidates: ClassVar[tuple[str, ...]] = ("half_life", "recency")
    smaller: ClassVar[str] = "landmarks"

    coordinates: list[str] = Field(
        [],
        max_length=2,
        description="columns of items: latitude, longitude; empty: found by their names",
    )
    numbers: list[str] = Field(
        [], description="columns of numbers, e.g. price, which are compared by rank"
    )
    bandwidths: list[Annotated[float, Field(gt=0)]] = Field(
        [],
        description=(
            "kilometres at which similarity falls to 1/e; empty: from the distances between users'"
            " events"
        ),
    )
    landmarks: int = Field(256, ge=1, description="number of reference places; more is finer")
    half_life: HalfLives = Field(
        ["none", 1.0, 3.0, 7.0, 30.0, 90.0, 365.0],
        description="half-life in days of events in q, the items' shares of events; one or several",
    )
    recency: Annotated[list[Annotated[float, Field(ge=0)]], Several, Field(min_length=1)] = Field(
        [0.5, 0.0, 1.0, 2.0],
        description="p: an event with n later events has weight (n + 1)^-p; ordered data only",
    )

    def check(self, sizes: ModelSizes) -> None:
        """Check that the dataset has coordinates or numbers.

        Raises
        ------
        ConfigError
            It has neither.
        """
        if not any(sizes.inputs.get(self.signal) or []):
            raise ConfigError(
                "model.granularities.place needs coordinates or numbers of items, but this dataset"
                " has no columns latitude and longitude; name them in place.coordinates, or numbers"
                " in place.numbers, or disable it"
            )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the items' vectors and the kernel's rows, in two precisions."""
        return Estimate(
            layers=0.0,
            fitting=work.data.items * self.landmarks * FLOAT * 4 + work.fit_events * HISTORY,
        )
