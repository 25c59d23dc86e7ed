"""What granularities read besides the batch: the training events, the inputs by signal, and the
normalised user–item graph.

Legend: E training events, N items, V users, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.event_table import EventTable
from recsys.data.hidden import Hidden
from recsys.data.histories import Array, Histories
from recsys.data.neighbours import Neighbours
from recsys.errors import ConfigError, choices
from recsys.granularities.event_matrix import EventMatrix

_MOST_INDEXED: Final = 2**24  # events of which an index is in memory, 2 GB


@dataclass
class Graphs:
    """The dataset as granularities read it, besides the batch: training events and inputs by
    signal.

    Built once per training. The events are a table in files, see :mod:`recsys.data.event_table`;
    lists in files for a model that samples them; or only counts if no granularity reads them. The
    normalised adjacencies are torch-geometric ``EdgeIndex`` objects, sorted and with cached
    transposes; of many events on the CPU they read the table in blocks.
    """

    num_users: int
    num_items: int
    users_E: Tensor  # int, user of every training event, ascending
    items_E: Tensor  # int, item of every training event
    values_E: Tensor | None = None  # float32, value of every training event
    neighbours: Neighbours | None = None  # the training events as lists in files
    counted_N: Tensor | None = None  # float32, number of users of every item, if there is no table
    # the events in order, with repeats, if a granularity reads them
    histories: Histories | None = None

    # by signal, see ``Granularity.build_input``
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, signal: str) -> Any:
        """The input of a granularity besides the events.

        Raises
        ------
        ConfigError
            The model of these graphs does not read this signal, or the dataset does not have it.
        """
        if signal not in self.inputs:
            there = choices(self.inputs) or "none"
            raise ConfigError(
                f"the graphs have no input {signal!r}, only: {there}; build them for this model"
            )
        return self.inputs[signal]

    def to(self, device: torch.device) -> Graphs:
        """Move all tensors to a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: value.to(device) if hasattr(value, "to") else value
            for name, value in values.items()
        }
        inputs = {
            name: value.to(device) if hasattr(value, "to") else value
            for name, value in self.inputs.items()
        }
        return Graphs(**{**moved, "inputs": inputs})

    def without(self, hidden: Hidden) -> Graphs:
        """Return the graphs without the hidden events, or ``self`` if no event is hidden."""
        if not hidden.hides:
            return self
        histories = None if self.histories is None else _without(self.histories, hidden)
        if self.neighbours is not None and self.counted_N is not None:
            rest = self.neighbours.without(hidden)
            counted_N = torch.as_tensor(rest.users_of_N.degree_X).to(self.counted_N)
            return replace(self, neighbours=rest, counted_N=counted_N, histories=histories)
        kept = self.where(lambda users_E, items_E: ~hidden.of(users_E.astype(np.int64), items_E))
        return replace(kept, histories=histories)

    def where(self, keeps: Callable[[Array, Array], Array]) -> Graphs:
        """The graphs with those rows of the table for which ``keeps(users, items)`` is true."""
        device, known = self.users_E.device, self.values_E is not None
        values_E = torch.zeros(len(self.users_E)) if self.values_E is None else self.values_E
        columns = (part.cpu().numpy() for part in (self.users_E, self.items_E, values_E))
        kept = EventTable(*columns).where(keeps, self.num_users)
        return replace(
            self,
            users_E=torch.as_tensor(kept.users_E).to(device),
            items_E=torch.as_tensor(kept.items_E).to(device),
            values_E=torch.as_tensor(kept.values_E).to(device) if known else None,
        )

    @cached_property
    def starts_V1(self) -> Array:
        """Where the events of every user start in the table: [V + 1] int64."""
        counts_V = torch.bincount(self.users_E, minlength=self.num_users).cpu().numpy()
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts_V)])

    @cached_property
    def mean_of_items(self) -> Adjacency | BlockedAdjacency:
        """[V, N], row-normalised: multiplication gives the mean over a user's training events."""
        share_V = 1 / self._degree(self.users_E, self.num_users).clamp(min=1)
        return self._scaled(share_V, torch.ones(self.num_items, device=share_V.device))

    @cached_property
    def degree_N(self) -> Tensor:
        """Number of users of each item in training, float32."""
        return (
            self._degree(self.items_E, self.num_items) if self.counted_N is None else self.counted_N
        )

    @cached_property
    def items_from_users(self) -> Adjacency | BlockedAdjacency:
        """D^-1/2 A D^-1/2 as [N, V]."""
        return self._scaled(*self._roots, is_transposed=True)

    @cached_property
    def users_from_items(self) -> Adjacency | BlockedAdjacency:
        """D^-1/2 A D^-1/2 as [V, N]."""
        return self._scaled(*self._roots)

    @property
    def _roots(self) -> tuple[Tensor, Tensor]:
        """D^-1/2 of the users and of the items; 0 where there is no event."""
        degree_V = self._degree(self.users_E, self.num_users)
        return tuple(  # type: ignore[return-value]
            torch.where(degree_X > 0, degree_X.rsqrt(), 0.0)
            for degree_X in (degree_V, self.degree_N)
        )

    def _scaled(
        self, scale_V: Tensor, scale_N: Tensor, is_transposed: bool = False
    ) -> Adjacency | BlockedAdjacency:
        """diag(scale_V) X diag(scale_N), or its transpose."""
        if len(self.users_E) > _MOST_INDEXED and self.users_E.device.type == "cpu":
            return BlockedAdjacency(EventMatrix.of(self), scale_V, scale_N, is_transposed)
        users_E, items_E = self.users_E.long(), self.items_E.long()
        values_E = scale_V[users_E] * scale_N[items_E]
        if is_transposed:
            return adjacency(items_E, users_E, values_E, (self.num_items, self.num_users))
        return adjacency(users_E, items_E, values_E, (self.num_users, self.num_items))

    @staticmethod
    def _degree(ends_E: Tensor, size: int) -> Tensor:
        return torch.bincount(ends_E, minlength=size).to(torch.float32)


