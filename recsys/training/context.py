"""What the training loop needs from its environment: rank, device, where to report, what to resume.

Why: the loop does not know Ray. The same loop runs in a notebook, in a plain trial of a sweep, on a
machine without Ray, and on the workers of Ray Train. Each of them gives it a context.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from recsys.config import TrainConfig
from recsys.pace import Deadline
from recsys.sharded_rows import Shard

Report = dict[str, Any]  # plain values, one dictionary per epoch
NOTE: Final = "note"  # key of a report that is a line for the user


def _ignore(report: Report, checkpoint: Path | None) -> None:
    return None


def _unsaid(text: str) -> None:
    return None


@dataclass(frozen=True)
class TrainContext:
    """One worker's view of its environment.

    Attributes
    ----------
    report : Callable
        ``report(values, checkpoint)`` after an epoch. Every rank calls it equally often; only rank
        0 gives a checkpoint folder. With sharded rows every rank gives one, and their files
        together are the checkpoint.
    resume_from : Path | None
        A checkpoint folder of an earlier, interrupted run.
    save : Callable | None
        ``save(checkpoint)`` within an epoch, with the same rule as ``report``; None if nothing is
        kept.
    note : Callable
        Shows a line of text to the user.
    deadline : Deadline
        The deadline of the whole training.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Callable[[Report, Path | None], None] = _ignore
    resume_from: Path | None = None
    save: Callable[[Path | None], None] | None = None
    note: Callable[[str], None] = _unsaid
    deadline: Deadline = field(default_factory=Deadline)

    @property
    def is_first(self) -> bool:
        """Whether this is the first worker, which reports and writes."""
        return self.rank == 0

    def shard(self, train: TrainConfig) -> Shard | None:
        """The id rows of items that this worker holds; None: all (``train.shard_rows``)."""
        is_sharded = train.shard_rows == "yes" and self.world_size > 1
        return Shard(self.rank, self.world_size) if is_sharded else None

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all workers."""
        if self.world_size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def from_first(self, values: Tensor) -> Tensor:
        """The first worker's tensor, on every worker."""
        if self.world_size > 1:
            values = values.to(self.device, copy=True).contiguous()
            torch.distributed.broadcast(values, src=0)
        return values

    def lacks(self, seconds: float) -> bool:
        """Whether less time than this is left; by the clock of the first worker, so that all
        workers agree.
        """
        if self.deadline.at == float("inf"):
            return False
        return bool(self.from_first(torch.tensor(float(self.deadline.left < seconds))))

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Mixed precision: bfloat16 on GPUs that support it, and on CPUs if asked for; otherwise
        float32.
        """
        wanted = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        if not wanted or (self.device.type == "cuda" and not torch.cuda.is_bf16_supported()):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
