"""Profile: attributes of users and items, with learned crosses of the fields (S3).

Every field of a row is a vector: the mean of the embeddings of its categories; for numbers, the
embedding of the quantile bin plus the value times a direction. x_0 is their concatenation, and a
deep & cross network, version 2 (Wang et al. 2021), multiplies them with each other:

    x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l,    W_l of full rank, or U_l V_lᵀ

so that one layer has every product of two fields (age × gender, price × sales), two layers those of
three. A last matrix gives z_u for users; for items it gives the addition to a_i, so that an item
without events gets a vector from its attributes. A missing field has its own embedding, which
training learns by hiding fields.

Legend: B queries, U rows of a batch, V users, N items, X rows, S slots, F fields, M numbers, D
width, E width of x_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from recsys.data.attributes import (
    FIRST_KNOWN,
    MISSING,
    NOT_GIVEN,
    PADDING,
    AttributeRows,
    Field,
    Profiles,
)
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.profile.attribute_encoding import (
    encoded_attributes,
    encoding_of,
    profile_encoding,
)
from recsys.granularities.profile.section import ProfileConfig


class CrossLayer(nn.Module):
    """x_0 ⊙ (W x + b) + x, with W = U Vᵀ if ``rank`` is set."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        full = nn.Linear(width, width)
        self.weight = (
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            if rank
            else full
        )

    def forward(self, first_XE: Tensor, inner_XE: Tensor) -> Tensor:
        """One layer: [X, E]."""
        crossed: Tensor = first_XE * self.weight(inner_XE) + inner_XE
        return crossed


class FieldCross(nn.Module):
    """Encoded rows → vectors [X, D] and whether any field is known [X]; vectors are zero
    elsewhere.
    """

    def __init__(self, fields: Sequence[Field], config: ProfileConfig, width: int) -> None:
        super().__init__()
        size = config.field_width
        self.spans = column_slices(fields)
        self.numbers = [index for index, field in enumerate(fields) if field.kind == "number"]
        self.hide = config.dropout
        # codes are shifted by one: row 0 is padding, which a mean leaves out
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(field.num_codes + 1, size, mode="mean", padding_idx=0)
            for field in fields
        )
        for table in self.tables:
            assert isinstance(table, nn.EmbeddingBag)
            nn.init.normal_(table.weight, std=config.init_std)
            # values without training rows contribute nothing
            nn.init.zeros_(table.weight[: FIRST_KNOWN + 1].detach())
        self.directions = nn.Parameter(torch.randn(len(self.numbers), size) * config.init_std)
        inside = len(fields) * size
        self.layers = nn.ModuleList(CrossLayer(inside, config.rank) for _ in range(config.layers))
        self.output = nn.Linear(inside, width)

    def forward(self, rows: AttributeRows) -> tuple[Tensor, Tensor]:
        """Vectors of the rows, and whether any field is known."""
        rows = self._hidden(rows) if self.training and self.hide else rows
        codes_XS = rows.codes_XS.long() + 1
        embedded = [
            table(codes_XS[:, span]) for table, span in zip(self.tables, self.spans, strict=True)
        ]
        for number, index in enumerate(self.numbers):
            embedded[index] = (
                embedded[index] + rows.values_XM[:, number, None] * self.directions[number]
            )
        first_XE = inner_XE = torch.cat(embedded, dim=1)
        for layer in self.layers:
            inner_XE = layer(first_XE, inner_XE)
        present_X = (rows.codes_XS >= FIRST_KNOWN).any(1)
        return self.output(inner_XE) * present_X[:, None], present_X

    def _hidden(self, rows: AttributeRows) -> AttributeRows:
        """Set a share of the fields to missing."""
        codes_XS, values_XM = rows.codes_XS.clone(), rows.values_XM
        hidden_XF = torch.rand(len(codes_XS), len(self.spans), device=codes_XS.device) < self.hide
        for index, span in enumerate(self.spans):
            gone = torch.full_like(codes_XS[:, span], PADDING)
            # only the first slot: the others are padding, so that the mean is that of one category
            gone[:, 0] = MISSING
            codes_XS[:, span] = torch.where(hidden_XF[:, index, None], gone, codes_XS[:, span])
        return AttributeRows(codes_XS, values_XM * ~hidden_XF[:, self.numbers])


