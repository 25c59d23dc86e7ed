"""An embedding table whose rows are sharded over the workers: row r is on worker r mod W.

Why: with tens of millions of items, a table with its gradient, two moments and the best epoch takes
more memory than one machine has. Sharded, each worker holds the W-th part of all of these.

A worker asks the owners of the rows for those that its step uses (all-to-all). In the backward pass
the gradients go back the same way. Each owner adds up the gradients of all workers and divides by
W, as ``DistributedDataParallel`` does for parameters that all workers hold. The gradient is sparse,
so a step updates only the rows that it used (:mod:`recsys.training.optimizer`).

Every worker must make the same calls in the same order: each of them waits for the others.

Legend: N rows, D width, S rows that this worker asks for, R own rows that workers ask for, W
workers.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, distributed, nn

from recsys.errors import StorageError
from recsys.storage.filesystems import storage_errors

_BLOCK: Final = 2**16  # rows at a time where all rows are processed


@dataclass(frozen=True)
class Shard:
    """Which rows of a table a worker holds: every W-th one, from its rank.

    >>> Shard(1, 3).of(torch.arange(8)).tolist()
    [1, 4, 7]
    """

    rank: int
    world_size: int

    def num_rows(self, num_rows: int) -> int:
        """Number of own rows of a table with ``num_rows`` rows."""
        return len(range(self.rank, num_rows, self.world_size))

    def of(self, rows_ND: Tensor) -> Tensor:
        """The own rows of a whole table."""
        return rows_ND[self.rank :: self.world_size]


class ShardedRows(nn.Module):
    """The own rows of a table, used like ``nn.Embedding``: any worker looks up any row.

    The initial values, and the random numbers that are drawn for them, are those of a whole table.

    Parameters
    ----------
    num_rows : int
        Rows of the whole table.
    width : int
        Numbers in a row.
    std : float
        Standard deviation of the initial values.
    shard : Shard
        Rows of this worker.
    """

    def __init__(self, num_rows: int, width: int, std: float, shard: Shard) -> None:
        super().__init__()
        self.num_rows, self.shard = num_rows, shard
        _normal(num_rows, width, 1.0, None)  # an nn.Embedding draws twice, too
        self.weight = nn.Parameter(_normal(num_rows, width, std, shard))

    def forward(self, ids_S: Tensor) -> Tensor:
        """Rows [S, D] of any ids, which may differ between the workers."""
        found: Tensor = _Lookup.apply(self.weight, ids_S, self.shard)  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def whole(self, own_RD: Tensor) -> Tensor:
        """The whole table [N, D] of which every worker gives its own rows; see :meth:`mapped`."""
        own_RD = own_RD.to(self.weight.device)
        return self.mapped(lambda ids_S: _Route.of(ids_S, self.shard).answers(own_RD))

    @torch.no_grad()
    def mapped(self, vectors: Callable[[Tensor], Tensor]) -> Tensor:
        """Vectors [N, D] of all rows on the CPU, in a file that the workers of a machine share.

        The first worker of each machine writes the file, block by block; the memory of a worker
        grows by one block. The file has no name left: it goes away with the last tensor.

        Parameters
        ----------
        vectors : Callable
            Vectors of the given ids [S]; the workers that do not write call it with no ids.

        Raises
        ------
        StorageError
            The disk is full, or the workers of a machine do not share its temporary folder.
        """
        machines = from_all(self.shard, socket.gethostname())
        writer, name = machines.index(socket.gethostname()), ""
        if writer == self.shard.rank:
            descriptor, name = tempfile.mkstemp(prefix="multigrain-rows-")
            os.close(descriptor)
        try:
            for start in range(0, self.num_rows, _BLOCK):
                stop = min(start + _BLOCK, self.num_rows) if name else start
                _append(name, vectors(torch.arange(start, stop, device=self.weight.device)))
            found_ND = self._read(from_all(self.shard, name)[writer])
            from_all(self.shard, "read")  # before the name is removed
        finally:
            if name:
                os.unlink(name)
        return found_ND

    def _read(self, path: str) -> Tensor:
        size = self.num_rows * self.weight.shape[1]
        if not Path(path).is_file() or Path(path).stat().st_size != 4 * size:
            raise StorageError(
                f"{socket.gethostname()} has no file {path} with the vectors of all items: the"
                " workers of a machine must share the folder for temporary files; set TMPDIR to one"
            )
        return torch.from_file(path, shared=True, size=size).view(self.num_rows, -1)


class _Route(NamedTuple):
    """Where the rows of a lookup come from and go to."""

    shard: Shard
    order_S: Tensor  # the positions in the lookup, sorted by the owner of the row
    asked: list[int]  # number of rows that this worker asks of each owner
    wanted: list[int]  # number of own rows that each worker asks for
    rows_R: Tensor  # these own rows

    @staticmethod
    def of(ids_S: Tensor, shard: Shard) -> _Route:
        """The route of a lookup: sends the ids to the owners of the rows."""
        owner_S = ids_S % shard.world_size
        order_S = torch.argsort(owner_S, stable=True)
        asked = torch.bincount(owner_S, minlength=shard.world_size)
        wanted = torch.empty_like(asked)
        distributed.all_to_all_single(wanted, asked, group=_group())
        to, back = asked.tolist(), wanted.tolist()
        rows_R = ids_S[order_S] // shard.world_size
        return _Route(shard, order_S, to, back, _exchanged(rows_R, to, back))

    def answers(self, own_RD: Tensor) -> Tensor:
        """The rows [S, D] of the lookup, from their owners."""
        sorted_SD = _exchanged(own_RD[self.rows_R], self.wanted, self.asked)
        found_SD = torch.empty_like(sorted_SD)
        found_SD[self.order_S] = sorted_SD
        return found_SD

    def returned(self, grad_SD: Tensor) -> Tensor:
        """Gradients [R, D] of ``rows_R`` from all workers, of which each gives its own [S, D]."""
        return _exchanged(grad_SD[self.order_S], self.asked, self.wanted)


class _Lookup(torch.autograd.Function):
    """Rows from their owners; gradients to the owners, averaged over the workers."""

    @staticmethod
    def forward(ctx: Any, own_RD: Tensor, ids_S: Tensor, shard: Shard) -> Tensor:
        ctx.route, ctx.shape = _Route.of(ids_S, shard), own_RD.shape
        found_SD: Tensor = ctx.route.answers(own_RD)
        return found_SD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values_RD = ctx.route.returned(grads[0]) / ctx.route.shard.world_size
        # an owner without a row in this step counts the step too: an empty gradient, not None
        rows_1R = ctx.route.rows_R[None]
        grad = torch.sparse_coo_tensor(rows_1R, values_RD, ctx.shape, check_invariants=False)
        return grad, None, None


def sharded_tables(model: nn.Module) -> dict[str, ShardedRows]:
    """The sharded tables of a model, by the name of their weight."""
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, ShardedRows)
    }


def norm_of_all(gradients: list[Tensor]) -> Tensor:
    """The norm of gradients of sharded tables, over the rows of all workers."""
    squared = nn.utils.get_total_norm(gradients).square()
    distributed.all_reduce(squared, group=_group())
    return squared.sqrt()


def _normal(num_rows: int, width: int, std: float, shard: Shard | None) -> Tensor:
    """Own rows of a whole table of normal numbers; it is drawn block by block, and the random
    numbers are those of the whole table.
    """
    own_RD = torch.empty(shard.num_rows(num_rows) if shard else 0, width)
    start = filled = 0
    while start < num_rows:
        # torch draws 16 numbers at a time: a short last block would draw other ones
        stop = start + _BLOCK if num_rows - start >= 2 * _BLOCK else num_rows
        block_bD = torch.empty(stop - start, width).normal_(std=std)
        if shard is not None:
            mine_bD = block_bD[(shard.rank - start) % shard.world_size :: shard.world_size]
            own_RD[filled : filled + len(mine_bD)] = mine_bD
            filled += len(mine_bD)
        start = stop
    return own_RD


def _exchanged(sent: Tensor, to: list[int], back: list[int]) -> Tensor:
    """Send ``to[w]`` rows to worker w, and receive ``back[w]`` from it."""
    found = sent.new_empty(sum(back), *sent.shape[1:])
    distributed.all_to_all_single(found, sent.contiguous(), back, to, group=_group())
    return found


def _append(name: str, vectors_SD: Tensor) -> None:
    """Append float32 vectors to a file; without a name there is none."""
    if name:
        folder = os.path.dirname(name)
        with storage_errors(folder, "write the vectors of all items to"), open(name, "ab") as file:
            vectors_SD.float().cpu().contiguous().numpy().tofile(file)


def from_all(shard: Shard, value: Any) -> list[Any]:
    """The values of all workers, by rank. Every worker must call it."""
    found: list[Any] = [None] * shard.world_size
    distributed.all_gather_object(found, value, group=_group())
    return found


def _group() -> Any:
    return _group_beside(distributed.group.WORLD)


@cache
def _group_beside(_: Any) -> Any:
    """A group of all workers of its own: gradients of sharded rows may be sent while
    ``DistributedDataParallel`` adds up others in an order that differs between the workers.
    """
    return distributed.new_group()
