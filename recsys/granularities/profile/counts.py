"""Profile by counting: what users with the same attributes choose more often than all users (S3),
``profile.fit: counts``.

Every cross of fields, such as age × gender, divides the users into cells g. A user is in a cell
with the share m_ug: 1 or 0 for a category, a share of the list for a member of a list. A number is
shared between the two nearest quantiles by distance, so that users of age 29 and 31 are similar. A
cross is the product of its fields.

    c_gi = Σ_u m_ug x_ui,     a_ig = log((c_gi + α p_i) / ((n_g + α) p_i)),     r_ui = Σ_g m_ug a_ig

where p_i is the item's share of all training events, n_g = Σ_i c_gi. The logarithm adds up over
crosses as in naive Bayes. A user without history, present in no other granularity, is ranked by log
p_i in addition, that is by the probability of an item in the user's cells. A missing attribute
leaves out the crosses that contain it.

It has a closed form and is not trained. Why: a network that reads attributes in training memorises
the few users.

Legend: B queries, U rows, V users, N items, X rows, G cells, C values of a field, S slots, E
training events.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys import schema
from recsys.config import Config
from recsys.data.attributes import FIRST_KNOWN, AttributeRows, Field, Profiles, rows_differ
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.errors import ConfigError, valid_instead
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.event_matrix import EventMatrix
from recsys.granularities.log_odds import MOST_NUMBERS, log_odds
from recsys.granularities.profile.attribute_encoding import (
    encoded_attributes,
    encoding_of,
    profile_encoding,
)
from recsys.granularities.profile.model import column_slices, known_rows
from recsys.granularities.profile.section import ProfileConfig

_MAX_CELLS: Final = 4096
_LEAST_CELLS: Final = 64
_MEMBERSHIPS: Final = 2**22  # shares of users in cells that are in memory at a time


class ProfileCounts(Granularity):
    """A closed-form member with its own item vectors; present where all fields of a cross are
    known.

    Raises
    ------
    ConfigError
        The users have no attributes, a cross names unknown fields, or there are too many cells.
    """

    closed_form = True
    is_side_information = True
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

    @classmethod
    def proposed(cls, section: ProfileConfig, dataset: PreparedDataset) -> dict[str, Any]:
        """Keep only the most frequent values of each field if all would be too many cells for the
        items.

        Parameters
        ----------
        section : ProfileConfig
            Has no crosses, so that each value is a cell.
        dataset : PreparedDataset
            The dataset with the attributes.

        Returns
        -------
        dict of str to int
            ``max_categories``; empty if all values can be cells.

        Raises
        ------
        ConfigError
            As in :meth:`size`.
        """
        # users who come later may have further values
        most_cells = min(_MAX_CELLS, max(MOST_NUMBERS // dataset.num_items, _LEAST_CELLS))
        encodings = [profile_encoding(section, dataset, through) for through in Split]
        found = [_most_categories(encoding.users, most_cells) for encoding in encodings]
        most = min((number for number in found if number is not None), default=None)
        return {} if most is None else {"max_categories": most}

    @classmethod
    def idle(cls, section: ProfileConfig, dataset: PreparedDataset, config: Config) -> str:
        """Attributes must distinguish users.

        Parameters
        ----------
        section : ProfileConfig
            Names the attributes and says how they are read.
        dataset : PreparedDataset
            The dataset with the attributes.
        config : Config
            Not read.

        Returns
        -------
        str
            Why attributes do not distinguish users; "" if they do.

        Raises
        ------
        ConfigError
            As in :meth:`size`.
        """
        columns = [name for name in dataset.user_features.column_names if name != schema.USER_ID]
        if not columns:
            return "users have no attributes"
        fields = profile_encoding(section, dataset, Split.TRAIN).users
        if rows_differ(dataset.user_features, fields):
            return ""
        return f"values of {', '.join(columns)} are nearly all different, or all equal"

    def __init__(self, config: ProfileConfig, sizes: ModelSizes) -> None:
        super().__init__()
        config.check(sizes)
        encoding = encoding_of(sizes)
        assert encoding is not None, "checked"
        self.cells, self.smoothing = Cells(encoding.users, config.crosses), config.smoothing

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Log-odds of the items in every cell."""
        users, device = graphs["profile"].users, items.vectors_SD.device
        num_cells = self.cells(users.take(slice(0, 0))).shape[1]
        counts_NG = np.zeros((graphs.num_items, num_cells), dtype=np.float32)
        at_a_time = max(1, _MEMBERSHIPS // max(1, num_cells))
        for rows, part in EventMatrix.of(graphs).blocks(users=at_a_time):
            counts_NG += part.T @ self.cells(users.take(rows)).cpu().numpy()
        counts_GN = torch.as_tensor(counts_NG.T).contiguous().to(graphs.degree_N.device)
        share_N = graphs.degree_N / graphs.degree_N.sum().clamp(min=1)
        odds_GN = log_odds(counts_GN, counts_GN.sum(1, keepdim=True), share_N, self.smoothing)
        popularity_N = ((graphs.degree_N + 1) / (graphs.degree_N.sum() + graphs.num_items)).log()
        vectors_NG = torch.cat([odds_GN, popularity_N[None]]).T.contiguous()
        return {
            "vectors_NG": vectors_NG.to(device),
            "codes_VS": users.codes_XS,
            "values_VM": users.values_XM,
        }

    def own_items(self, state: State) -> Tensor:
        """Log-odds of the items in every cell."""
        return state["vectors_NG"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Shares of every user in the cells, and where attributes are known.

        Parameters
        ----------
        batch : Batch
            Users, and attributes that requests give; of the history only whether it is empty.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``codes_VS`` and ``values_VM``, the encoded users.

        Returns
        -------
        z_BG : Tensor, [B, G + 1] float32
            m_ug; the last column, which is that of log p, is 1 for a present user without history.
        present_B : Tensor, [B] bool
            Whether the user is in a cell.
        """
        member_BG = self.cells(known_rows(batch, state, self.cells.fields))[batch.rows_B]
        present_B = (member_BG > 0).any(1)
        is_new_B = present_B & (batch.seen_B == 0)
        return torch.cat([member_BG, is_new_B[:, None].to(member_BG.dtype)], dim=1), present_B


class Cells:
    """Map encoded rows of users to their share of every cell: [X, S] → [X, G]."""

    def __init__(self, fields: Sequence[Field], crosses: Sequence[Sequence[str]]) -> None:
        self.fields = fields
        names = [field.name for field in fields]
        if unknown := sorted({name for cross in crosses for name in cross} - {*names}):
            raise ConfigError(
                f"model.granularities.profile.crosses names {', '.join(unknown)}, not among the"
                f" fields of users; {valid_instead(unknown[0], names, 'fields')}"
            )
        self.crosses = [[names.index(name) for name in cross] for cross in crosses] or [
            [k] for k in range(len(names))
        ]
        sizes = [_num_values(field) for field in fields]
        num_cells = sum(int(np.prod([sizes[index] for index in cross])) for cross in self.crosses)
        if num_cells > _MAX_CELLS:
            section = "model.granularities.profile"
            most = _most_categories(fields, _MAX_CELLS)
            raise ConfigError(
                f"{section}.crosses makes {num_cells:,} cells, at most {_MAX_CELLS:,}; cross fewer"
                " fields, or reduce bins or max_categories"
                if crosses
                else f"{section}: the fields of users have {num_cells:,} values, at most"
                f" {_MAX_CELLS:,}; set max_categories {most} to keep the most frequent values, or"
                f" name fewer fields in user_fields (now {', '.join(names)})"
            )

    def __call__(self, rows: AttributeRows) -> Tensor:
        """Shares of every row in the cells: [X, G]."""
        numbers = [field.name for field in self.fields if field.kind == "number"]
        shares = []
        for field, span in zip(self.fields, column_slices(self.fields), strict=True):
            values_X = (
                rows.values_XM[:, numbers.index(field.name)] if field.kind == "number" else None
            )
            shares.append(_shares(field, rows.codes_XS[:, span].long(), values_X))
        return torch.cat(
            [reduce(_product, [shares[index] for index in cross]) for cross in self.crosses], dim=1
        )


def _knots(field: Field) -> Array:
    """The quantiles between which a number is shared, on the scale of the encoded values.

    Empty if there are fewer than two: then its bins are cells.
    """
    knots = np.unique(field.scaled(np.array(field.edges)))
    return np.asarray(knots if len(knots) > 1 else knots[:0], dtype=np.float32)


def _num_values(field: Field) -> int:
    knots = len(_knots(field)) if field.kind == "number" else 0
    return knots or field.num_codes - FIRST_KNOWN


def _most_categories(fields: Sequence[Field], most_cells: int) -> int | None:
    """The largest number of categories a field with which every value can be a cell; None if all
    values can be.
    """
    left = most_cells - sum(_num_values(field) for field in fields if field.kind == "number")
    sizes = sorted(_num_values(field) for field in fields if field.kind != "number")
    for place, size in enumerate(sizes):
        share = left // (len(sizes) - place)
        if size > share:
            return max(1, share)
        left -= size
    return None


def _shares(field: Field, codes_XS: Tensor, values_X: Tensor | None) -> Tensor:
    """Shares of a row among the values of a field: [X, C], zero where unknown."""
    known_XS = codes_XS >= FIRST_KNOWN
    knots = _knots(field) if field.kind == "number" else np.zeros(0, dtype=np.float32)
    if len(knots) and values_X is not None:
        knots_C = torch.as_tensor(knots, device=codes_XS.device)
        at_X = values_X.clamp(float(knots[0]), float(knots[-1]))
        below_X = ((knots_C <= at_X[:, None]).sum(1) - 1).clamp(0, len(knots_C) - 2)
        share_X = (at_X - knots_C[below_X]) / (knots_C[below_X + 1] - knots_C[below_X])
        shares_XC = at_X.new_zeros(at_X.shape[0], len(knots_C))
        shares_XC.scatter_(1, below_X[:, None], (1 - share_X)[:, None])
        shares_XC.scatter_(1, below_X[:, None] + 1, share_X[:, None])
        return shares_XC * known_XS
    shares_XC = torch.zeros(codes_XS.shape[0], _num_values(field), device=codes_XS.device)
    shares_XC.scatter_add_(1, (codes_XS - FIRST_KNOWN).clamp(min=0), known_XS.to(shares_XC.dtype))
    return shares_XC / known_XS.sum(1, keepdim=True).clamp(min=1)


def _product(left_XC: Tensor, right_XC: Tensor) -> Tensor:
    return (left_XC[:, :, None] * right_XC[:, None, :]).flatten(1)
