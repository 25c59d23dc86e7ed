"""`recsys referee`: protocols as files, refused leaks, and scores against figures computed by
hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipelines.cli import main
from recsys.config import build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.evaluation.baselines import build_baseline
from recsys.evaluation.metrics import ndcg_at
from recsys.evaluation.ranking import rank
from recsys.referee.exported_protocol import protocol_of
from recsys.referee.judge import holm
from recsys.referee.leaderboard import board
from recsys.referee.lists import read_lists
from recsys.referee.protocol import Protocol, read_protocol, write_protocol
from tests.handmade import DAY, leave_last, leave_last_without_validation, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
Captured = pytest.CaptureFixture[str]
USERS, ITEMS, K = 240, 100, 5


def walks(folder: Path) -> PreparedDataset:
    """User u has six successive items from 5u on; the last is the target of test, the one before it
    of validation.
    """
    return write_dataset(
        folder, [leave_last(*((5 * u + s) % ITEMS for s in range(6))) for u in range(USERS)], ITEMS
    )


def made(dataset: PreparedDataset, **referee: Any) -> Protocol:
    tree = {
        "data": {"dir": dataset.root},
        "evaluate": {"ks": [2, K]},
        "train": {"metric": f"ndcg@{K}"},
    }
    return protocol_of(dataset, build_config({**tree, "referee": referee}))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return walks(tmp_path_factory.mktemp("walks") / "data")


@pytest.fixture(scope="module")
def folder(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protocols") / "full"
    write_protocol(made(dataset), folder, "parquet")
    return folder


def target(user: int, part: Split = Split.TEST) -> int:
    return (5 * user + (5 if part == Split.TEST else 4)) % ITEMS


def lists(place: Callable[[int], int], part: Split = Split.TEST, k: int = K) -> pd.DataFrame:
    """Lists of unknown items with the target of user u at rank ``place(u)``; rank 0: the target is
    not listed.
    """
    rows = []
    for user in range(USERS):
        others = [(5 * user + 20 + step) % ITEMS for step in range(k)]
        if place(user):
            others.insert(place(user) - 1, target(user, part))
        rows += [(f"u{user}", f"i{item}", step + 1) for step, item in enumerate(others[:k])]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])


def score(folder: Path, *words: str) -> dict[str, Any]:
    out = folder.parent / "verdict"
    assert (
        main(["referee", "score", "--protocol", str(folder), "--out", str(out), "--lists", *words])
        == 0
    )
    found: dict[str, Any] = json.loads((out / "referee.json").read_text())
    return found


def saved(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (
        frame.to_parquet(path, index=False)
        if path.suffix == ".parquet"
        else frame.to_csv(path, index=False)
    )
    return path


# ----------------------------------------------------------------------------------------- protocol


def test_csv_and_parquet_give_the_same_protocol(
    dataset: PreparedDataset, folder: Path, tmp_path: Path
) -> None:
    write_protocol(made(dataset), tmp_path / "csv", "csv")
    text, binary = read_protocol(tmp_path / "csv"), read_protocol(folder)
    assert text.hash == binary.hash == made(dataset).hash != made(dataset, mask="none").hash
    for name in ("train", "valid", "test"):
        assert text.windows[0].splits[name].equals(binary.windows[0].splits[name])
    frame = pd.read_csv(tmp_path / "csv/test.csv")
    assert frame.item_id.tolist() == [f"i{target(int(user[1:]))}" for user in frame.user_id]


@pytest.mark.parametrize("values", [(20_785_000, 1), (np.nan, 0.1)])
def test_csv_keeps_every_value(
    dataset: PreparedDataset, tmp_path: Path, values: tuple[float, float]
) -> None:
    protocol = made(dataset)
    (whole,) = protocol.windows
    splits = {
        name: table.set_column(4, "value", pa.array(np.resize(np.float32(values), len(table))))
        for name, table in whole.splits.items()
    }
    protocol = replace(protocol, windows=[replace(whole, splits=splits)])
    write_protocol(protocol, tmp_path / "p", "csv")
    assert read_protocol(tmp_path / "p").hash == protocol.hash


def test_changed_protocol_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    write_protocol(made(dataset), tmp_path / "p", "csv")
    frame = pd.read_csv(tmp_path / "p/test.csv")
    frame.loc[0, "item_id"] = "i50"
    frame.to_csv(tmp_path / "p/test.csv", index=False)
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        read_protocol(tmp_path / "p")
    (tmp_path / "p/test.csv").unlink()
    with pytest.raises(ArtifactError, match="has no table test"):
        read_protocol(tmp_path / "p")


def test_prepare_deletes_no_file_that_it_did_not_write(
    dataset: PreparedDataset, tmp_path: Path, capsys: Captured
) -> None:
    write_protocol(made(dataset), tmp_path / "p", "csv")
    for name in ("window-2/train.csv", "lists/mine.csv", "referee.json"):
        (tmp_path / "p" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "p" / name).write_text("here")
    config = tmp_path / "config.yaml"
    config.write_text("data: {dir: none, source: {kind: canonical, events: [none.csv]}}")
    words = ["referee", "prepare", "--config", str(config), "--out"]
    assert main([*words, str(tmp_path / "p")]) == 2
    assert "did not write: lists/mine.csv, referee.json;" in capsys.readouterr().err
    assert (tmp_path / "p/lists/mine.csv").is_file() and (tmp_path / "p/test.csv").is_file()
    (tmp_path / "p/protocol.json").unlink()  # so the rest is the data of somebody
    assert main([*words, str(tmp_path / "p")]) == 2
    assert "did not write: ask.csv, items.csv, lists/mine.csv" in capsys.readouterr().err
    assert main([*words, str(config)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_queries_are_those_of_our_evaluation(dataset: PreparedDataset, folder: Path) -> None:
    protocol = read_protocol(folder)
    ours, theirs = dataset.histories().queries(Split.TEST), protocol.queries(protocol.windows[0])
    names = [protocol.users[int(user)].as_py() for user in theirs.histories.users_U]
    order = np.argsort([int(name[1:]) for name in names])
    found = [protocol.items[int(item)].as_py() for item in theirs.target_items[order]]
    by_user = np.argsort(ours.histories.users_U)
    assert found == [f"i{item}" for item in ours.target_items[by_user]]


# -------------------------------------------------------------------------------------------- leaks


def _seen_item(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[0, "item_id"] = "i3"  # from u0's training history
    return frame


def _validation_item(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[0, "item_id"] = "i4"  # from u0's validation event, which is history for test
    return frame


def _unknown_user(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[3, "user_id"] = "17"
    return frame


def _unknown_item(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[3, "item_id"] = "17"
    return frame


def _repeated_item(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[1, "item_id"] = frame.loc[0, "item_id"]
    return frame


def _repeated_rank(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[1, "rank"] = 1
    return frame


def _missing_rank(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(rank=frame["rank"].where(frame.index != 7))


def _other_protocol(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(protocol="0" * 64)


def _without_order(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="rank")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _seen_item,
            "lists of 1 users contain items that they had before, e.g. user 'u0' item 'i3'",
        ),
        (_validation_item, "e.g. user 'u0' item 'i4'"),
        (_unknown_user, "1 rows have a user_id that is not in the protocol's events, e.g. '17'"),
        (
            _unknown_item,
            "1 rows have a item_id that is not in the protocol's table items, e.g. '17'",
        ),
        (_repeated_item, "has the same item more than once, e.g. user 'u0' item 'i20'"),
        (_repeated_rank, "has the same rank more than once, e.g. user 'u0'"),
        (_missing_rank, "rank is missing in 1 rows"),
        (_other_protocol, "were made for protocol 000000000000"),
        (_without_order, "no column rank or score"),
    ],
)
def test_lists_that_break_the_protocol_are_refused(
    folder: Path, tmp_path: Path, capsys: Captured, damage: Any, message: str, ending: str
) -> None:
    path = saved(damage(lists(lambda user: user % 4)), tmp_path / f"l.{ending}")
    words = ["--protocol", str(folder), "--lists", f"a={path}", "--out", str(tmp_path / "out")]
    assert main(["referee", "score", *words]) == 2
    printed = capsys.readouterr().err
    assert message in printed and str(path) in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("l.csv", {"user_id": "u0", "item_id": "i9", "rank": 1, "user_id ": "u0"}, "user_id twice"),
        ("l.parquet", {"user_id": ["u0"], "item_id": "i9", "rank": 1}, "user_id holds list"),
        ("l.parquet", {"user_id": b"u\xff", "item_id": "i9", "rank": 1}, "user_id holds binary"),
        ("l.parquet", {"user_id": "u0", "item_id": "i9", "rank": 1, "command": ["a"]}, "command"),
    ],
)
def test_files_of_other_columns_are_refused(
    folder: Path, tmp_path: Path, capsys: Captured, name: str, columns: Any, message: str
) -> None:
    path = saved(pd.DataFrame([columns]).rename(columns={"user_id ": "user_id"}), tmp_path / name)
    assert main(["referee", "score", "--protocol", str(folder), "--lists", f"a={path}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", '{"version": 1}', '{"version": 1, "rules": 1}', "[" * 9**6]
)
def test_damaged_description_of_a_protocol_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "protocol.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"protocol\.json is damaged"):
        read_protocol(tmp_path)


def test_lists_of_sampled_items_are_refused_if_all_items_are_ranked(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Twenty items of a hundred for each user; the target is always among them, at any rank."""
    path = saved(lists(lambda user: 1 + user % 20, k=20), tmp_path / "l.csv")
    assert main(["referee", "score", "--protocol", str(folder), "--lists", f"a={path}"]) == 2
    assert "only sampled items were ranked" in capsys.readouterr().err
    # a twentieth of the users do not have it in their list
    honest = saved(lists(lambda user: user % 20, k=20), tmp_path / "h.csv")
    assert not [note for note in score(folder, f"a={honest}")["notes"] if "sampled" in note]


