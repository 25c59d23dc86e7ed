"""What the text of a user's past says: x_u of S1, u_i of S2, a language-model vector behind a learned projection.

    z = norm(W (x_u − mean) / spread)

with mean and spread of the users' texts. In training a query reads the text that was finished when it asked
(``Batch.texts_B``); a frozen model keeps one text a user, of everything through its events, and requests may bring
their own (``Batch.text_vectors_BT``). Without any of these the text is absent. Legend: as in ``base``, T text width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.data.batches import Batch
from recsys.errors import ConfigError
from recsys.granularities.base import Graphs, ModelSizes, State
from recsys.granularities.dropout import Dropout


class UserText(nn.Module):
    """The text part of ``behaviour``.

    ``optional`` (beside pooled items) hides the text of a share ``dropout`` of the queries in training, so that the
    model answers without it as well.
    """

    def __init__(self, sizes: ModelSizes, dropout: float, optional: bool) -> None:
        super().__init__()
        self.project = nn.Linear(sizes.user_text_width, sizes.width, bias=False)
        self.norm = nn.LayerNorm(sizes.width)
        self.dropout = Dropout(dropout)
        self.hidden_share = dropout if optional else 0.0

    def state(self, graphs: Graphs) -> State:
        """In training all texts; else (frozen) those of users' whole pasts, [V, T] float16, zero rows without."""
        texts = graphs.user_texts
        if texts is None:
            raise ConfigError("behaviour.input reads the text of users, and the graphs hold none: see data.text.users")
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
            rows_B = batch.texts_B
            if rows_B is None:  # whole texts would name what training asks for
                rows_B = torch.full_like(batch.rows_B, -1)
        else:
            rows_B = batch.users_U[batch.rows_B] if batch.texts_B is None else torch.full_like(batch.rows_B, -1)
        x_BT = texts_XT[rows_B.clamp(min=0)].float() * (rows_B >= 0)[:, None] if len(texts_XT) else (
            texts_XT.new_zeros(len(rows_B), texts_XT.shape[1]).float()
        )  # fmt: skip
        given_BT = batch.text_vectors_BT
        return x_BT if given_BT is None else torch.where(given_BT.any(1, keepdim=True), given_BT, x_BT)
