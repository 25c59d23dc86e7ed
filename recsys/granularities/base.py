"""What a granularity is: one way to see a user, as a vector for every query.

Legend: B queries, U history rows, L length, D width, S items in view (a step's items, or the N of
the catalogue), V users of the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from recsys.config import Config
from recsys.config.renamed import take_old_name
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ConfigError
from recsys.granularities.panel import Panel
from recsys.granularities.sparse import SparseScores
from recsys.granularities.user_item_graph import Graphs as Graphs


@dataclass(frozen=True)
class ItemView:
    """The items that a step can score: all items, or those that a sampled loss needs."""

    vectors_SD: Tensor  # item vectors a_i
    text_ST: Tensor  # frozen text vectors, zero rows where an item has no text


@dataclass(frozen=True)
class ModelSizes:
    """The dimensions of a model that the dataset fixes."""

    width: int
    max_history: int
    num_users: int
    num_items: int
    num_types: int = 1
    text_width: int = 0
    ordered: bool = True
    timed: bool = False
    # context columns: name and number of codes, 0 for numbers
    context: tuple[tuple[str, int], ...] = ()
    # by signal: plain JSON values, see ``size``
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:  # JSON turns tuples into lists
        object.__setattr__(self, "context", tuple((name, number) for name, number in self.context))


State = dict[str, Tensor]
StepKey = tuple[int, int, int]  # seed, epoch, step: the same on every worker


class Granularity(nn.Module):
    """One user vector per query, and a mask that says where the granularity has an input.

    The contract, which one test checks for every granularity:

    * ``z_BD`` is zero and ``present_B`` False where a query has no input, and gradients are finite
      there;
    * a query sees its first ``seen_B`` events only: later events never change its result;
    * ``state`` depends on graphs and items alone, so that a frozen state serves users without any
      graph;
    * the order of rows in a batch does not change the result.
    """

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        take_old_name(cls, "fitted", "closed_form")

    @classmethod
    def size(cls, section: Any, dataset: PreparedDataset, through: Split) -> Any:
        """Return what the dataset fixes of the module's shape, as plain JSON; None for nothing.

        The model stores it under the section's ``signal``, so that a bundle can be read without the
        dataset.

        Parameters
        ----------
        section : section of ``model.granularities``
            The granularity's own settings.
        dataset : PreparedDataset
            The dataset that the model is built for.
        through : Split
            Last split that may be read.

        Returns
        -------
        JSON value or None
            For example a number of entities, or a list of field names.
        """
        return None

    @classmethod
    def build_input(
        cls, section: Any, sizes: ModelSizes, dataset: PreparedDataset, through: Split
    ) -> Any:
        """Return what ``state`` and ``refine_items`` read besides the events, through a split; None
        for nothing.

        ``Graphs.inputs`` holds it under the section's ``signal``; granularities with the same
        signal share it. An object with a method ``to`` is moved to the device of the training.

        Parameters
        ----------
        section : section of ``model.granularities``
            The granularity's own settings.
        sizes : ModelSizes
            Sizes of the model; ``sizes.inputs`` holds the result of :meth:`size`.
        dataset : PreparedDataset
            The dataset to read.
        through : Split
            Last split that may be read.

        Returns
        -------
        object or None
            Whatever the granularity reads from ``graphs[signal]``.
        """
        return None

    @classmethod
    def idle(cls, section: Any, dataset: PreparedDataset, config: Config) -> str:
        """Return why the granularity cannot distinguish any two items of a dataset, in a few words;
        else "".

        ``model: auto`` leaves out granularities with such a reason. The section's ``check`` reports
        what makes a model impossible; this method reports what makes it useless, such as
        coordinates that are all equal.

        Parameters
        ----------
        section : section of ``model.granularities``
            The granularity's own settings.
        dataset : PreparedDataset
            The dataset that ``model: auto`` looks at.
        config : Config
            The whole configuration.

        Returns
        -------
        str
            The reason, or "" if the granularity is useful.
        """
        return ""

    @classmethod
    def proposed(cls, section: Any, dataset: PreparedDataset) -> dict[str, Any]:
        """Return the keys that ``model: auto`` sets for a dataset, such as names of columns."""
        return {}

    # True: a warm start keeps the size of the model before, because the weights depend on it
    keeps_size = False

    @classmethod
    def vocabularies(cls, size: Any) -> tuple[int, ...]:
        """Return the lengths of id tables that only grow, such as the number of entities, for a
        warm start.
        """
        return ()

    @classmethod
    def described(cls, size: Any) -> str:
        """Describe a size in words, for the message that two sizes differ."""
        return str(size)

    @classmethod
    def for_serving(cls, config: Any, sizes: ModelSizes) -> Granularity:
        """Build the module without the parts that only ``refine_items`` and ``state`` use.

        A frozen model already has the results of these parts. The module's state dict is a subset
        of the trained module's; the default builds the whole module.
        """
        return cls(config, sizes)

    def adapt(self, dataset: PreparedDataset) -> None:
        """Choose before training what depends on the size of the dataset; the default does
        nothing.
        """

    def refine_items(self, base_ND: Tensor, graphs: Graphs) -> Tensor:
        """Return refined item vectors, of the items requested in :meth:`widen`; the default changes
        nothing.
        """
        return base_ND

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Return tensors that are computed once per step and saved for serving; the default has
        none.
        """
        return {}

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Return user vectors ``z_BD`` and ``present_B`` (bool).

        Parameters
        ----------
        batch : Batch
            Histories, and the queries on them.
        items : ItemView
            Item and text vectors of the items in view.
        state : dict of str to Tensor
            Result of :meth:`state`, computed now or stored in a frozen model.

        Returns
        -------
        z_BD : Tensor, [B, D] float
            User vector of each query; zero where it has no input.
        present_B : Tensor, [B] bool
            Whether the query has an input.
        """
        raise NotImplementedError

    def panel(self, state: State, titles: Sequence[str]) -> Panel | None:
        """Return a panel for the report, besides the granularity's weight; the default has none.

        Parameters
        ----------
        state : State
            State as the frozen model stores it.
        titles : Sequence[str]
            Titles of all items.
        """
        return None

    def refit_due(self, epoch: int) -> bool:
        """Whether :meth:`refit` must run before an epoch, counted from 0; the default fits
        nothing.
        """
        return False

    def refit(self, graphs: Graphs, items: ItemView, seed: int) -> None:
        """Fit the closed-form parts on the training events of the graphs and the whole catalogue.

        Every worker fits from the same data and seed; the loop then sends the first worker's result
        to all.

        Parameters
        ----------
        graphs : Graphs
            Training events and inputs by signal.
        items : ItemView
            Vectors of all items.
        seed : int
            Seed of the training.
        """

    def widen(self, ids_S: Tensor | None, graphs: Graphs, key: StepKey) -> Tensor | None:
        """Return the items that the next view needs, so that this granularity can score the given
        ones.

        The given items come first; None means all items. A granularity that samples a graph for a
        step does so here, with the step's key.

        Parameters
        ----------
        ids_S : Tensor, [S] int64, or None
            Items to score; None for the whole catalogue.
        graphs : Graphs
            Training events and inputs by signal.
        key : tuple of three int
            Seed, epoch and step.

        Returns
        -------
        Tensor, [S or more] int64, or None
            The given items, then those that their vectors depend on; None for all items.
        """
        return ids_S

    is_sampled = False  # True: a step samples the user–item graph

    # True: needs the events of the graphs, not just the number of users per item
    reads_events = True

    reads_histories = False  # True: needs the events in order, with times and repeats

    reads_text = False  # True: ``forward`` reads the items' text vectors
    personal = True  # False: the result depends on the time of the request alone, not on the user
    closed_form = False  # True: joins the fusion after training, with its own item vectors

    sparse = False  # closed form only: :meth:`boost` gives the scores; item vectors have width 0
    corrects = False  # closed form with vectors: :meth:`boost` adds to the scores of a few items
    # sparse only: the values are probabilities, so stacking does not rescale them per query
    calibrated = False

    @classmethod
    def fits(
        cls, sections: Sequence[Any], sizes: ModelSizes, items: ItemView, graphs: Graphs
    ) -> Iterator[tuple[Granularity, State]]:
        """Fit a closed-form granularity for several sections, which all differ in one key.

        Subclasses override it to share work between the sections.

        Parameters
        ----------
        sections : Sequence of sections
            Settings of the granularity, one for each fit.
        sizes : ModelSizes
            Sizes of the model.
        items : ItemView
            Vectors of all items.
        graphs : Graphs
            Training events and inputs by signal.

        Yields
        ------
        tuple of (Granularity, dict of str to Tensor)
            Module and state of one section, in the order of ``sections``.
        """
        for section in sections:
            module = cls(section, sizes).eval()
            yield module, module.state(items, graphs)

    # closed form only: side information, whose λ are chosen after those of the history members
    is_side_information = False

    def own_items(self, state: State) -> Tensor:
        """Return the item vectors [N, R] that ``z_BR`` of a closed-form granularity is multiplied
        with.
        """
        raise NotImplementedError

    def boost(self, batch: Batch, items: ItemView, state: State) -> SparseScores:
        """Return the additions of a sparse granularity to the scores of a few items of each query.

        A query without input has none. Items may be further back in the history than the trained
        model reads: ``batch.whole`` has the uncut histories.

        Parameters
        ----------
        batch : Batch
            Histories, and the queries on them.
        items : ItemView
            Item and text vectors of the items in view.
        state : dict of str to Tensor
            Result of :meth:`state`, computed now or stored in a frozen model.

        Returns
        -------
        SparseScores
            Row (query), item and number to add, for B queries.
        """
        raise NotImplementedError

    @property
    def needs_all_items(self) -> bool:
        """Whether ``state`` or ``refine_items`` reads the whole catalogue, which rules out sampled
        views.
        """
        return False


def gather_queries(values_ULD: Tensor, batch: Batch) -> Tensor:
    """Value after the last event that every query sees, zero for a query without events: [B, D]."""
    last_B = (batch.seen_B - 1).clamp(min=0)
    picked_BD = values_ULD[batch.rows_B, last_B]
    return picked_BD * (batch.seen_B > 0)[:, None].to(picked_BD.dtype)


def heads_error(name: str, heads: int, width: int) -> ConfigError:
    """The error for a number of heads that does not divide the width.

    Parameters
    ----------
    name : str
        Key of the granularity below ``model.granularities``.
    heads : int
        Number of heads in the configuration.
    width : int
        Width of the model.

    Returns
    -------
    ConfigError
        The error to raise.
    """
    return ConfigError(
        f"model.granularities.{name}.heads {heads} does not divide model.width {width}"
    )
