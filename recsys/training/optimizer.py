"""AdamW that updates only the embedding rows that a step uses.

Why: with a sampled softmax a step uses some thousands of items, while a plain AdamW also reads and
writes the embedding, the gradient and both moments of a million others. Rows that a step does not
use stay as they are, including moments and weight decay (the "lazy" Adam of TensorFlow, and torch's
SparseAdam). The bias correction counts all steps. Tables with such gradients are those with
``sparse=True``, see ``ItemTower``, and sharded ones (:mod:`recsys.sharded_rows`).

Legend: R touched rows, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from recsys.config import TrainConfig
from recsys.sharded_rows import norm_of_all, sharded_tables


class RowAdamW(torch.optim.AdamW):
    """AdamW with sparse row updates; its state is that of AdamW, so
    that checkpoints do not differ.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make a step; rows without a gradient stay as they are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    parameter.grad = None  # done: the dense update skips it
        return super().step(closure)

    def _step_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        grad = table.grad.coalesce()  # type: ignore[union-attr]
        rows_R, grad_RD = grad.indices()[0], grad.values().to(table.dtype)
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=table.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        step, lr, (beta1, beta2) = float(state["step"]), float(group["lr"]), group["betas"]
        mean_RD = state["exp_avg"][rows_R].lerp_(grad_RD, 1 - beta1)
        square_RD = (
            state["exp_avg_sq"][rows_R].mul_(beta2).addcmul_(grad_RD, grad_RD, value=1 - beta2)
        )
        state["exp_avg"][rows_R], state["exp_avg_sq"][rows_R] = mean_RD, square_RD
        scale_RD = square_RD.div(1 - beta2**step).sqrt_().add_(group["eps"])
        kept_RD = table[rows_R].mul_(1 - lr * group["weight_decay"])
        table[rows_R] = kept_RD.addcdiv_(mean_RD, scale_RD, value=-lr / (1 - beta1**step))


def build_optimizer(loss: nn.Module, train: TrainConfig) -> RowAdamW:
    """AdamW with weight decay on matrices and embeddings, not on biases, norms and scalars."""
    trainable = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # fused updates read every tensor once; the default makes several passes
    return RowAdamW(groups, lr=train.lr, betas=(0.9, train.beta2), fused=True)


def clip_gradients(loss: nn.Module, most: float) -> None:
    """Scale all gradients down, those of embedding rows included, so that their norm is at most
    ``most``.

    The gradients of one row from several workers are summed before the norm is taken. The norm is
    that of all workers' rows where these are sharded.
    """
    rows = [p for p in loss.parameters() if p.grad is not None and p.grad.is_sparse]
    if not rows:
        nn.utils.clip_grad_norm_(loss.parameters(), most)
        return
    for table in rows:
        table.grad = table.grad.coalesce()  # type: ignore[union-attr]
    dense = [p.grad for p in loss.parameters() if p.grad is not None and not p.grad.is_sparse]
    values = {table: table.grad.values() for table in rows if table.grad is not None}
    sharded = {table.weight for table in sharded_tables(loss).values()} & values.keys()
    norm = nn.utils.get_total_norm([*dense, *(values[p] for p in values if p not in sharded)])
    if sharded:
        norm = torch.hypot(norm, norm_of_all([values[table] for table in sharded]))
    # 1e-6 as in torch's clip_grad_norm_, so that both ways agree
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*dense, *values.values()):
        gradient.mul_(scale)


def schedule(kind: str, warmup: float, step: int, num_steps: int) -> float:
    """The factor on the learning rate at a step: linear warm-up, then constant, or linear or cosine
    decay to zero.

    >>> [round(schedule("cosine", 0.0, step, 4), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    >>> [schedule("linear", 0.5, step, 4) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]

    Parameters
    ----------
    kind : str
        ``constant``, ``linear`` or ``cosine``.
    warmup : float
        Share of the steps that warm up, 0 to 1.
    step : int
        Number of the step, from 0.
    num_steps : int
        Number of steps of the whole schedule.

    Returns
    -------
    float
        0 to 1.
    """
    warm_steps = int(warmup * num_steps)
    if step < warm_steps:
        return (step + 1) / warm_steps
    if kind == "constant":
        return 1.0
    left = 1 - (step - warm_steps) / max(num_steps - warm_steps, 1)
    return left if kind == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
