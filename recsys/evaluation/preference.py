"""Which of two models users prefer in interleaved lists (:mod:`recsys.serving.interleaving`).

A model wins an answer if the items that it picked have the larger reward. The preference is

    (answers won by b − answers won by a) / (answers won by either),

from −1 (a wins all) to +1 (b wins all); 0 is no preference (Chapelle, Joachims, Radlinski and Yue
2012). Answers without a winner do not count. Intervals resample users, because the answers to one
user are similar.

Legend: A answers, U users.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recsys.data.histories import Array
from recsys.evaluation.bootstrap import Comparison, bootstrap_means, comparison


@dataclass(frozen=True)
class Preference:
    """Answers won by each model, and the preference for b."""

    answers: int
    users: int
    won_a: int
    won_b: int
    preference: Comparison | None  # None: no answer has a winner

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = None if self.preference is None else self.preference.to_json()
        return {**asdict(self), "preference": found}


def preference(users_A: Array, gains_A: Array, resamples: int, seed: int) -> Preference:
    """The preference for b.

    Parameters
    ----------
    users_A : array, [A] int
        User of each answer, numbered from 0.
    gains_A : array, [A] float
        Reward of the items of b minus that of the items of a, by answer.
    resamples : int
        Number of bootstrap draws over users.
    seed : int
        Seed of the draws.
    """
    num_users = int(users_A.max(initial=-1)) + 1
    wins_U2 = np.stack(
        [np.bincount(users_A, won_A, num_users) for won_A in (gains_A < 0, gains_A > 0)], axis=1
    )
    won_a, won_b = (int(number) for number in wins_U2.sum(0))
    found = None
    if won_a + won_b:
        drawn_R2 = bootstrap_means(wins_U2, resamples, seed)
        # a resample without any winner shows no preference
        total_R = drawn_R2.sum(1)
        drawn_R = np.divide(
            drawn_R2[:, 1] - drawn_R2[:, 0], total_R, out=np.zeros_like(total_R), where=total_R > 0
        )
        found = comparison((won_b - won_a) / (won_a + won_b), drawn_R)
    return Preference(len(gains_A), len(np.unique(users_A)), won_a, won_b, found)
