"""An online experiment: the outcome of every version, with intervals that resample users.

Why users: the answers to one user are similar, so an interval over answers would be far too narrow.

Legend: A answers, U users, V versions, M sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.data.histories import Array
from recsys.evaluation.bootstrap import Comparison, Interval, bootstrap_means, comparison, interval

MEASURES: Final = ("reward_per_answer", "rewarded_share", "reward_per_user")


@dataclass(frozen=True)
class Outcome:
    """The outcome of the answers of a version."""

    answers: int
    users: int
    measures: dict[str, Interval]
    differences: dict[str, Comparison]  # from the first version; empty for the first


def outcomes(
    users_A: Array,
    versions_A: Array,
    rewards_A: Array,
    num_versions: int,
    resamples: int,
    seed: int,
) -> tuple[list[Outcome], int]:
    """The outcome of versions 0 … V − 1, and the number of users who got answers from more than one
    version.

    Every version must have an answer. ``reward_per_answer`` and ``rewarded_share`` (answers with a
    reward above 0) are over answers, ``reward_per_user`` is over users. A resampled user brings the
    answers of all versions, so versions that share users are compared correctly.

    Parameters
    ----------
    users_A : array, [A] int
        User of each answer, numbered from 0.
    versions_A : array, [A] int
        Version that gave the answer, 0 to V − 1; version 0 is the reference.
    rewards_A : array, [A] float
        Reward of each answer.
    num_versions : int
        Number of versions V.
    resamples : int
        Number of bootstrap draws over users.
    seed : int
        Seed of the draws.

    Returns
    -------
    outcomes : list of Outcome
        One per version; differences are version − version 0.
    num_mixed : int
        Users with answers from two or more versions.
    """
    num_users = int(users_A.max()) + 1
    cells_A = users_A * num_versions + versions_A
    size = num_users * num_versions
    answers_UV = (
        np.bincount(cells_A, minlength=size).reshape(num_users, num_versions).astype(np.float64)
    )
    rewards_UV = np.bincount(cells_A, rewards_A, size).reshape(num_users, num_versions)
    hits_UV = np.bincount(cells_A, rewards_A > 0, size).reshape(num_users, num_versions)
    sums_UM = np.concatenate(
        [answers_UV, rewards_UV, hits_UV, (answers_UV > 0).astype(np.float64)], axis=1
    )
    point_V = _measures(sums_UM.mean(0)[None], num_versions)
    drawn_RV = _measures(bootstrap_means(sums_UM, resamples, seed), num_versions)
    found = []
    for version in range(num_versions):
        measures = {
            name: interval(point_V[name][0, version], drawn_RV[name][:, version])
            for name in MEASURES
        }
        differences = {
            name: comparison(
                point_V[name][0, version] - point_V[name][0, 0],
                drawn_RV[name][:, version] - drawn_RV[name][:, 0],
            )
            for name in MEASURES
            if version
        }
        of_version_U = answers_UV[:, version]
        found.append(
            Outcome(int(of_version_U.sum()), int((of_version_U > 0).sum()), measures, differences)
        )
    return found, int(((answers_UV > 0).sum(1) > 1).sum())


def _measures(sums_RM: Array, num_versions: int) -> dict[str, Array]:
    answers, rewards, hits, users = (
        sums_RM[:, at : at + num_versions] for at in range(0, 4 * num_versions, num_versions)
    )
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # a resample without users of a version has no value for it
        return {
            "reward_per_answer": rewards / answers,
            "rewarded_share": hits / answers,
            "reward_per_user": rewards / users,
        }