def test_implausible_lists_are_noted(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    best = saved(lists(lambda user: 1), tmp_path / "b.csv")
    none = saved(lists(lambda user: 0), tmp_path / "n.csv")
    short = saved(
        lists(lambda user: user % 3).query("rank <= 3 and user_id != 'u9'"), tmp_path / "s.csv"
    )
    notes = "\n".join(score(folder, f"best={best}", f"none={none}", f"short={short}")["notes"])
    assert f"{best}: the first item is a target for 100.0% of the users" in notes
    assert f"{none}: no list has a target" in notes
    assert (
        f"{short}: 1 of 240 users have no list" in notes
        and "239 lists are shorter than 5, the shortest 3" in notes
    )
    assert "the lists of best, none, short have no protocol hash" in notes
    assert "note:" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ figures


def test_metrics_equal_those_computed_by_hand(folder: Path, tmp_path: Path) -> None:
    """One third of the targets at rank two, one third at rank five, one third not listed."""
    found = score(folder, f"a={saved(lists(lambda user: (0, 2, 5)[user % 3]), tmp_path / 'l.csv')}")
    figures = {name: entry["value"] for name, entry in found["methods"]["a"]["metrics"].items()}
    assert figures["hit@5"] == pytest.approx(2 / 3) and figures["hit@2"] == pytest.approx(1 / 3)
    assert figures["mrr@5"] == figures["map@5"] == pytest.approx((1 / 2 + 1 / 5) / 3)
    assert figures["ndcg@5"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(6)) / 3)
    assert figures["precision@5"] == pytest.approx(2 / 15) and figures["recall@5"] == pytest.approx(
        2 / 3
    )
    assert (
        figures["coverage@5"] == 1.0 and "low" not in found["methods"]["a"]["metrics"]["coverage@5"]
    )
    entry = found["methods"]["a"]["metrics"]["hit@5"]
    assert entry["low"] == pytest.approx(2 / 3 - 1.96 * np.sqrt(2 / 9 / USERS), abs=0.01), (
        "the normal interval"
    )


