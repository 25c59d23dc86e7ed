"""Context columns as vectors: those of the events that a sequence model reads, and those of the
request.

A missing cell adds nothing. A value without training events adds its initial vector, which training
never changes: zero for events, almost zero for the request. So both work where context is missing.

Legend: B queries, U history rows, L length, C context columns, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from recsys.data.context_columns import MISSING, STEPS, UNKNOWN
from recsys.errors import ConfigError, choices
from recsys.granularities.base import ModelSizes


class ContextVectors(nn.Module):
    """Codes of some columns → the sum of one vector per column: a table for categories, (x, x², 1)
    · W for numbers.
    """

    def __init__(self, sizes: ModelSizes, names: Sequence[str], init_std: float) -> None:
        super().__init__()
        known = dict(sizes.context)
        self.columns = [list(known).index(name) for name in names]
        self.tables = nn.ModuleList(
            (
                nn.Embedding(known[name], sizes.width)
                if known[name]
                else nn.Linear(3, sizes.width, bias=False)
            )
            for name in names
        )
        for table in self.tables:
            assert isinstance(table, nn.Embedding | nn.Linear)
            nn.init.normal_(table.weight, std=init_std)
            if isinstance(table, nn.Embedding):
                nn.init.zeros_(table.weight[: UNKNOWN + 1])

    def forward(self, codes_XC: Tensor) -> Tensor:
        """[…, C] → […, D]; where the data lacks a column, its codes are all missing."""
        total = torch.zeros((), device=codes_XC.device)
        if codes_XC.shape[-1] == 0:
            return total
        for column, table in zip(self.columns, self.tables, strict=True):
            code_X = codes_XC[..., column].long()
            present_X = code_X != MISSING
            if isinstance(table, nn.Embedding):
                vector_XD = table(code_X)
            else:
                x_X = torch.where(code_X > 0, code_X - 1, code_X) / STEPS
                vector_XD = table(torch.stack([x_X, x_X.square(), torch.ones_like(x_X)], dim=-1))
            total = total + vector_XD * present_X[..., None]
        return total


class AskedContext(nn.Module):
    """Change a state by the context of the request, s + W₂ gelu(W₁ (s ⊕ c)); s stays if all context
    is missing.

    In training the context of some queries is hidden, so that the model also works without it.
    """

    def __init__(self, sizes: ModelSizes, names: Sequence[str], hidden_share: float) -> None:
        super().__init__()
        unknown = sorted(set(names) - {name for name, _ in sizes.context})
        if unknown:
            known = choices(name for name, _ in sizes.context) or "none; name them in data.context"
            raise ConfigError(
                f"model.granularities.evolution.query_context: {unknown[0]!r} is not a context"
                f" column of this dataset; there are: {known}"
            )
        self.hidden_share = hidden_share
        self.vectors = ContextVectors(sizes, names, init_std=0.5)
        self.inner = nn.Linear(2 * sizes.width, 2 * sizes.width)
        self.outer = nn.Linear(2 * sizes.width, sizes.width)
        nn.init.zeros_(self.outer.weight)

    def forward(self, states_BD: Tensor, asked_BC: Tensor) -> Tensor:
        """Add the effect of the request's context to the states."""
        if asked_BC.shape[-1] == 0:
            return states_BD
        codes_BC = hide(asked_BC, self.hidden_share, self.training)
        given_B1 = (codes_BC[:, self.vectors.columns] != MISSING).any(1, keepdim=True)
        both = torch.cat([states_BD, self.vectors(codes_BC).to(states_BD.dtype)], dim=1)
        moved_BD: Tensor = self.outer(nn.functional.gelu(self.inner(both)))
        return states_BD + moved_BD * given_B1


def hide(codes_XC: Tensor, share: float, training: bool) -> Tensor:
    """Set the codes of a share of the rows (first dimension) to missing, in training only.

    Parameters
    ----------
    codes_XC : Tensor, [X, …, C] int16
        Codes of context columns, of queries or of the events of rows.
    share : float
        Share of the rows that are hidden, 0 to 1; each row is drawn on its own.
    training : bool
        Whether the model is in training.

    Returns
    -------
    Tensor, [X, …, C] int16
        The codes; 0 in hidden rows.
    """
    if not training or not share or codes_XC.shape[-1] == 0:
        return codes_XC
    ones_X = torch.ones(codes_XC.shape[0], device=codes_XC.device)
    kept_X = dropout(ones_X, share) > 0
    return codes_XC * kept_X.reshape(-1, *[1] * (codes_XC.ndim - 1))
