"""Leading singular vectors of the training events, for ``item_cf`` and ``user_cf``.

The events are read in blocks of users, and only sums over users are kept: Gram matrices, or the
products MᵀM Q of a subspace iteration. So memory does not grow with the events.

Legend: V users, N items, T text width, R rank, M rows of the stacked matrix.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import eigh

from recsys.data.histories import Array
from recsys.granularities.event_matrix import EventMatrix

_OVERSAMPLE: Final = 32
_ITERATIONS: Final = 6
_EXACT_SIDE: Final = 2500
_WIDE_SIDE: Final = 5000  # limit of the exact method if many factors are requested
# share of the largest squared singular value; below it is rounding error
_LEAST_SHARE: Final = 1e-9
_ROWS: Final = 2**14  # items whose rows are in float64 at a time
_NUMBERS: Final = 2**24  # numbers of users in memory at a time: 64 MB, and 128 MB in float64


def spectrum(events_VN: EventMatrix, text_NT: Array, rank: int) -> tuple[Array, Array]:
    """Leading right singular vectors [N, R] and values [R] of the events stacked on the transposed
    text.

    Rank R is limited to the smaller side of the stacked matrix. Exact with the smaller Gram matrix
    if its side is at most 2500 (5000 for many factors); else randomised subspace iteration (Halko
    et al. 2011), deterministic.

    Parameters
    ----------
    events_VN : EventMatrix, [V, N] float32
        The events.
    text_NT : array, [N, T] float
        Text vectors of the items, already multiplied with √α; T may be 0.
    rank : int
        Most singular vectors that are returned.

    Returns
    -------
    basis_NR : array, [N, R] float
        The vectors.
    sigma_R : array, [R] float
        Their singular values, the largest first.
    """
    largest = min(events_VN.shape[0] + text_NT.shape[1], events_VN.shape[1])
    if largest <= _EXACT_SIDE or (largest <= _WIDE_SIDE and rank > largest // 4):
        return _by_gram(events_VN, text_NT, min(rank, largest))
    return _randomised(events_VN, text_NT, rank)


def _by_gram(events_VN: EventMatrix, text_NT: Array, rank: int) -> tuple[Array, Array]:
    num_users, num_items = events_VN.shape
    # the smaller Gram matrix has the same singular values; time and memory grow with its side
    is_by_users = num_users + text_NT.shape[1] <= num_items
    events = events_VN.whole() if is_by_users else None  # few users have few events
    gram = _gram_of_items(events_VN, text_NT) if events is None else _gram_of_users(events, text_NT)
    side = len(gram)
    # float64: squaring has already halved the digits of small singular values
    squares_R, vectors = eigh(gram.astype(np.float64), subset_by_index=[side - rank, side - 1])
    # rounding can make a zero eigenvalue slightly negative, and its root NaN
    squares_R, vectors = squares_R[::-1].clip(0), vectors[:, ::-1]
    sigma_R = np.sqrt(squares_R)
    if events is not None:
        vectors = np.asarray(events.T @ vectors[:num_users] + text_NT @ vectors[num_users:])
        # below this, a vector is rounding error, and dividing by σ would blow it up to length 1
        real_R = squares_R > _LEAST_SHARE * max(float(squares_R[0]), 1e-12)
        vectors = vectors * np.where(real_R, 1 / np.maximum(sigma_R, 1e-12), 0.0)
        sigma_R = sigma_R * real_R
    return np.ascontiguousarray(vectors, dtype=np.float32), sigma_R.astype(np.float32)


def _gram_of_users(events_VN: sp.csr_array, text_NT: Array) -> Array:
    """M Mᵀ."""
    across = np.asarray(events_VN @ text_NT)
    return np.block(
        [[(events_VN @ events_VN.T).toarray(), across], [across.T, text_NT.T @ text_NT]]
    )


def _gram_of_items(events_VN: EventMatrix, text_NT: Array) -> Array:
    """MᵀM."""
    gram_NN = text_NT @ text_NT.T
    for _, part in events_VN.blocks():
        gram_NN = gram_NN + (part.T @ part).toarray()
    return np.asarray(gram_NN)


def _randomised(events_VN: EventMatrix, text_NT: Array, rank: int) -> tuple[Array, Array]:
    num_users, num_items = events_VN.shape
    largest = min(num_users + text_NT.shape[1], num_items)
    width = min(min(rank, largest) + _OVERSAMPLE, largest)
    # a fixed seed: the same events must give the same model
    basis_NR = np.random.default_rng(0).normal(size=(num_items, width)).astype(np.float32)
    for _ in range(_ITERATIONS):
        # orthogonal after every product, else all columns turn towards the first singular vector
        basis_NR = _orthonormal(_through(events_VN, text_NT, basis_NR))
    basis_NR = _orthonormal(basis_NR)  # again, because of rounding
    # float64, as the singular values of the whole matrix are roots here
    squares_R, turn_RR = np.linalg.eigh(_gram_of(events_VN, text_NT, basis_NR))
    sigma_R = np.sqrt(squares_R[::-1].clip(0)).astype(np.float32)
    turn_RR = np.ascontiguousarray(turn_RR[:, ::-1], dtype=np.float32)
    return (basis_NR @ turn_RR)[:, :rank], sigma_R[:rank]


def _through(events_VN: EventMatrix, text_NT: Array, basis_NR: Array) -> Array:
    """MᵀM Q: [N, R]."""
    found_NR = text_NT @ (text_NT.T @ basis_NR)
    for _, part in events_VN.blocks(users=max(1, _NUMBERS // basis_NR.shape[1])):
        found_NR += part.T @ (part @ basis_NR)
    return np.asarray(found_NR)


def _gram_of(events_VN: EventMatrix, text_NT: Array, basis_NR: Array) -> Array:
    """(M Q)ᵀ(M Q), [R, R] float64."""
    rows_TR = text_NT.T.astype(np.float64) @ basis_NR
    gram_RR = rows_TR.T @ rows_TR
    for _, part in events_VN.blocks(users=max(1, _NUMBERS // basis_NR.shape[1])):
        rows_VR = (part @ basis_NR).astype(np.float64)
        gram_RR += rows_VR.T @ rows_VR
    return np.asarray(gram_RR)


def _orthonormal(tall: Array) -> Array:
    """An orthonormal basis of the columns, by Cholesky QR: X R⁻¹ with RᵀR = XᵀX.

    For 340,000 × 288 torch's QR takes 2.5 times as long, and NumPy's 12 times as long as torch's.
    """
    tall_NR = torch.as_tensor(tall)
    gram_RR = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for start in range(0, len(tall_NR), _ROWS):
        rows_nR = tall_NR[start : start + _ROWS].double()
        gram_RR += rows_nR.T @ rows_nR
    factor_RR, failed = torch.linalg.cholesky_ex(gram_RR, upper=True)
    if failed:  # the columns are not independent
        found_NR = torch.linalg.qr(tall_NR)[0]
    else:
        identity_RR = torch.eye(len(gram_RR), dtype=torch.float64)
        inverse_RR = torch.linalg.solve_triangular(factor_RR, identity_RR, upper=True)
        found_NR = tall_NR @ inverse_RR.to(tall_NR.dtype)
    basis: Array = found_NR.numpy()
    return basis
