"""The sharded rows of a checkpoint: each worker writes its own, any number of workers reads them.

``rows-RANK-of-WORKERS.safetensors`` has the own rows of weights, best weights and moments. Their
names are those of the other files of a checkpoint, as in ``best:model.tower.id_ND.weight``. A
worker of a later training takes those rows of each file that are now its own, so 4 workers may
write what 2 or 3 read. A training that does not shard reads whole tables from them, and one that
shards reads the whole tables of a training that did not.

Legend: R rows of a file, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from recsys.sharded_rows import Shard, sharded_tables

Files = dict[str, dict[str, Tensor]]  # the tensors of a checkpoint by file and name
_NAME: Final = re.compile(r"rows-(\d+)-of-(\d+)\.safetensors")
_BLOCK: Final = 2**18  # rows read at a time


@dataclass(frozen=True)
class OwnRows:
    """The part of a checkpoint that a worker with sharded rows writes and reads."""

    shard: Shard
    names: frozenset[str]  # ``FILE:TENSOR`` of every sharded tensor

    @staticmethod
    def of(loss: nn.Module, optimizer: torch.optim.Optimizer) -> OwnRows | None:
        """The sharded tensors of a training; None if it has none."""
        tables = sharded_tables(loss)
        if not tables:
            return None
        own = {table.weight for table in tables.values()}
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        moments = {
            f"optimizer:{index}.{name}"
            for index, parameter in enumerate(parameters)
            if parameter in own
            for name in ("exp_avg", "exp_avg_sq")
        }
        weights = {f"{file}:{name}" for file in ("model", "best") for name in tables}
        return OwnRows(next(iter(tables.values())).shard, frozenset(weights | moments))

    @property
    def is_first(self) -> bool:
        """Whether this worker writes what is not sharded."""
        return self.shard.rank == 0

    def from_all(self, digests: dict[str, str]) -> dict[str, str]:
        """The digests of the files of all workers."""
        found: list[dict[str, str]] = [{}] * self.shard.world_size
        distributed.all_gather_object(found, digests)
        return {name: digest for one in found for name, digest in one.items()}

    def save(self, folder: Path, files: Files) -> Files:
        """Write the own rows; return the other tensors, which the first worker writes."""
        rest: Files = {file: {} for file in files}
        rows: dict[str, Tensor] = {}
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                if f"{file}:{name}" in self.names:
                    rows[f"{file}:{name}"] = tensor.detach().cpu().contiguous()
                else:
                    rest[file][name] = tensor
        save_file(rows, folder / f"rows-{self.shard.rank}-of-{self.shard.world_size}.safetensors")
        return rest


def with_rows(folder: Path, files: Files, own: OwnRows | None) -> Files:
    """The tensors of a checkpoint with the sharded ones: own rows, or whole tables without ``own``.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoint.
    files : Files
        Its tensors that are not sharded.
    own : OwnRows or None
        What the reading worker holds; None: everything.
    """
    shard = Shard(0, 1) if own is None else own.shard
    parts = _parts(folder)
    if not parts:
        return {
            file: {
                name: shard.of(tensor).clone()
                if own is not None and f"{file}:{name}" in own.names
                else tensor
                for name, tensor in tensors.items()
            }
            for file, tensors in files.items()
        }
    found = {file: dict(tensors) for file, tensors in files.items()}
    for key in _keys(parts):
        file, name = key.split(":", 1)
        if file in found:
            found[file][name] = _own_rows(parts, key, shard)
    return found


def _parts(folder: Path) -> dict[Shard, Path]:
    """The files of rows, by who wrote them.

    Raises
    ------
    ValueError
        One of them is missing.
    """
    matches = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    found = {Shard(int(at[1]), int(at[2])): path for path, at in matches if at is not None}
    missing = {Shard(rank, one.world_size) for one in found for rank in range(one.world_size)}
    if missing - found.keys():
        raise ValueError(f"it has the rows of {len(found)} of {len(missing)} workers")
    return found


def _keys(parts: Mapping[Shard, Path]) -> list[str]:
    with safe_open(next(iter(parts.values())), "pt") as file:
        return list(file.keys())


def _own_rows(parts: Mapping[Shard, Path], key: str, shard: Shard) -> Tensor:
    """The rows of one table that belong to ``shard``, from the files of all that wrote it."""
    own_RD: Tensor | None = None
    with ExitStack() as stack:
        opened = {
            writer: stack.enter_context(safe_open(path, "pt")).get_slice(key)
            for writer, path in parts.items()
        }
        num_rows = sum(rows.get_shape()[0] for rows in opened.values())
        for writer, rows in opened.items():
            for start in range(0, rows.get_shape()[0], _BLOCK):
                block_bD = rows[start : start + _BLOCK]
                if own_RD is None:
                    own_RD = block_bD.new_zeros(shard.num_rows(num_rows), block_bD.shape[1])
                # the row of the whole table, then its place among the own rows
                ids_b = writer.rank + writer.world_size * torch.arange(start, start + len(block_bD))
                mine_b = ids_b % shard.world_size == shard.rank
                own_RD[ids_b[mine_b] // shard.world_size] = block_bD[mine_b]
    assert own_RD is not None, "a table has rows"
    return own_RD
