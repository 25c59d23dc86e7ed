"""Losses equal naive references, and a gradient step raises the score of the target."""

from __future__ import annotations

import pytest
import torch

from recsys import softmax
from recsys.softmax import LeftOut, full_softmax, sampled_softmax


def reference(
    users: torch.Tensor, items: torch.Tensor, pairs: list[int], targets: list[int]
) -> torch.Tensor:
    losses = [
        -torch.log_softmax(users[b] @ items.T, dim=0)[i]
        for b, i in zip(pairs, targets, strict=True)
    ]
    return torch.stack(losses).sum()


def setup() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(3, 4, generator=generator).requires_grad_()
    items = torch.randn(7, 4, generator=generator)
    return users, items, torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 5, 0])


def test_full_softmax_is_cross_entropy_of_every_pair() -> None:
    users, items, pairs, targets = setup()
    found = full_softmax(users, items, pairs, targets, torch.ones(4))
    torch.testing.assert_close(found, reference(users, items, pairs.tolist(), targets.tolist()))


def test_gradients_are_those_of_autograd_also_in_small_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(softmax, "_MAX_LOGITS", 7)  # one query per chunk
    users, items, pairs, targets = setup()
    items.requires_grad_()
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0])
    found = torch.autograd.grad(
        full_softmax(users, items, pairs, targets, weights, 0.1), [users, items]
    )
    logits = (users @ items.T)[pairs]
    naive = torch.nn.functional.cross_entropy(
        logits, targets, label_smoothing=0.1, reduction="none"
    )
    for got, expected in zip(
        found, torch.autograd.grad((weights * naive).sum(), [users, items]), strict=True
    ):
        torch.testing.assert_close(got, expected)


# logits that need no shift, and some whose exponentials overflow
@pytest.mark.parametrize("length", [1.0, 60.0])
def test_logits_of_any_size_are_those_of_autograd(length: float) -> None:
    users, items, pairs, targets = setup()
    users, items = (length * users.detach()).requires_grad_(), items.requires_grad_()
    found = torch.autograd.grad(
        full_softmax(users, items, pairs, targets, torch.ones(4)), [users, items]
    )
    naive = torch.nn.functional.cross_entropy((users @ items.T)[pairs], targets, reduction="sum")
    assert float((users @ items.T).exp().isinf().any()) == (length > 1)
    for got, expected in zip(found, torch.autograd.grad(naive, [users, items]), strict=True):
        torch.testing.assert_close(got, expected)


def test_smoothing_is_cross_entropy_with_smoothed_labels() -> None:
    users, items, pairs, targets = setup()
    found = full_softmax(users, items, pairs, targets, torch.ones(4), smoothing=0.2)
    logits = (users @ items.T)[pairs]
    torch.testing.assert_close(
        found,
        torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.2, reduction="sum"),
    )


def test_gradient_step_raises_the_target() -> None:
    users, items, pairs, targets = setup()
    before = (users @ items.T)[pairs, targets]
    full_softmax(users, items, pairs, targets, torch.ones(4)).backward()
    assert users.grad is not None
    after = torch.softmax((users - 0.1 * users.grad) @ items.T, 1)[pairs, targets]
    assert after.sum() > torch.softmax(users @ items.T, 1)[pairs, targets].sum()
    assert before.shape == after.shape


def test_sampled_softmax_with_every_item_once_is_the_full_loss() -> None:
    """All items as negatives, each expected once (log q = 0): the estimate is exact."""
    users, items, pairs, targets = setup()
    found = sampled_softmax(
        users,
        items,
        pairs,
        targets,
        torch.ones(4),
        negatives_M=torch.arange(7),
        log_q_M=torch.zeros(7),
    )
    torch.testing.assert_close(found, full_softmax(users, items, pairs, targets, torch.ones(4)))


