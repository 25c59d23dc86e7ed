"""What a granularity is: one way to see a user, as a vector for every query.

Legend: B queries, U history rows, L length, D width, S items in view (a step's items, or the N of the catalogue),
V users of the dataset.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.config import Config
from recsys.data.batches import Batch, Hidden
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Split
from recsys.data.neighbours import Neighbours
from recsys.errors import ConfigError, choices
from recsys.granularities.panel import Panel
from recsys.granularities.sparse import SparseScores


@dataclass(frozen=True)
class ItemView:
    """The items that a step can speak about: all of them, or those a sampled loss needs."""

    vectors_SD: Tensor  # item vectors a_i
    text_ST: Tensor  # frozen text vectors, zero rows where an item has no text


@dataclass(frozen=True)
class ModelSizes:
    """What a dataset fixes of a model's shape."""

    width: int
    max_history: int
    num_users: int
    num_items: int
    num_types: int
    text_width: int
    ordered: bool
    timed: bool
    context: tuple[tuple[str, int], ...] = ()  # context columns: name and number of codes, 0 for numbers
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)  # by signal: what JSON holds, see ``size``

    def __post_init__(self) -> None:  # as JSON has it
        object.__setattr__(self, "context", tuple((name, number) for name, number in self.context))


@dataclass
class Graphs:
    """What the dataset knows beside the batch: training events, and what granularities read beside them, by signal.
    Built once a training.

    The events are a table, or lists in files where they are too many for one, or, where no granularity reads them,
    only counted.

    The normalised adjacencies are torch-geometric ``EdgeIndex`` objects, sorted and with their transposes cached.
    """

    num_users: int
    num_items: int
    users_E: Tensor  # int64, user of every training event
    items_E: Tensor  # int64, item of every training event
    values_E: Tensor | None = None  # float32, value of every training event
    neighbours: Neighbours | None = None  # the training events as lists
    counted_N: Tensor | None = None  # float32, users of every item, where the events are not in the table
    histories: Histories | None = None  # the events in order, repeated ones too, where a granularity reads them

    inputs: Mapping[str, Any] = field(default_factory=dict)  # by signal, see ``Granularity.build_input``

    def __getitem__(self, signal: str) -> Any:
        """What a granularity reads beside the events.

        Raises
        ------
        ConfigError
            These graphs were built for a model that does not read it, or of a dataset without.
        """
        if signal not in self.inputs:
            there = choices(self.inputs) or "none"
            raise ConfigError(f"the graphs hold no {signal!r}, only: {there}; build_graphs builds what its model reads")
        return self.inputs[signal]

    def to(self, device: torch.device) -> Graphs:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: part.to(device) if hasattr(part, "to") else part for name, part in parts.items()}
        inputs = {name: part.to(device) if hasattr(part, "to") else part for name, part in self.inputs.items()}
        return Graphs(**{**moved, "inputs": inputs})

    def without(self, hidden: Hidden) -> Graphs:
        """The same graphs without the hidden events; these themselves when nothing is hidden."""
        if not hidden.share:
            return self
        histories = None if self.histories is None else _without(self.histories, hidden)
        if self.neighbours is not None and self.counted_N is not None:
            rest = self.neighbours.without(hidden)
            counted_N = torch.as_tensor(rest.users_of_N.degree_X).to(self.counted_N)
            return replace(self, neighbours=rest, counted_N=counted_N, histories=histories)
        is_hidden_E = hidden.of(self.users_E.cpu().numpy().astype(np.int64), self.items_E.cpu().numpy())
        kept_E = torch.as_tensor(~is_hidden_E, device=self.users_E.device)
        values_E = None if self.values_E is None else self.values_E[kept_E]
        users_E, items_E = self.users_E[kept_E], self.items_E[kept_E]
        return replace(self, users_E=users_E, items_E=items_E, values_E=values_E, histories=histories)

    @cached_property
    def mean_of_items(self) -> Adjacency:
        """[V, N] row-normalised: the mean over a user's training events."""
        share_V = 1 / self._degree(self.users_E, self.num_users).clamp(min=1)
        return adjacency(self.users_E, self.items_E, share_V[self.users_E], (self.num_users, self.num_items))

    @cached_property
    def degree_N(self) -> Tensor:
        """Users who chose an item in training, float32."""
        return self._degree(self.items_E, self.num_items) if self.counted_N is None else self.counted_N

    @cached_property
    def items_from_users(self) -> Adjacency:
        """D^-1/2 A D^-1/2 as [N, V]."""
        return adjacency(self.items_E, self.users_E, self._symmetric_E, (self.num_items, self.num_users))

    @cached_property
    def users_from_items(self) -> Adjacency:
        """D^-1/2 A D^-1/2 as [V, N]."""
        return adjacency(self.users_E, self.items_E, self._symmetric_E, (self.num_users, self.num_items))

    @cached_property
    def _symmetric_E(self) -> Tensor:
        degree_V = self._degree(self.users_E, self.num_users)
        return (degree_V[self.users_E] * self.degree_N[self.items_E]).rsqrt()

    @staticmethod
    def _degree(ends_E: Tensor, size: int) -> Tensor:
        return torch.bincount(ends_E, minlength=size).to(torch.float32)