def test_referee_masks_scores_of_the_whole_catalogue(folder: Path, tmp_path: Path) -> None:
    """Items that a user had get the best scores and must not count; ties do not follow the order of
    the file.
    """
    rows = [
        (f"u{user}", f"i{item}", -((item - 5 * user) % ITEMS))
        for user in range(USERS)
        for item in range(ITEMS)
    ]
    whole = pd.DataFrame(rows, columns=["user_id", "item_id", "score"])
    found = score(
        folder,
        f"a={saved(whole, tmp_path / 'whole.parquet')}",
        f"c={saved(whole.assign(score=1), tmp_path / 'c.csv')}",
    )
    assert found["methods"]["a"]["metrics"]["hit@2"]["value"] == 1.0
    assert found["methods"]["c"]["metrics"]["hit@2"]["value"] < 0.1, (
        "equal scores give chance level"
    )


def test_our_baselines_have_the_figures_of_our_evaluation(tmp_path: Path) -> None:
    """On walks that overlap, so that neighbours predict the next item."""
    histories = [
        leave_last(*((3 * user + step) % ITEMS for step in range(6))) for user in range(USERS)
    ]
    dataset, folder = write_dataset(tmp_path / "data", histories, ITEMS), tmp_path / "p"
    write_protocol(made(dataset), folder, "parquet")
    words = [
        "--protocol",
        str(folder),
        "--out",
        str(tmp_path / "l"),
        "--evaluate.baselines",
        "[popularity, item_knn]",
    ]
    assert main(["referee", "lists", *words]) == 0
    found = score(folder, str(tmp_path / "l"))
    config = build_config({}).evaluate
    known = dataset.histories()
    knn = build_baseline("item_knn", config)
    knn.constants = {"neighbours": int(found["methods"]["item_knn"]["setting"].split("=")[1])}
    knn.fit(known.through(Split.VALID), ITEMS)
    ranking = rank(knn, known.queries(Split.TEST), K)
    expected = float(ndcg_at(ranking.hits_BK, ranking.num_targets_B, K).mean())
    assert found["methods"]["item_knn"]["metrics"][f"ndcg@{K}"]["value"] == pytest.approx(
        expected, abs=1e-9
    )
    assert expected > 0.3 and len(found["methods"]["item_knn"]["selection"]["settings"]) == 3
    assert found["methods"]["popularity"]["commands"][0].startswith("recsys referee lists")
    assert not [note for note in found["notes"] if "hash" in note]


