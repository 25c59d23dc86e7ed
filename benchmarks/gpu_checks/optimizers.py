"""AdamW: fused, for-each and one tensor at a time; and updates of the rows that a step uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_checks.setting import Setting, attempt, median_seconds, ms, peak_mib
from recsys.training.optimizer import RowAdamW

WIDTH = 64
KINDS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "for-each": {"foreach": True},
    "one at a time": {"fused": False, "foreach": False},
}


def compared(setting: Setting) -> dict[str, Any]:
    """Milliseconds of an update of a model, and of a table of 10⁷ rows.

    Returns
    -------
    dict
        By kind of update; of the table with peak memory.
    """
    found: dict[str, Any] = {}
    shapes = [(setting.size(20_000, 200), WIDTH), *[(WIDTH, 4 * WIDTH), (WIDTH,)] * 20]
    for name, kind in KINDS.items():
        parameters = [nn.Parameter(torch.randn(shape, device=setting.device)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.AdamW(parameters, **kind)
        seconds = median_seconds(optimizer.step, setting, share=0.1)
        found[f"a model of {len(shapes)} tensors, {name}"] = ms(seconds)
    setting.need_memory(14)
    rows, touched = setting.size(10_000_000, 5000), setting.size(20_000, 50)
    table = nn.Parameter(torch.randn(rows, WIDTH, device=setting.device))
    ids_R = torch.randint(rows, (touched,), device=setting.device)
    values_RD = torch.randn(touched, WIDTH, device=setting.device)
    found["rows of the table"], found["rows of a step"] = rows, touched
    found["rows only"] = attempt(lambda: _updated(setting, table, ids_R, values_RD, rows_only=True))
    found["whole table, fused"] = attempt(
        lambda: _updated(setting, table, ids_R, values_RD, rows_only=False)
    )
    return found


def _updated(
    setting: Setting, table: nn.Parameter, ids_R: Tensor, values_RD: Tensor, rows_only: bool
) -> dict[str, Any]:
    """Milliseconds and peak memory of a gradient and its update, as a lookup of rows gives it."""
    optimizer = RowAdamW([table], fused=True)

    def work() -> None:
        found_RD = nn.functional.embedding(ids_R, table, sparse=rows_only)
        optimizer.zero_grad(set_to_none=True)
        found_RD.backward(values_RD)
        optimizer.step()

    work()  # makes the moments, which stay
    try:
        return {
            "ms": ms(median_seconds(work, setting, share=0.2)),
            "peak_mib": peak_mib(work, setting.device),
        }
    finally:
        table.grad = None
