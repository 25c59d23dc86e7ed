"""The text of a user's history: x_u of S1, u_i of S2, a language-model vector with a learned
projection.

    z = norm(W (x_u − mean) / spread)

where mean and spread are those of the users' texts. In training, a query reads the text that ended
before its time (``Batch.inputs``). A frozen model keeps one text per user, of all events; a request
may bring its own text (``Batch.inputs``). Without any of these the text is absent.

Legend: as in ``base``, T text width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batches import TEXT_ROWS, Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.granularities.base import Graphs, ModelSizes, State
from recsys.granularities.behaviour.section import USER_TEXT
from recsys.granularities.dropout import Dropout


@dataclass(frozen=True)
class UserTextVectors:
    """Vectors of the texts of users' histories; a query's text is a row of them, see
    ``Batch.inputs``.
    """

    vectors_RT: Tensor  # float16
    # int64, row of the text of a user's whole history through the graphs' split, -1 without
    whole_V: Tensor
    mean_T: Tensor  # float32
    scale_T: Tensor  # float32, one over the standard deviation

    def to(self, device: torch.device) -> UserTextVectors:
        """Move all tensors to a device."""
        return UserTextVectors(*(getattr(self, part.name).to(device) for part in fields(self)))

    @staticmethod
    def of(dataset: PreparedDataset, through: Split) -> UserTextVectors | None:
        """Texts of the events through a split; mean and spread are those of the users' whole
        texts.
        """
        texts = dataset.user_texts(through)
        if texts is None:
            return None
        whole_V = texts.whole(np.arange(dataset.num_users))
        used_RT = texts.vectors_RT[np.unique(whole_V[whole_V >= 0])].astype(np.float32)
        spread_T = used_RT.std(axis=0) if len(used_RT) else np.ones(texts.vectors_RT.shape[1])
        return UserTextVectors(
            torch.from_numpy(texts.vectors_RT.copy()),
            torch.as_tensor(whole_V),
            torch.as_tensor(
                used_RT.mean(axis=0) if len(used_RT) else np.zeros_like(spread_T)
            ).float(),
            torch.as_tensor(1 / np.maximum(spread_T, 1e-4)).float(),
        )


class UserText(nn.Module):
    """The text part of ``behaviour``.

    ``optional`` (with pooled items) hides the text of a share ``dropout`` of the queries in
    training, so that the model also works without it.
    """

    def __init__(self, sizes: ModelSizes, dropout: float, optional: bool) -> None:
        super().__init__()
        self.project = nn.Linear(sizes.inputs[USER_TEXT], sizes.width, bias=False)
        self.norm = nn.LayerNorm(sizes.width)
        self.dropout = Dropout(dropout)
        self.hidden_share = dropout if optional else 0.0

    def state(self, graphs: Graphs) -> State:
        """In training all texts; else (frozen) those of users' whole histories, [V, T] float16,
        zero rows without text.
        """
        texts: UserTextVectors = graphs[USER_TEXT]
        state = {"text_mean": texts.mean_T, "text_scale": texts.scale_T}
        if self.training:
            return state | {"texts": texts.vectors_RT}
        known_V = (texts.whole_V >= 0).to(texts.vectors_RT.dtype)
        return state | {"texts": texts.vectors_RT[texts.whole_V.clamp(min=0)] * known_V[:, None]}

    def forward(self, batch: Batch, state: State) -> tuple[Tensor, Tensor]:
        """z_BD, zero where absent, and present_B."""
        x_BT = self._vectors(batch, state["texts"])
        present_B = x_BT.abs().sum(1) > 0
        if self.training and self.hidden_share:
            present_B = present_B & (torch.rand(len(x_BT), device=x_BT.device) >= self.hidden_share)
        z_BD = self.norm(self.project((x_BT - state["text_mean"]) * state["text_scale"]))
        return self.dropout(z_BD) * present_B[:, None].to(z_BD.dtype), present_B

    def _vectors(self, batch: Batch, texts_XT: Tensor) -> Tensor:
        if self.training:
            rows_B = batch.inputs.get(TEXT_ROWS)
            if rows_B is None:  # a text of the whole history would contain the targets
                rows_B = torch.full_like(batch.rows_B, -1)
        else:
            rows_B = (
                batch.users_U[batch.rows_B]
                if batch.inputs.get(TEXT_ROWS) is None
                else torch.full_like(batch.rows_B, -1)
            )
        x_BT = (
            texts_XT[rows_B.clamp(min=0)].float() * (rows_B >= 0)[:, None]
            if len(texts_XT)
            else texts_XT.new_zeros(rows_B.shape[0], texts_XT.shape[1]).float()
        )
        given_BT = batch.inputs.get(USER_TEXT)
        return (
            x_BT if given_BT is None else torch.where(given_BT.any(1, keepdim=True), given_BT, x_BT)
        )