def test_protocol_without_validation_has_lists_of_the_default_settings(
    tmp_path: Path, capsys: Captured
) -> None:
    folder, out = tmp_path / "p", tmp_path / "l"
    rows = [
        leave_last_without_validation(*((5 * user + step) % ITEMS for step in range(6)))
        for user in range(USERS)
    ]
    write_protocol(made(write_dataset(tmp_path / "data", rows, ITEMS)), folder, "parquet")
    words = ["--out", str(out), "--evaluate.baselines", "[popularity, item_knn]"]
    assert main(["referee", "lists", "--protocol", str(folder), *words]) == 0
    said = capsys.readouterr().out
    assert "no validation query, so baselines keep their default settings" in said
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.parquet"))
    assert names == ["item_knn/neighbours=100.parquet", "popularity/default.parquet"]
    found = score(folder, str(out))["methods"]
    assert found["item_knn"]["setting"] == "neighbours=100" and "selection" not in found["item_knn"]
    file = saved(lists(lambda user: 1), tmp_path / "a.csv")
    words = ["--protocol", str(folder), "--lists", f"a={file}", f"a.valid={file}"]
    assert main(["referee", "score", *words]) == 2
    assert "the protocol has no validation query" in capsys.readouterr().err


def test_lists_of_a_window_without_validation_do_not_count_there(folder: Path) -> None:
    protocol = read_protocol(folder)
    whole = protocol.windows[0]
    empty = replace(whole, splits={**whole.splits, "valid": whole.splits["valid"][:0]})
    windows = [replace(whole, name="a"), replace(empty, name="b")]
    protocol = replace(protocol, windows=windows)
    assert protocol.has_validation and not replace(protocol, windows=windows[1:]).has_validation
    questions = [protocol.queries(window, Split.VALID) for window in protocol.windows]
    file = saved(
        lists(lambda user: 1, Split.VALID).assign(window="a"), folder.parent / "windows.csv"
    )
    found = read_lists(file, protocol, questions, Split.VALID)
    assert [len(one.items_BK) for one in found.windows] == [USERS, 0]


def test_main_metric_has_its_own_cut_off(dataset: PreparedDataset, tmp_path: Path) -> None:
    tree: dict[str, Any] = {"data": {"dir": dataset.root}, "evaluate": {"ks": [2]}}
    protocol = protocol_of(dataset, build_config({**tree, "train": {"metric": "ndcg@5"}}))
    assert protocol.ks == [2, 5]
    write_protocol(protocol, tmp_path / "p", "csv")
    found = score(tmp_path / "p", f"a={saved(lists(lambda user: 2), tmp_path / 'a.csv')}")
    assert found["methods"]["a"]["metrics"]["ndcg@5"]["value"] == pytest.approx(1 / np.log2(3))
    with pytest.raises(ConfigError, match="the referee computes recall, ndcg, .*, got 'stat"):
        protocol_of(dataset, build_config({**tree, "train": {"metric": "statistics:mean@5"}}))


