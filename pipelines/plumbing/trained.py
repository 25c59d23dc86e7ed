"""Where a training runs: on the workers of Ray Train or, with a short budget, in this process.

Why: workers need ten seconds to start, on a busy machine a minute or more, a large share of a
budget of some minutes. If such a short training is interrupted, it starts again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from pipelines.plumbing.budget import Budget
from pipelines.plumbing.preflight import planned_for
from pipelines.plumbing.progress import Progress
from recsys.config import Config, RayConfig, TrainConfig
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.validation import Validator
from recsys.pace import Deadline
from recsys.training.checkpoint import TrainResult
from recsys.training.context import TrainContext
from recsys.training.final import Final as FinalTraining
from recsys.training.final import fit_final
from recsys.training.fresh_model import Start
from recsys.training.phases import fit
from recsys.training.shared_validation import Validate
from recsys.training.threads import settle_threads

_SHORT_S: Final = 600.0  # a shorter budget trains in this process


def trains_here(train: TrainConfig, ray: RayConfig, budget: Budget | None) -> bool:
    """Whether the budget is short and the training needs one worker on this machine without a
    GPU.

    Parameters
    ----------
    train : TrainConfig
        Names the workers and the use of a GPU.
    ray : RayConfig
        Names the cluster.
    budget : Budget | None
        Time limit of the command, or None. Without a limit, workers train.

    Returns
    -------
    bool
        True with a budget under 10 minutes, one worker, a local Ray and no GPU to use.
    """
    if budget is None or budget.seconds >= _SHORT_S:
        return False
    is_small = train.num_workers == 1 and ray.address == "local"
    return is_small and (train.use_gpu == "no" or not torch.cuda.is_available())


def trained(
    config: Config,
    dataset: PreparedDataset,
    report: Callable[[dict[str, Any]], None],
    progress: Progress,
    budget: Budget | None,
    seconds: float,
    validate: Validate | None = None,
    start: Start | None = None,
    final: FinalTraining | None = None,
    head_start: Path | None = None,
) -> TrainResult:
    """Train; the other arguments are those of ``train_on_ray``.

    Parameters
    ----------
    seconds : float
        Limit for the training; infinite without a budget.
    """
    validate = validate or Validator.of(config.train, config.evaluate)
    deadline = Deadline() if budget is None else budget.deadline(seconds)
    with progress.own_bars():
        if not trains_here(config.train, config.ray, budget):
            from recsys.training.ray_train import train_on_ray

            return train_on_ray(
                planned_for(config, dataset.manifest),
                dataset,
                validate,
                report,
                start,
                final=final,
                deadline=deadline,
                head_start=head_start,
            )
        settle_threads(config.model, config.train, dataset.num_items, progress)
        context = TrainContext(
            report=lambda values, _: report(values),
            resume_from=head_start,
            note=progress,
            deadline=deadline,
        )
        if final is not None:
            return fit_final(config, dataset, context, final)
        return fit(config, dataset, validate, context, start)
