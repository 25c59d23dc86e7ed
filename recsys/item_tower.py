"""The item tower: a_i = id embedding + projected text.

Why: the id part is accurate for items with training events; the text part is the only information
about other items. One sum serves both. ``id_dropout`` hides the id part at random in training, so
that the text part (or what knowledge graph and neighbours make of it) can work alone.

Legend: N items, S items in view, G groups of fields, T text width, W whitened width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys.config import ItemTowerConfig
from recsys.data.whitening import Whitening
from recsys.sharded_rows import Shard, ShardedRows


class ItemTower(nn.Module):
    """Vectors of items from their ids and texts.

    ``trained_N`` marks the items with training events; the others have no id part, because it would
    be noise. ``text_NT`` may hold the vectors of several groups of fields next to each other, all
    of equal width: each group has its own whitening and its own projection (z_uk = f_k({x_k}) of
    S5), and the projections are summed. With ``width`` 0 the tower keeps only the texts: no trained
    granularity reads item vectors. With ``shard`` this worker holds only its own id rows.
    """

    text_NT: Tensor
    trained_N: Tensor

    def __init__(
        self,
        config: ItemTowerConfig,
        width: int,
        text_NT: Tensor,
        trained_N: Tensor,
        num_groups: int = 1,
        whitening: Sequence[Whitening] | None = None,
        shard: Shard | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        num_items, text_width = text_NT.shape
        if text_width:
            groups = text_NT.chunk(num_groups, dim=1)
            whitening = whitening or [
                Whitening.of(group_NT, config.text_whiten) for group_NT in groups
            ]
            text_NT = torch.cat(
                [white(group_NT) for white, group_NT in zip(whitening, groups, strict=True)], dim=1
            )
            text_width = text_NT.shape[1]
            # saved with the weights: a warm start must read the text of new items with the axes of
            # the training
            self.register_buffer("text_mean_GT", torch.stack([white.mean_T for white in whitening]))
            self.register_buffer(
                "text_axes_GTW", torch.stack([white.axes_TW for white in whitening])
            )
        self.register_buffer("text_NT", text_NT, persistent=False)
        self.register_buffer("trained_N", trained_N.to(torch.float32), persistent=False)
        self.id_ND: nn.Embedding | ShardedRows | None = None
        if width and (config.id or not text_width):
            if shard is not None:
                self.id_ND = ShardedRows(num_items, width, config.init_std, shard)
            else:
                self.id_ND = nn.Embedding(num_items, width)
                nn.init.normal_(self.id_ND.weight, std=config.init_std)
        self.text_projection: nn.Module | None = None
        if width and config.text and text_width:
            each = [_projection(config, text_width // num_groups, width) for _ in range(num_groups)]
            self.text_projection = each[0] if num_groups == 1 else GroupProjection(each)

    def forward(self, ids_S: Tensor | None = None) -> Tensor:
        """Vectors [S, D] of the given items, or of all items."""
        if ids_S is None and isinstance(self.id_ND, ShardedRows):
            return self.id_ND.mapped(self).to(self.trained_N.device)
        vectors = []
        if self.id_ND is not None:
            known_S = self.trained_N if ids_S is None else self.trained_N[ids_S]
            rows_SD = self.id_ND.weight if ids_S is None else self.id_ND(ids_S)
            if self.training and self.config.id_dropout:
                keep_S = torch.rand_like(known_S) >= self.config.id_dropout
                known_S = known_S * keep_S / (1 - self.config.id_dropout)
            vectors.append(rows_SD * known_S[:, None])
        if self.text_projection is not None:
            vectors.append(self.text_projection(self.text(ids_S)))
        if not vectors:
            return self.text(ids_S)[:, :0]
        return torch.stack(vectors).sum(0) if len(vectors) > 1 else vectors[0]

    def update_rows(self, alone: bool) -> None:
        """Set whether a step changes only the id rows of the items in view (``alone``); see
        ``training.optimizer``. Sharded rows are always updated in this way.
        """
        if isinstance(self.id_ND, nn.Embedding):
            self.id_ND.sparse = alone

    def text(self, ids_S: Tensor | None = None) -> Tensor:
        """Text vectors [S, T] of the given items, or of all items."""
        return self.text_NT if ids_S is None else self.text_NT[ids_S]


class GroupProjection(nn.Module):
    """Σ_k f_k(x_k): one projection for each of several groups that are concatenated."""

    def __init__(self, each: list[nn.Module]) -> None:
        super().__init__()
        self.each = nn.ModuleList(each)

    def forward(self, text_ST: Tensor) -> Tensor:
        """Sum of the projections: [S, D]."""
        vectors = text_ST.chunk(len(self.each), dim=1)
        return torch.stack(
            [project(part) for project, part in zip(self.each, vectors, strict=True)]
        ).sum(0)


def _projection(config: ItemTowerConfig, text_width: int, width: int) -> nn.Module:
    if not config.text_hidden:
        return nn.Linear(text_width, width, bias=False)
    return nn.Sequential(
        nn.Linear(text_width, config.text_hidden),
        nn.GELU(),
        nn.Linear(config.text_hidden, width, bias=False),
    )
