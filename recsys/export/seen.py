"""The input of queries as padded tensors, which an ONNX graph can read.

The closed-form members read one flat list of events, whose length depends on the data. A graph has
fixed operations, so here every query keeps its row, and a mask says which events count.

Legend: B queries, L length of the longest history, T event types, F friends, S slots and M numbers
of attributes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.data.attributes import AttributeRows
from recsys.data.batches import Batch
from recsys.granularities.history import DAY


@dataclass(frozen=True)
class Seen:
    """B queries with their whole histories, the oldest event first, padded at the end."""

    items_BL: Tensor  # int64
    lengths_B: Tensor  # int64
    types_BL: Tensor  # int64
    times_BL: Tensor  # int64 seconds since the epoch, 0 if unknown
    values_BL: Tensor  # float32, NaN if unknown
    context_BLC: Tensor  # int64 codes
    asked_at_B: Tensor  # int64 seconds since the epoch, 0 if unknown
    asked_BC: Tensor  # int64 codes
    users_B: Tensor  # int64, -1 if unknown
    friends_BF: Tensor  # int64, -1 after the end
    attributes: AttributeRows
    user_text_BT: Tensor  # float32, zero without

    @property
    def positions_L(self) -> Tensor:
        """Positions 0 … L − 1."""
        return torch.arange(self.items_BL.shape[1], device=self.items_BL.device)

    @property
    def real_BL(self) -> Tensor:
        """True at events, False at padding."""
        return self.positions_L < self.lengths_B[:, None]

    @property
    def lags_BL(self) -> Tensor:
        """Number of later events after each event, at least 0."""
        return (self.lengths_B[:, None] - 1 - self.positions_L).clamp(min=0)

    def newest(self, most: int) -> Tensor:
        """True at the last ``most`` events of every query."""
        return self.real_BL & (self.positions_L >= self.lengths_B[:, None] - most)

    def of_types(self, kept_BL: Tensor, counts_T: Tensor | None) -> Tensor:
        """The kept events whose types count; all kept events if ``counts_T`` is None."""
        return (
            kept_BL if counts_T is None or not len(counts_T) else kept_BL & counts_T[self.types_BL]
        )

    def distinct(self, kept_BL: Tensor) -> Tensor:
        """The newest kept event of every item."""
        same_BLL = self.items_BL[:, :, None] == self.items_BL[:, None, :]
        is_later_LL = self.positions_L[None, :] > self.positions_L[:, None]
        return kept_BL & ~(same_BLL & kept_BL[:, None, :] & is_later_LL).any(2)

    def days_before(self, asked_at_B: Tensor, kept_BL: Tensor) -> Tensor:
        """Days from each event to its query, as :meth:`SeenEvents.days_before`: [B, L]."""
        # far below any time, and a difference from it does not overflow
        least = -(2**62)
        newest_B = torch.where(kept_BL, self.times_BL, least).amax(1)
        newest_B = torch.where(kept_BL.any(1), newest_B, 0)
        asked_B = torch.where(asked_at_B == 0, newest_B, asked_at_B)
        days_BL = (asked_B[:, None] - self.times_BL).clamp(min=0) / DAY
        return torch.where((self.times_BL == 0) | ~kept_BL, 0.0, days_BL.float())

    def event_weights(self, kept_BL: Tensor, recency: float, half_life: float | None) -> Tensor:
        """(n + 1)^(−p) 2^(−days / h) of kept events, as :func:`event_weights`; zero elsewhere: [B,
        L].

        Parameters
        ----------
        kept_BL : Tensor
            Bool [B, L]: events that count.
        recency : float
            Exponent p.
        half_life : float | None
            Half-life h in days; None: age does not matter.

        Returns
        -------
        Tensor
            Float [B, L]. Very small weights of a query are raised by one common factor.
        """
        logs_BL = -recency * (self.lags_BL + 1).float().log2()
        if half_life is not None:
            logs_BL = logs_BL - self.days_before(self.asked_at_B, kept_BL) / half_life
        # finite, because −∞ minus −∞ is NaN for a query without events
        most_B = torch.where(kept_BL, logs_BL, -1e30).amax(1)
        raised_B = torch.where(kept_BL.any(1), (-20.0 - most_B).clamp(min=0), 0.0)
        return torch.exp2(logs_BL + raised_B[:, None]).where(kept_BL, 0.0)

    def per_item(self, values_BL: Tensor, num_items: int) -> Tensor:
        """Sum of the events' values by item: [B, N]."""
        sums_BN = values_BL.new_zeros(values_BL.shape[0], num_items)
        return sums_BN.scatter_add(1, self.items_BL, values_BL)

    def batch(self, most: int) -> Batch:
        """The last ``most`` events of every query, as the trained granularities read them."""
        places_l = torch.arange(most, device=self.items_BL.device)
        lengths_B = self.lengths_B.clamp(max=most)
        real_Bl = places_l < lengths_B[:, None]
        # clamped only to be a valid index; the mask hides those places
        index_Bl = ((self.lengths_B - lengths_B)[:, None] + places_l).clamp(
            max=self.items_BL.shape[1] - 1
        )

        def tail(values_BL: Tensor) -> Tensor:
            return torch.where(real_Bl, values_BL.gather(1, index_Bl), 0)

        times_Bl = tail(self.times_BL)
        is_known_Bl = real_Bl & (times_Bl != 0)
        last_B = torch.where(is_known_Bl, times_Bl, -(2**62)).amax(1)
        ages_Bl = torch.where(is_known_Bl, (last_B[:, None] - times_Bl).double() / DAY, 0.0).float()
        contexts = [tail(codes_BL) for codes_BL in self.context_BLC.unbind(2)]
        rows_B = torch.arange(self.lengths_B.shape[0], device=self.items_BL.device)
        inputs = {
            "friends": self.friends_BF,
            "profile": self.attributes,
            "user_text": self.user_text_BT,
        }
        return OnceARow(
            users_U=self.users_B,
            history_UL=tail(self.items_BL),
            types_UL=tail(self.types_BL),
            times_UL=times_Bl,
            ages_UL=ages_Bl,
            values_UL=tail(self.values_BL),
            lengths_U=lengths_B,
            rows_B=rows_B,
            seen_B=lengths_B,
            pairs_P=rows_B[:0],
            targets_P=rows_B[:0],
            asked_at_B=self.asked_at_B,
            context_ULC=torch.stack(contexts, dim=2) if contexts else self.context_BLC[:, :most],
            asked_BC=self.asked_BC,
            inputs=inputs,
        )


@dataclass(frozen=True)
class OnceARow(Batch):
    """A batch with one query per row that sees the whole row; a graph cannot detect this in the
    data.
    """

    @property
    def has_one_query_per_row(self) -> bool:
        """Always true."""
        return True

    @property
    def sees_whole_rows(self) -> bool:
        """Always true."""
        return True
