"""Settings of ``evolution``: the order and times of the history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import FLOAT, Estimate, Workload
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.config.root import Config
    from recsys.granularities.base import ModelSizes


class EvolutionConfig(GranularityConfig):
    """How the interest moves: long-term and immediate state over the order of the events."""

    module: ClassVar[str] = "recsys.granularities.evolution.model:Evolution"
    per_user: ClassVar[bool] = True

    cell: Literal["lstm", "gru", "attention", "hstu"] = Field(
        "attention", description="network that reads the sequence of events"
    )
    positions: Literal["absolute", "relative", "both"] = Field(
        "both", description="how attention and hstu encode the order"
    )
    layers: int = Field(1, ge=1, description="number of layers")
    heads: int = Field(2, ge=1, description="number of attention heads")
    feed_forward: int = Field(
        4,
        ge=1,
        description="inner width of attention's blocks, as a multiple of width (hstu has none)",
    )
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout rate in training")
    input_dropout: float = Field(
        0.3, ge=0, lt=1, description="dropout of the event vectors that the cell reads"
    )
    states: Literal["cell", "parallel", "formula"] = Field(
        "cell",
        description=(
            "cell: the cell's state alone; parallel, formula: long-term and immediate state, in"
            " sweeps or step by step"
        ),
    )
    sweeps: int = Field(2, ge=1, description="parallel passes over the recurrence of the states")
    time_gaps: bool = Field(
        False, description="use the time since the previous event as an input of the cell"
    )
    query_context: list[str] = Field(
        [],
        description=(
            "context columns known at the time of the request (a column that reveals the target is"
            " a leak)"
        ),
    )
    context_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of rows and queries whose context is hidden in training"
    )

    @property
    def attends(self) -> bool:
        """Whether the cell reads all steps at once, so that it cannot run step by step."""
        return self.cell in ("attention", "hstu")

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        """The data needs an order, and the keys must fit each other."""
        if config.data.order == "none":
            yield (
                f"{where} needs ordered events, but data.order is none; disable it, or set"
                " data.order to auto"
            )
        if self.states == "formula" and self.attends:
            yield (
                f"{where}.states formula needs cell lstm or gru, got {self.cell}; change one of"
                " them"
            )
        if unknown := sorted({*self.query_context} - {*config.data.context}):
            yield (
                f"{where}.query_context names {', '.join(unknown)}, which is not in data.context;"
                " add it there"
            )

    def check(self, sizes: ModelSizes) -> None:
        """Check that the dataset has an order, and times if ``time_gaps`` reads them.

        Raises
        ------
        ConfigError
            The order or the times are missing, or ``states`` formula meets a cell without
            steps.
        """
        where = "model.granularities.evolution"
        if not sizes.ordered:
            raise ConfigError(
                f"{where} needs ordered events, but this dataset has no order; disable it, or set "
                "data.order to time or file if the source has an order"
            )
        if self.time_gaps and not sizes.timed:
            raise ConfigError(
                f"{where}.time_gaps needs a timestamp for every event, but this dataset lacks some;"
                " set it to false"
            )
        if self.states == "formula" and self.attends:
            raise ConfigError(
                f"{where}.states formula runs step by step, but {self.cell} reads all steps at"
                " once; set states to parallel, or cell to lstm or gru"
            )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the cell's weights and activations."""
        is_hstu = self.cell == "hstu"  # no feed-forward: 5 D² numbers per layer, fewer activations
        vectors, pair, layer = (12, 12, 5 / 12) if is_hstu else (16, 16, 1.0)
        step = work.queries * work.width * FLOAT * 8
        step += work.rows * work.length * work.width * FLOAT * vectors * self.layers
        validation = 0.0
        if self.attends:
            step += work.queries * work.longest * (self.heads * pair * self.layers + 24)
            validation = work.validation_rows * work.validation_length**2 * (self.heads * 8 + 20)
        return Estimate(layers=1.0 + layer * self.layers, step=step, validation=validation)
