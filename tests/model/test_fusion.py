"""Fusion: linear in z, masked, and the weights of each kind."""

from __future__ import annotations

import pytest
import torch

from recsys.config import FusionConfig
from recsys.fusion import FUSIONS

Z = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
PRESENT = torch.tensor([[True, True], [True, False], [False, False]])


@pytest.mark.parametrize("kind", ["weighted", "learned", "gated"])
def test_user_is_the_weighted_sum_of_present_granularities(kind: str) -> None:
    fusion = FUSIONS[kind](FusionConfig(kind=kind), [0.5, 0.25], 4).eval()
    users, weights = fusion(Z * PRESENT[:, :, None], PRESENT)
    torch.testing.assert_close(users, (weights[:, :, None] * Z * PRESENT[:, :, None]).sum(1))
    assert weights[1, 1] == 0 and not users[2].any()
    assert torch.isfinite(users).all()


def test_weighted_and_learned_start_at_the_configured_weights() -> None:
    for kind in ("weighted", "learned"):
        fusion = FUSIONS[kind](FusionConfig(kind=kind), [0.5, 0.25], 4).eval()
        _, weights = fusion(Z, torch.ones(3, 2, dtype=torch.bool))
        torch.testing.assert_close(weights, torch.tensor([[0.5, 0.25]]).expand(3, 2))
    assert not list(FUSIONS["weighted"](FusionConfig(), [0.5, 0.25], 4).parameters())


def test_gate_is_a_softmax_over_present_granularities() -> None:
    fusion = FUSIONS["gated"](FusionConfig(kind="gated"), [0.5, 0.5], 4).eval()
    _, weights = fusion(Z, PRESENT)
    torch.testing.assert_close(weights[0], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(weights[1], torch.tensor([2.0, 0.0]))


def test_signal_dropout_never_drops_the_last_signal() -> None:
    torch.manual_seed(0)
    fusion = FUSIONS["weighted"](
        FusionConfig(kind="weighted", signal_dropout=0.9), [1.0, 1.0], 4
    ).train()
    many = torch.ones(500, 2, dtype=torch.bool)
    _, weights = fusion(torch.ones(500, 2, 4), many)
    assert (weights.sum(1) >= 1).all() and (weights.sum(1) == 1).any()
