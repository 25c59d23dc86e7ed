"""The enabled granularities and their fusion: a batch of users → one vector per user.

Legend: B queries, K granularities, D width, S items in view.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from recsys.config import ModelConfig
from recsys.data.batches import Batch
from recsys.fusion import FUSIONS, Fusion, NoFusion
from recsys.granularities import granularity_class
from recsys.granularities.base import Granularity, ItemView, ModelSizes, State
from recsys.stack import TRAINED, Stack

States = dict[str, State]


class Encoders(nn.Module):
    """The enabled granularities and their fusion: a batch → user vectors.

    ``serving`` leaves out what only training needs (graph convolutions, user embeddings).
    Closed-form granularities take no part in training; their λ are ``fitted_weights``.
    """

    fitted_weights: Tensor

    def __init__(self, config: ModelConfig, sizes: ModelSizes, serving: bool = False) -> None:
        super().__init__()
        enabled = config.granularities.enabled()
        self.unit_vectors = config.unit_vectors
        made: dict[str, Granularity] = {}
        for name, section in enabled.items():
            cls = granularity_class(name, section)
            section.check(sizes)
            made[name] = cls.for_serving(section, sizes) if serving else cls(section, sizes)
        self.granularities = nn.ModuleDict(made)
        weights = {
            closed_form: [enabled[name].weight for name, _ in self.each(closed_form)]
            for closed_form in (False, True)
        }
        self.fusion: Fusion = (
            FUSIONS[config.fusion.kind](config.fusion, weights[False], config.width)
            if weights[False]
            else NoFusion(config.fusion)
        )
        self.register_buffer("fitted_weights", torch.tensor(weights[True]))
        self.members = [TRAINED] * bool(weights[False]) + [
            name for name, _ in self.each(closed_form=True)
        ]
        self.stack = Stack(len(self.members)) if config.fusion.stack else None
        self.names = [name for closed_form in (False, True) for name, _ in self.each(closed_form)]

    def each(self, closed_form: bool = False) -> list[tuple[str, Granularity]]:
        """The trained granularities, or (``closed_form``) the closed-form ones, which come after
        them.
        """
        found = [
            (name, module)
            for name, module in self.granularities.items()
            if isinstance(module, Granularity)
        ]
        return [(name, module) for name, module in found if module.closed_form == closed_form]

    @property
    def pruned_members(self) -> set[str]:
        """The pruned closed-form granularities, which have stacking weight zero; they are neither
        fitted nor saved.
        """
        stack, members = self.stack, self.members
        return {
            name for m, name in enumerate(members) if stack is not None and stack.is_pruned(m)
        } - {TRAINED}

    @property
    def active_names(self) -> list[str]:
        """The granularities with a weight for at least one query, in the order of :attr:`names`."""
        stack, fixed_K = self.stack, getattr(self.fusion, "weights_K", None)
        trained, closed_form = (
            [name for name, _ in self.each(is_closed_form)] for is_closed_form in (False, True)
        )
        if stack is not None:
            active = {name for m, name in enumerate(self.members) if not stack.is_pruned(m)}
        else:
            active = {TRAINED} | {
                name
                for name, weight in zip(closed_form, self.fitted_weights.tolist(), strict=True)
                if weight
            }
        if fixed_K is not None:
            trained = [
                name for name, weight in zip(trained, fixed_K.tolist(), strict=True) if weight
            ]
        return [
            *(trained if TRAINED in active else []),
            *(name for name in closed_form if name in active),
        ]

    def encode(self, batch: Batch, items: ItemView, states: States) -> tuple[Tensor, Tensor]:
        """Vectors of every trained granularity ``z_BKD`` and ``present_BK``; unit vectors if the
        model uses them.

        Parameters
        ----------
        batch : Batch
            The queries.
        items : ItemView
            Item and text vectors of the items in view.
        states : States
            State of each granularity, by name.

        Returns
        -------
        z_BKD
            Tensor, [B, K, D] float: Vectors; K is 0 if no granularity is trained.
        present_BK
            Tensor, [B, K] bool: Whether the query has an input for the granularity.
        """
        if not self.each():
            nothing_BK = torch.zeros(len(batch), 0, device=items.vectors_SD.device)
            return (
                nothing_BK[:, :, None].expand(-1, -1, items.vectors_SD.shape[1]),
                nothing_BK.bool(),
            )
        found = [module(batch, items, states[name]) for name, module in self.each()]
        z_BKD = torch.stack([z for z, _ in found], dim=1)
        present_BK = torch.stack([present for _, present in found], dim=1)
        return (normalize(z_BKD, dim=-1) if self.unit_vectors else z_BKD), present_BK

    def refitted(self, values_K: Tensor) -> dict[str, Tensor]:
        """Return the parameters that set λ to new values (gated: a new prior), by name in the state
        dict.

        The values of the closed-form granularities come last.
        """
        if self.fusion.is_constant:  # λ must stay in [0, 1]; a common factor changes no ranking
            values_K = values_K / values_K.max().clamp(min=1)
        trained_K, fitted_K = values_K.tensor_split([self.fusion.names_K])
        found = {
            f"fusion.{name}": tensor for name, tensor in self.fusion.refitted(trained_K).items()
        }
        return found | (
            {"fitted_weights": fitted_K.to(self.fitted_weights.dtype)} if len(fitted_K) else {}
        )
