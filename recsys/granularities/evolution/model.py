"""Evolution: how a user's interest drifts, from the order and the times of the history (S4).

A causal sequence model over the item vectors of the history, trained at every position. ``cell``
picks an LSTM or a GRU, pre-norm causal attention (SASRec, Kang & McAuley 2018), or HSTU's gated
blocks without softmax (see :mod:`~recsys.granularities.evolution.hstu`). In the last two, positions
enter as vectors added to the events, as learned biases on the lag between two events and on the
time between them (as in HSTU, Zhai et al. 2024), or both. An event is the sum of its item, its
type, its context columns and (``time_gaps``) the time since the one before.

``states`` selects the result: the cell's state after the last event, which is the predicted next
interest state H_{t+1}; or H_{t+1} and the immediate state i_t, combined with a learned share (see
:mod:`~recsys.granularities.evolution.interest`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from recsys.data.batches import Batch
from recsys.granularities.base import (
    Granularity,
    ItemView,
    ModelSizes,
    State,
    gather_queries,
    heads_error,
)
from recsys.granularities.dropout import Dropout
from recsys.granularities.evolution.context_vectors import AskedContext, ContextVectors, hide
from recsys.granularities.evolution.hstu import HstuBlock
from recsys.granularities.evolution.interest import Fuse, InterestStates
from recsys.granularities.evolution.section import EvolutionConfig
from recsys.processor import multiplies_with_onednn

NUM_TIME_BUCKETS = 16  # for attention biases, log2 of minutes: under a minute … over three weeks
NUM_GAP_BUCKETS = 20  # for the inputs: … over a year


class Interest(NamedTuple):
    """The two states after every query, normalised; z = (1 − share) long + share immediate."""

    long_BD: Tensor  # the next interest state H_{t+1}
    immediate_BD: Tensor | None  # None: the model has one state
    share_B1: Tensor  # share of the immediate state

    @property
    def z_BD(self) -> Tensor:
        """The user vector."""
        if self.immediate_BD is None:
            return self.long_BD
        return (1 - self.share_B1) * self.long_BD + self.share_B1 * self.immediate_BD


class Evolution(Granularity):
    """The state of a causal sequence model after the last visible event.

    Legend: U rows, L length, D width, H heads, B queries, C context columns.
    """

    reads_events = False

    def __init__(self, config: EvolutionConfig, sizes: ModelSizes) -> None:
        super().__init__()
        config.check(sizes)
        self.config = config
        width = sizes.width
        self.type_embedding = nn.Embedding(max(sizes.num_types, 1), width)
        nn.init.zeros_(self.type_embedding.weight)
        self.scale = math.sqrt(width)  # item vectors are small compared with the cell's weights
        self.dropout = Dropout(config.input_dropout)
        self.norm = nn.LayerNorm(width)
        two = config.states != "cell"
        self.cell: nn.Module
        if config.attends:
            self.cell = CausalAttention(config, sizes)
        else:
            kind = nn.LSTM if config.cell == "lstm" else nn.GRU
            # torch warns about dropout in a recurrent net of one layer, where it has no effect
            drop = config.dropout if config.layers > 1 else 0.0
            self.cell = kind(
                2 * width if two else width, width, config.layers, batch_first=True, dropout=drop
            )
        self.states = InterestStates(width) if two else None
        self.enter = nn.Linear(2 * width, width) if two and config.attends else None
        self.fuse = Fuse(width) if two else None
        self.gap_embedding = nn.Embedding(NUM_GAP_BUCKETS + 1, width) if config.time_gaps else None
        if self.gap_embedding is not None:
            nn.init.zeros_(self.gap_embedding.weight)
        names = [name for name, _ in sizes.context]
        self.context = ContextVectors(sizes, names, init_std=0.0) if names else None
        asked = config.query_context
        self.asked = AskedContext(sizes, asked, config.context_dropout) if asked else None

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """The interest of every query, and whether it sees an event.

        Parameters
        ----------
        batch : Batch
            Histories, and the queries on them.
        items : ItemView
            Item vectors of the items in view; their texts are not read.
        state : dict of str to Tensor
            Not read.

        Returns
        -------
        z_BD : Tensor, [B, D] float
            User vector of each query; zero where it sees no event.
        present_B : Tensor, [B] bool
            Whether the query sees an event.
        """
        present_B = batch.seen_B > 0
        z_BD = self.interest(batch, items).z_BD
        return z_BD * present_B[:, None].to(z_BD.dtype), present_B

    def interest(self, batch: Batch, items: ItemView) -> Interest:
        """Long-term and immediate state of every query (undefined where a query sees no event)."""
        next_BD, immediate_BD = self._run(self.dropout(self._events(batch, items)), batch)
        if self.asked is not None:
            next_BD = self.asked(next_BD, batch.asked_BC)
        long_BD: Tensor = self.norm(next_BD)
        if self.fuse is None or immediate_BD is None:
            return Interest(long_BD, None, long_BD.new_zeros(long_BD.shape[0], 1))
        return Interest(long_BD, *self.fuse(long_BD, immediate_BD))

    def _events(self, batch: Batch, items: ItemView) -> Tensor:
        """Input of the cell for every event: [U, L, D]."""
        # indexing by brackets takes several times as long
        vectors_ED = items.vectors_SD.index_select(0, batch.history_UL.flatten())
        # the width by name: of a batch without rows it cannot be inferred
        events_ULD = vectors_ED.view(*batch.history_UL.shape, vectors_ED.shape[1]) * self.scale
        events_ULD = events_ULD + self.type_embedding(batch.types_UL)
        if self.gap_embedding is not None:
            events_ULD = events_ULD + self.gap_embedding(_gap_buckets(batch.ages_UL))
        if self.context is not None:
            codes_ULC = hide(batch.context_ULC, self.config.context_dropout, self.training)
            events_ULD = events_ULD + self.context(codes_ULC)
        return (
            self.cell.with_positions(events_ULD)
            if isinstance(self.cell, CausalAttention)
            else events_ULD
        )

    def _run(self, events_ULD: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """H_{t+1} and i_t (None: one state) after every query's last event: [B, D]."""

        def cell(inputs_ULX: Tensor) -> Tensor:
            if isinstance(self.cell, CausalAttention):
                states_ULD: Tensor = self.cell(
                    inputs_ULX if self.enter is None else self.enter(inputs_ULX), batch
                )
            else:
                states_ULD = self.cell(inputs_ULX)[0]
            return states_ULD

        if self.states is None:
            if (
                isinstance(self.cell, CausalAttention)
                and not self.training
                and batch.has_one_query_per_row
            ):
                # in serving only the last position is read: the last block then costs O(L), not
                # O(L²)
                last_BD = self.cell.behind_last(events_ULD, batch)
                return last_BD * (batch.seen_B > 0)[:, None].to(last_BD.dtype), None
            return gather_queries(cell(events_ULD), batch), None
        if self.config.states == "formula":
            assert isinstance(self.cell, nn.LSTM | nn.GRU)
            both = self.states.formula(events_ULD, self.cell)
        else:
            both = self.states.sweep(events_ULD, cell, self.config.sweeps)
        return gather_queries(both[0], batch), gather_queries(both[1], batch)


