"""Do two processes that exchange gradients give what one gives? On one card over gloo; over NCCL
where there are two.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from benchmarks.gpu_checks.dataset import write_dataset
from benchmarks.gpu_checks.setting import Setting, matrix_precision, synchronize
from benchmarks.gpu_checks.training import ATTENTION, a_pass, settings
from recsys.data.dataset import PreparedDataset

TOLERANCE = 1e-3
QUIET = {"dropout": 0.0, "input_dropout": 0.0}


def two_equal_one(setting: Setting) -> dict[str, Any]:
    """Train the same steps with one and with two processes and compare loss and item vectors.

    Returns
    -------
    dict
        Largest relative differences and seconds of an epoch, by way of exchange and loss.

    Raises
    ------
    AssertionError
        They differ.
    """
    found: dict[str, Any] = {}
    ways = ["gloo", *(["nccl"] if torch.cuda.device_count() > 1 else [])]
    with tempfile.TemporaryDirectory() as folder:
        users, items = setting.size(4000, 60), setting.size(2000, 40)
        write_dataset(Path(folder) / "data", users, items, longest=20)
        for loss in ("full_softmax", "sampled_softmax") if setting.on_gpu else ("full_softmax",):
            _worker(0, 1, "", str(folder), setting.device.type, loss)
            one = _result(folder, "one")
            for way in ways:
                arguments = (2, way, str(folder), setting.device.type, loss)
                # daemons end with this process, also where the check is ended before them
                torch.multiprocessing.spawn(_worker, arguments, nprocs=2, daemon=True)
                two = _result(folder, way)
                found[f"{way}, {loss}"] = {
                    "loss": abs(two["loss"] - one["loss"]) / abs(one["loss"]),
                    "item_vectors": _difference(folder, way),
                    "epoch_s": {"one": round(one["seconds"], 3), "two": round(two["seconds"], 3)},
                }
    if "nccl" not in ways:
        found["nccl"] = "skipped: needs two devices"
    wrong = [
        name
        for name, values in found.items()
        if isinstance(values, dict) and max(values["loss"], values["item_vectors"]) > TOLERANCE
    ]
    if wrong:
        raise AssertionError(f"two processes differ from one: {found}")
    return found


def _worker(rank: int, workers: int, way: str, folder: str, kind: str, loss: str) -> None:
    """Train one epoch and, as the first worker, write loss, seconds and item vectors."""
    device = (
        torch.device(kind, rank if way == "nccl" else 0) if kind == "cuda" else torch.device(kind)
    )
    if workers > 1:
        if kind == "cuda":
            torch.cuda.set_device(device)
        torch.set_num_threads(1)
        meeting = Path(folder, f"meeting-{way}-{loss}").as_uri()
        torch.distributed.init_process_group(way, meeting, rank=rank, world_size=workers)
    dataset = PreparedDataset(str(Path(folder) / "data"))
    config = settings(
        dataset,
        {"evolution": {**ATTENTION, **QUIET}, "collaborative": {"enabled": True}},
        model={
            "width": 32,
            "max_history": 16,
            "item": {"id_dropout": 0.0},
            "fusion": {"signal_dropout": 0.0},
        },
        train={"batch_size": 256 if kind == "cuda" else 16, "loss": {"kind": loss}},
    )
    with matrix_precision("fp32"):
        training = a_pass(config, dataset, device, rank, workers)
        started = time.perf_counter()
        mean = training._epoch(0)
        synchronize(device)
        seconds = time.perf_counter() - started
    if rank == 0:
        name = way or "one"
        frozen = training.model.freeze(training.graphs)
        torch.save(frozen.item_vectors_ND.float().cpu(), Path(folder) / f"{name}.pt")
        text = json.dumps({"loss": mean, "seconds": seconds})
        (Path(folder) / f"{name}.json").write_text(text)
    if workers > 1:
        torch.distributed.destroy_process_group()


def _result(folder: str, name: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((Path(folder) / f"{name}.json").read_text())
    return found


def _difference(folder: str, way: str) -> float:
    one, two = (torch.load(Path(folder) / f"{name}.pt") for name in ("one", way))
    return float((one - two).abs().max() / one.abs().max())