def _without(histories: Histories, hidden: Hidden) -> Histories:
    users_E = np.repeat(histories.users_U, histories.lengths_U)
    return histories.where(~hidden.of(users_E, histories.items_E))


Adjacency = tuple[Any, Tensor]  # a torch-geometric EdgeIndex sorted by row, and its values


def adjacency(
    rows_E: Tensor, columns_E: Tensor, values_E: Tensor, shape: tuple[int, int], is_sorted: bool = False
) -> Adjacency:
    """A sparse matrix [rows, columns] for :func:`spread`; ``is_sorted`` says that the rows ascend."""
    from torch_geometric import EdgeIndex

    _first_compressed()
    edges = EdgeIndex(torch.stack([rows_E, columns_E]), sparse_size=shape, sort_order="row" if is_sorted else None)
    ordered, permutation = edges.sort_by("row")
    return ordered.fill_cache_(), values_E[permutation] if permutation is not None else values_E


@cache
def _first_compressed() -> None:
    """Make the first compressed matrix of this process, at which torch warns that they are new; it does so once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks are)")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), size=(1, 1))


def spread(matrix: Adjacency, features_XD: Tensor) -> Tensor:
    """Sparse matrix times features: one graph convolution without weights."""
    edges, values_E = matrix
    with torch.autocast(features_XD.device.type, enabled=False):  # sparse products exist in float32 only
        result: Tensor = edges.matmul(features_XD.float(), input_value=values_E)
    return result


State = dict[str, Tensor]
StepKey = tuple[int, int, int]  # seed, epoch, step: the same on every worker


class Granularity(nn.Module):
    """One user vector a query, and a mask that says where there is something to see.

    The contract, which one test checks of every granularity:

    * ``z_BD`` is zero and ``present_B`` False where the input of a query is missing, and gradients stay finite there;
    * a query sees its first ``seen_B`` events only: later events never change it;
    * ``state`` depends on graphs and items alone, so that a frozen state serves users without any graph;
    * the order of the rows in a batch does not matter.
    """

    @classmethod
    def size(cls, section: Any, dataset: PreparedDataset, through: Split) -> Any:
        """What the dataset fixes of the module's shape, beside what every model has: plain JSON, None for nothing.

        It is kept with the model under the section's ``signal``, so that a bundle is read without the dataset.
        """
        return None

    @classmethod
    def build_input(cls, section: Any, sizes: ModelSizes, dataset: PreparedDataset, through: Split) -> Any:
        """What ``state`` and ``refine_items`` read beside the events through a split; None for nothing.

        It is in ``Graphs.inputs`` under the section's ``signal``; granularities of one signal share it. What has a
        method ``to`` is moved to the device of the training.
        """
        return None

    @classmethod
    def idle(cls, section: Any, dataset: PreparedDataset, config: Config) -> str:
        """Why it would tell no two items apart on a dataset, in a few words for people; empty where it may.

        ``model: auto`` asks and leaves an idle one out. What makes a model impossible is said by the section's
        ``check``; what is only useless, such as coordinates that are all equal, is said here.
        """
        return ""

    @classmethod
    def proposed(cls, section: Any, dataset: PreparedDataset) -> dict[str, Any]:
        """The keys that ``model: auto`` sets for a dataset beside those of the section, such as names of columns."""
        return {}

    keeps_size = False  # whether a model that goes on from another keeps that one's size, as its weights rest on it

    @classmethod
    def vocabularies(cls, size: Any) -> tuple[int, ...]:
        """Of a size: the lengths of tables of ids that only grow, such as a row an entity, for a warm start."""
        return ()

    @classmethod
    def described(cls, size: Any) -> str:
        """A size in words, for the message that two of them differ."""
        return str(size)

    @classmethod
    def for_serving(cls, config: Any, sizes: ModelSizes) -> Granularity:
        """The module without the parts that only ``refine_items`` and ``state`` use, whose results a frozen model has.

        Its state dict is a subset of the trained module's; the default needs all of it.
        """
        return cls(config, sizes)

    def adapt(self, dataset: PreparedDataset) -> None:
        """Settle before training what depends on how large the dataset is; the default has nothing to settle."""

    def refine_items(self, base_ND: Tensor, graphs: Graphs) -> Tensor:
        """Item vectors as this granularity would have them, of those it was asked for in :meth:`widen`; the default
        leaves them as they are.
        """
        return base_ND

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Tensors computed once a step from the graphs, kept with the model for serving; the default has none."""
        return {}

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """User vectors ``z_BD`` and ``present_B`` (bool)."""
        raise NotImplementedError

    def panel(self, state: State, titles: Sequence[str]) -> Panel | None:
        """What the report shows of it, beside its weight; the default has nothing to show.

        Parameters
        ----------
        state : State
            As the frozen model keeps it.
        titles : Sequence[str]
            Of every item.
        """
        return None

    def refit_due(self, epoch: int) -> bool:
        """Whether :meth:`refit` is wanted before an epoch, counted from 0; the default has nothing to fit."""
        return False

    def refit(self, graphs: Graphs, items: ItemView, seed: int) -> None:
        """Fit what is fitted rather than trained, on the training events of the graphs and the whole catalogue.

        Every worker fits from the same data and seed; the loop then hands the first worker's numbers to all.
        """

    def widen(self, ids_S: Tensor | None, graphs: Graphs, key: StepKey) -> Tensor | None:
        """The items that the next view must have, so that this granularity can speak of the given ones, which come
        first; None: all of them. Where it samples a graph for a step, it does so here, by the step's key.
        """
        return ids_S

    is_sampled = False  # whether a step samples the graph of users and items instead

    reads_events = True  # whether it needs the events of the graphs, more than how many users an item has

    reads_histories = False  # whether it needs the events of the graphs in order, with times and repeats

    reads_text = False  # whether ``forward`` looks at the items' text vectors
    personal = True  # False: says the same to everybody who asks at a moment, whatever is known of them
    fitted = False  # True: has no trained part; joins the fusion when training is over, with item vectors of its own

    sparse = False  # of a fitted granularity: :meth:`boost` answers, not ``forward``; its item vectors have width 0
    corrects = False  # of a fitted granularity of vectors: :meth:`boost` adds to its scores what no vector holds
    calibrated = False  # of a sparse granularity: its values are probabilities, which stacking leaves as they are

    @classmethod
    def fits(
        cls, sections: Sequence[Any], sizes: ModelSizes, items: ItemView, graphs: Graphs
    ) -> Iterator[tuple[Granularity, State]]:
        """Of a fitted granularity: a module and its state for each section in turn, all of which differ in one key;
        overridden where they share work.
        """
        for section in sections:
            module = cls(section, sizes).eval()
            yield module, module.state(items, graphs)

    weighed_last = False  # of a fitted granularity: side information, whose λ is chosen behind those of the histories

    def own_items(self, state: State) -> Tensor:
        """Of a fitted granularity: the item vectors [N, R] that its ``z_BR`` is multiplied with."""
        raise NotImplementedError

    def boost(self, batch: Batch, items: ItemView, state: State) -> SparseScores:
        """Of a sparse granularity: what it adds to the scores of few items of each query; nothing where it is absent.

        It reads ``batch.whole``, the queries uncut, where its items may lie further back than the model looks.
        """
        raise NotImplementedError

    @property
    def needs_all_items(self) -> bool:
        """True when ``state`` or ``refine_items`` reads the whole catalogue, which rules out sampled views."""
        return False


def gather_queries(values_ULD: Tensor, batch: Batch) -> Tensor:
    """The value behind the last seen event of every query, zero where a query sees none: [B, D]."""
    last_B = (batch.seen_B - 1).clamp(min=0)
    picked_BD = values_ULD[batch.rows_B, last_B]
    return picked_BD * (batch.seen_B > 0)[:, None].to(picked_BD.dtype)


def heads_error(name: str, heads: int, width: int) -> ConfigError:
    """Heads that do not divide the width."""
    return ConfigError(f"model.granularities.{name}.heads {heads} does not divide model.width {width}")