def _gap_buckets(ages_UL: Tensor) -> Tensor:
    """log₂ of the minutes since the previous event, with one more bucket for a row's first event:
    [U, L] int64.
    """
    gaps_UL = (ages_UL[:, :-1] - ages_UL[:, 1:]).clamp(min=0)
    return nn.functional.pad(_buckets(gaps_UL, NUM_GAP_BUCKETS), (1, 0), value=NUM_GAP_BUCKETS)


def _buckets(days: Tensor, number: int) -> Tensor:
    """log₂ of the minutes between events; the last bucket is open."""
    # +1: events in the same minute are bucket 0, and the logarithm stays finite
    return torch.log2(1 + days * 1440.0).long().clamp(max=number - 1)


class CausalAttention(nn.Module):
    """Pre-norm blocks, a transformer's or HSTU's, which share learned lag and time-gap biases."""

    def __init__(self, config: EvolutionConfig, sizes: ModelSizes) -> None:
        super().__init__()
        if sizes.width % config.heads:
            raise heads_error("evolution", config.heads, sizes.width)
        kind = HstuBlock if config.cell == "hstu" else Block
        self.uses_softmax = kind.uses_softmax
        self.blocks = nn.ModuleList(kind(sizes.width, config) for _ in range(config.layers))
        length, relative = sizes.max_history + 1, config.positions != "absolute"
        start_LH = (
            _older_is_fainter(length, config.heads)
            if self.uses_softmax
            else torch.zeros(length, config.heads)
        )
        self.lag_bias_LH = nn.Parameter(start_LH) if relative else None
        self.gap_bias = (
            nn.Embedding(NUM_TIME_BUCKETS, config.heads) if relative and sizes.timed else None
        )
        if self.gap_bias is not None:
            nn.init.zeros_(self.gap_bias.weight)
        absolute = config.positions != "relative"
        self.position_LD = (
            nn.Parameter(0.02 * torch.randn(length, sizes.width)) if absolute else None
        )

    def forward(self, events_ULD: Tensor, batch: Batch) -> Tensor:
        """States after every event: [U, L, D]."""
        states_ULD, bias_UHLL = self._enter_last(events_ULD, batch)
        last_ULD: Tensor = self.blocks[-1](states_ULD, bias_UHLL)
        return last_ULD

    def behind_last(self, events_ULD: Tensor, batch: Batch) -> Tensor:
        """The state after the last event that each row's only query sees: [U, D]. Only for a module
        in evaluation mode.

        It is undefined where the query sees no event.
        """
        last = self.blocks[-1]
        assert isinstance(last, Block | HstuBlock)
        return last.at(*self._enter_last(events_ULD, batch), (batch.seen_B - 1).clamp(min=0))

    def _enter_last(self, events_ULD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        bias_UHLL = self._bias(batch, events_ULD.shape[1], events_ULD.device).to(events_ULD.dtype)
        states_ULD = events_ULD
        for block in self.blocks[:-1]:
            states_ULD = block(states_ULD, bias_UHLL)
        return states_ULD, bias_UHLL

    def _bias(self, batch: Batch, length: int, device: torch.device) -> Tensor:
        """The bias that is added to the logits; U and H are 1 if all rows and heads share it.

        Later events get minus infinity before a softmax; HSTU's blocks multiply them by zero
        instead. Padding is later than every real event of its row, so it needs no mask of its own.
        """
        positions_L = torch.arange(length, device=device)
        lag_LL = positions_L[:, None] - positions_L
        bias_UHLL = torch.zeros(1, 1, length, length, device=device)
        if self.lag_bias_LH is not None:
            # negative lags are later events; clamped only to be a valid index, they are masked
            # below
            bias_UHLL = self.lag_bias_LH[lag_LL.clamp(min=0)].permute(2, 0, 1)[None]
        if self.gap_bias is not None:
            # ages fall with position, so the difference is the time from the earlier event to the
            # later one
            gap_ULL = (batch.ages_UL[:, None, :] - batch.ages_UL[:, :, None]).clamp(min=0)
            bias_UHLL = bias_UHLL + self.gap_bias(_buckets(gap_ULL, NUM_TIME_BUCKETS)).permute(
                0, 3, 1, 2
            )
        return bias_UHLL.masked_fill(lag_LL < 0, float("-inf")) if self.uses_softmax else bias_UHLL

    def with_positions(self, events_ULD: Tensor) -> Tensor:
        """Events with their positions, counted from the row's first event."""
        return (
            events_ULD
            if self.position_LD is None
            else events_ULD + self.position_LD[: events_ULD.shape[1]]
        )


def _older_is_fainter(length: int, heads: int) -> Tensor:
    """Initial lag biases: [L, H], −c_h log(1 + lag) with c from 0 (a head with equal weights) to 1.

    For softmax only: in SiLU a negative logit is a negative weight, not a small one.
    """
    lag_L1 = torch.arange(length, dtype=torch.float32)[:, None]
    return -torch.linspace(0, 1, heads) * torch.log1p(lag_L1)


class Block(nn.Module):
    """Attention and a feed-forward layer of ``inner`` times width D, each with a norm before it and
    a residual.
    """

    uses_softmax = True

    def __init__(self, width: int, config: EvolutionConfig) -> None:
        super().__init__()
        self.heads, self.rate, inner = config.heads, config.dropout, config.feed_forward * width
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.dropout = Dropout(config.dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), self.dropout, nn.Linear(inner, width)
        )

    def forward(self, states_ULD: Tensor, bias_UHLL: Tensor) -> Tensor:
        """Next states of all positions: [U, L, D]."""
        q, k, v = self.qkv(self.norm_attention(states_ULD)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed_UHLX = self._attend(q, k, v, bias_UHLL)
        return self._leave(states_ULD, mixed_UHLX.transpose(1, 2).flatten(2))

    def at(self, states_ULD: Tensor, bias_UHLL: Tensor, position_U: Tensor) -> Tensor:
        """The next state at one position of every row: [U, D]. Only for a module in evaluation
        mode, as attention weights get no dropout.

        With one query per row it is cheaper to map the query to the events, and their mean to the
        values, than to compute keys and values of all events: q · (W_k x) = (W_kᵀ q) · x, and Σ w
        (W_v x) = W_v Σ w x.

        Parameters
        ----------
        states_ULD : Tensor, [U, L, D] float
            States of all events before this layer.
        bias_UHLL : Tensor, [U, H, L, L] float
            Numbers to add to the logits; the first two axes may be 1.
        position_U : Tensor, [U] int64
            Position of each row, from 0.
        """
        rows_U = torch.arange(position_U.shape[0], device=position_U.device)
        normed_ULD = self.norm_attention(states_ULD)
        # [H, X, D] each
        to_q, to_k, to_v = self.qkv.weight.view(3, self.heads, -1, states_ULD.shape[-1])
        # the bias of the keys adds the same to all logits
        bias_q, _, bias_v = self.qkv.bias.view(3, self.heads, -1)
        q_UHX = torch.einsum("ud,hxd->uhx", normed_ULD[rows_U, position_U], to_q) + bias_q
        question_UHD = torch.einsum("uhx,hxd->uhd", q_UHX * q_UHX.shape[-1] ** -0.5, to_k)
        bias_UHL = bias_UHLL.expand(rows_U.shape[0], -1, -1, -1)[rows_U, :, position_U]
        weights_UHL = (question_UHD @ normed_ULD.transpose(1, 2) + bias_UHL).softmax(-1)
        mixed_UHX = torch.einsum("uhd,hxd->uhx", weights_UHL @ normed_ULD, to_v) + bias_v
        return self._leave(states_ULD[rows_U, position_U], mixed_UHX.flatten(1))

    def _leave(self, states_XD: Tensor, mixed_XD: Tensor) -> Tensor:
        states_XD = states_XD + self.dropout(self.mix(mixed_XD))
        forward: Tensor = self.dropout(self.feed_forward(self.norm_forward(states_XD)))
        return states_XD + forward

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias_UHLL: Tensor) -> Tensor:
        """Attention of every head, [U, H, L, X]; on a CPU, torch's function is slow with dropout,
        for which it has no kernel, and next to oneDNN.
        """
        rate = self.rate if self.training else 0.0
        if q.device.type != "cpu" or not (rate or multiplies_with_onednn()):
            return scaled_dot_product_attention(q, k, v, attn_mask=bias_UHLL, dropout_p=rate)
        # scale the queries and not the logits, which are L times as many
        logits_UHLL = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3) + bias_UHLL
        weights_UHLL: Tensor = self.dropout(logits_UHLL.softmax(-1))
        return weights_UHLL @ v
