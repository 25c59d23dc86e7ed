"""What granularities read besides the batch: the training events, the inputs by signal, and the
normalised user–item graph.

Legend: E training events, N items, V users, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.hidden import Hidden
from recsys.data.histories import Histories
from recsys.data.neighbours import Neighbours
from recsys.errors import ConfigError, choices


@dataclass
class Graphs:
    """The dataset as granularities read it, besides the batch: training events and inputs by
    signal.

    Built once per training. The events are a table; lists in files if there are too many for a
    table; or only counts if no granularity reads them. The normalised adjacencies are
    torch-geometric ``EdgeIndex`` objects, sorted and with cached transposes.
    """

    num_users: int
    num_items: int
    users_E: Tensor  # int64, user of every training event
    items_E: Tensor  # int64, item of every training event
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
        if not hidden.share:
            return self
        histories = None if self.histories is None else _without(self.histories, hidden)
        if self.neighbours is not None and self.counted_N is not None:
            rest = self.neighbours.without(hidden)
            counted_N = torch.as_tensor(rest.users_of_N.degree_X).to(self.counted_N)
            return replace(self, neighbours=rest, counted_N=counted_N, histories=histories)
        is_hidden_E = hidden.of(
            self.users_E.cpu().numpy().astype(np.int64), self.items_E.cpu().numpy()
        )
        kept_E = torch.as_tensor(~is_hidden_E, device=self.users_E.device)
        values_E = None if self.values_E is None else self.values_E[kept_E]
        users_E, items_E = self.users_E[kept_E], self.items_E[kept_E]
        return replace(
            self, users_E=users_E, items_E=items_E, values_E=values_E, histories=histories
        )

    @cached_property
    def mean_of_items(self) -> Adjacency:
        """[V, N], row-normalised: multiplication gives the mean over a user's training events."""
        share_V = 1 / self._degree(self.users_E, self.num_users).clamp(min=1)
        return adjacency(
            self.users_E, self.items_E, share_V[self.users_E], (self.num_users, self.num_items)
        )

    @cached_property
    def degree_N(self) -> Tensor:
        """Number of users of each item in training, float32."""
        return (
            self._degree(self.items_E, self.num_items) if self.counted_N is None else self.counted_N
        )

    @cached_property
    def items_from_users(self) -> Adjacency:
        """D^-1/2 A D^-1/2 as [N, V]."""
        return adjacency(
            self.items_E, self.users_E, self._symmetric_E, (self.num_items, self.num_users)
        )

    @cached_property
    def users_from_items(self) -> Adjacency:
        """D^-1/2 A D^-1/2 as [V, N]."""
        return adjacency(
            self.users_E, self.items_E, self._symmetric_E, (self.num_users, self.num_items)
        )

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


def spread(matrix: Adjacency, features_XD: Tensor) -> Tensor:
    """Multiply a sparse matrix with features: one graph convolution without weights."""
    edges, values_E = matrix
    with torch.autocast(
        features_XD.device.type, enabled=False
    ):  # sparse products exist in float32 only
        result: Tensor = edges.matmul(features_XD.float(), input_value=values_E)
    return result
