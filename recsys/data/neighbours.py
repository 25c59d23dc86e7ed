"""The user–item graph as lists of neighbours in files, to be sampled and streamed.

Why lists and not an edge table: a sampled step reads a few entries of a few lists, and a pass over
the graph reads it user by user. For both the lists stay on disk, where the page cache keeps the
parts in use. They are written shard by shard. The files have no name, so they disappear with the
process.

Legend: V users, N items, E edges, X nodes of one side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from recsys.data.dataset import PreparedDataset
from recsys.data.event_table import in_file
from recsys.data.hashing import GOLDEN, mix
from recsys.data.hidden import Hidden
from recsys.data.histories import Array, Split

# users and items: no repeated edge, a user's edges next to each other
Edges = Iterator[tuple[Array, Array]]
_EDGES_AT_A_TIME = 1 << 19


@dataclass(frozen=True)
class Lists:
    """The neighbours of every node: ``ends_E[start_X : start_X + degree_X]``."""

    start_X: Array  # int64
    degree_X: Array  # int64
    ends_E: Array  # int32, in a file

    def of(self, nodes: Array) -> tuple[Array, Array]:
        """All neighbours of some nodes: position in ``nodes`` and neighbour of every edge."""
        degree = self.degree_X[nodes]
        rows = np.repeat(np.arange(len(nodes)), degree)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(degree) - degree, degree)
        return rows, self.ends_E[self.start_X[nodes][rows] + within].astype(np.int64)

    def sample(self, nodes: Array, fanout: int, seed: int) -> tuple[Array, Array, Array]:
        """Sample at most ``fanout`` neighbours of each node.

        A systematic sample: about every (d/f)-th entry of the list from a random start. Each of d
        neighbours is in it with probability f/d, so weights of d/f estimate any sum over the
        neighbours without bias; f ≥ d takes all. The start is a hash of seed and node, so the
        sample of a node does not depend on the other nodes.

        Parameters
        ----------
        nodes : Array
            Nodes of this side: int64.
        fanout : int
            Largest sample of a node.
        seed : int
            Seed of the starts.

        Returns
        -------
        tuple[Array, Array, Array]
            Position in ``nodes`` (int64), neighbour (int64) and weight (float64) of every sampled
            edge.
        """
        degree = self.degree_X[nodes]
        size = np.minimum(degree, fanout)
        rows = np.repeat(np.arange(len(nodes)), size)
        number = np.arange(len(rows)) - np.repeat(np.cumsum(size) - size, size)
        start = (_hash(nodes, seed) % np.maximum(degree, 1).astype(np.uint64)).astype(np.int64)
        position = (start[rows] + number * degree[rows] // size[rows]) % degree[rows]
        return (
            rows,
            self.ends_E[self.start_X[nodes][rows] + position].astype(np.int64),
            (degree / np.maximum(size, 1))[rows],
        )


@dataclass(frozen=True)
class Neighbours:
    """The user–item graph, from both sides."""

    items_of_V: Lists
    users_of_N: Lists

    @staticmethod
    def of_dataset(dataset: PreparedDataset, through: Split) -> Neighbours:
        """The graph of a prepared dataset's events through a split; reads one shard at a time."""

        def edges() -> Edges:
            for shard in dataset.shards():
                seen = shard.through(through)
                users_E = np.repeat(seen.users_U, seen.lengths_U).astype(np.int64)
                # a repeated event is one edge, and the adjacency has no weights
                pairs = np.unique(users_E * dataset.num_items + seen.items_E)
                yield pairs // dataset.num_items, pairs % dataset.num_items

        return Neighbours.of(edges, dataset.num_users, dataset.num_items)

    @staticmethod
    def of(edges: Callable[[], Edges], num_users: int, num_items: int) -> Neighbours:
        """The graph of edges that arrive in parts.

        Parameters
        ----------
        edges : Callable[[], Edges]
            Yields the edges in parts; it is called twice and must yield the same edges.
        num_users : int
            Number of users.
        num_items : int
            Number of items.
        """
        degree_V = np.zeros(num_users, dtype=np.int64)
        degree_N = np.zeros(num_items, dtype=np.int64)
        for users_E, items_E in edges():
            degree_V += np.bincount(users_E, minlength=num_users)
            degree_N += np.bincount(items_E, minlength=num_items)
        start_V, start_N = np.zeros(num_users, dtype=np.int64), np.cumsum(degree_N) - degree_N
        items_E_of, users_E_of = (in_file(int(degree_N.sum())) for _ in range(2))
        written, cursor_N = 0, start_N.copy()
        for users_E, items_E in edges():
            items_E_of[written : written + len(items_E)] = items_E
            first_E = np.flatnonzero(np.diff(users_E, prepend=-1))
            start_V[users_E[first_E]] = written + first_E
            written += len(items_E)
            order = np.argsort(items_E, kind="stable")
            count_N = np.bincount(items_E, minlength=num_items)
            within = np.arange(len(order)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
            users_E_of[cursor_N[items_E[order]] + within] = users_E[order]
            # where the next shard continues each item's list: shards arrive user by user
            cursor_N += count_N
        return Neighbours(
            Lists(start_V, degree_V, items_E_of), Lists(start_N, degree_N, users_E_of)
        )

    def parts(self) -> Iterator[tuple[Array, Array, Array]]:
        """The whole graph, some users at a time.

        Yields
        ------
        tuple of Array
            The users, and for each edge the position of its user among them and its item.
        """
        # cut where another block of edges is full; a user's edges stay together
        cuts = np.flatnonzero(
            np.diff(np.cumsum(self.items_of_V.degree_X) // _EDGES_AT_A_TIME, prepend=0)
        )
        for users in np.split(np.arange(len(self.items_of_V.degree_X)), cuts):
            yield users, *self.items_of_V.of(users)

    def without(self, hidden: Hidden) -> Neighbours:
        """The graph without the hidden events."""

        def edges() -> Edges:
            for users, rows, items_E in self.parts():
                users_E = users[rows]
                kept = ~hidden.of(users_E, items_E)
                yield users_E[kept], items_E[kept]

        return Neighbours.of(edges, len(self.items_of_V.degree_X), len(self.users_of_N.degree_X))


def _hash(nodes: Array, seed: int) -> Array:
    """A 64-bit hash of seed and node (splitmix64)."""
    with np.errstate(over="ignore"):
        return mix(nodes.astype(np.uint64) + np.uint64(seed * int(GOLDEN) % 2**64))
