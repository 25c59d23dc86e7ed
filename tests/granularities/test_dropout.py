"""Dropout: shares, scale, gradients, and a seed that makes it reproducible."""

from __future__ import annotations

import pytest
import torch

from recsys.granularities.dropout import Dropout


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_share_of_values_is_zero_and_the_mean_is_unchanged(rate: float) -> None:
    torch.manual_seed(0)
    dropped = Dropout(rate)(torch.ones(400, 501))
    share = float((dropped == 0).float().mean())
    assert abs(share - rate) < 5 * (rate * (1 - rate) / dropped.numel()) ** 0.5, (
        "within five standard deviations"
    )
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-4)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(1)
    zero = (Dropout(0.5)(torch.ones(1000, 256)) == 0).float()
    for step in (1, 2, 4, 8):
        both = float((zero[:, :-step] * zero[:, step:]).mean())
        assert abs(both - 0.25) < 0.005


def test_gradients_are_zero_exactly_where_values_are() -> None:
    values = torch.randn(30, 7, requires_grad=True)
    dropped = Dropout(0.3)(values)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values, dropped)


def test_torch_seed_fixes_dropout_and_calls_differ() -> None:
    ones, drop = torch.ones(64, 64), Dropout(0.5)
    torch.manual_seed(3)
    first, second = drop(ones), drop(ones)
    torch.manual_seed(3)
    assert torch.equal(drop(ones), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_outside_training_or_at_rate_zero() -> None:
    values = torch.randn(3, 5)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
