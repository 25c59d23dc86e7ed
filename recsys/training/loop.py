"""The training loop, without Ray: a :class:`~recsys.training.context.TrainContext` gives rank,
device and report.

A :class:`Pass` trains one model on the events through a split. :mod:`recsys.training.phases` says
which passes a training has, what one passes on to the next, and what is chosen after a pass. If
every granularity is fitted in closed form, a pass has no epochs.

All workers hold the same model, except for sharded id rows (:mod:`recsys.sharded_rows`). Each
computes the summed loss of its rows of the global batch, divided by the number of targets of the
whole batch, so that any number of workers takes the same step.
"""

from __future__ import annotations

import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.hashing import seed_of
from recsys.data.histories import Split
from recsys.data.loader import Step, TrainingLoader
from recsys.errors import TrainingError
from recsys.pace import with_progress
from recsys.sharded_rows import sharded_tables
from recsys.training.checkpoint import Progress, TrainResult, load_checkpoint, save_checkpoint
from recsys.training.context import Report, TrainContext
from recsys.training.fresh_model import Start, build_graphs, build_loader, build_model
from recsys.training.optimizer import build_optimizer, clip_gradients, schedule
from recsys.training.private import PRIVACY, PrivateSteps, private_steps
from recsys.training.pruned import KEPT, pruned_names, scale, transplant
from recsys.training.rating_head import RATINGS, fit_head
from recsys.training.sharded_checkpoint import OwnRows
from recsys.training.shared_validation import SharedValidation, Validate
from recsys.training.step import StepLoss
from recsys.training.time_limit import TimeLimit
from recsys.training.user_clusters import STRATA


