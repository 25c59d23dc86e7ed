"""The description of a granularity: its keys, the data it needs, and its cost.

Why separate from the model code: the command line, a dry run and the preflight read it, and they
must not wait for the import of torch. Each granularity has a subclass of
:class:`GranularityConfig`, which names the module with its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from recsys.config.renamed import take_old_name
from recsys.config.section import Section, as_list
from recsys.config.workload import FLOAT, Estimate, Workload

if TYPE_CHECKING:
    from recsys.config.evaluate import EvaluateConfig
    from recsys.config.root import Config


Several = BeforeValidator(as_list)
"""For a key among the ``candidates`` of its section: one value, or a list that validation chooses
from.
"""
Types = Annotated[list[Literal["all", "targets"]], Several, Field(min_length=1)]
"""Which events count: all, or only those of predicted types."""
HalfLives = Annotated[
    list[Annotated[float, Field(gt=0)] | Literal["none"]], Several, Field(min_length=1)
]
"""Days after which the weight of an event is half; ``none``: it stays the same."""


class GranularityConfig(Section):
    """Base of the section of a granularity in ``model.granularities``.

    A subclass sets :attr:`module` and its keys, and overrides what differs from the defaults here.
    """

    # ``package.module:Class`` of its Granularity, imported when a model is built
    module: ClassVar[str] = ""
    always_closed_form: ClassVar[bool] = False  # fitted in closed form with all keys
    # side signal that it reads, "": none; granularities of one signal share its input
    reads: ClassVar[str] = ""
    # keys whose lists of values validation chooses from, see Several
    candidates: ClassVar[tuple[str, ...]] = ()
    # reads only the history of the requested user, so that it can train privately
    per_user: ClassVar[bool] = False
    effort: ClassVar[float] = 1.0  # cost of fitting and ranking; that of item_knn is 1
    smaller: ClassVar[str] = ""  # keys of its section that reduce the memory of its fit

    enabled: bool = Field(False, description="whether the model has this granularity")
    weight: float = Field(
        0.5, ge=0, le=1, description="λ: fixed (weighted) or its initial value (learned, gated)"
    )

    # the kind as the configuration gives it, for one of another package; see ``outside``
    _kind: str = PrivateAttr("")

    @classmethod
    def __pydantic_init_subclass__(cls, **words: Any) -> None:
        super().__pydantic_init_subclass__(**words)
        take_old_name(cls, "always_fitted", "always_closed_form")

    @property
    def target(self) -> str:
        """``package.module:Class`` of the granularity with these keys."""
        return self.module

    @property
    def signal(self) -> str:
        """The side signal that these keys read: its name in ``ModelSizes``, ``Graphs`` and
        ``Batch``.
        """
        return self.reads

    @property
    def by_counts(self) -> bool:
        """Whether it is fitted by counting instead of trained."""
        return getattr(self, "fit", "training") == "counts"

    @property
    def is_closed_form(self) -> bool:
        """Whether it is fitted in closed form and not trained."""
        return self.always_closed_form or self.by_counts

    @property
    def open_keys(self) -> list[str]:
        """The candidates that hold several values."""
        return [key for key in self.candidates if len(getattr(self, key)) > 1]

    def open_on(self, sizes: Any) -> list[str]:
        """The open keys that matter for a dataset: ``half_life`` needs times, ``recency`` an order,
        ``types`` several event types.
        """
        idle = (
            ("half_life",) * (not sizes.timed)
            + ("recency",) * (not sizes.ordered)
            + ("types",) * (sizes.num_types < 2)
        )
        return [key for key in self.open_keys if key not in idle]

    @property
    def first_values(self) -> dict[str, Any]:
        """The first value of every open key."""
        return {key: getattr(self, key)[0] for key in self.open_keys}

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy of the section with one value for each of these keys."""
        return self.model_copy(update={key: [value] for key, value in values.items()})

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        """Contradictions between these keys and the rest of the configuration, for any data, each
        with its cure.

        Parameters
        ----------
        config : Config
            The whole configuration.
        where : str
            Dotted path of the section, which is enabled.

        Yields
        ------
        str
            One contradiction with its cure; the default has none.
        """
        yield from ()

    def reads_all_items(self, num_events: int) -> bool:
        """Whether a step reads the vectors of all items, on data with so many events."""
        return False

    def check(self, sizes: Any) -> None:
        """Refuse a dataset without the data that the granularity reads.

        Parameters
        ----------
        sizes : Any
            The :class:`~recsys.granularities.base.ModelSizes` of the dataset.

        Raises
        ------
        ConfigError
            With the data that is needed, and the cure.
        """

    def estimate(self, work: Workload) -> Estimate:
        """The memory and time that it adds; by default a dense layer in each step, or the events if
        it is fitted.
        """
        if self.is_closed_form:
            return Estimate(layers=0.0, reads_events=True)
        return Estimate(step=work.queries * work.width * FLOAT * 8)

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        return {"kind": self._kind, **tree} if self._kind else tree


def exclude_seen_contradiction(evaluate: EvaluateConfig, where: str) -> Iterator[str]:
    """Contradictions of a granularity that raises only items of the history."""
    if evaluate.exclude_seen:
        yield (
            f"{where} raises items of the user's history, and evaluate.exclude_seen true removes"
            " these from all lists: set evaluate.exclude_seen false if repeats count, or"
            " disable it"
        )