class Profile(Granularity):
    """z_u from a user's attributes, and attributes added to the item vectors.

    A user is present if any field is known, in the table or in the request; values of the request
    take precedence. An unknown category counts as missing: it does not make a user present.

    Raises
    ------
    ConfigError
        The dataset has no attributes.
    """

    reads_events = False
    keeps_size = True

    @classmethod
    def size(
        cls, section: ProfileConfig, dataset: PreparedDataset, through: Split
    ) -> dict[str, Any]:
        """The encoding of attributes.

        Parameters
        ----------
        section : ProfileConfig
            Names the attributes and says how they are read.
        dataset : PreparedDataset
            The dataset with the attributes.
        through : Split
            The encoding is fitted on users and items with events through this split.

        Returns
        -------
        dict of str to JSON values
            The fields of ``users`` and of ``items``.

        Raises
        ------
        ConfigError
            A named field does not exist, or cannot be read as configured.
        """
        return profile_encoding(section, dataset, through).to_json()

    @classmethod
    def build_input(
        cls, section: ProfileConfig, sizes: ModelSizes, dataset: PreparedDataset, through: Split
    ) -> Profiles | None:
        """The encoded attributes of users and items.

        Parameters
        ----------
        section : ProfileConfig
            Not read.
        sizes : ModelSizes
            ``sizes.inputs`` has the encoding.
        dataset : PreparedDataset
            The dataset with the attributes.
        through : Split
            Not read, because attributes are not events.

        Returns
        -------
        Profiles or None
            None if the model has no encoding.
        """
        return encoded_attributes(sizes, dataset)

    def __init__(self, config: ProfileConfig, sizes: ModelSizes) -> None:
        super().__init__()
        config.check(sizes)
        encoding = encoding_of(sizes)
        assert encoding is not None, "checked"
        self.width, self.fields = sizes.width, encoding.users
        self.users = FieldCross(encoding.users, config, sizes.width) if encoding.users else None
        self.items = FieldCross(encoding.items, config, sizes.width) if encoding.items else None
        if self.items is not None:  # at the start attributes do not change the item vectors
            nn.init.zeros_(self.items.output.weight)
            nn.init.zeros_(self.items.output.bias)

    @classmethod
    def for_serving(cls, config: ProfileConfig, sizes: ModelSizes) -> Profile:
        """Leave out the items' network, whose result is in the item vectors."""
        made = cls(config, sizes)
        made.items = None
        return made

    @property
    def needs_all_items(self) -> bool:
        """True if items have attributes."""
        return self.items is not None

    def refine_items(self, base_ND: Tensor, graphs: Graphs) -> Tensor:
        """Add the attributes to the item vectors."""
        if self.items is None or "profile" not in graphs.inputs:
            return base_ND
        added_ND: Tensor = self.items(graphs["profile"].items)[0]
        return base_ND + added_ND

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Return the encoded users, so that a served model can combine them with values of a
        request.
        """
        users = graphs["profile"].users
        return {"codes_VS": users.codes_XS, "values_VM": users.values_XM}

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """User vectors from attributes, and where any field is known.

        Parameters
        ----------
        batch : Batch
            Users, and attributes that requests give; histories are not read.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``codes_VS`` and ``values_VM``, the encoded users.

        Returns
        -------
        z_BD : Tensor, [B, D] float
            User vector of each query.
        present_B : Tensor, [B] bool
            Whether a field of the user is known; False everywhere if users have no fields.
        """
        if self.users is None:
            size, device = batch.rows_B.shape[0], batch.users_U.device
            return torch.zeros(size, self.width, device=device), torch.zeros(
                size, dtype=torch.bool, device=device
            )
        z_UD, present_U = self.users(known_rows(batch, state, self.fields))
        return z_UD[batch.rows_B], present_U[batch.rows_B]


def column_slices(fields: Sequence[Field]) -> list[slice]:
    """Slots of every field in an encoded row."""
    starts = list(accumulate((field.slots for field in fields), initial=0))
    return [slice(start, stop) for start, stop in pairwise(starts)]


def known_rows(batch: Batch, state: State, fields: Sequence[Field]) -> AttributeRows:
    """Return the known attributes of the batch's users: those of the request, else those of the
    table.

    ``state`` has the table as ``codes_VS`` and ``values_VM``.

    Parameters
    ----------
    batch : Batch
        Users of the rows; ``inputs["profile"]`` has the attributes of requests.
    state : dict of str to Tensor
        ``codes_VS`` [V, S] int32 and ``values_VM`` [V, M] float32.
    fields : Sequence of Field
        Fields of users, in the order of their slots.

    Returns
    -------
    AttributeRows
        Codes [U, S] and values [U, M]; missing where neither the request nor the table has one.
    """
    found_U = batch.users_U.clamp(min=0)
    # unknown users have the number −1; clamped above to be a valid row
    known_U1 = (batch.users_U >= 0)[:, None]
    first = [span.start for span in column_slices(fields)]
    nothing_S = torch.full_like(state["codes_VS"][0], PADDING)  # the row of an unknown user
    nothing_S[first] = MISSING
    codes_US = torch.where(known_U1, state["codes_VS"][found_U], nothing_S)
    stored = AttributeRows(codes_US, state["values_VM"][found_U] * known_U1)
    given = batch.inputs.get("profile")
    if given is None:
        return stored
    is_given_US = given.codes_XS != NOT_GIVEN
    is_number = [
        start for start, field in zip(first, fields, strict=True) if field.kind == "number"
    ]
    return replace(
        stored,
        codes_XS=torch.where(is_given_US, given.codes_XS, stored.codes_XS),
        values_XM=torch.where(is_given_US[:, is_number], given.values_XM, stored.values_XM),
    )
