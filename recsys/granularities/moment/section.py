"""Settings of ``moment``: hour, weekday and context of the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig, HalfLives, Several
from recsys.config.workload import FLOAT, HISTORY, Estimate, Workload
from recsys.errors import ConfigError, choices

if TYPE_CHECKING:
    from recsys.granularities.base import ModelSizes

HOURS, WEEKDAYS = 24, 7


class MomentConfig(GranularityConfig):
    """What is chosen at this hour, on this weekday, in this context."""

    module: ClassVar[str] = "recsys.granularities.moment.model:Moment"
    always_closed_form: ClassVar[bool] = True
    effort: ClassVar[float] = 0.3
    candidates: ClassVar[tuple[str, ...]] = ("half_life", "smoothing")

    query_context: list[str] = Field(
        [],
        description=(
            "categories among data.context known at the time of the request (no column that reveals"
            " the target)"
        ),
    )
    half_life: HalfLives = Field(
        ["none", 1.0, 3.0, 7.0, 30.0, 90.0, 365.0],
        description="half-life in days of events in q, the items' shares of events; one or several",
    )
    smoothing: Annotated[list[Annotated[float, Field(gt=0)]], Several, Field(min_length=1)] = Field(
        [10_000.0, 1_000.0, 100.0],
        description=(
            "α: prior strength in events, pulls an hour towards the average; one or several"
        ),
    )

    def check(self, sizes: ModelSizes) -> None:
        """Check that the dataset has times, or the named context columns.

        Raises
        ------
        ConfigError
            A named column is missing, or there are neither times nor named columns.
        """
        known = [name for name, num_codes in sizes.context if num_codes]
        if unknown := [name for name in self.query_context if name not in known]:
            raise ConfigError(
                f"model.granularities.moment.query_context names {', '.join(unknown)}, not in"
                " the categories of data.context: "
                f"{choices(known) or 'none'}"
            )
        if not sizes.timed and not self.query_context:
            raise ConfigError(
                "model.granularities.moment needs times of events, or context in"
                " moment.query_context, but this dataset has neither; disable it"
            )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the counts and their logarithms, and of the events in order."""
        counts = work.data.items * (HOURS + WEEKDAYS + 64) * FLOAT * 3
        return Estimate(layers=0.0, fitting=counts + work.fit_events * HISTORY)
