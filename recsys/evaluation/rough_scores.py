"""The k best items by u · a_i, found by products in bfloat16 and decided in float32.

Why: some processors multiply bfloat16 matrices twice as fast as float32 ones, and the scores take
half of the memory. Rough scores only choose candidates. A bound of their error decides which items
must be among these, and the candidates get float32 scores.

The bound: let s be the product of u and v, and p that of the rounded û and v̂. Then
|p − s| = |û · v̂ − u · v| ≤ ‖û − u‖ ‖v̂‖ + ‖u‖ ‖v̂ − v‖ by the Cauchy–Schwarz inequality, where
‖v̂ − v‖ ≤ 2⁻⁸ ‖v‖. The sums of D products in float32 add at most D 2⁻²³ ‖u‖ ‖v‖ to each. Call the
total for the longest v e. If k items have rough scores of at least t > 0, they have
s ≥ t (1 − 2⁻⁸) − e, so each of the k best has p ≥ t (1 − 2⁻⁸) − 2e. Rounding keeps the order, so
its rough score is at least that, rounded.

Legend: b users, r users of a block, K list length, N items, X items and padding, D width, G groups,
C candidates, M candidates or members of a group.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from recsys.data.histories import Array
from recsys.processor import is_fast_in_bfloat16, multiplies_with_onednn

# items in a group; the search for the k best first looks at the maximum of each group
GROUP: Final = 16
_LEAST_USERS: Final = 128  # rounding the items costs as much as is saved for about 64 users
_MOST_WIDTH: Final = 256  # the bound grows with the width; wider, there are too many candidates
# numbers in the vectors of a list; those of all candidates of 512 users are in memory at a time
_MOST_GATHERED: Final = 2**13
_ROUNDING: Final = 2.0**-8  # largest relative error of rounding to bfloat16
_NORMAL: Final = 2.0**-40, 2.0**40  # lengths whose products are far from float32's limits
_HIDDEN: Final = -(2**15)  # the bits of −0, as int16 below all others
_LOW: Final = 2**32 - 1  # the lower half of an int64


def rough_scores_help(users_bD: Tensor, vectors_ND: Tensor, k: int) -> bool:
    """Whether the search by rough scores is faster.

    oneDNN is required for float32, too: it rounds the product of two vectors as in the product of
    whole matrices.

    Parameters
    ----------
    users_bD : Tensor, [b, D] float
        User vectors.
    vectors_ND : Tensor, [N, D] float
        Item vectors.
    k : int
        Length of the lists.
    """
    return (
        users_bD.device.type == "cpu"
        and users_bD.dtype == vectors_ND.dtype == torch.float32
        and len(users_bD) >= _LEAST_USERS
        and vectors_ND.shape[1] <= min(_MOST_WIDTH, _MOST_GATHERED // k)
        # as for scores in float32: with few groups per listed item, almost every group is near
        and len(vectors_ND) // GROUP >= 2 * k
        and is_fast_in_bfloat16()
        and multiplies_with_onednn()
    )


class RoughScores:
    """Scores in bfloat16 of all items for some users, and how far they are from float32 ones.

    Rough scores are compared as int16, which numpy does many at a time. Positive bfloat16 numbers
    and their bits as int16 have the same order, and negative numbers stay below them.
    """

    def __init__(self, users_bD: Tensor, vectors_ND: Tensor) -> None:
        num_items, width = vectors_ND.shape
        self._rounded_bD = users_bD.bfloat16()
        # zero vectors fill the last group; no candidate has score 0
        rounded_XD = vectors_ND.new_zeros(
            num_items + -num_items % GROUP, width, dtype=torch.bfloat16
        )
        rounded_XD[:num_items] = vectors_ND
        self._items_DX = rounded_XD.T
        length_b, longest = users_bD.norm(dim=1), float(vectors_ND.norm(dim=1).max())
        lost_b = (users_bD - self._rounded_bD).norm(dim=1)
        # measuring what rounding changed of all items would cost more than it saves
        error_b = lost_b * (1 + _ROUNDING) + length_b * (_ROUNDING + 2 * width * 2.0**-23)
        self._error_b = error_b * (longest * 1.001)  # the lengths are rounded, too
        least, most = _NORMAL
        # false for NaN, too
        self._usable_b = (length_b > least) & (length_b < most) & (least < longest < most)

    def buffer(self, num_rows: int) -> Tensor:
        """Memory for the rough scores of some users: [r, X]."""
        return torch.empty(num_rows, self._items_DX.shape[1], dtype=torch.bfloat16)

    def candidates(
        self, rows: slice, k: int, rows_E: Array, hidden_E: Array, buffer_rX: Tensor
    ) -> tuple[Array, Array, Array]:
        """Rows (ascending, from 0) and items [C] of the candidates of some users, and which of the
        users [r] were left out.

        The candidates include the k best items and all that tie with the last of them. Users are
        left out if many rough scores are near the bound, if the bound is not positive, or if a
        vector has an extreme length.

        Parameters
        ----------
        rows : slice
            The users.
        k : int
            Length of the lists.
        rows_E : Array
            Row of each hidden item, from 0.
        hidden_E : Array
            Items that must not be listed.
        buffer_rX : Tensor
            See :meth:`buffer`.
        """
        rounded_rD = self._rounded_bD[rows]
        scores_rX = torch.mm(rounded_rD, self._items_DX, out=buffer_rX[: len(rounded_rD)])
        bits_rX = scores_rX.view(torch.int16).numpy()
        bits_rX[rows_E, hidden_E] = _HIDDEN
        bits_rMG = bits_rX.reshape(len(bits_rX), GROUP, -1)
        best_rG = bits_rMG.max(axis=1)
        # k groups have a maximum of at least this bound
        groups = best_rG.shape[1]
        bound_r = np.partition(best_rG, groups - k, axis=1)[:, groups - k]
        least_r = self._least(rows, bound_r)
        near_rG = best_rG >= least_r[:, None]
        left_r = (least_r <= 0) | (np.count_nonzero(near_rG, axis=1) > 4 * k)
        near_rG[left_r] = False
        rows_c, groups_c = np.divmod(np.flatnonzero(near_rG), groups)
        near = np.flatnonzero(bits_rMG[rows_c, :, groups_c] >= least_r[rows_c, None])
        groups_C, members_C = np.divmod(near, GROUP)
        return rows_c[groups_C], groups_c[groups_C] + groups * members_C, left_r

    def _least(self, rows: slice, bound_r: Array) -> Array:
        """The least rough score of a candidate as int16, 0 or less where there is none."""
        bound = torch.from_numpy(bound_r).view(torch.bfloat16).float()
        least_r = bound * (1 - _ROUNDING) - 2 * self._error_b[rows]
        least_r = torch.where(self._usable_b[rows], least_r, 0.0)
        return np.asarray(least_r.bfloat16().view(torch.int16).numpy())


def best_candidates(
    users_bD: Tensor,
    vectors_ND: Tensor,
    k: int,
    counts_b: Array,
    items_C: Array,
    shuffled: tuple[Array, Array],
) -> tuple[Array, Array]:
    """The k candidates with the highest scores u · a_i of every user, and these scores.

    Parameters
    ----------
    users_bD : Tensor, [b, D] float32
        User vectors.
    vectors_ND : Tensor, [N, D] float32
        Item vectors.
    k : int
        Length of the lists.
    counts_b : array, [b] int
        Number of candidates of each user.
    items_C : array, [C] int
        The candidates of the first user, then those of the next.
    shuffled : tuple of array, [N] int
        Place of each item among items of equal score, and the item at each place.

    Returns
    -------
    items_bK : array, [b, K] int
        Items, best first; meaningless for a user with fewer than K candidates.
    scores_bK : array, [b, K] float32
        Their scores; meaningless there, too.
    """
    place_N, at_place_N = shuffled
    is_real_bM = np.arange(max(k, counts_b.max())) < counts_b[:, None]
    items_bM = np.zeros(is_real_bM.shape, dtype=np.int64)
    items_bM[is_real_bM] = items_C
    # indexing by brackets takes twice as long
    vectors_bMD = embedding(torch.from_numpy(items_bM), vectors_ND)
    scores_bM = torch.bmm(users_bD[:, None], vectors_bMD.transpose(1, 2))[:, 0].numpy()
    # one whole number has the order of score, then place; + 0 turns −0 into 0
    order_bM = _swapped((scores_bM + np.float32(0)).view(np.int32)).astype(np.int64)
    keys_bM = (-order_bM << 32) | place_N[items_bM]
    keys_bM[~is_real_bM] = np.iinfo(np.int64).max - _LOW  # last; place 0
    keys_bM.sort(axis=1)
    best_bK = keys_bM[:, :k]
    scores_bK = _swapped((-(best_bK >> 32)).astype(np.int32)).view(np.float32)
    return at_place_N[best_bK & _LOW], scores_bK


def _swapped(bits: Array) -> Array:
    """Bits of float32 numbers as int32 that have the order of the numbers, and back again."""
    return np.asarray(bits ^ ((bits >> 31) & np.int32(2**31 - 1)))
