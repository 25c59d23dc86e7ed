"""The query encoder: padded tensors of queries → one vector per query, and the scores of sparse
members.

    score(u, i) = vector_u · a_i + added_ui

This equals :meth:`recsys.model.FrozenModel.contributions`, with operations that ONNX has. Trained
granularities are the model's own modules; closed-form members have a form for padded tensors in
:mod:`recsys.export.closed_form_graphs`.

Legend: B queries, L length, D width of a member, N items, C context columns, F friends.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from recsys.data.attributes import AttributeRows
from recsys.errors import ArtifactError, choices, valid_instead
from recsys.export.closed_form_graphs import ADDITIONS, OF_NEWEST, VECTORS, has_additions, prepared
from recsys.export.seen import Seen
from recsys.granularities.base import Granularity
from recsys.model import Encoders, FrozenModel
from recsys.separate_model import Apart
from recsys.stack import TRAINED, inverse, spread


class QueryEncoder(nn.Module):
    """The query encoder of a model; the members in ``without`` are left out.

    Raises
    ------
    ArtifactError
        A member cannot be expressed in ONNX, or ``without`` names an unknown member.
    """

    def __init__(self, model: FrozenModel, without: Collection[str] = ()) -> None:
        super().__init__()
        _check_left_out(model, {*without})
        self.model, self.encoders, self.without = model, without_bags(model.encoders), {*without}
        self.closed_form = [
            (name, module, index)
            for index, (name, module) in enumerate(self.encoders.each(closed_form=True))
            if name in model.states and name not in self.without
        ]
        impossible = [name for name, module, _ in self.closed_form if not can_export(module)]
        if impossible:
            raise ArtifactError(
                f"the member {impossible[0]} cannot be expressed in ONNX; export without it:"
                f" --export.without '[{', '.join(impossible)}]' (scores then differ from those of"
                " the model), or export users to Parquet"
            )
        # tables whose shape depends on the data are made here, because a graph cannot make them
        self.states = {
            name: prepared(module, model.states[name]) for name, module, _ in self.closed_form
        }
        self.apart = {
            name: QueryEncoder(module.model(model.states[name]))
            for name, module, _ in self.closed_form
            if isinstance(module, Apart)
        }
        stacked = self.encoders.members if self.encoders.stack is not None else []
        sparse = {name for name, module in self.encoders.each(closed_form=True) if module.sparse}
        self.covariances = {
            member: model.covariance(member)
            for member in stacked
            if member not in sparse and (member == TRAINED or member in self.states)
        }
        self.adds = any(has_additions(module) for _, module, _ in self.closed_form)

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """Vectors [B, D] in the space of the item vectors, and additions [B, N], None without
        sparse members.
        """
        vectors, added_BN = [self._trained(seen)], None
        for name, module, index in self.closed_form:
            z_BR, found_BN = self._closed_form(name, module, index, seen)
            if z_BR is not None:
                vectors.append(z_BR)
            if found_BN is not None:
                added_BN = found_BN if added_BN is None else added_BN + found_BN
        return torch.cat(self._in_order(vectors, seen), dim=1), added_BN

    def _in_order(self, vectors: list[Tensor], seen: Seen) -> list[Tensor]:
        """The members' vectors, concatenated; zeros for those that are left out."""
        found, waiting = [vectors[0]], list(vectors[1:])
        names = [
            name for name, _ in self.encoders.each(closed_form=True) if name in self.model.states
        ]
        for name, width in zip(names, self.model.widths[1:], strict=True):
            if name in self.without:
                # zeros keep the width, so that the item vectors still fit
                found.append(vectors[0].new_zeros(seen.lengths_B.shape[0], width))
            elif width:
                found.append(waiting.pop(0))
        return found

    def _trained(self, seen: Seen) -> Tensor:
        items = self.model.items
        if not self.encoders.each():
            return items.vectors_SD.new_zeros(seen.lengths_B.shape[0], items.vectors_SD.shape[1])
        z_BKD, present_BK = self.encoders.encode(
            seen.batch(self.model.config.max_history), items, self.model.states
        )
        users_BD: Tensor = self.encoders.fusion(z_BKD, present_BK)[0]
        stack = self.encoders.stack
        if stack is None:
            return users_BD
        index = self.encoders.members.index(TRAINED)
        factor_B = stack.weights(seen.lengths_B)[:, index] * self._scale_free(
            TRAINED, index, users_BD
        )
        return users_BD * factor_B[:, None]

    def _closed_form(
        self, name: str, module: Granularity, index: int, seen: Seen
    ) -> tuple[Tensor | None, Tensor | None]:
        """Weighted vectors and additions of one member."""
        state, stack = self.states[name], self.encoders.stack
        z_BR = None if module.sparse else self._vectors(module, name, seen)
        added_BN = ADDITIONS[type(module)](module, state, seen) if has_additions(module) else None
        if stack is None:
            factor_B = self.encoders.fitted_weights[index].expand(seen.lengths_B.shape[0])
        else:
            member = self.encoders.members.index(name)
            if z_BR is not None:
                scale_B = self._scale_free(name, member, z_BR)
            elif module.calibrated:
                scale_B = stack.scales_M[member].expand(seen.lengths_B.shape[0])
            else:
                assert added_BN is not None, "a sparse member has additions"
                scale_B = inverse(added_BN.square().mean(1).sqrt(), stack.floors_M[member])
            factor_B = stack.weights(seen.lengths_B)[:, member] * scale_B
        z_BR = None if z_BR is None else factor_B[:, None] * z_BR
        return z_BR, None if added_BN is None else factor_B[:, None] * added_BN

    def _vectors(self, module: Granularity, name: str, seen: Seen) -> Tensor:
        state = self.states[name]
        if name in self.apart:
            vectors_BD: Tensor = self.apart[name](seen)[0]
            return vectors_BD
        if type(module) in OF_NEWEST:
            most = self.model.config.fitted_history or self.model.config.max_history
            return OF_NEWEST[type(module)](module, state, seen, most)
        return VECTORS[type(module)](module, state, seen)

    def _scale_free(self, name: str, member: int, users_BD: Tensor) -> Tensor:
        stack = self.encoders.stack
        assert stack is not None, "only a stacked model has scales"
        return inverse(spread(users_BD, self.covariances[name]), stack.floors_M[member])


