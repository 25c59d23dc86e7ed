"""Evolution: how a user's interest moves, read from the order and the times of the history (S4).

A causal sequence model over the item vectors of the history, trained at every position. ``cell`` picks an LSTM or a
GRU, or pre-norm causal attention (SASRec, Kang & McAuley 2018) whose positions enter as vectors added to the
events, as learned biases on the lag between two events and on the time between them (as in HSTU, Zhai et al. 2024), or
both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from recsys.config import EvolutionConfig
from recsys.data.batches import Batch
from recsys.errors import ConfigError
from recsys.granularities.base import (
    Granularity,
    ItemView,
    ModelSizes,
    State,
    causal_mask,
    gather_queries,
    heads_error,
)

NUM_TIME_BUCKETS = 16  # log2 of minutes: under a minute … over three weeks


class Evolution(Granularity):
    """The state of a causal sequence model behind the last seen event. Legend: U rows, L length, D width, H heads."""

    def __init__(self, config: EvolutionConfig, sizes: ModelSizes) -> None:
        super().__init__()
        if not sizes.ordered:
            raise ConfigError(
                "model.granularities.evolution needs events in order, and this dataset has none; disable it, or set "
                "data.order to time or file if the source has an order"
            )
        width = sizes.width
        self.type_embedding = nn.Embedding(max(sizes.num_types, 1), width)
        nn.init.zeros_(self.type_embedding.weight)
        self.scale = math.sqrt(width)  # of item vectors, which are small beside the cell's weights
        self.dropout = nn.Dropout(config.input_dropout)
        self.norm = nn.LayerNorm(width)
        self.cell: nn.Module
        if config.cell == "attention":
            self.cell = CausalAttention(config, sizes)
        else:
            kind = nn.LSTM if config.cell == "lstm" else nn.GRU
            drop = config.dropout if config.layers > 1 else 0.0
            self.cell = kind(width, width, config.layers, batch_first=True, dropout=drop)

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        events_ULD = items.vectors_SD[batch.history_UL] * self.scale + self.type_embedding(batch.types_UL)
        if isinstance(self.cell, CausalAttention):
            states_ULD = self.cell(self.dropout(self.cell.place(events_ULD)), batch)
        else:
            states_ULD = self.cell(self.dropout(events_ULD))[0]
        present_B = batch.seen_B > 0
        z_BD = self.norm(gather_queries(states_ULD, batch))
        return z_BD * present_B[:, None].to(z_BD.dtype), present_B


class CausalAttention(nn.Module):
    """Pre-norm transformer blocks with learned lag and time-gap biases."""

    def __init__(self, config: EvolutionConfig, sizes: ModelSizes) -> None:
        super().__init__()
        if sizes.width % config.heads:
            raise heads_error("evolution", config.heads, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes.width, config.heads, config.dropout) for _ in range(config.layers))
        length, relative = sizes.max_history + 1, config.positions != "absolute"
        self.lag_bias_LH = nn.Parameter(_older_is_fainter(length, config.heads)) if relative else None
        self.gap_bias = nn.Embedding(NUM_TIME_BUCKETS, config.heads) if relative and sizes.timed else None
        if self.gap_bias is not None:
            nn.init.zeros_(self.gap_bias.weight)
        absolute = config.positions != "relative"
        self.position_LD = nn.Parameter(0.02 * torch.randn(length, sizes.width)) if absolute else None

    def forward(self, events_ULD: Tensor, batch: Batch) -> Tensor:
        length = events_ULD.shape[1]
        places_L = torch.arange(length, device=events_ULD.device)
        bias_UHLL = torch.zeros(1, 1, length, length, device=events_ULD.device)
        if self.lag_bias_LH is not None:
            lag_LL = (places_L[:, None] - places_L).clamp(min=0)
            bias_UHLL = self.lag_bias_LH[lag_LL].permute(2, 0, 1)[None]
        if self.gap_bias is not None:
            gap_ULL = (batch.ages_UL[:, None, :] - batch.ages_UL[:, :, None]).clamp(min=0) * 1440.0
            bucket_ULL = torch.log2(1 + gap_ULL).long().clamp(max=NUM_TIME_BUCKETS - 1)
            bias_UHLL = bias_UHLL + self.gap_bias(bucket_ULL).permute(0, 3, 1, 2)
        allowed_U1LL = causal_mask(batch)[:, None]
        mask_UHLL = bias_UHLL.masked_fill(~allowed_U1LL, float("-inf")).to(events_ULD.dtype)
        states_ULD = events_ULD
        for block in self.blocks:
            states_ULD = block(states_ULD, mask_UHLL)
        return states_ULD

    def place(self, events_ULD: Tensor) -> Tensor:
        """Events with their positions, counted from the row's first."""
        return events_ULD if self.position_LD is None else events_ULD + self.position_LD[: events_ULD.shape[1]]


def _older_is_fainter(length: int, heads: int) -> Tensor:
    """Where the lag biases start: [L, H], −c_h log(1 + lag) with c from 0 (a head that sees evenly) to 1."""
    lag_L1 = torch.arange(length, dtype=torch.float32)[:, None]
    return -torch.linspace(0, 1, heads) * torch.log1p(lag_L1)


class Block(nn.Module):
    """Attention and a feed-forward of width D, each behind a norm and a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states_ULD: Tensor, mask_UHLL: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(states_ULD)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        rate = self.rate if self.training else 0.0
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask_UHLL, dropout_p=rate).transpose(1, 2).flatten(2)
        states_ULD = states_ULD + self.dropout(self.mix(mixed))
        forward: Tensor = self.dropout(self.feed_forward(self.norm_forward(states_ULD)))
        return states_ULD + forward