@pytest.mark.parametrize("length", [1.0, 60.0])
def test_gradients_of_the_sampled_loss_are_those_of_autograd(
    length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a negative is the target of a pair, a query has two pairs, and exponentials would
    overflow.
    """
    monkeypatch.setattr(softmax, "_MAX_LOGITS", 10)  # two pairs per chunk
    users, items, pairs, targets = setup()
    users, items = (length * users.detach()).requires_grad_(), items.requires_grad_()
    weights, negatives = torch.tensor([1.0, 0.5, 2.0, 1.0]), torch.tensor([1, 4, 4, 0, 6])
    log_q = torch.randn(5, generator=torch.Generator().manual_seed(1))
    found = sampled_softmax(
        users, items, pairs, targets, weights, negatives_M=negatives, log_q_M=log_q
    )
    logits = ((users @ items[negatives].T)[pairs] - log_q).masked_fill(
        targets[:, None] == negatives, -torch.inf
    )
    hits = (users @ items.T)[pairs, targets]
    naive = (weights * (torch.logsumexp(torch.cat([logits, hits[:, None]], 1), 1) - hits)).sum()
    torch.testing.assert_close(found, naive)
    for got, expected in zip(
        torch.autograd.grad(2 * found, [users, items]),
        torch.autograd.grad(2 * naive, [users, items]),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_log_q_correction_makes_the_partition_function_unbiased() -> None:
    """The mean over many draws of Σ_negatives exp(s − log Mq) equals Σ_items exp(s), for a skewed
    q.
    """
    generator = torch.Generator().manual_seed(1)
    users, items = torch.randn(1, 4, generator=generator), torch.randn(50, 4, generator=generator)
    q = torch.arange(1.0, 51.0) / torch.arange(1.0, 51.0).sum()
    exact = full_softmax(users, items, torch.tensor([0]), torch.tensor([7]), torch.ones(1))
    draws = []
    for _ in range(400):
        negatives = torch.multinomial(q, 200, replacement=True, generator=generator)
        log_q = torch.log(200 * q[negatives])
        draws.append(
            sampled_softmax(
                users,
                items,
                torch.tensor([0]),
                torch.tensor([7]),
                torch.ones(1),
                negatives_M=negatives,
                log_q_M=log_q,
            )
        )
    hit = (users @ items[7]).squeeze()
    mean_z = torch.stack([(draw + hit).exp() for draw in draws]).mean()
    torch.testing.assert_close(mean_z, (exact + hit).exp(), rtol=0.03, atol=0.0)


# the items that the three queries of setup() leave out
LEFT_OUT = LeftOut(torch.tensor([0, 0, 2, 2]), torch.tensor([2, 3, 6, 0]))


@pytest.mark.parametrize("length", [1.0, 60.0])
@pytest.mark.parametrize("most_logits", [7, 2**23])  # one query per chunk, and all in one
def test_full_softmax_leaves_out_seen_items_and_other_targets(
    length: float, most_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "_MAX_LOGITS", most_logits)
    users, items, pairs, targets = setup()
    users, items = (length * users.detach()).requires_grad_(), items.requires_grad_()
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0])
    found = full_softmax(users, items, pairs, targets, weights, left_out=LEFT_OUT)
    kept = [[1, 0, 4, 5, 6], [2, 0, 4, 5, 6], [5, 0, 1, 2, 3, 4, 6], [0, 1, 2, 3, 4, 5]]
    naive = sum(
        (
            -weight * torch.log_softmax(users[b] @ items[rest].T, dim=0)[0]
            for weight, b, rest in zip(weights, pairs, kept, strict=True)
        ),
        start=torch.zeros(()),
    )
    torch.testing.assert_close(found, naive)
    for got, expected in zip(
        torch.autograd.grad(2 * found, [users, items]),
        torch.autograd.grad(2 * naive, [users, items]),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("gap", [50.0, 95.0, 120.0])
def test_targets_of_a_query_may_have_logits_that_are_far_apart(gap: float) -> None:
    user = torch.ones(1, 1, requires_grad=True)
    items = torch.tensor([[gap], [0.0], [-1.0]], requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    both = (torch.tensor([0, 0]), torch.tensor([0, 1]), torch.ones(2))
    found = full_softmax(user, items, *both, left_out=LeftOut(nothing, nothing))
    naive = sum(
        -torch.log_softmax((items @ user[0])[[own, 2]], dim=0)[0] for own in (0, 1)
    ) + torch.zeros(())
    torch.testing.assert_close(found, naive)
    for got, expected in zip(
        torch.autograd.grad(found, [user, items]),
        torch.autograd.grad(naive, [user, items]),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_softmax_of_a_query_with_all_items_seen_is_zero() -> None:
    users, items = torch.full((2, 1), 80.0), torch.ones(3, 1)  # the second query has no target
    left_out = LeftOut(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2]))
    pair = (torch.tensor([0]), torch.tensor([1]), torch.ones(1))
    assert float(full_softmax(users, items, *pair, left_out=left_out)) == 0.0


def test_sampled_softmax_leaves_out_seen_negatives() -> None:
    users, items, pairs, targets = setup()
    negatives = torch.tensor([3, 6, 3, 4, 2])
    log_q = torch.randn(5, generator=torch.Generator().manual_seed(1))
    found = sampled_softmax(
        users,
        items,
        pairs,
        targets,
        torch.ones(4),
        negatives_M=negatives,
        log_q_M=log_q,
        left_out=LEFT_OUT,
    )
    kept = [[1, 3], [1, 3], [0, 1, 2, 3, 4], [0, 2, 3, 4]]  # places of the negatives
    naive = torch.zeros(())
    for pair, (b, target) in enumerate(zip(pairs, targets, strict=True)):
        logits = users[b] @ items[negatives[kept[pair]]].T - log_q[kept[pair]]
        hit = (users[b] @ items[target])[None]
        naive = naive - torch.log_softmax(torch.cat([hit, logits]), dim=0)[0]
    torch.testing.assert_close(found, naive)
