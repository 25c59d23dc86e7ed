"""`recsys update`: ids stay, training continues from the old weights, validation and test use new
events only, and the version names its parent.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from pipelines.cli import main
from pipelines.update import check_text
from pipelines.updating.start_weights import Held, chosen_weights
from recsys.config import Config, build_config, load_config
from recsys.data.context_columns import ContextColumn
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.data.vocabulary import Vocabulary, extend
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.evaluation.validation import Validator
from recsys.granularities.knowledge.model import Knowledge
from recsys.granularities.stratum.section import StratumConfig
from recsys.preparation.graphs import encode_triples
from recsys.preparation.prepare import prepare
from recsys.registry.register import register
from recsys.registry.tracking import Tracker
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.training.context import TrainContext
from recsys.training.fresh_model import model_sizes
from recsys.training.phases import fit
from recsys.training.warm_start import Earlier, NewerOnly, grow, newer_users, warm_start
from tests.handmade import DAY, Event, leave_last, small_world, train_events, write_dataset
from tests.training_here import training_here

Captured = pytest.CaptureFixture[str]

# -------------------------------------------------------------------------------------------- parts


def test_old_ids_stay_and_new_ones_follow() -> None:
    assert extend(None, pa.array(["b", "a", "b"])).to_pylist() == ["a", "b"]
    base = Vocabulary(pa.array(["m", "b"]), pa.array(["x"]), ("view",))
    users, items = base.grown(pa.array(["a", "b", "m"]), pa.array(["x"]))
    assert users.to_pylist() == ["m", "b", "a"] and items.to_pylist() == ["x"]
    assert base.grown(pa.array(["a", "b"]), pa.array(["x"]))[0].to_pylist() == [
        "m",
        "b",
        "a",
    ], "lost ids keep their numbers"
    with pytest.raises(
        DataError, match=r"1 of the 2 users .*e\.g\. 'm'; an update needs old and new events"
    ):
        base.check_kept(pa.array(["a", "b"]), pa.array(["x"]))
    assert base.digest() != Vocabulary(pa.array(["b", "m"]), pa.array(["x"]), ("view",)).digest()


def test_tables_grow_with_their_vocabulary_and_everything_else_is_equal() -> None:
    old = {"id": torch.ones(3, 2), "square": torch.ones(2, 2), "bias": torch.ones(4)}
    fresh = {
        "id": torch.zeros(5, 2),
        "square": torch.zeros(2, 2),
        "bias": torch.zeros(4),
        "later": torch.zeros(1),
    }
    vocabularies = [(7, 7), (3, 5)]
    found, added = grow(old, fresh, vocabularies)
    assert found["id"].tolist() == [[1, 1]] * 3 + [[0, 0]] * 2 and added == ["later"]
    assert found["square"].eq(1).all() and found["bias"].eq(1).all()
    with pytest.raises(
        ArtifactError,
        match=r"square has the shape \[4, 2\] for this data and \[2, 2\] in the model",
    ):
        grow(old, fresh | {"square": torch.zeros(4, 2)}, vocabularies)
    relations = [Knowledge.vocabularies({"entities": 9, "relations": number}) for number in (1, 3)]
    ways, _ = grow(
        {"relations": torch.ones(2, 2)},
        {"relations": torch.zeros(6, 2)},
        zip(*relations, strict=True),
    )
    assert ways["relations"].sum(1).tolist() == [
        2,
        2,
        0,
        0,
        0,
        0,
    ], "a relation has two kinds of edge, one after the other"


def settings(**train: Any) -> Config:
    names = ("behaviour", "evolution", "collaborative", "social")
    return build_config(
        {
            "model": {
                "width": 8,
                "max_history": 6,
                "granularities": {name: {"enabled": True} for name in names},
            },
            "train": {
                "epochs": 3,
                "batch_size": 8,
                "lr": 0.01,
                "metric": "ndcg@5",
                "warmup": 0.0,
                **train,
            },
            "evaluate": {"ks": [5]},
        }
    )


def trained(config: Config, dataset: PreparedDataset, **options: Any) -> Any:
    return fit(
        config, dataset, Validator.of(config.train, config.evaluate), TrainContext(), **options
    )


def test_fine_tuning_of_the_language_model_is_refused() -> None:
    check_text(settings().data)
    with pytest.raises(
        ConfigError, match=r"data\.text\.finetune\.enabled: got true, .*text/adapter"
    ):
        check_text(
            build_config(
                settings().model_dump() | {"data": {"text": {"finetune": {"enabled": True}}}}
            ).data
        )


def test_warm_start_on_the_same_data_equals_the_model(tmp_path: Path, one_thread: None) -> None:
    dataset, config = small_world(tmp_path / "d"), settings()
    first = trained(config, dataset)
    start, added = warm_start(
        config.model, config.train, config.seed, dataset, Earlier(first.weights, first.frozen.sizes)
    )
    assert added == [] and all(
        torch.equal(start.weights[name], tensor) for name, tensor in first.weights.items()
    )
    second = trained(settings(lr=1e-12), dataset, start=start)
    before, after = first.frozen.tensors(), second.frozen.tensors()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)


def test_unchanged_model_may_be_selected(tmp_path: Path, one_thread: None) -> None:
    """A step so large that it can only harm: epoch 0 wins, and the refit takes no step either."""
    dataset, config = small_world(tmp_path / "d"), settings(epochs=30, lr=0.02, patience=30)
    first = trained(config, dataset)
    start, _ = warm_start(
        config.model, config.train, config.seed, dataset, Earlier(first.weights, first.frozen.sizes)
    )
    second = trained(settings(epochs=2, lr=3.0), dataset, start=start)
    assert second.best_epoch == 0 and second.refit
    assert all(torch.equal(second.weights[name], start.weights[name]) for name in start.weights)


def test_grown_dataset_keeps_the_learned_weights(tmp_path: Path, one_thread: None) -> None:
    """Old items keep their text part and id part; whitening stays although new texts would rotate
    its axes.
    """
    histories: list[list[Event]] = [
        leave_last(*np.roll(np.arange(8), -u)[:6].tolist()) for u in range(10)
    ]
    old = write_dataset(tmp_path / "old", histories, 8, text_width=6)
    new = write_dataset(tmp_path / "new", [*histories, leave_last(8, 9, 0, 1)], 10, text_width=6)
    config = settings(epochs=2)
    config.model.granularities.social.enabled = False
    first = trained(config, old)
    start, added = warm_start(
        config.model, config.train, config.seed, new, Earlier(first.weights, first.frozen.sizes)
    )
    assert added == []
    table = start.weights["model.tower.id_ND.weight"]
    assert table.shape == (10, 8) and torch.equal(
        table[:8], first.weights["model.tower.id_ND.weight"]
    )
    assert table[8:].abs().sum() > 0
    second = trained(config, new, start=start)
    for name in ("model.tower.text_mean_GT", "model.tower.text_axes_GTW"):
        assert torch.equal(second.weights[name], first.weights[name])
    assert (
        second.frozen.sizes == model_sizes(config.model, new, Split.VALID)
        and second.frozen.sizes.num_items == 10
    )


def test_other_shapes_of_the_data_give_a_message_with_the_setting(tmp_path: Path) -> None:
    dataset, config = small_world(tmp_path / "d"), settings()
    first = trained(config, dataset)
    other = write_dataset(
        tmp_path / "other", [train_events(0, 1, 2)], 12, text_width=4, event_types=("view", "buy")
    )
    with pytest.raises(
        ArtifactError, match=r"text_width 6, this dataset gives 4: the language model .* differs"
    ):
        warm_start(
            config.model,
            config.train,
            config.seed,
            other,
            Earlier(first.weights, first.frozen.sizes),
        )


def test_other_language_model_of_equal_width_is_recognised_by_its_files(tmp_path: Path) -> None:
    dataset, config = small_world(tmp_path / "d"), settings()
    first = trained(config, dataset)
    dataset.manifest.text["identity"] = "aa"
    warm_start(
        config.model,
        config.train,
        config.seed,
        dataset,
        Earlier(first.weights, first.frozen.sizes, "aa"),
    )
    # of a dataset without this entry
    warm_start(
        config.model, config.train, config.seed, dataset, Earlier(first.weights, first.frozen.sizes)
    )
    with pytest.raises(
        ArtifactError, match=r"uses the language model bb, and this dataset aa.*data\.text\.model"
    ):
        warm_start(
            config.model,
            config.train,
            config.seed,
            dataset,
            Earlier(first.weights, first.frozen.sizes, "bb"),
        )


def test_validation_and_test_use_only_users_with_events_unknown_to_the_parent(
    tmp_path: Path,
) -> None:
    old = write_dataset(
        tmp_path / "old", [leave_last(0, 1, 2, 3), leave_last(4, 5, 6), leave_last(1, 2, 3)], 8
    )
    histories: list[list[Event]] = [
        leave_last(0, 1, 2, 3, 4),  # one more event: the old test event is the validation event
        leave_last(4, 5, 6),  # no newer event: validation stays the same
        leave_last(1, 2, 3, 4, 5, 6),
        leave_last(6, 7, 0),  # a new user
    ]
    new = write_dataset(tmp_path / "new", histories, 8)
    seen = old.histories().through(Split.VALID)
    newer_V = newer_users(new, seen)
    assert newer_V.tolist() == [True, False, True, True]
    evaluated: list[int] = []

    def validate(model: Any, queries: Any) -> Any:
        evaluated.extend(queries.histories.users_U.tolist())
        return np.ones(len(queries))

    counted = NewerOnly(validate, newer_V)(None, new.histories().queries(Split.VALID))  # type: ignore[arg-type]
    assert len(counted) == 3 and sorted(evaluated) == [0, 2, 3]
    with pytest.raises(DataError, match="there is nothing to update on; give newer events"):
        newer_users(old, seen)
    drawn = [
        [
            (item, 0, (day + 1) * DAY, split)
            for day, (item, split) in enumerate(zip((0, 1, 2, 3), parts, strict=True))
        ]
        for parts in ([Split.TEST, Split.TRAIN, Split.VALID, Split.TRAIN],)
    ]
    with pytest.raises(
        DataError,
        match=r"1 of the 1 test events of this split were training events .*data\.split\.kind",
    ):
        newer_users(write_dataset(tmp_path / "drawn", drawn, 8), seen)


@pytest.mark.parametrize("day", [DAY, 0])  # 0: times are unknown
def test_an_item_again_is_a_new_event(tmp_path: Path, day: int) -> None:
    """The first user chooses an item again; the second one has viewed an item and buys it now."""
    old: list[list[Event]] = [leave_last(0, 1, 2, 3), leave_last(4, 5, 6, 7)]
    new = [leave_last(0, 1, 2, 3, 5, 0), leave_last(4, 5, 6, 7, 4, 5)]
    new[1][4:] = [(item, 1, time, split) for item, _, time, split in new[1][4:]]
    datasets = [
        write_dataset(
            tmp_path / name,
            [[(i, kind, min(time, day * time), split) for i, kind, time, split in r] for r in rows],
            8,
            event_types=("view", "buy"),
        )
        for name, rows in (("old", old), ("new", new))
    ]
    seen = datasets[0].histories().through(Split.TEST)
    assert newer_users(datasets[1], seen).tolist() == [True, True]


def test_weights_with_too_few_validation_users_are_not_continued(tmp_path: Path) -> None:
    """The final weights have seen all old events; the measured ones leave every user with a new
    event.
    """
    old = write_dataset(
        tmp_path / "old", [leave_last(0, 1, 2, 3 + user % 4) for user in range(8)], 10
    )
    known = old.histories()
    final, measured = (
        Earlier({}, model_sizes(settings().model, old, Split.VALID)) for _ in range(2)
    )
    held = [Held(final, Split.TEST), Held(measured, Split.VALID)]
    for num_with_two, chosen in ((8, final), (4, final), (3, measured)):
        # with one newer event, the old test event is the validation event
        events = [
            leave_last(0, 1, 2, 3 + user % 4, 8, *([9] if user < num_with_two else []))
            for user in range(8)
        ]
        new = write_dataset(tmp_path / str(num_with_two), events, 10)
        earlier, newer_V = chosen_weights(new, known, held)
        assert earlier is chosen
        assert newer_V.sum() == (num_with_two if chosen is final else 8)


# --------------------------------------------------------------------------------------- whole verb


def events(path: Path, rows: list[tuple[str, str, int, str]]) -> None:
    lines = [f"{user},{item},{day * DAY},{kind}" for user, item, day, kind in rows]
    path.write_text(
        "user_id,item_id,timestamp,event_type\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A champion of Monday's events; Tuesday's have new users, items and an event type, all first
    in the sort order.
    """
    folder = tmp_path_factory.mktemp("update")
    monday = [
        (f"u{u:02}", f"i{(u + day) % 12:02}", day + 1, "view")
        for u in range(24)
        for day in range(6)
    ]
    events(folder / "1-monday.csv", monday)
    tuesday = [
        (f"u{u:02}", f"i{(u + day) % 12:02}", day + 1, "view") for u in range(16) for day in (6, 7)
    ]
    tuesday += [
        (f"a{u}", f"i{(u + day) % 12:02}", day + 1, "buy") for u in range(4) for day in range(5)
    ]
    tuesday += [("u00", "b1", 20, "view"), ("u00", "b1", 21, "view"), ("u00", "i03", 22, "view")]
    events(folder / "later.csv", tuesday)
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "monday")},
        "data": {
            "source": {"kind": "canonical", "events": [str(folder / "[0-9]*.csv")]},
            "text": {"enabled": False},
            "num_shards": 1,
        },
        "model": {
            "width": 8,
            "item": {"text": False},
            "granularities": {"evolution": {"enabled": True}, "collaborative": {"enabled": True}},
        },
        "train": {
            "epochs": 3,
            "batch_size": 8,
            "metric": "ndcg@5",
            "threads": 1,
            "warmup": 0.0,
            "lr": 0.01,
        },
        "evaluate": {
            "ks": [5],
            "baselines": ["popularity"],
            "bootstrap": 100,
            "num_examples": 0,
            "ablate": False,
        },
        "registry": {"name": "pocket"},
        "update": {"epochs": 2, "prior_rows": 1.0},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = load_config(folder / "c.yaml")
    dataset = prepare(config, progress=lambda line: None)
    first = trained(config, dataset)
    write_bundle(folder / "monday/bundle", first.frozen, dataset, {"refit": True}, first.weights)
    champion = config.model_copy(
        update={"registry": config.registry.model_copy(update={"alias": "champion"})}
    )
    with Tracker(champion) as tracker:
        register(
            tracker,
            folder / "monday/bundle",
            champion.registry,
            {"model": {}},
            resumes=champion.run.resume,
            replaces=champion.update.replace,
        )
    return folder


