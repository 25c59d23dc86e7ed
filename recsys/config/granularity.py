"""What every granularity says of itself without being loaded: its keys, what it needs, what it costs.

Why here and light: the command line, a dry run and the preflight ask it, and none of them may wait for torch. A
granularity owns a subclass of :class:`GranularityConfig`; the module that it names does the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, SerializerFunctionWrapHandler, model_serializer

from recsys.config.section import Section
from recsys.config.workload import FLOAT, Estimate, Workload

if TYPE_CHECKING:
    from recsys.config.root import Config


def _as_list(value: Any) -> Any:
    """One value where several may stand."""
    return [value] if isinstance(value, (int, float, str)) else value


Several = BeforeValidator(_as_list)
"""Of a key that is among the ``candidates`` of its section: one value, or a list of which validation chooses one."""
Types = Annotated[list[Literal["all", "targets"]], Several, Field(min_length=1)]
"""Which events count: all, or those of types that are predicted alone."""
HalfLives = Annotated[list[Annotated[float, Field(gt=0)] | Literal["none"]], Several, Field(min_length=1)]
"""Days after which an event counts half; ``none``: it does not fade."""


class GranularityConfig(Section):
    """The section of a granularity in ``model.granularities``, and what it says of itself.

    A subclass gives :attr:`module` and its keys, and overrides what is not as here.
    """

    module: ClassVar[str] = ""  # ``package.module:Class`` of its Granularity, imported when a model is built
    always_fitted: ClassVar[bool] = False  # in closed form, whatever its keys say
    reads: ClassVar[str] = ""  # the signal beside the events, empty: none; granularities of one signal share its input
    candidates: ClassVar[tuple[str, ...]] = ()  # keys of several values, of which validation chooses; see Several
    per_user: ClassVar[bool] = False  # it reads of users only the history that is asked, so that it may train privately
    effort: ClassVar[float] = 1.0  # of fitting it and ranking by it, in that of item_knn; tells the dear from the cheap
    smaller: ClassVar[str] = ""  # the keys, below its section, that lower the memory of its fit

    enabled: bool = Field(False, description="whether the model has this granularity")
    weight: float = Field(0.5, ge=0, le=1, description="λ: fixed (fusion weighted) or its first value (learned, gated)")

    _kind: str = PrivateAttr("")  # how a configuration names one from outside this package, see ``outside``

    @property
    def target(self) -> str:
        """``package.module:Class`` of what these keys ask for."""
        return self.module

    @property
    def signal(self) -> str:
        """The signal beside the events that these keys read: its name in ``ModelSizes``, ``Graphs`` and ``Batch``."""
        return self.reads

    @property
    def by_counts(self) -> bool:
        """Whether it is fitted by counting instead of trained."""
        return getattr(self, "fit", "training") == "counts"

    @property
    def is_fitted(self) -> bool:
        """Whether it is fitted in closed form and has no part in training."""
        return self.always_fitted or self.by_counts

    @property
    def open_keys(self) -> list[str]:
        """The candidates that hold several values."""
        return [key for key in self.candidates if len(getattr(self, key)) > 1]

    def open_on(self, sizes: Any) -> list[str]:
        """Those of them that mean something on a dataset: ages need times, the newest event an order, types
        several of them.
        """
        idle = (
            ("half_life",) * (not sizes.timed) + ("recency",) * (not sizes.ordered) + ("types",) * (sizes.num_types < 2)
        )
        return [key for key in self.open_keys if key not in idle]

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """The section with one value for each of these candidates."""
        return self.model_copy(update={key: [value] for key, value in values.items()})

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        """What of these keys cannot hold beside the rest of the configuration, whatever the data, each with its cure;
        ``where`` is the dotted path of the section. Asked only where it is enabled.
        """
        yield from ()

    def check(self, sizes: Any) -> None:
        """Refuse a dataset that lacks what the granularity reads.

        Parameters
        ----------
        sizes : Any
            the :class:`~recsys.granularities.base.ModelSizes` of the dataset.

        Raises
        ------
        ConfigError
            what is needed, and the cure.
        """

    def estimate(self, work: Workload) -> Estimate:
        """What it adds to memory and time. As here: a dense layer a step, or, where it is fitted, the events."""
        if self.is_fitted:
            return Estimate(layers=0.0, holds_events=True)
        return Estimate(step=work.queries * work.width * FLOAT * 8)

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        return {"kind": self._kind, **tree} if self._kind else tree


def lifts_seen(config: Config, where: str) -> Iterator[str]:
    """What contradicts a granularity that adds to items of the history alone."""
    if config.evaluate.exclude_seen:
        yield (
            f"{where} lifts what a user had before, and evaluate.exclude_seen true leaves that out of every list: "
            "set evaluate.exclude_seen false where repeats count, or disable it"
        )