def test_cures_of_messages_fit_the_action(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    file = saved(lists(lambda user: user % 3), tmp_path / "a.csv")
    words = [f"{number}={file}" for number in range(8)]
    notes = "\n".join(score(folder, *words, "--referee.bootstrap", "1000")["notes"])
    assert "raise --referee.bootstrap" in notes
    empty = saved(lists(lambda user: 1).iloc[:0], tmp_path / "empty.csv")
    assert main(["referee", "score", "--protocol", str(folder), "--lists", f"a={empty}"]) == 2
    assert "the protocol's table ask lists these users" in capsys.readouterr().err


def test_pairs_are_tested_with_holm(folder: Path, tmp_path: Path) -> None:
    better, worse = (
        saved(lists(lambda user, n=n: user % n), tmp_path / f"{n}.csv") for n in (3, 6)
    )
    found = score(folder, f"better={better}", f"worse={worse}", f"same={worse}")
    pairs = {(pair["first"], pair["second"]): pair for pair in found["pairs"]["hit@5"]}
    assert (
        len(pairs) == 3 and pairs["worse", "same"]["p"] == pairs["worse", "same"]["p_holm"] == 1.0
    )
    lost = pairs["better", "worse"]
    assert (
        lost["difference"] == pytest.approx(2 / 3 - 5 / 6)
        and lost["p"] < lost["p_holm"] < 0.01
        and lost["high"] < 0
    )
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_leaderboard_has_the_difference_to_the_best_in_either_order_of_the_methods(
    folder: Path, tmp_path: Path
) -> None:
    first, second = (
        saved(lists(lambda user, n=n: user % n), tmp_path / f"{n}.csv") for n in (1, 2)
    )
    for words in ([f"none={first}", f"half={second}"], [f"half={second}", f"none={first}"]):
        header, best, worse = board(score(folder, *words))
        assert [row[0] for row in (best, worse)] == ["half", "none"]
        column = header.index("minus the best, 95 % interval")
        assert best[column] == "–"
        value, low, high = re.findall(r"[+-][.\d]+", worse[column])
        assert value == "-0.5000" and float(low) < -0.5 < float(high) < 0
        # one target per query: recall and map would repeat hit and mrr
        assert header[7:] == ["mrr@5", "hit@5", "coverage@5"]


def test_seeds_are_averaged_and_their_spread_is_reported(folder: Path, tmp_path: Path) -> None:
    for seed, n in enumerate((2, 3, 4)):
        saved(lists(lambda user, n=n: user % n), tmp_path / f"a.seed{seed}.csv")
    found = score(folder, f"a={tmp_path}/a.seed*.csv")["methods"]["a"]
    assert found["seeds"] == 3
    entry = found["metrics"]["hit@5"]
    figures = [1 / 2, 2 / 3, 3 / 4]
    assert entry["value"] == pytest.approx(np.mean(figures)) and entry["sd"] == pytest.approx(
        np.std(figures, ddof=1)
    )
    assert score(folder, str(tmp_path))["methods"]["a"] == found, (
        "a folder of lists gives the same result"
    )


def test_selection_on_test_is_reported_as_inflation(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The setting small is better on validation, large on test."""
    for setting, (valid, test) in {"small": (2, 1), "large": (1, 2)}.items():
        saved(lists(lambda user, n=test: user % (n + 1), k=K), tmp_path / f"m/{setting}.csv")
        saved(
            lists(lambda user, n=valid: user % (n + 1), Split.VALID),
            tmp_path / f"m/{setting}.valid.csv",
        )
    found = score(folder, str(tmp_path))["methods"]["m"]
    assert (
        found["setting"] == found["selection"]["chosen"] == "small"
        and found["metrics"]["hit@5"]["value"] == 1 / 2
    )
    assert found["selection"]["best_on_test"] == "large"
    tests = {name: entry["test"] for name, entry in found["selection"]["settings"].items()}
    gap = found["selection"]["inflation"]
    assert (
        gap["difference"] == pytest.approx(tests["large"] - tests["small"])
        and gap["difference"] > 0
    )
    assert "selection inflation" in capsys.readouterr().out
    (tmp_path / "m/large.valid.csv").unlink()
    assert main(["referee", "score", "--protocol", str(folder), "--lists", str(tmp_path)]) == 2
    assert "a setting must not be chosen on test" in capsys.readouterr().err


# -------------------------------------------------------------------------- masks, samples, windows


def test_seen_items_may_be_listed_and_count_without_a_mask(tmp_path: Path) -> None:
    """Half of the users return to their first item."""
    histories = [
        leave_last(user % 20, 20 + user % 7, 40 + user, user % 20 if user % 2 else 90)
        for user in range(40)
    ]
    dataset = write_dataset(tmp_path / "data", histories, ITEMS)
    frame = pd.DataFrame(
        [(f"u{user}", f"i{user % 20}", 1.0) for user in range(40)],
        columns=["user_id", "item_id", "score"],
    )
    path = saved(frame, tmp_path / "l.csv")
    write_protocol(made(dataset, mask="none"), tmp_path / "none", "csv")
    assert score(tmp_path / "none", f"a={path}")["methods"]["a"]["metrics"]["hit@2"]["value"] == 0.5
    protocol = made(dataset)
    assert len(protocol.windows[0].ask) == 20, "a user who only returns has no target that counts"
    write_protocol(protocol, tmp_path / "seen", "csv")
    assert (
        main(["referee", "score", "--protocol", str(tmp_path / "seen"), "--lists", f"a={path}"])
        == 2
    )


@pytest.mark.parametrize("sampler", ["uniform", "recbole"])
def test_only_sampled_unknown_items_are_ranked(
    dataset: PreparedDataset, tmp_path: Path, capsys: Captured, sampler: str
) -> None:
    protocol = made(dataset, sample=10, sampler=sampler)
    negatives = protocol.windows[0].negatives
    assert negatives is not None
    frame = negatives.to_pandas()
    assert (
        len(frame) == 10 * USERS and made(dataset, sample=10, sampler=sampler).hash == protocol.hash
    )
    own = {
        f"u{user}": {f"i{(5 * user + step) % ITEMS}" for step in range(6)} for user in range(USERS)
    }
    assert not [row for row in frame.itertuples() if row.item_id in own[row.user_id]]
    write_protocol(protocol, tmp_path / "p", "csv")
    wanted = pd.DataFrame(
        {
            "user_id": [f"u{u}" for u in range(USERS)],
            "item_id": [f"i{target(u)}" for u in range(USERS)],
        }
    )
    both = pd.concat(
        [
            frame.drop_duplicates().assign(score=range(len(frame.drop_duplicates()))),
            wanted.assign(score=-1),
        ]
    )
    both.loc[
        both.user_id.isin([f"u{u}" for u in range(0, USERS, 4)]), "score"
    ] *= -1  # the target first for a quarter of the users
    found = score(tmp_path / "p", f"a={saved(both, tmp_path / 'l.csv')}")
    assert found["methods"]["a"]["metrics"]["hit@2"]["value"] == pytest.approx(0.25, abs=0.02)
    path = saved(both.iloc[1:], tmp_path / "less.csv")
    assert (
        main(["referee", "score", "--protocol", str(tmp_path / "p"), "--lists", f"a={path}"]) == 2
    )
    assert "1 of" in capsys.readouterr().err


def test_recbole_sampler_needs_an_item_with_events_that_the_user_does_not_have(
    tmp_path: Path,
) -> None:
    """Of sixty items, five have events; all users have all five."""
    dataset = write_dataset(tmp_path / "data", [leave_last(*range(5))] * 5, 60)
    with pytest.raises(ConfigError, match="a user has all 5 items with events"):
        made(dataset, sample=10, sampler="recbole")
    assert made(dataset, sample=10, sampler="recbole", mask="none").windows[0].negatives is not None


@pytest.mark.parametrize("mask", ["seen", "none"])
def test_recbole_sampler_draws_as_recbole_does(mask: str) -> None:
    """numpy.random as RecBole calls it: all items of a user at once, and again for items that the
    user knows.
    """
    from recsys.data.histories import Histories
    from recsys.referee.negatives import drawn

    histories = Histories.of_items([[2, 0, 3], [1, 2, 4]], users=[0, 1])
    parts = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)
    histories = type(histories)(**{**vars(histories), "splits_E": parts})
    _, items = drawn(
        histories.queries(Split.TEST),
        histories,
        5,
        {"sample": 2, "sampler": "recbole", "seed": 7, "mask": mask},
    )
    # training first: u0 has item 2, u1 item 1; then validation, 0 and 2; then test
    order = [2, 1, 0, 3, 4]
    np.random.seed(7)
    expected = []
    for known in ({2, 0, 3}, {1, 2, 4}) if mask == "seen" else ({3}, {4}):
        used = [order.index(item) + 1 for item in known]
        values = np.random.randint(1, 6, 2)
        check = np.arange(2)[np.isin(values, used)]
        while len(check):
            values[check] = value = np.random.randint(1, 6, len(check))
            check = check[np.isin(value, used)]
        expected += [order[value - 1] for value in values]
    assert items.tolist() == expected


@pytest.fixture(scope="module")
def in_time(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """One event a day for 100 days from each of ten users; the last 20 days are test, the ten
    before them validation.
    """
    histories = []
    for user in range(10):
        days = range(1, 101)
        parts = [
            Split.TRAIN if day <= 70 else Split.VALID if day <= 80 else Split.TEST for day in days
        ]
        histories.append(
            [
                ((7 * user + day) % 150, 0, day * DAY, part)
                for day, part in zip(days, parts, strict=True)
            ]
        )
    folder = tmp_path_factory.mktemp("time") / "data"
    write_dataset(folder, histories, 150)
    manifest = json.loads((folder / "manifest.json").read_text())
    shares = {"kind": "temporal", "valid": 0.1, "test": 0.1, "ordered": True, "given_valid": False}
    cuts = {"valid_from": "1970-03-13T00:00:00+00:00", "test_from": "1970-03-23T00:00:00+00:00"}
    manifest["split"] = shares | cuts
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return PreparedDataset(str(folder))


def test_windows_roll_over_the_past(
    in_time: PreparedDataset, tmp_path: Path, capsys: Captured
) -> None:
    protocol = made(in_time, windows=3)
    spans = []
    for window in protocol.windows:
        days = {
            name: table.column("timestamp").cast(pa.int64()).to_pandas() // DAY
            for name, table in window.splits.items()
        }
        spans.append([(name, int(of.min()), int(of.max())) for name, of in days.items()])
    assert spans[2] == [
        ("train", 1, 70),
        ("valid", 71, 80),
        ("test", 81, 100),
    ], "the last window is the split of the dataset"
    assert [span[2][1] for span in spans] == [43, 62, 81] and [span[0][2] for span in spans] == [
        32,
        51,
        70,
    ]
    write_protocol(protocol, tmp_path / "p", "csv")
    assert read_protocol(tmp_path / "p").hash == protocol.hash
    rows = []
    for number, window in enumerate(protocol.windows):
        for place, (user, of) in enumerate(window.splits["test"].to_pandas().groupby("user_id")):
            item = of.item_id.iloc[0] if place < 2 * (number + 1) else "i149"
            rows.append((user, item, 1, window.name))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rank", "window"])
    found = score(tmp_path / "p", f"a={saved(frame, tmp_path / 'l.csv')}")
    hits = {name: entry["ndcg@5"] for name, entry in found["methods"]["a"]["windows"].items()}
    assert (
        list(hits) == ["window-1", "window-2", "window-3"]
        and hits["window-1"] < hits["window-2"] < hits["window-3"]
    )
    assert found["protocol"]["queries"] == 30
    path = saved(frame.drop(columns="window"), tmp_path / "w.csv")
    assert (
        main(["referee", "score", "--protocol", str(tmp_path / "p"), "--lists", f"a={path}"]) == 2
    )
    assert "add a column window" in capsys.readouterr().err


def test_windows_need_a_temporal_split_with_a_past(
    dataset: PreparedDataset, in_time: PreparedDataset
) -> None:
    with pytest.raises(ConfigError, match=r"need data\.split\.kind temporal, got leave-last"):
        made(dataset, windows=2)
    with pytest.raises(ConfigError, match="leave no training events for the first one"):
        made(in_time, windows=9)


def test_dataset_without_evaluated_users_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", [leave_last(0, 1, 2, 0)], 5)
    with pytest.raises(DataError, match="no user can be evaluated"):
        made(dataset)


def test_code_of_the_page_writes_lists_that_the_referee_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    text = (Path(__file__).parents[2] / "docs/referee.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    write_protocol(made(walks(tmp_path / "data")), tmp_path / "protocol", "csv")
    exec(compile(blocks[0], "docs/referee.md", "exec"), {})
    found = score(tmp_path / "protocol", "mine=mine.csv")
    assert found["methods"]["mine"]["commands"] == ["most popular, by hand"]
    assert not [note for note in found["notes"] if "hash" in note or "short" in note]


# --------------------------------------------------------------------------------- lists of our own


def test_lists_of_windows_have_one_schema_if_one_window_has_no_validation_query(
    folder: Path, tmp_path: Path
) -> None:
    (whole,) = read_protocol(folder).windows
    empty = replace(whole, splits={**whole.splits, "valid": whole.splits["valid"][:0]})
    windows = [replace(whole, name="window-1"), replace(empty, name="window-2")]
    write_protocol(replace(read_protocol(folder), windows=windows), tmp_path / "p", "csv")
    words = ["--protocol", str(tmp_path / "p"), "--evaluate.baselines", "[popularity]"]
    assert main(["referee", "lists", *words, "--out", str(tmp_path / "l")]) == 0
    assert score(tmp_path / "p", str(tmp_path / "l"))["protocol"]["queries"] == 2 * USERS


def test_baseline_that_one_window_rules_out_has_no_lists_and_a_reason(
    tmp_path: Path, capsys: Captured
) -> None:
    again = [leave_last(*((user + step % 3) % 40 for step in range(7))) for user in range(30)]
    once = [leave_last(*((user + step) % 40 for step in range(7))) for user in range(30)]
    protocols = [
        made(write_dataset(tmp_path / name, rows, 40), mask="none")
        for name, rows in {"again": again, "once": once}.items()
    ]
    windows = [
        replace(one.windows[0], name=f"window-{number}") for number, one in enumerate(protocols, 1)
    ]
    out = ["--out", str(tmp_path / "l"), "--evaluate.baselines", "[popularity, frequency]"]
    write_protocol(replace(protocols[0], windows=windows[:1]), tmp_path / "one", "csv")
    assert main(["referee", "lists", "--protocol", str(tmp_path / "one"), *out]) == 0
    assert "left out" not in capsys.readouterr().out and (tmp_path / "l/frequency").is_dir()
    out[1] = str(tmp_path / "l2")
    write_protocol(replace(protocols[0], windows=windows), tmp_path / "two", "csv")
    assert main(["referee", "lists", "--protocol", str(tmp_path / "two"), *out]) == 0
    assert "frequency is left out: no user has an item twice in window-2" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "l2").iterdir()] == ["popularity"]


def test_baselines_follow_the_mask_of_the_protocol(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = ["--evaluate.baselines", "[frequency]", "--evaluate.exclude_seen", "false"]
    words += ["--out", str(tmp_path / "l"), "--protocol", str(folder)]
    assert main(["referee", "lists", *words]) == 2
    found = capsys.readouterr()
    assert "frequency is left out: lists leave out what a user had before" in found.out
    assert "no baseline is left" in found.err and not (tmp_path / "l").exists()


@pytest.fixture
def finished(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes any folder a finished run: trained on ``dataset``, with popularity as its model."""

    def make(**evaluate: Any) -> None:
        config = build_config({"data": {"dir": dataset.root}, "evaluate": evaluate})
        model = build_baseline("popularity", config.evaluate)
        model.fit(dataset.histories().through(Split.TRAIN), ITEMS)
        run = SimpleNamespace(
            config=config, folder=None, metrics={"data": {"fitted_through": "train"}}
        )
        for name, found in {
            "pipelines.comparison.finished_runs.opened_run": nullcontext(run),
            "pipelines.plumbing.opened_dataset.open_dataset": dataset,
            "pipelines.plumbing.opened_model.open_trained": SimpleNamespace(frozen=model),
        }.items():
            monkeypatch.setattr(name, lambda *_, found=found: found)

    return make


def test_lists_of_a_run_have_the_users_of_the_protocol_and_not_those_of_its_own_sample(
    folder: Path, tmp_path: Path, finished: Callable[..., None]
) -> None:
    finished(max_users=20)
    words = ["--protocol", str(folder), "--out", str(tmp_path), "--runs", "a=run"]
    assert main(["referee", "lists", *words]) == 0
    assert pd.read_parquet(tmp_path / "a.parquet").user_id.nunique() == USERS


def test_run_with_another_mask_is_refused(
    folder: Path, tmp_path: Path, finished: Callable[..., None], capsys: Captured
) -> None:
    finished(exclude_seen=False)
    words = ["--protocol", str(folder), "--out", str(tmp_path), "--runs", "a=run"]
    assert main(["referee", "lists", *words]) == 2
    assert "has evaluate.exclude_seen false, but the protocol has mask seen" in (
        capsys.readouterr().err
    )


def test_mask_follows_the_configuration_unless_it_is_given(dataset: PreparedDataset) -> None:
    tree = {"data": {"dir": dataset.root}, "evaluate": {"exclude_seen": False}}
    found = [
        protocol_of(dataset, build_config({**tree, "referee": referee})).rules["mask"]
        for referee in ({}, {"mask": "seen"})
    ]
    assert found == ["none", "seen"] and made(dataset).rules["mask"] == "seen"


# ------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected prepare, lists, score, page"),
        (["judge"], "got 'judge'"),
        (["prepare", "--out", "x"], "--config FILE is missing"),
        (["score", "--lists", "a=b.csv"], "--protocol DIR"),
        (["score", "--protocol", "nowhere"], "--lists NAME=FILE"),
        (["score", "--protocol", "nowhere", "--lists", "a=nothing.csv"], "no file nothing.csv"),
        (
            ["score", "--protocol", "nowhere", "--lists", "nothing"],
            "neither NAME=FILE nor a folder",
        ),
        (
            ["score", "--protocol", "x", "--lists", "a=b.csv", "--train.lr", "1"],
            "does not read --train.lr",
        ),
        (["lists", "--protocol", "nowhere", "--out", "x"], "nowhere is not a protocol"),
        (["page", "--out", "x", "nothing.json"], "nothing.json cannot be read"),
        (["page", "--out", "x"], "no referee.json is given"),
    ],
)
def test_invalid_arguments_are_refused(words: list[str], message: str, capsys: Captured) -> None:
    assert main(["referee", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", '{"protocol": {}, "methods": {}, "pairs": {}}', "[" * 9**6]
)
def test_page_refuses_files_of_another_kind(tmp_path: Path, content: str, capsys: Captured) -> None:
    file = tmp_path / "referee.json"
    file.write_text(content)
    assert main(["referee", "page", "--out", str(tmp_path / "page.md"), str(file)]) == 2
    assert f"{file} " in capsys.readouterr().err and not (tmp_path / "page.md").exists()


@pytest.mark.parametrize("action", ["score", "lists", "page"])
def test_output_of_another_kind_is_refused(
    folder: Path, tmp_path: Path, capsys: Captured, action: str
) -> None:
    file = saved(lists(lambda user: user % 3), tmp_path / "a[1].csv")
    words = {
        "score": ["--out", str(file), "--protocol", str(folder), "--lists", f"a={file}"],
        "lists": ["--out", f"{file}/below", "--protocol", str(folder)],
        "page": ["--out", str(tmp_path), str(file)],
    }
    assert main(["referee", action, *words[action]]) == 2
    is_kind = f"{tmp_path} is a folder" if action == "page" else f"{file} is a file"
    assert is_kind in capsys.readouterr().err


def test_name_of_an_existing_file_is_no_pattern(folder: Path, tmp_path: Path) -> None:
    score(folder, f"a={saved(lists(lambda user: user % 3), tmp_path / 'a[1].csv')}")


def test_page_has_every_dataset_and_method(folder: Path, tmp_path: Path) -> None:
    judged = score(folder, f"a={saved(lists(lambda user: user % 3), tmp_path / 'a.csv')}")
    other = json.loads(json.dumps(judged).replace('"a"', '"b<i>"'))
    other["protocol"]["name"] = "another"
    for name, record in {"one": judged, "two": other}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    files = [str(tmp_path / f"{name}.json") for name in ("one", "two")]
    assert main(["referee", "page", "--out", str(tmp_path / "page.md"), *files]) == 0
    text = (tmp_path / "page.md").read_text()
    figure = f"**{judged['methods']['a']['metrics']['ndcg@5']['value']:.4f}**"
    assert (
        "| method | another, leave-last, mask seen: ndcg@5 | handmade, leave-last, mask seen:"
        f" ndcg@5 |\n|---|---|---|\n| b<i> | {figure} | – |\n| a | – | {figure} |" in text
    )
    assert "## another, leave-last, mask seen" in text
    assert "recsys referee score" in text
    assert "<script" not in (folder.parent / "verdict/referee.html").read_text()
