"""Log-ratio between how often a group and all users choose something, from counts; for members with
``fit: counts``.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

# numbers for all items that `model: auto` lets such a member keep, 268 MB: each is also a direction
# of every score
MOST_NUMBERS: Final = 2**26


def log_odds(counts_XG: Tensor, total_X1: Tensor, share_G: Tensor, smoothing: float) -> Tensor:
    """log((c + α p) / ((n + α) p)): 0 where nothing is counted (n = 0) or p = 0, near 0 for small
    counts.

    Legend: X rows, G categories, p the share of a category among all events, α the smoothing in
    events.

    >>> import torch
    >>> counts, share = torch.tensor([[3.0, 1.0]]), torch.tensor([0.5, 0.5])
    >>> log_odds(counts, torch.tensor([[4.0]]), share, 4.0).exp()
    tensor([[1.2500, 0.7500]])

    Parameters
    ----------
    counts_XG : Tensor, [X, G] float
        c, the events of each row in each category.
    total_X1 : Tensor, [X, 1] or [X, G] float
        n, the events that c is compared with.
    share_G : Tensor, [G] float
        p, 0 to 1.
    smoothing : float
        α, above 0.

    Returns
    -------
    Tensor, [X, G] float
        The natural logarithms.
    """
    known_G = share_G > 0
    share_G = share_G.where(known_G, 1.0)
    odds_XG = (counts_XG + smoothing * share_G) / ((total_X1 + smoothing) * share_G)
    return odds_XG.log() * known_G
