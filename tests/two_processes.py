"""Two real processes over gloo, for tests that two workers give the result of one.

Why not ``spawn``: each process would import torch and PyG again, which takes eight seconds of CPU
time. Here one process imports them, and the workers are forked from it. Why a file and not a port:
another program may take a free port before gloo does.
"""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.multiprocessing

_HEAVY: Final = ("torch_geometric.nn", "sklearn.cluster", "torch._dynamo")  # imports of a training


def together(train: Callable[..., Any], folder: Path, *arguments: Any, world: int = 2) -> None:
    """Call ``train(rank, world, *arguments)`` in two or more processes of one group; they meet in
    ``folder``.

    Raises
    ------
    ProcessRaisedException
        One of them raised.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([train.__module__, *_HEAVY])
    meeting = (folder / f"meeting-{uuid.uuid4().hex[:8]}").absolute().as_uri()
    torch.multiprocessing.start_processes(
        _member, (world, train, meeting, arguments), nprocs=world, start_method="forkserver"
    )


def _member(
    rank: int, world: int, train: Callable[..., Any], meeting: str, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=world)
    train(rank, world, *arguments)
    torch.distributed.destroy_process_group()
