"""Behaviour: the texts of a user's past items, pooled by attention over event type, age and
content.

The user text of S1, S2 and S5: every past item is a language-model vector, so an item without
training events contributes too. Pooling is an attention with one query per head, learned for all
users:

    w_ij = softmax_j( (q_h + Q_h x_i) · K_h x_j / √d + type_h[t_j]
                      − γ_h log(1 + age_ij) − δ_h log(1 + i − j) )
    z_i  = norm(Σ_j w_ij V x_j)

``input`` item pools item vectors instead; user_text encodes the past as one text of the language
model (see :mod:`recsys.granularities.behaviour.text_vectors`); both adds the two normalised vectors
where both are present. Age is in days if times are known. If the data has an order, the newest
event x_i is part of the attention query, and the lag i − j counts. γ, δ ≥ 0.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.granularities.base import (
    Granularity,
    Graphs,
    ItemView,
    ModelSizes,
    State,
    gather_queries,
    heads_error,
)
from recsys.granularities.behaviour.section import BehaviourConfig
from recsys.granularities.behaviour.text_vectors import UserText, UserTextVectors
from recsys.granularities.dropout import Dropout


class Behaviour(Granularity):
    """Attention-pooled history. Legend: U rows, L length, Q queries of a row (its last, or every
    position), H heads.
    """

    reads_events = False

    @classmethod
    def size(cls, section: BehaviourConfig, dataset: PreparedDataset, through: Split) -> int:
        """Width of the language-model vectors of users' texts, 0 without texts.

        Parameters
        ----------
        section : BehaviourConfig
            Not read.
        dataset : PreparedDataset
            The dataset; its manifest has the width.
        through : Split
            Not read.
        """
        return dataset.user_text_width

    @classmethod
    def build_input(
        cls, section: BehaviourConfig, sizes: ModelSizes, dataset: PreparedDataset, through: Split
    ) -> UserTextVectors | None:
        """Vectors of users' texts, if the granularity reads them.

        Parameters
        ----------
        section : BehaviourConfig
            Not read.
        sizes : ModelSizes
            Not read.
        dataset : PreparedDataset
            The dataset with the texts.
        through : Split
            Last split whose events are in the texts.

        Returns
        -------
        UserTextVectors or None
            None if the dataset has no texts of users.
        """
        return UserTextVectors.of(dataset, through)

    def __init__(self, config: BehaviourConfig, sizes: ModelSizes) -> None:
        super().__init__()
        config.check(sizes)
        reads = config.input in ("user_text", "both")
        self.user_text = UserText(sizes, config.dropout, config.input == "both") if reads else None
        self.pools = config.input != "user_text"
        if not self.pools:
            return
        self.reads_text = config.input in ("text", "both") and sizes.text_width > 0
        width_in = sizes.text_width if self.reads_text else sizes.width
        self.heads = config.heads
        self.scale = math.sqrt(sizes.width)  # scale of item vectors, as in evolution
        if sizes.width % config.heads:
            raise heads_error("behaviour", config.heads, sizes.width)
        self.key = nn.Linear(width_in, sizes.width, bias=False)
        self.value = nn.Linear(width_in, sizes.width, bias=False)
        self.ask = nn.Linear(width_in, sizes.width, bias=False) if sizes.ordered else None
        self.question_D = nn.Parameter(torch.zeros(sizes.width))
        self.norm = nn.LayerNorm(sizes.width)
        self.type_bias = nn.Embedding(max(sizes.num_types, 1), config.heads)
        nn.init.zeros_(self.type_bias.weight)
        self.age_decay_H = nn.Parameter(torch.full((config.heads,), -2.0))
        self.lag_decay_H = (
            nn.Parameter(torch.linspace(0.0, 1.0, config.heads)) if sizes.ordered else None
        )
        self.dropout = Dropout(config.dropout)

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Vectors of users' texts, if the granularity reads them."""
        return {} if self.user_text is None else self.user_text.state(graphs)

    @classmethod
    def over(cls, name: str, heads: int, dropout: float, sizes: ModelSizes) -> Behaviour:
        """The same attention for another granularity ``name``, over vectors [S, D] that replace the
        texts.

        Parameters
        ----------
        name : str
            Key of the other granularity below ``model.granularities``, for the error.
        heads : int
            Number of attention heads.
        dropout : float
            Share of the values of z that training sets to zero, 0 to 1.
        sizes : ModelSizes
            Sizes of the model.

        Returns
        -------
        Behaviour
            A module that pools ``text_ST`` of the view that it is given, with width D instead of T.

        Raises
        ------
        ConfigError
            ``heads`` does not divide the width of the model.
        """  # noqa: DOC501
        if sizes.width % heads:
            raise heads_error(name, heads, sizes.width)
        config = BehaviourConfig(input="text", heads=heads, dropout=dropout)
        return cls(config, replace(sizes, text_width=sizes.width))

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Pooled history, text of the history, or both, and where it is present.

        Parameters
        ----------
        batch : Batch
            Histories, and the queries on them.
        items : ItemView
            Text vectors of the items in view, or item vectors with ``input`` item.
        state : dict of str to Tensor
            Vectors of users' texts; read only with ``input`` user_text or both.

        Returns
        -------
        z_BD : Tensor, [B, D] float
            User vector of each query; the sum of both vectors with ``input`` both.
        present_B : Tensor, [B] bool
            Whether the query sees an event that can be pooled, or its history has a text.
        """
        if self.user_text is None:
            return self._pool(batch, items)
        read_BD, is_read_B = self.user_text(batch, state)
        if not self.pools:
            return read_BD, is_read_B
        pooled_BD, is_pooled_B = self._pool(batch, items)
        return pooled_BD + read_BD, is_pooled_B | is_read_B

    def _pool(self, batch: Batch, items: ItemView) -> tuple[Tensor, Tensor]:
        history_UL, real_UL = batch.history_UL, batch.mask_UL
        source_SX = items.text_ST if self.reads_text else items.vectors_SD
        if history_UL.numel() < len(source_SX):  # a request reads few items of a large catalogue
            source_SX = source_SX[history_UL.flatten()]
            history_UL = torch.arange(len(source_SX), device=history_UL.device).view_as(history_UL)
        if not self.reads_text:
            source_SX = source_SX * self.scale
        values_SD, keys_SD = self.value(source_SX), self.key(source_SX)
        if self.reads_text:  # an event without text does not contribute
            real_UL = real_UL & (source_SX.abs().sum(1) > 0)[history_UL]
        every_position = not batch.has_one_query_per_row
        length = history_UL.shape[1]
        positions_L = torch.arange(length, device=history_UL.device)
        positions_UQ = (
            positions_L.expand_as(history_UL)
            if every_position
            else (batch.seen_B - 1).clamp(min=0)[:, None]
        )
        visible_UQL = (positions_L <= positions_UQ[:, :, None]) & real_UL[:, None, :]

        questions_UQD = self.question_D.expand(*positions_UQ.shape, -1)
        if self.ask is not None:
            questions_UQD = questions_UQD + self.ask(source_SX)[history_UL.gather(1, positions_UQ)]
        logits_UHQL = self._heads(questions_UQD) @ self._heads(keys_SD[history_UL]).transpose(2, 3)
        logits_UHQL = logits_UHQL / math.sqrt(keys_SD.shape[1] / self.heads)
        logits_UHQL = logits_UHQL + self.type_bias(batch.types_UL).transpose(1, 2)[:, :, None, :]
        weights_UHQL = _masked_softmax(
            logits_UHQL + self._decay(batch, positions_UQ, positions_L), visible_UQL[:, None]
        )
        pooled_UQD = (weights_UHQL @ self._heads(values_SD[history_UL])).transpose(1, 2).flatten(2)
        present_UQ = visible_UQL.any(2)
        out_UQD = self.dropout(self.norm(pooled_UQD)) * present_UQ[:, :, None].to(pooled_UQD.dtype)
        if every_position:
            index = (batch.rows_B, (batch.seen_B - 1).clamp(min=0))
            return gather_queries(out_UQD, batch), present_UQ[index] & (batch.seen_B > 0)
        seen_B = batch.seen_B > 0
        return out_UQD[:, 0] * seen_B[:, None].to(out_UQD.dtype), present_UQ[:, 0] & seen_B

    def _heads(self, values_UXD: Tensor) -> Tensor:
        """[U, X, D] → [U, H, X, D / H]."""
        num_rows, length, width = values_UXD.shape
        return values_UXD.reshape(num_rows, length, self.heads, width // self.heads).transpose(1, 2)

    def _decay(self, batch: Batch, positions_UQ: Tensor, positions_L: Tensor) -> Tensor:
        """−γ log(1 + age) − δ log(1 + lag): [U, H, Q, L]."""
        ages_UQ = batch.ages_UL.gather(1, positions_UQ)
        gap_UQL = (batch.ages_UL[:, None, :] - ages_UQ[:, :, None]).clamp(min=0)
        decay = -softplus(self.age_decay_H)[:, None, None] * torch.log1p(gap_UQL)[:, None]
        if self.lag_decay_H is not None:
            lag_UQL = (positions_UQ[:, :, None] - positions_L).clamp(min=0).to(gap_UQL.dtype)
            decay = (
                decay - softplus(self.lag_decay_H)[:, None, None] * torch.log1p(lag_UQL)[:, None]
            )
        return decay


def _masked_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the last axis where allowed; all zero, with zero gradient, where nothing is
    allowed.
    """
    masked = logits.masked_fill(~allowed, -math.inf)
    nothing = ~allowed.any(-1, keepdim=True)
    return torch.softmax(masked.masked_fill(nothing, 0.0), dim=-1) * allowed.to(logits.dtype)