def can_export(module: Granularity) -> bool:
    """Whether a closed-form member has a form for padded tensors."""
    has_vectors = (
        module.sparse
        or isinstance(module, Apart)
        or type(module) in VECTORS
        or type(module) in OF_NEWEST
    )
    return has_vectors and (not has_additions(module) or type(module) in ADDITIONS)


def _check_left_out(model: FrozenModel, without: set[str]) -> None:
    closed_form = [name for name in model.names if name not in model.trained_names]
    if unknown := sorted(without - {*model.names}):
        raise ArtifactError(
            f"export.without: {unknown[0]!r} is not a member of this model;"
            f" {valid_instead(unknown[0], model.names, 'it has')}"
        )
    if trained := sorted(without - {*closed_form}):
        raise ArtifactError(
            f"export.without: {trained[0]} was trained together with other granularities and cannot"
            f" be left out; only closed-form members can: {choices(closed_form) or 'none'}"
        )


class MeanOfRows(nn.Module):
    """Mean of rows of a table without the padding. Replaces ``nn.EmbeddingBag``, which becomes a
    loop in ONNX.
    """

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.weight = bag.weight
        self.padding = -1 if bag.padding_idx is None else bag.padding_idx

    def forward(self, rows_XS: Tensor) -> Tensor:
        """Mean of the rows of every bag, without padding."""
        counts_XS = torch.ne(rows_XS, self.padding).to(self.weight.dtype)
        summed_XD: Tensor = (self.weight[rows_XS] * counts_XS[:, :, None]).sum(1)
        return summed_XD / counts_XS.sum(1, keepdim=True).clamp(min=1)


def without_bags(encoders: Encoders) -> Encoders:
    """A copy of the encoders without ``nn.EmbeddingBag``."""
    # a copy: the model that compares the answers must stay as it is
    copied = copy.deepcopy(encoders).eval()
    # lists, because the modules are replaced during the loop
    for parent in [*copied.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.EmbeddingBag):
                assert child.mode == "mean", "bags of attributes are means"
                setattr(parent, name, MeanOfRows(child))
    return copied


class Graph(nn.Module):
    """The encoder with named input tensors, in the order of :data:`INPUTS`."""

    def __init__(self, encoder: QueryEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        history: Tensor,
        length: Tensor,
        event_types: Tensor,
        times: Tensor,
        values: Tensor,
        context: Tensor,
        asked_at: Tensor,
        asked_context: Tensor,
        user: Tensor,
        friends: Tensor,
        attribute_codes: Tensor,
        attribute_values: Tensor,
        user_text: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return vectors [B, D] and, with sparse members, additions [B, N].

        Parameters
        ----------
        history : Tensor, [B, L] int64
            Item numbers, the oldest event first, 0 after the end.
        length : Tensor, [B] int64
            Number of events of each query.
        event_types : Tensor, [B, L] int64
            Event type ids.
        times : Tensor, [B, L] int64
            Seconds since 1970, 0 where unknown.
        values : Tensor, [B, L] float32
            Values of the events, NaN where unknown.
        context : Tensor, [B, L, C] int64
            Codes of the context columns of the events.
        asked_at : Tensor, [B] int64
            Time of the query in seconds since 1970, 0 where unknown.
        asked_context : Tensor, [B, C] int64
            Codes of the context of the query.
        user : Tensor, [B] int64
            Dense user ids, −1 where unknown.
        friends : Tensor, [B, F] int64
            Dense user ids of the friends, −1 after the end.
        attribute_codes : Tensor, int32
            Codes of the user's attributes, one row per query, −2 where not given.
        attribute_values : Tensor, float32
            Scaled numbers of the user's attributes, one row per query, 0 where not given.
        user_text : Tensor, [B, T] float32
            Vector of the user's text, zero without one.
        """
        attributes = AttributeRows(attribute_codes, attribute_values)
        events = (history, length, event_types, times, values, context)
        vectors_BD, added_BN = self.encoder(
            Seen(*events, asked_at, asked_context, user, friends, attributes, user_text)
        )
        return (vectors_BD,) if added_BN is None else (vectors_BD, added_BN)