def _without(histories: Histories, hidden: Hidden) -> Histories:
    users_E = np.repeat(histories.users_U, histories.lengths_U)
    return histories.where(~hidden.of(users_E, histories.items_E))


@dataclass(frozen=True)
class BlockedAdjacency:
    """diag(scale_V) X diag(scale_N), or its transpose, that reads the table in blocks of users.

    Why not always: with all events in memory, a product uses several threads.
    """

    events_VN: EventMatrix
    scale_V: Tensor
    scale_N: Tensor
    is_transposed: bool = False

    def times(self, features_XD: Tensor) -> Tensor:
        """The product with features of the columns."""
        right_X = self.scale_V if self.is_transposed else self.scale_N
        left_Y = self.scale_N if self.is_transposed else self.scale_V
        scaled = (features_XD * right_X[:, None]).numpy()
        found = np.zeros((len(left_Y), scaled.shape[1]), dtype=np.float32)
        for rows, part in self.events_VN.blocks():
            if self.is_transposed:
                found += part.T @ scaled[rows]
            else:
                found[rows] = part @ scaled
        return torch.from_numpy(found).mul_(left_Y[:, None])


class _BlockedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_XD: Tensor, matrix: BlockedAdjacency) -> Tensor:
        ctx.matrix = matrix
        return matrix.times(features_XD)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        turned = replace(ctx.matrix, is_transposed=not ctx.matrix.is_transposed)
        return turned.times(grads[0]), None


Adjacency = tuple[Any, Tensor]  # a torch-geometric EdgeIndex sorted by row, and its values


def adjacency(
    rows_E: Tensor,
    columns_E: Tensor,
    values_E: Tensor,
    shape: tuple[int, int],
    is_sorted: bool = False,
) -> Adjacency:
    """Build a sparse matrix [rows, columns] for :func:`spread`; ``is_sorted`` says that the rows
    ascend.

    Parameters
    ----------
    rows_E : Tensor, [E] int64
        Row of each entry.
    columns_E : Tensor, [E] int64
        Column of each entry.
    values_E : Tensor, [E] float32
        Value of each entry.
    shape : tuple of two int
        Number of rows and of columns.
    is_sorted : bool
        Whether the rows already ascend.

    Returns
    -------
    Adjacency
        The edges, sorted by row and with a cached transpose, and their values in this order.
    """
    from torch_geometric import EdgeIndex

    _first_compressed()
    edges = EdgeIndex(
        torch.stack([rows_E, columns_E]), sparse_size=shape, sort_order="row" if is_sorted else None
    )
    ordered, permutation = edges.sort_by("row")
    return ordered.fill_cache_(), values_E[permutation] if permutation is not None else values_E


@cache
def _first_compressed() -> None:
    """Create a first compressed matrix and hide torch's warning about it, which appears once per
    process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Sparse (CSR tensor support is in beta|invariant checks are)"
        )
        torch.sparse_csr_tensor(
            torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), size=(1, 1)
        )


def spread(matrix: Adjacency | BlockedAdjacency, features_XD: Tensor) -> Tensor:
    """Multiply a sparse matrix with features: one graph convolution without weights."""
    if isinstance(matrix, BlockedAdjacency):
        product: Tensor = _BlockedProduct.apply(features_XD.float(), matrix)  # type: ignore[no-untyped-call]
        return product
    edges, values_E = matrix
    with torch.autocast(
        features_XD.device.type, enabled=False
    ):  # sparse products exist in float32 only
        result: Tensor = edges.matmul(features_XD.float(), input_value=values_E)
    return result