@pytest.fixture(scope="module")
def updated(world: Path) -> Path:
    """The run folder of an update trained in this process."""
    with training_here() as trained:
        updates(world, "tuesday")
    assert trained == [str(world / "tuesday")]
    return world / "tuesday"


def updates(world: Path, name: str, *words: str) -> None:
    """`recsys update` with Tuesday's file in addition to Monday's, into the run folder with this
    name.
    """
    (world / "later.csv").rename(world / "2-tuesday.csv")
    try:
        assert (
            main(
                [
                    "update",
                    "--config",
                    str(world / "c.yaml"),
                    "--run.dir",
                    str(world / name),
                    *words,
                ]
            )
            == 0
        )
    finally:
        (world / "2-tuesday.csv").rename(world / "later.csv")


def refused(capsys: Captured, world: Path, *words: str) -> str:
    capsys.readouterr()
    assert (
        main(
            [
                "update",
                "--config",
                str(world / "c.yaml"),
                "--run.dir",
                str(world / "refused"),
                *words,
            ]
        )
        == 2
    )
    message = capsys.readouterr().err
    assert message.count("recsys: ") == 1 and "Traceback" not in message
    return message


def test_old_users_items_and_types_keep_their_numbers(world: Path, updated: Path) -> None:
    old, new = read_bundle(world / "monday/bundle"), read_bundle(updated / "bundle")
    assert new.user_ids == [*old.user_ids, "a0", "a1", "a2", "a3"]
    assert new.item_ids == [*old.item_ids, "b1"]
    assert (old.info.event_types, new.info.event_types) == (["view"], ["view", "buy"])
    for user in range(16, 24):  # without newer events
        assert (
            old.histories.take(np.array([user])).items_E.tolist()
            == new.histories.take(np.array([user])).items_E.tolist()
        )


