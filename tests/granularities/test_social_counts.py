"""``social.fit: counts``: sums by hand with times, named friends and limits; and a world in which
friends determine the next item.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.data.attributes import AttributeRows
from recsys.data.batches import Batch, last_position
from recsys.data.histories import Histories, Queries, Split
from recsys.export.onnx_friends import friend_state, social_counts
from recsys.export.seen import Seen
from recsys.granularities import granularity_class
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.social.counts import SocialCounts
from recsys.granularities.social.friend_graph import Friends
from recsys.granularities.social.section import SocialConfig
from recsys.model import FrozenModel
from tests.handmade import DAY
from tests.planted import margin, ndcg, planted_dataset, with_true_and_other_friends

ITEMS = 5
# item and day of users; user 3 has none
ROWS = {0: [(0, 1), (1, 2)], 1: [(1, 3), (2, 5), (1, 8)], 2: [(3, 4)]}
VIEW = ItemView(torch.zeros(ITEMS, 4), torch.zeros(ITEMS, 0))


def _graphs() -> Graphs:
    histories = Histories.of_items([[item for item, _ in row] for row in ROWS.values()], list(ROWS))
    histories = replace(
        histories, times_E=np.array([day * DAY for row in ROWS.values() for _, day in row])
    )
    pairs = sorted({(user, item) for user, row in ROWS.items() for item, _ in row})
    users_E, items_E = torch.tensor(pairs).T
    src, dst = torch.tensor([1, 2, 0, 3]), torch.tensor([3, 3, 1, 1])
    friends = Friends(src, dst, torch.tensor([3.0, 1.0, 1.0, 1.0]))
    return Graphs(4, ITEMS, users_E, items_E, histories=histories, inputs={"friends": friends})


def _module(**keys: object) -> SocialCounts:
    section = SocialConfig(fit="counts", **{"half_life": "none", "popularity_damping": 0.0, **keys})  # type: ignore[arg-type]
    found = granularity_class("social", section)(
        section, ModelSizes(4, 10, 4, ITEMS, 1, 0, ordered=True, timed=True)
    )
    assert isinstance(found, SocialCounts)
    return found


def _batch(users: list[int], days: list[float], named: torch.Tensor | None = None) -> Batch:
    histories = Histories.of_items([[] for _ in users], users)
    at = np.array([int(day * DAY) for day in days])
    queries = Queries(
        histories, np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int32), asked_at_B=at
    )
    batch = last_position(queries, 5)
    return batch if named is None else replace(batch, inputs={"friends": named})


def _scores(module: SocialCounts, batch: Batch) -> torch.Tensor:
    return module.boost(batch, VIEW, module.state(VIEW, _graphs())).add_to(
        torch.zeros(len(batch), ITEMS)
    )


def test_only_events_of_friends_before_the_request_count() -> None:
    found = _scores(_module(), _batch([3, 3, 1, 0, -1], [9, 4.5, 0, 9, 9]))
    expected = torch.zeros(5, ITEMS)
    expected[0, [1, 2, 3]] = torch.tensor([3.0, 3, 1]) / 2
    expected[1, 3] = 0.5  # the newest events of the others come later
    expected[2, [0, 1]] = 1 / np.sqrt(2)  # friends 0 and 3, and 3 has no events; the request is now
    torch.testing.assert_close(found, expected)
    assert torch.equal(_scores(_module(), _batch([3], [4])), torch.zeros(1, ITEMS)), (
        "an event at the time of the request does not count"
    )


def test_scores_decay_with_age_and_popularity() -> None:
    found = _scores(_module(half_life=2, popularity_damping=0.5), _batch([3, 3], [9, 0]))
    at_9 = torch.tensor([0, 3 * 2**-0.5 * 2**-0.5, 3 * 2**-2.0, 2**-2.5, 0]) / 2
    torch.testing.assert_close(found[0], at_9)
    torch.testing.assert_close(found[1], at_9 * 2**0.5, msg="now is the time of the newest event")


def test_order_is_kept_if_all_events_are_many_half_lives_old() -> None:
    found = _scores(_module(half_life=2), _batch([3, 3, 3], [40, 60, 20_000]))
    order = torch.tensor([1, 2, 3])  # days 8, 5 and 4, and the weights of friends 3, 3 and 1
    assert (found.argsort(dim=1, descending=True)[:, :3] == order).all()
    torch.testing.assert_close(found[1], found[2])
    assert found[0, 1] == pytest.approx(3 / 2 * 2**-16) and found[1, 1] == 3 / 2 * 2**-20


def test_exported_graph_gives_the_same_scores_after_any_delay() -> None:
    module, users, days = _module(half_life=0.5), [3, 3, 3, 1, 0, -1], [0.0, 9, 20_000, 9, 500, 9]
    batch, state = _batch(users, days), _module().state(VIEW, _graphs())
    none_B1 = torch.zeros(len(users), 1, dtype=torch.int64)
    seen = Seen(
        items_BL=none_B1,
        lengths_B=none_B1[:, 0],
        types_BL=none_B1,
        times_BL=none_B1,
        values_BL=none_B1.float(),
        context_BLC=none_B1[:, :, None],
        asked_at_B=batch.asked_at_B,
        asked_BC=none_B1,
        users_B=torch.tensor(users),
        friends_BF=none_B1 - 1,
        attributes=AttributeRows(none_B1[:, :0], none_B1[:, :0].float()),
        user_text_BT=none_B1.float(),
    )
    found = social_counts(module, state | friend_state(state), seen)
    torch.testing.assert_close(found, _scores(module, batch), rtol=1e-5, atol=0)


def test_named_friends_replace_the_stored_ones() -> None:
    named = torch.tensor([[2, -1], [-1, -1], [0, 3]])
    found = _scores(_module(), _batch([3, 3, -1], [9, 9, 9], named))
    expected = torch.zeros(3, ITEMS)
    expected[0, 3] = 1
    expected[1, [1, 2, 3]] = torch.tensor([3.0, 3, 1]) / 2
    expected[2, [0, 1]] = 1 / np.sqrt(2)
    torch.testing.assert_close(found, expected)


def test_strongest_friends_and_latest_events_are_read() -> None:
    found = _scores(_module(max_friends=1, max_events=1), _batch([3], [9]))
    expected = torch.zeros(1, ITEMS)
    expected[0, 1] = 3 / np.sqrt(3)
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("one_thread")
def test_true_friends_help_and_random_friends_do_not(tmp_path: Path) -> None:
    dataset = planted_dataset(tmp_path, {"social": 1.0})
    section = {"enabled": True, "fit": "counts", "popularity_damping": 0.0, "half_life": "none"}
    queries = dataset.histories().queries(Split.TEST)
    frozen, mismatched = with_true_and_other_friends(dataset, {"social": section})
    assert margin(ndcg(frozen, queries), ndcg(mismatched, queries)) > 1.0
    read = FrozenModel.from_tensors(frozen.config, frozen.sizes, frozen.tensors())
    assert torch.equal(read.scores(queries), frozen.scores(queries))
