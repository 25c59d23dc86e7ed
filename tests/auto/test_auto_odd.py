"""``model: auto`` on odd data: unsupported candidates are left out with a reason, and every run
ends correctly.

A run must end with exit code 0, or with 2 and one message if the data is too small to train or
evaluate.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pipelines.cli import main
from pipelines.plumbing.progress import Progress
from pipelines.steps.stacking import stacked
from recsys.auto.portfolio import configured, left_out, members, settings
from recsys.auto.traits import Traits
from recsys.config import Config, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.evaluation.validation import Validator
from recsys.training.context import TrainContext
from recsys.training.members import trained_part
from recsys.training.phases import fit
from tests.handmade import DAY, Event, write_dataset
from tests.training_here import training_here

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, ITEMS = 12, 7


def _config(**evaluate: Any) -> Config:
    return build_config(
        {
            "data": {"source": {"kind": "synthetic"}},
            "train": {"metric": "ndcg@5", "epochs": 1, "threads": 1},
            "evaluate": {"ks": [5], **evaluate},
        }
    )


def _histories(step: int = DAY + 3600, repeats: bool = False) -> list[list[Event]]:
    """Three training events, one validation and one test target per user; with repeats the first
    item returns.
    """
    parts = (Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.VALID, Split.TEST)
    found: list[list[Event]] = []
    for user in range(USERS):
        items = [(user + 2 * place) % ITEMS for place in range(5)]
        items[2] = items[0] if repeats else items[2]
        found.append(
            [
                (items[place], 0, DAY + (place + user) * step, part)
                for place, part in enumerate(parts)
            ]
        )
    return found


def _columns(**columns: Sequence[Any]) -> dict[str, pa.Array]:
    return {name: pa.array(values) for name, values in columns.items()}


def _numbers(first: float, step: float, known: int = ITEMS) -> list[float | None]:
    return [first + step * item if item < known else None for item in range(ITEMS)]


# case: the differing data, the candidate, its reason ("" if it is a member)
UNFED: dict[str, tuple[dict[str, Any], str, str]] = {
    "different texts of all users": (
        {"user_columns": _columns(bio=[f"I am {u}" for u in range(USERS)])},
        "profile",
        "bio",
    ),
    "same value of all users": (
        {"user_columns": _columns(planet=["earth"] * USERS)},
        "profile",
        "planet",
    ),
    "same number of all users": ({"user_columns": _columns(age=[40] * USERS)}, "profile", "age"),
    "users without a value": (
        {"user_columns": _columns(age=pa.nulls(USERS, pa.string()))},
        "profile",
        "age",
    ),
    "users in two towns": (
        {"user_columns": _columns(town=["Bonn", "Rome"] * (USERS // 2))},
        "profile",
        "",
    ),
    "no table of users": ({}, "profile", "users have no attributes"),
    "coordinates in words": (
        {"item_columns": _columns(lat=["n"] * ITEMS, lon=["w"] * ITEMS)},
        "place",
        "lat, lon",
    ),
    "one place": (
        {"item_columns": _columns(lat=_numbers(5, 0), lon=_numbers(6, 0))},
        "place",
        "lat, lon",
    ),
    "one known place": (
        {"item_columns": _columns(lat=_numbers(5, 1, 1), lon=_numbers(6, 1, 1))},
        "place",
        "lat, lon",
    ),
    "no known place": (
        {"item_columns": _columns(lat=_numbers(5, 1, 0), lon=_numbers(6, 1))},
        "place",
        "lat, lon",
    ),
    "two known places": (
        {"item_columns": _columns(lat=_numbers(5, 1, 2), lon=_numbers(6, 1, 2))},
        "place",
        "",
    ),
    "no coordinates": ({"item_columns": _columns(lat=_numbers(5, 1))}, "place", "no coordinates"),
    "a price alone": ({"item_columns": _columns(price=_numbers(5, 1.5))}, "place", ""),
    "one price": ({"item_columns": _columns(price=_numbers(5, 0))}, "place", "no quantities"),
    "texts of items": ({"text_width": 4}, "content", ""),
    "no texts": ({}, "content", "no item texts"),
    "users as their own friends": (
        {"friends": [(user, user) for user in range(USERS)]},
        "social",
        "no friend has",
    ),
    "friends": ({"friends": [(0, 1), (2, 3)]}, "social", ""),
    "no friends": ({}, "social", "no friendships"),
    "no triples": ({}, "knowledge", "no triples"),
    "one time": ({"histories": _histories(step=0)}, "moment", "one hour of the week"),
    "one time and unknown times": (
        {
            "histories": [
                [
                    (i, 0, 0, split) if n == 0 else (i, 0, DAY, split)
                    for n, (i, _, _, split) in enumerate(row)
                ]
                for row in _histories()
            ]
        },
        "moment",
        "one hour of the week",
    ),
    "times one week apart": (
        {"histories": _histories(step=7 * DAY)},
        "moment",
        "one hour of the week",
    ),
    "times": ({}, "moment", ""),
    "repeats that lists exclude": (
        {"histories": _histories(repeats=True)},
        "repeat",
        "exclude_seen is true",
    ),
    "repeats": ({"histories": _histories(repeats=True), "exclude_seen": False}, "repeat", ""),
    "no repeats": ({"exclude_seen": False}, "repeat", "no user has an item twice"),
    "no order": ({"ordered": False}, "item_cf", ""),
}


def _of(tmp_path: Path, case: str) -> tuple[PreparedDataset, Config]:
    changes = dict(UNFED[case][0])
    config = _config(exclude_seen=changes.pop("exclude_seen", True))
    return write_dataset(tmp_path, changes.pop("histories", _histories()), ITEMS, **changes), config


@pytest.mark.parametrize("case", UNFED)
def test_candidate_is_a_member_or_has_a_reason(tmp_path: Path, case: str) -> None:
    _, name, reason = UNFED[case]
    traits = Traits.of(*_of(tmp_path, case))
    assert (name in members(traits)) == (reason == "")
    assert reason in left_out(traits).get(name, ""), (
        "the reason names the column or the missing data"
    )
    assert all(reason and "\n" not in reason for reason in left_out(traits).values())


@pytest.mark.parametrize(
    "case", ["different texts of all users", "two known places", "one time", "repeats", "no order"]
)
def test_members_of_an_odd_dataset_are_fitted_and_weighted(tmp_path: Path, case: str) -> None:
    dataset, config = _of(tmp_path, case)
    config = configured(config, Traits.of(dataset, config), None)
    result = fit(
        trained_part(config), dataset, Validator.of(config.train, config.evaluate), TrainContext()
    )
    result = stacked(config, dataset, result, Progress(None))
    scores_BN = result.frozen.scores(dataset.histories().queries(Split.TEST))
    assert bool(scores_BN.isfinite().all())


def test_content_is_left_out_if_all_texts_are_equal(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, _histories(), ITEMS, text_width=4)
    same_NT = np.repeat(dataset.text_vectors_NT()[:1], ITEMS, axis=0)
    dataset.text_vectors_NT = lambda: same_NT  # type: ignore[method-assign]
    config = _config()
    traits = Traits.of(dataset, config)
    assert left_out(traits)["content"] == "all items have the same text" and not traits.text
    assert all(
        not configured(config, traits, setting).model.item.text for setting in settings(traits)
    )


def test_nothing_is_trained_if_no_user_has_two_events_in_order(tmp_path: Path) -> None:
    parts = (Split.TRAIN, Split.VALID, Split.TEST)
    histories = [
        [
            ((user + place) % ITEMS, 0, (user + place + 1) * DAY, part)
            for place, part in enumerate(parts)
        ]
        for user in range(USERS)
    ]
    dataset, config = write_dataset(tmp_path, histories, ITEMS), _config()
    traits = Traits.of(dataset, config)
    assert not traits.trainable and settings(traits) == []
    config = configured(config, traits, None)
    result = stacked(
        config,
        dataset,
        fit(
            trained_part(config),
            dataset,
            Validator.of(config.train, config.evaluate),
            TrainContext(),
        ),
        Progress(None),
    )
    assert "popularity" in result.frozen.members


# ------------------------------------------------------------------------- through the command line

Rows = list[list[Any]]
START = 1_600_000_000


def _table(path: Path, header: Sequence[str], rows: Rows) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def _events(
    path: Path, users: int = 30, items: int = 12, per_user: int = 6, **changes: Callable[[int], Any]
) -> str:
    """All users have different items, in their own order; ``changes`` compute users, items or times
    from a number.
    """
    user_of = changes.get("user", lambda u: f"u{u}")
    item_of = changes.get("item", lambda i: f"i{i}")
    time_of = changes.get("time", lambda place: START + 7000 * place)
    random = np.random.default_rng(0)
    rows = [
        [user_of(user), item_of(int(item)), time_of(17 * user + 40 * place)]
        for user in range(users)
        for place, item in enumerate(random.permutation(items)[:per_user])
    ]
    return _table(path / "events.csv", ["user_id", "item_id", "timestamp"], rows)


def _output_of_run(
    config: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    quick = [
        *("--train.epochs", "1", "--train.threads", "1", "--tracking.enabled", "false"),
        *(
            "--evaluate.baselines",
            "[popularity]",
            "--evaluate.bootstrap",
            "100",
            "--data.num_shards",
            "1",
        ),
    ]
    with training_here():
        code = main(
            [
                "run",
                "--config",
                str(config),
                "--run.dir",
                str(config.parent / "run"),
                *quick,
                *words,
            ]
        )
    caught = capsys.readouterr()
    assert "Traceback" not in caught.err
    return code, caught.out + caught.err


def _uninformative_attributes(folder: Path) -> list[str]:
    """Ids beyond 2^63, a distinct text per user, places as words, equal titles."""
    events = _events(folder, user=lambda u: 9 * 10**18 + u, item=lambda i: 2**63 + i)
    users = [[9 * 10**18 + u, f"this is the user with number {u}"] for u in range(30)]
    items = [[2**63 + i, "north", "west", 5] for i in range(12)]
    return [
        events,
        _table(folder / "users.csv", ["user_id", "bio"], users),
        _table(folder / "items.csv", ["item_id", "lat", "lon", "price"], items),
    ]


def _one_second(folder: Path) -> list[str]:
    return [_events(folder, time=lambda _: START)]


def _three_events_each(folder: Path) -> list[str]:
    return [_events(folder, items=3, per_user=3, time=lambda place: START + 86_400 * place)]


def _repeats_of_two_items(folder: Path) -> list[str]:
    rows = [
        [f"u{u}", f"i{(u + k * k) % 2}", START + 90_000 * (7 * u + k)]
        for u in range(20)
        for k in range(6)
    ]
    return [_table(folder / "events.csv", ["user_id", "item_id", "timestamp"], rows)]


@pytest.mark.parametrize(
    "make", [_uninformative_attributes, _one_second, _three_events_each, _repeats_of_two_items]
)
def test_run_on_odd_data_exits_0_and_names_left_out_members(
    make: Callable[[Path], list[str]],
    tmp_path: Path,
    ray_local: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "recsys.yaml"
    assert main(["init", *make(tmp_path), "--out", str(out)]) == 0
    code, printed = _output_of_run(out, capsys)
    assert code == 0, printed
    assert "members: popularity" in printed and "left out: " in printed


def _written(folder: Path, **changes: Any) -> Path:
    tree: dict[str, Any] = {
        "data": {
            "source": {"kind": "canonical", "events": [str(folder / "events.csv")]},
            "text": {"enabled": False},
        },
        "train": {"metric": "ndcg@5"},
        "evaluate": {"ks": [5]},
    }
    for key, value in changes.items():
        tree["data"][key] = (
            {**tree["data"].get(key, {}), **value} if isinstance(value, dict) else value
        )
    path = folder / "recsys.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_uninformative_triples_and_friends_are_left_out(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    _events(tmp_path)
    source = {
        "items": [
            _table(
                tmp_path / "items.csv",
                ["item_id", "entity_id"],
                [[f"i{i}", f"i{i}"] for i in range(12)],
            )
        ],
        "knowledge": [
            _table(
                tmp_path / "triples.csv",
                ["head", "relation", "tail"],
                [[f"i{i}", "is", f"q{i}"] for i in range(12)],
            )
        ],
        "social": [
            _table(
                tmp_path / "friends.csv",
                ["src_user_id", "dst_user_id"],
                [[f"u{u}", f"u{u}"] for u in range(12)],
            )
        ],
    }
    code, printed = _output_of_run(
        _written(tmp_path, source=source, quarantine={"max_share": 1.0}), capsys
    )
    assert code == 0, printed
    assert "social (no friend" in printed and "knowledge (no triple is shared by" in printed


def test_init_names_the_constant_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = _events(tmp_path, user=lambda _: "u")
    assert main(["init", events, "--out", str(tmp_path / "recsys.yaml")]) == 2
    printed = capsys.readouterr().err
    assert "no table has events" in printed and "user_id (the same value in every row)" in printed


def test_too_little_data_ends_with_one_message(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    _events(tmp_path, per_user=2)
    code, printed = _output_of_run(_written(tmp_path), capsys)
    assert (
        code == 2
        and "recsys: data.split.kind leave-last leaves no valid and no test events" in printed
    )
    assert "users with three or more events" in printed


def test_run_ends_with_one_message_if_all_targets_were_seen(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        [f"u{u}", f"i{u % 3}", START + 90_000 * (7 * u + k)] for u in range(9) for k in range(5)
    ]
    _table(tmp_path / "events.csv", ["user_id", "item_id", "timestamp"], rows)
    code, printed = _output_of_run(_written(tmp_path), capsys)
    assert code == 2 and "recsys: no validation user has a target that counts" in printed
    assert "epoch" not in printed, "the message comes before any training"


def test_budget_too_small_for_training_still_gives_a_model(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    _events(tmp_path)
    code, printed = _output_of_run(_written(tmp_path), capsys, "--budget", "1s")
    assert code == 0, printed
    assert (
        "the budget of 1s " in printed
        and "too little for a training" in printed
        and "only closed-form members are used" in printed
    )