@pytest.mark.slow
def test_update_by_ray_train_gives_the_same_model(world: Path, updated: Path) -> None:
    """The workers of Ray Train receive the whole start state of an update."""
    updates(
        world,
        "by-ray",
        "--tracking.enabled",
        "false",
        "--update.model",
        str(world / "monday/bundle"),
    )
    one, other = (
        read_bundle(folder / "bundle").model.tensors() for folder in (updated, world / "by-ray")
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


def test_update_with_only_newer_events_keeps_all_events_of_the_parent(
    world: Path, updated: Path
) -> None:
    """The update needs neither a configuration nor old files: the model contains the configuration,
    and its dataset the old events.
    """
    day = world / "wednesday.csv"
    events(
        day,
        [
            (f"u{u:02}", f"i{(u + day) % 12:02}", day + 20, "view")
            for u in range(24)
            for day in (8, 9)
        ],
    )
    backup = world / "aside"
    backup.mkdir()
    old = [path.rename(backup / path.name) for path in world.glob("[0-9]*.csv")]
    before = read_bundle(updated / "bundle")
    words = [
        "update",
        "--update.model",
        str(updated),
        "--run.dir",
        str(world / "wednesday"),
        "--events",
        str(day),
    ]
    try:
        with training_here():
            assert main([*words, "--tracking.enabled", "false", "--update.epochs", "1"]) == 0
    finally:
        for path in old:
            path.rename(world / path.name)
    after = read_bundle(world / "wednesday/bundle")
    counts = before.info.dataset["counts"]["events"], after.info.dataset["counts"]["events"]
    assert counts == (counts[0], counts[0] + 48)
    assert after.user_ids == before.user_ids and after.info.model == before.info.model
    for bundle in (before, after):
        made_with = bundle.info.extra["config"]
        assert (made_with["train"]["epochs"], made_with["train"]["lr"]) == (
            3,
            0.01,
        ), "an update does not shorten the next one"
        assert made_with["update"]["prior_rows"] == 1.0 and "events" not in made_with["update"]
    drift = json.loads((world / "wednesday/metrics.json").read_text())["drift"]
    assert drift["events"] == 48 and drift["unknown_items"] == drift["unknown_users"] == 0
    assert (
        after.info.extra["drift"] == drift
        and "Drift" in (world / "wednesday/report.html").read_text()
    )


@pytest.mark.slow
def test_promote_and_recommend_read_the_configuration_from_the_model(
    world: Path, updated: Path, capsys: Captured
) -> None:
    run_options = ["--run.dir", str(world / "by-model")]
    assert (
        main(
            [
                "promote",
                "--promote.model",
                "models:/pocket/2",
                "--train.metric",
                "hit@5",
                *run_options,
                "--dry-run",
            ]
        )
        == 0
    )
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["dir"] == str(updated / "dataset") and printed["model"]["width"] == 8
    assert printed["train"]["metric"] == "hit@5" and printed["evaluate"]["baselines"] == [
        "popularity"
    ]
    assert (
        main(["recommend", "--recommend.model", str(updated), "--recommend.k", "2", *run_options])
        == 0
    )
    assert (world / "by-model/recommendations.parquet").is_file()
    assert main(["promote", "--promote.model", str(world / "monday"), *run_options]) == 2
    assert "stores no configuration" in capsys.readouterr().err


def test_source_with_only_the_newest_file_keeps_all_earlier_events(
    world: Path, updated: Path, capsys: Captured
) -> None:
    """Earlier releases made a model of the new day alone if the source named only that day."""
    all_events = [
        (f"u{u:02}", f"i{i:02}", 40 + u % 3, "view") for u in range(24) for i in range(12)
    ]
    events(world / "thursday.csv", all_events)
    source = ["--data.source.events", f"[{world}/thursday.csv]", "--tracking.enabled", "false"]
    without_old = [
        "--update.dataset",
        str(world / "nowhere"),
        "--update.model",
        str(world / "monday/bundle"),
    ]
    events(
        world / "few.csv",
        all_events[:40] + [(f"u{u:02}", f"i{u % 12:02}", 44, "view") for u in range(24)],
    )
    few = ["--data.source.events", f"[{world}/few.csv]"]
    assert "parent model has 144: an update does not lose" in refused(
        capsys, world, *without_old, *few
    )
    words = [
        "update",
        "--config",
        str(world / "c.yaml"),
        "--run.dir",
        str(world / "thursday"),
        *source,
    ]
    with training_here():
        assert (
            main([*words, "--update.model", str(world / "monday/bundle"), "--update.epochs", "1"])
            == 0
        )
    assert read_bundle(world / "thursday/bundle").info.dataset["counts"]["events"] == 144 + len(
        all_events
    )


def test_version_names_its_parent(world: Path, updated: Path) -> None:
    registered = json.loads((updated / "registered.json").read_text())
    assert registered["version"] == 2 and registered["alias"] == "challenger"
    client = mlflow.MlflowClient(registered["tracking"])
    assert client.get_model_version("pocket", "2").tags["parent"] == "models:/pocket/1"
    assert client.get_model_version_by_alias("pocket", "champion").version in ("1", 1)
    parent = read_bundle(updated / "bundle").info.extra["parent"]
    assert parent["uri"] == "models:/pocket/1" and len(parent["dataset"]) == 64
    run = client.get_run(registered["run_id"])
    assert run.data.params["train.epochs"] == "2" and float(
        run.data.params["train.lr"]
    ) == pytest.approx(0.003)
    assert (updated / "metrics.json").is_file() and (updated / "report.html").is_file()
    log = (updated / "run.log").read_text()
    assert "new: 4 users, 1 items, 1 event types;" in log and "validation on 20 users" in log
    assert "validation users have only targets" not in log, (
        "only evaluated users are checked for such targets"
    )


def test_feedback_changes_only_the_fusion_weights(world: Path, capsys: Captured) -> None:
    """Users like the suggestions of evolution and skip those of collaborative."""
    from recsys.serving.recommender import Recommender
    from recsys.serving.request_parsing import parse_requests

    recommender = Recommender(read_bundle(world / "monday/bundle"))
    answers = recommender.recommend(
        parse_requests(
            [
                {"user_id": user, "k": 100, "exclude_seen": False}
                for user in recommender.bundle.user_ids
            ]
        )
    )
    rows = []
    for answer in answers:
        liked_share, skipped_share = (
            np.array(answer.shares[name]) for name in ("evolution", "collaborative")
        )
        # in units of their spreads; otherwise one may dominate the other
        wanted = liked_share / liked_share.std() - skipped_share / skipped_share.std()
        for item, liked in zip(answer.item_ids, wanted > np.median(wanted), strict=True):
            rows.append(
                {
                    "user_id": answer.user_id,
                    "item_id": item,
                    "event_type": "click" if liked else "skip",
                }
            )
    (world / "feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "update",
        "--config",
        str(world / "c.yaml"),
        "--run.dir",
        str(world / "fusion"),
        "--update.only",
        "fusion",
    ]
    words += ["--update.feedback", f"[{world}/feedback.jsonl]"]
    assert main(words) == 0
    before, after = read_bundle(world / "monday/bundle"), read_bundle(world / "fusion/bundle")
    old, new = before.model.tensors(), after.model.tensors()
    assert [name for name in old if not torch.equal(old[name], new[name])] == [
        "encoders.fusion.raw_K"
    ]
    fusion = after.info.extra["fusion"]
    assert fusion["after"]["evolution"] > fusion["before"]["evolution"]
    assert fusion["after"]["collaborative"] < fusion["before"]["collaborative"]
    assert after.info.metrics["feedback_log_loss"] < after.info.metrics["feedback_log_loss_before"]
    registered = json.loads((world / "fusion/registered.json").read_text())
    client = mlflow.MlflowClient(registered["tracking"])
    assert (
        client.get_model_version("pocket", str(registered["version"])).tags["parent"]
        == "models:/pocket/1"
    )

    noise = np.random.default_rng(0).permutation([row["event_type"] for row in rows])
    drawn = [row | {"event_type": str(kind)} for row, kind in zip(rows, noise, strict=True)]
    (world / "noise.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drawn))
    words[4], words[-1] = str(world / "nothing"), f"[{world}/noise.jsonl]"
    capsys.readouterr()
    assert main(words) == 0
    assert "is unchanged" in capsys.readouterr().out and not (world / "nothing/bundle").exists()


def test_update_of_strata_changes_only_the_strata(
    world: Path, updated: Path, capsys: Captured
) -> None:
    """The user clusters change and nothing else in the model; unknown event types are refused."""
    config = load_config(world / "c.yaml", [("data.dir", str(world / "strata-data"))])
    config.model.granularities.stratum = StratumConfig(enabled=True, num_strata=[3], input="item")
    dataset = prepare(config, progress=lambda line: None)
    first = trained(config, dataset)
    write_bundle(world / "strata-parent", first.frozen, dataset, {}, first.weights)
    words = [
        "update",
        "--config",
        str(world / "c.yaml"),
        "--run.dir",
        str(world / "strata"),
        "--update.only",
        "strata",
    ]
    words += ["--tracking.enabled", "false", "--model.granularities.stratum.enabled", "true"]
    words += [
        "--model.granularities.stratum.num_strata",
        "[3]",
        "--model.granularities.stratum.input",
        "item",
    ]
    words += ["--update.model", str(world / "strata-parent")]
    assert main(words) == 0
    old, new = (
        read_bundle(path).model.tensors()
        for path in (world / "strata-parent", world / "strata/bundle")
    )
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed and all(name.startswith("encoders.granularities.stratum.") for name in changed)
    assert read_bundle(world / "strata/bundle").info.extra["parent"]["uri"] == str(
        world / "strata-parent"
    )
    (world / "later.csv").rename(world / "2-tuesday.csv")
    capsys.readouterr()
    assert main(words) == 2
    (world / "2-tuesday.csv").rename(world / "later.csv")
    assert "does not know the event type buy" in capsys.readouterr().err


def test_entities_relations_and_context_keep_their_numbers() -> None:
    """Entities and relations of an earlier dataset come first; the coding of context is part of its
    identity.
    """

    def table_of(*triples: tuple[str, str, str]) -> pa.Table:
        columns = [pa.array(column, pa.string()) for column in zip(*triples, strict=True)]
        rows = len(triples)
        provenance = {
            "_file": ["f"] * rows,
            "_row": list(range(rows)),
            "_reason": pa.nulls(rows, pa.string()),
        }
        return pa.table(
            {**dict(zip(("head", "relation", "tail"), columns, strict=True)), **provenance}
        )

    items = pa.table({"item_id": ["i0", "i1"], "entity_id": ["m", "n"]})
    context = (ContextColumn("weather", ("sun", "rain")),)
    none = pa.array([], pa.string())
    base = Vocabulary(none, none, (), pa.array(["n", "m", "x"]), pa.array(["likes"]), context)
    files, _, _ = encode_triples(items, table_of(("m", "by", "a"), ("n", "likes", "m")), base=base)
    assert files["vocab/entities.parquet"].column("entity").to_pylist() == ["n", "m", "x", "a"]
    assert files["vocab/relations.parquet"].column("relation").to_pylist() == ["likes", "by"]
    assert files["items/entities.parquet"].column("entity").to_pylist() == [1, 0]
    known = files["graphs/knowledge.parquet"].to_pylist()
    assert sorted(tuple(row.values()) for row in known) == [(0, 0, 1), (1, 1, 3)]
    assert base.digest() != replace(base, context=()).digest()


def test_impossible_updates_are_refused(world: Path, updated: Path, capsys: Captured) -> None:
    assert "models:/pocket@nobody is not registered; registered models:" in refused(
        capsys, world, "--update.model", "models:/pocket@nobody"
    )
    assert "has no model bundle" in refused(capsys, world, "--update.model", str(world))
    assert "trained with another model section: model.width was 8, is now 16" in refused(
        capsys, world, "--model.width", "16"
    )
    read_before = "has read all named files of events before"
    assert read_before in refused(capsys, world) and read_before in refused(
        capsys, world, "--update.model", str(updated)
    )
    # as if its dataset were deleted
    no_dataset = ["--update.model", str(updated), "--update.dataset", str(world / "nowhere")]
    message = refused(capsys, world, *no_dataset)
    assert (
        "4 of the 28 users that the model knows are not in the data any more, e.g. 'a0'" in message
    )
    message = refused(capsys, world, *no_dataset, "--events", str(world / "later.csv"))
    assert "nowhere is not a prepared dataset" in message and "set update.dataset" in message
    fusion = ["--update.only", "fusion", "--update.feedback"]
    assert "nowhere.csv" in refused(capsys, world, *fusion, f"[{world}/nowhere.csv]")
    (world / "empty.csv").write_text("user_id,item_id,event_type\n")
    assert "empty.csv" in refused(capsys, world, *fusion, f"[{world}/empty.csv]")
    assert "update.feedback: expected files" in refused(capsys, world, "--update.only", "fusion")
    assert "update.only" in refused(capsys, world, "--update.only", "everything")
