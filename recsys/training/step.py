"""The loss of one step: item vectors, states of the granularities, user vectors, softmax.

Legend: B queries, P pairs, S items in view, N items, C candidates (items that are targets or
negatives), M negatives.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn

from recsys.config import LossConfig
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ConfigError
from recsys.granularities.base import Graphs, StepKey
from recsys.losses import Loss, make_loss
from recsys.model import MultigrainModel
from recsys.sharded_rows import sharded_tables
from recsys.softmax import LeftOut

_MAX_CATEGORIES: Final = 2**24  # of torch.multinomial
# Share of all items. On validation, leaving them out gains 10 % with 3 % (ml-100k), and loses 4 to
# 5 % with .7 % (Last.fm, Deskdrop): docs/quality.md.
_MANY_SEEN: Final = 0.02


class StepLoss(nn.Module):
    """Summed loss of a worker's rows. Negatives are drawn by the key of the step, so all workers
    have the same ones.

    Raises
    ------
    ConfigError
        The id rows are sharded, and a step would need the rows of all items; or the loss cannot
        leave out seen items, and ``loss.seen_items`` is ``no``.
    """

    def __init__(
        self,
        model: MultigrainModel,
        graphs: Graphs,
        config: LossConfig,
        dataset: PreparedDataset,
        lists_leave_out_seen: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.graphs, self.config = model, graphs, config
        num_items = model.sizes.num_items
        self.sum = make_loss(config, num_items)
        self.leaves_out = _leaves_out(
            config, self.sum, lists_leave_out_seen and sees_many_items(dataset)
        )
        self._target_types: list[bool] = []  # whether each type is predicted; empty: all
        if self.leaves_out and dataset.manifest.targets:
            targets = dataset.manifest.targets
            self._target_types = [name in targets for name in dataset.manifest.event_types]
        self.num_negatives = config.num_negatives if self.sum.needs_negatives else 0
        if sharded_tables(model):
            self._check_narrow()
        model.tower.update_rows(bool(self.num_negatives) and num_items > config.max_dense_items)
        # +1: an item without training events must not have the weight 0 under a power
        weight_N = (
            torch.as_tensor(dataset.item_counts_N(Split.TRAIN), dtype=torch.float64) + 1.0
        ) ** (config.popularity_power)
        trained_N = model.tower.trained_N.cpu() > 0
        if (
            not config.new_items
        ):  # as negatives only, their text would push them away from all users
            weight_N = weight_N * trained_N
        self.candidates_C = None if config.new_items else torch.nonzero(trained_N).squeeze(1)
        self.q_N = weight_N / weight_N.sum()  # stays on the CPU, where the negatives are drawn
        # the second form of q is for more items than torch.multinomial takes
        self._up_to_N = self.q_N.cumsum(0) if num_items > _MAX_CATEGORIES else None
        self._numbers_N: Tensor | None = None  # item → its number in the view; the rest is stale
        # in logarithms, so that a learned temperature stays above 0
        start = torch.tensor(-math.log(config.temperature))
        self.log_scale = nn.Parameter(start, requires_grad=config.learn_temperature)

    def forward(self, batch: Batch, key: StepKey) -> Tensor:
        """The summed loss of a batch; ``key`` seeds its negatives."""
        negatives_M, log_q_M, ids_S = None, None, None
        if self.num_negatives:
            drawn_M = self._draw(key)
            log_q_M = (
                torch.log(self.q_N[drawn_M] * self.num_negatives)
                .float()
                .to(batch.history_UL.device)
            )
            negatives_M = drawn_M.to(batch.history_UL.device)
            if not self.model.needs_all_items:
                ids_S, batch, negatives_M = self._narrow(batch, negatives_M, key)
        if ids_S is None:
            self.model.widen(None, self.graphs, key)
        items, states = self.model.view(self.graphs, ids_S)
        users_BD = self.model(batch, items, states) * self.log_scale.exp()
        if negatives_M is None or log_q_M is None:
            vectors_CD, targets_P = self._candidates(items.vectors_SD, batch.targets_P)
            negatives_M = targets_P[:0]
            log_q_M = negatives_M.float()
        else:
            vectors_CD, targets_P = items.vectors_SD, batch.targets_P
        parts = (users_BD, vectors_CD, batch.pairs_P, targets_P, self._weights(batch))
        more: dict[str, Any] = {"left_out": self._left_out(batch)} if self.leaves_out else {}
        return self.sum(*parts, negatives_M, log_q_M, **more)

    def _check_narrow(self) -> None:
        """Refuse sharded rows where a step reads all items."""
        where = "train.shard_rows shards the id vectors of items over the workers"
        if not self.num_negatives:
            raise ConfigError(
                f"{where}, but this loss scores all items in every step; set train.loss.kind"
                " sampled_softmax, or train.shard_rows no"
            )
        names = [name for name, module in self.model.encoders.each() if module.needs_all_items]
        if names:
            raise ConfigError(
                f"{where}, but model.granularities.{', '.join(names)} read all items in every step;"
                " disable them, fit them by counts, or set train.shard_rows no (collaborative: a"
                " max_edges below the number of edges samples the graph)"
            )

    def _candidates(self, vectors_ND: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor]:
        """The items of the full softmax, and the targets renumbered to them."""
        if self.candidates_C is None:
            return vectors_ND, targets_P
        candidates_C = self.candidates_C.to(targets_P.device)
        return vectors_ND[candidates_C], torch.searchsorted(candidates_C, targets_P)

    def _left_out(self, batch: Batch) -> LeftOut:
        """The items of every query's visible events of predicted types, which lists leave out."""
        seen_B = batch.seen_B
        num_pairs = int(seen_B.sum())
        queries_H = torch.repeat_interleave(seen_B, output_size=num_pairs)
        starts_B = batch.rows_B * batch.history_UL.shape[1] - (seen_B.cumsum(0) - seen_B)
        places_H = starts_B[queries_H] + torch.arange(num_pairs, device=seen_B.device)
        items_UL = batch.history_UL
        if self.candidates_C is not None and not self.num_negatives:
            candidates_C = self.candidates_C.to(items_UL.device)
            places_UL = torch.searchsorted(candidates_C, items_UL).clamp(max=len(candidates_C) - 1)
            items_UL = torch.where(candidates_C[places_UL] == items_UL, places_UL, -1)
        if self._target_types:
            is_target_T = torch.tensor(self._target_types, device=items_UL.device)
            items_UL = torch.where(is_target_T[batch.types_UL], items_UL, -1)
        items_H = items_UL.reshape(-1)[places_H]
        if items_UL is not batch.history_UL:
            queries_H, items_H = queries_H[items_H >= 0], items_H[items_H >= 0]
        return LeftOut(queries_H, items_H)

    def _weights(self, batch: Batch) -> Tensor:
        """n^(p − 1) for each of a query's n targets: [P]."""
        # p = 0 weighs users alike, p = 1 events alike
        num_B = torch.bincount(batch.pairs_P, minlength=len(batch)).to(torch.float32)
        return num_B[batch.pairs_P] ** (self.config.event_power - 1)

    def _draw(self, key: StepKey) -> Tensor:
        """M item ids with replacement, by q."""
        seed, epoch, step = key
        # factors far apart, so that two steps of a training never share a seed; torch takes 64 bits
        number = (seed * 1_000_003 + epoch) * 1_000_003 + step
        generator = torch.Generator().manual_seed(number % 2**64)
        if self._up_to_N is not None:
            drawn_M = torch.rand(self.num_negatives, generator=generator, dtype=torch.float64)
            found_M = torch.searchsorted(self._up_to_N, drawn_M * self._up_to_N[-1], right=True)
            return found_M.clamp(max=len(self._up_to_N) - 1)
        return torch.multinomial(
            self.q_N, self.num_negatives, replacement=True, generator=generator
        )

    def _narrow(
        self, batch: Batch, negatives_M: Tensor, key: StepKey
    ) -> tuple[Tensor, Batch, Tensor]:
        """The items that the step uses, and batch and negatives renumbered to them."""
        # sorted and distinct, on every worker alike
        named_S = torch.unique(
            torch.cat([batch.history_UL.flatten(), batch.targets_P, negatives_M])
        )
        ids_S = self.model.widen(named_S, self.graphs, key)
        assert ids_S is not None, "of some items come some"
        if self._numbers_N is None:
            self._numbers_N = ids_S.new_zeros(self.model.sizes.num_items)
        numbers_N = self._numbers_N
        numbers_N[ids_S] = torch.arange(len(ids_S), device=ids_S.device)
        return ids_S, batch.renumber(numbers_N), numbers_N[negatives_M]


def sees_many_items(dataset: PreparedDataset) -> bool:
    """Whether a training query has seen 2 % of the items on average, in data with an order. There,
    to rank seen items low costs the model more than they help as hard negatives.
    """
    counts = dataset.manifest.counts
    # a query in the middle of a history has seen half of it
    seen = counts.get("train", 0) / (2 * max(dataset.num_users, 1))
    return dataset.manifest.ordered and seen >= _MANY_SEEN * dataset.num_items


def _leaves_out(config: LossConfig, loss: Loss, proposed: bool) -> bool:
    """Whether the softmax of a query leaves out items that the user had before."""
    if config.seen_items == "no" and not loss.leaves_out:
        raise ConfigError(
            f"train.loss.seen_items no: the loss {config.kind} does not leave out items; set it to"
            " auto"
        )
    can = loss.leaves_out and not config.label_smoothing
    return can and (config.seen_items == "no" or (config.seen_items == "auto" and proposed))