class Pass:
    """The training of one model on the events through a split, epoch by epoch."""

    def __init__(
        self,
        config: Config,
        dataset: PreparedDataset,
        through: Split,
        validate: Validate,
        context: TrainContext,
        progress: Progress,
        start: Start | None = None,
    ) -> None:
        self.config, self.dataset, self.context, self.progress = config, dataset, context, progress
        self.through = through
        self.validation = SharedValidation(config.evaluate, config.seed, dataset, validate, context)
        self.starts_warm = start is not None
        self.selects = progress.phase == "select"
        self.is_cut = False  # whether the time was over before the end
        self.share = 1.0  # of the steps of the last epoch that were taken
        self.limit = TimeLimit(config.train, context, progress)
        seed_everything(config.seed)
        # the number chosen on validation decides the shape of the model, also of a resumed one
        num_strata = int(progress.choices.get(STRATA, {}).get("chosen", 0))
        shard = context.shard(config.train)
        self.model = build_model(
            config.model, config.train, dataset, through, num_strata, start, shard
        ).to(context.device)
        self.names = [name for name, _ in self.model.encoders.each()]
        if progress.phase.endswith("join"):
            self.model.pruned = pruned_names(progress.choices)
            self.model.encoders.fusion.only = [
                self.names.index(name) for name in sorted(self.model.pruned)
            ]
        graphs = build_graphs(dataset, through, self.model, config.evaluate, config.seed, context)
        self.graphs = graphs.to(context.device)
        if self.selects and config.model.fusion.kind != "weighted":
            self.model.encoders.fitted_weights.zero_()  # until the best epoch is known
        # closed-form granularities read only the graphs
        self._loader = (
            build_loader(config.model, config.train, config.seed, dataset, through, context)
            if self.names
            else None
        )
        self.loss = StepLoss(
            self.model, self.graphs, config.train.loss, dataset, config.evaluate.exclude_seen
        ).to(context.device)
        self.tables = sharded_tables(self.loss)  # empty unless the id rows of items are sharded
        if start is not None:
            own = self._own_rows(start.weights)
            self.loss.load_state_dict(
                transplant(own, start.names, self.loss.state_dict(), self.names)
            )
        self._freeze_all_but_pruned()
        if context.world_size > 1 and context.device.type == "cuda":
            self.model.tower.update_rows(False)  # NCCL cannot sum sparse gradients
        self.optimizer = build_optimizer(self.loss, config.train)
        self.private = self._private_steps()
        self.best = self.state()
        if context.resume_from is not None and (progress.epoch or progress.step):
            rows = OwnRows.of(self.loss, self.optimizer)
            state, self.best, _ = load_checkpoint(context.resume_from, self.optimizer, rows)
            self.loss.load_state_dict(state)
        is_distributed = context.world_size > 1 and bool(self.names)
        self.step: nn.Module = self._distributed() if is_distributed else self.loss

    def _freeze_all_but_pruned(self) -> None:
        """In *join* only the pruned granularities learn; the rest is surrounded with its final
        weights.
        """
        if not self.model.pruned:
            return
        for name, parameter in self.loss.named_parameters():
            parameter.requires_grad_(
                any(f".granularities.{own}." in name for own in self.model.pruned)
            )

    def _private_steps(self) -> PrivateSteps | None:
        """The steps of a private training, whose budget is recorded; None without ``epsilon``."""
        train = self.config.train
        if not train.privacy.epsilon:
            return None
        num_items, num_negatives = self.model.sizes.num_items, self.loss.num_negatives
        private = private_steps(train, self.loader, self.context, num_items, num_negatives)
        self.progress.choices[PRIVACY] = private.budget.to_json()
        return private

    def _distributed(self) -> nn.Module:
        """The loss with gradients averaged over the workers; sharded rows do that themselves."""
        distributed: Any = nn.parallel.DistributedDataParallel
        distributed._set_params_and_buffers_to_ignore_for_model(self.loss, list(self.tables))
        step: nn.Module = distributed(
            self.loss,
            # buffers are equal on all workers: fits take the first worker's values (see _refit)
            broadcast_buffers=False,
            find_unused_parameters=bool(self.model.pruned),
            gradient_as_bucket_view=True,  # avoids two copies of every gradient
        )
        return step

    def state(self) -> dict[str, Tensor]:
        """A copy of the trainable state."""
        return {name: tensor.detach().clone() for name, tensor in self.loss.state_dict().items()}

    def _own_rows(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with whole tables, reduced to the rows of this worker."""
        return {
            name: self.tables[name].shard.of(tensor) if name in self.tables else tensor
            for name, tensor in weights.items()
        }

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with the rows of all workers; every worker calls it."""
        return {
            name: self.tables[name].whole(tensor) if name in self.tables else tensor
            for name, tensor in weights.items()
        }

    @property
    def loader(self) -> TrainingLoader:
        """The batches of the events; only for a model with trained granularities."""
        assert self._loader is not None, "nothing is trained"
        return self._loader

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return self.loader.num_steps if self.private is None else self.private.budget.steps_of_epoch

    def surround(self, weights: Mapping[str, Tensor], names: list[str]) -> None:
        """Load the weights of a model with only these trained granularities; the others stay as
        they are.
        """
        self.loss.load_state_dict(transplant(weights, names, self.loss.state_dict(), self.names))

    def result(self, weights: dict[str, Tensor], refit: bool, started: float) -> TrainResult:
        """The frozen model with these weights, and how it was trained; ``started`` is a time of
        ``perf_counter``.

        Parameters
        ----------
        weights : dict of str to Tensor
            The trainable state; it replaces that of the pass.
        refit : bool
            Whether the model was trained again after the selection, with validation events.
        started : float
            When the training began, in seconds.

        Returns
        -------
        TrainResult
            Its ``seconds`` count from ``started``.
        """
        self.loss.load_state_dict(weights)  # λ as trained: a warm start checks them again
        frozen, choices = self.model.freeze(self.graphs), self.progress.choices
        scale(frozen.encoders.fusion, frozen.trained_names, choices.get(KEPT, {}))
        if self.private is not None:
            seen = self.dataset.histories().through(self.through)
            # exact counts would reveal single users, and the noise of the weights does not cover
            # them
            frozen.popularity_N = self.private.counts(seen, self.dataset.num_items)
        if self.config.train.ratings:
            fit_head(frozen, self.dataset, self.through, choices[RATINGS])
        seconds = time.perf_counter() - started
        return TrainResult(
            frozen,
            self.whole(weights),
            self.progress.history,
            self.progress.best_epoch,
            refit,
            seconds,
            choices,
        )

    def run(self) -> None:
        """Train to the end of the phase and record it in the progress."""
        train, progress = self.config.train, self.progress
        if not self.names:
            return
        last = train.epochs if self.selects else progress.best_epoch
        # the unchanged start may already be the best; if so, nothing is replaced by a worse model
        if self.starts_warm and self.selects and not (progress.epoch or progress.step):
            self.validate(0)
        if self.selects and progress.epoch and not progress.step and progress.epoch < last:
            # resumed when the time was already over
            self.is_cut = self.limit.is_near(progress.history, last)
        for epoch in range(progress.epoch, last):
            if (
                self.is_cut
                or self.selects
                and epoch - progress.best_epoch >= train.patience * train.evaluate_every
            ):
                break
            started = time.perf_counter()
            # a checkpoint within an epoch was written after its fit
            if not progress.step:
                self._refit(epoch)
            loss = self._epoch(epoch)
            report = {
                "phase": progress.phase,
                "epoch": epoch + 1,
                "epochs": last,
                "loss": loss,
                "lr": self.optimizer.param_groups[0]["lr"],
            }
            progress.epoch = epoch + 1
            progress.step = 0
            progress.loss_sum = 0.0
            progress.loss_weight = 0.0
            now = {**report, "seconds": time.perf_counter() - started, "share": self.share}
            self.is_cut = (
                self.share < 1
                or epoch + 1 < last
                and self.limit.is_near([*progress.history, now], last)
            )
            report |= {"share": round(self.share, 4)} if self.is_cut else {}
            due = (epoch + 1) % train.evaluate_every == 0 or epoch + 1 == last or self.is_cut
            if due and self.selects:
                report[train.metric] = self.validate(epoch + 1)
            report["seconds"] = round(time.perf_counter() - started, 3)
            progress.history.append(report)
            self.report(report, due)
            if self.is_cut:
                self.context.note(f"the time is up: stopped at epoch {epoch + 1} of {last}")
                break

    @torch.no_grad()
    def _refit(self, epoch: int) -> None:
        """Fit the parts of granularities that are fitted and not trained.

        All workers take the values of the first worker, so that rounding cannot make them diverge.
        """
        own = self.model.pruned or set(self.names)
        due = [
            module
            for name, module in self.model.encoders.each()
            if name in own and module.refit_due(epoch)
        ]
        if not due:
            return
        self.model.eval()
        items, _ = self.model.view(self.graphs)
        for module in due:
            module.refit(self.graphs, items, self.config.seed)
            for tensor in module.state_dict().values():
                tensor.copy_(self.context.from_first(tensor))

    def _epoch(self, epoch: int) -> float:
        """Train one epoch; return the mean loss of its targets over all workers."""
        self.model.train()
        if self.private is not None:
            return self._private_epoch(epoch, self.private)
        # hidden events are the targets of unordered data: a graph that holds them would tell the
        # answer
        self.loss.graphs = self.graphs.without(self.loader.hidden(epoch))
        total, weight = self._so_far(), self.progress.loss_weight
        steps_left = self.loader.num_steps - self.progress.step
        for step in with_progress(f"steps of epoch {epoch + 1}", self._steps(epoch), steps_left):
            # before the step, so that a resumed training takes this step with the same random
            # numbers
            if step.number > self.progress.step and self._is_due(step.number):
                self._save(step.number, total, weight)
                total = self._so_far()
            # None, not zeros: a parameter without a gradient must get no weight decay either
            self.optimizer.zero_grad(set_to_none=True)
            with self.context.autocast(self.config.train.precision):
                summed = self.step(
                    step.batch.to(self.context.device), (self.config.seed, epoch, step.number)
                )
            # DDP averages over workers, but the loss is a mean over the targets of all workers
            (summed * (self.context.world_size / step.weight)).backward()
            if self.config.train.clip_norm:
                clip_gradients(self.loss, self.config.train.clip_norm)
            self._set_lr(epoch, step.number)
            self.optimizer.step()
            # stays on the device: reading it would wait for the GPU in every step
            total, weight = total + summed.detach(), weight + step.weight
            if step.number + 1 < self.loader.num_steps and self.limit.is_over():
                self.share = (step.number + 1) / self.loader.num_steps
                break
        mean = float(self.context.sum(total)) / weight
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss is {mean} in epoch {epoch + 1}; lower train.lr or set train.clip_norm"
            )
        return mean

    def _private_epoch(self, epoch: int, private: PrivateSteps) -> float:
        """Train one epoch of drawn users; return the mean loss of their targets.

        The budget does not cover this loss, which is only reported.

        Raises
        ------
        TrainingError
            The loss is not finite.
        """
        torch.manual_seed(seed_of(self.config.seed, epoch))
        total = weight = 0.0
        for number in with_progress(f"steps of epoch {epoch + 1}", range(self.num_steps)):
            found = private.set_gradients(
                self.loss, private.drawn(), (self.config.seed, epoch, number)
            )
            self._set_lr(epoch, number)
            self.optimizer.step()
            total, weight = total + found[0], weight + found[1]
        mean = total / max(weight, 1.0)
        if not math.isfinite(mean):
            raise TrainingError(f"the loss is {mean} in epoch {epoch + 1}; lower train.lr")
        return mean

    def _steps(self, epoch: int) -> Iterator[Step]:
        """Yield the remaining steps of an epoch.

        The random generator is seeded again wherever a checkpoint may be, so that a checkpoint need
        not hold its state, which a different number of workers could not use.

        Yields
        ------
        Step
            The next step of this worker.
        """
        for step in self.loader.epoch(epoch, self.progress.step):
            if step.number == 0 or self._is_due(step.number):
                at = (step.number,) if step.number else ()
                torch.manual_seed(seed_of(self.config.seed, epoch, self.context.rank, *at))
            yield step

    def _is_due(self, number: int) -> bool:
        """Whether a checkpoint is written before this step of an epoch."""
        every = self.config.train.checkpoint_steps
        return every > 0 and number > 0 and number % every == 0

    def _so_far(self) -> Tensor:
        """The loss of the finished steps of the epoch; the first worker holds the sum of all
        workers.
        """
        return torch.tensor(
            self.progress.loss_sum if self.context.is_first else 0.0, device=self.context.device
        )

    def _save(self, number: int, total: Tensor, weight: float) -> None:
        """Write a checkpoint within an epoch, before the step of this number."""
        progress = self.progress
        progress.step = number
        progress.loss_sum = float(self.context.sum(total))
        progress.loss_weight = weight
        if self.context.save is not None:
            self._with_checkpoint(self.context.save)

    def _set_lr(self, epoch: int, number: int) -> None:
        done, steps = epoch * self.num_steps + number, self.config.train.epochs * self.num_steps
        share = schedule(self.config.train.schedule, self.config.train.warmup, done, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.train.lr * share

    def validate(self, epoch: int) -> float:
        """The validation metric; keeps the state if it is the best so far."""
        value = self.validation.mean(self.model.freeze(self.graphs))
        if value > self.progress.best_value:
            self.progress.best_value = value
            self.progress.best_epoch = epoch
            self.best = self.state()
        return value

    def report(self, report: Report, with_checkpoint: bool) -> None:
        """Send a report, with a checkpoint if the pass may be resumed from here."""
        if with_checkpoint:
            self._with_checkpoint(partial(self.context.report, report))
        else:
            self.context.report(report, None)

    def _with_checkpoint(self, send: Callable[[Path | None], None]) -> None:
        """Give a checkpoint to ``send``; every worker calls it, but only the first one gives a
        folder, unless rows are sharded.
        """
        if not self.context.is_first and not self.tables:
            send(None)
            return
        # not a context manager: the worker renames the folder, and removing it would fail
        folder = Path(tempfile.mkdtemp(prefix="multigrain-"))
        try:
            save_checkpoint(
                folder,
                self.loss.state_dict(),
                self.best,
                self.optimizer,
                self.progress,
                OwnRows.of(self.loss, self.optimizer),
            )
            send(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    # NumPy accepts 32 bits only
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
