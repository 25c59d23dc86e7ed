"""Rolling the interest state forward: what comes after the next event, before that event has
happened.

Why: events move the cell, so the event that the model expects replaces the one that has not
happened. It is a vector: the mean of the likeliest items, weighted by their probability, with the
length of their vectors. Nothing is drawn at random, and no single item has to be right. Every cell
rolls in the same way, and none is trained for it.

Legend: B queries, U rows (one per query here), L length, C context columns, D width, S items in
view, M likeliest items.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from recsys.data.batches import Batch
from recsys.granularities.base import ItemView

LIKELIEST: Final = 20


def expected_event(scores_BS: Tensor, vectors_SD: Tensor) -> Tensor:
    """The vector of the event that the scores predict: [B, D]."""
    top_BM, items_BM = scores_BS.topk(min(LIKELIEST, scores_BS.shape[1]), dim=1)
    weights_BM1 = top_BM.softmax(dim=1)[:, :, None]
    vectors_BMD = vectors_SD[items_BM]
    mean_BD: Tensor = (weights_BM1 * vectors_BMD).sum(1)
    length_B1 = (weights_BM1[:, :, 0] * vectors_BMD.norm(dim=2)).sum(1, keepdim=True)
    scale_B1: Tensor = length_B1 / mean_BD.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return mean_BD * scale_B1


def lengthen(batch: Batch, items: ItemView, event_BD: Tensor) -> tuple[Batch, ItemView]:
    """Append one event to every row, and return a view in which these events are items.

    The event has the type of the last one, and the average time gap of the user's events; its time
    and context, and those of the request, are missing. The batch must have one query per row that
    sees the whole row; rows without events stay empty.

    Parameters
    ----------
    batch : Batch
        The queries, B = U.
    items : ItemView
        The S items in view.
    event_BD : Tensor, [B, D] float
        Vector of the event of each row.

    Returns
    -------
    batch : Batch
        Rows of length L + 1; the new event of row b is item S + b.
    items : ItemView
        The S items in view and the B events, which have no text.
    """
    rows_U, last_U = torch.arange(len(batch), device=event_BD.device), batch.lengths_U
    grows_U = last_U > 0
    position_U = last_U.clamp(max=batch.history_UL.shape[1])

    def longer(values_UL: Tensor) -> Tensor:
        return torch.cat([values_UL, torch.zeros_like(values_UL[:, :1])], dim=1)

    history_UL, types_UL = longer(batch.history_UL), longer(batch.types_UL)
    history_UL[rows_U, position_U] = torch.where(grows_U, len(items.vectors_SD) + rows_U, 0)
    types_UL[rows_U, position_U] = types_UL[rows_U, (last_U - 1).clamp(min=0)]
    gap_U1 = (batch.ages_UL.amax(dim=1) / (last_U - 1).clamp(min=1))[:, None]
    ages_UL = longer((batch.ages_UL + gap_U1) * batch.mask_UL)
    longer_batch = replace(
        batch,
        history_UL=history_UL,
        types_UL=types_UL,
        times_UL=longer(batch.times_UL),
        ages_UL=ages_UL,
        lengths_U=last_U + grows_U,
        seen_B=batch.seen_B + grows_U[batch.rows_B],
        context_ULC=longer(batch.context_ULC),
        asked_BC=torch.zeros_like(batch.asked_BC),
        asked_at_B=torch.zeros_like(batch.asked_at_B),
        whole=None,
    )
    no_text = items.text_ST.new_zeros(len(event_BD), items.text_ST.shape[1])
    return longer_batch, ItemView(
        torch.cat([items.vectors_SD, event_BD]), torch.cat([items.text_ST, no_text])
    )
