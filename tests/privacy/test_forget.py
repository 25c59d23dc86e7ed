"""`recsys forget`: no artefact contains a trace of a user, and the proof of it can fail."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_prepare import MemorySource, config, event, rows_of, silent
from test_user_text import world as user_text_world

from pipelines.cli import main
from recsys import schema
from recsys.config import build_config, load_config
from recsys.data.dataset import PreparedDataset
from recsys.data.forgotten import Forgotten
from recsys.data.histories import Histories, Split
from recsys.data.leak_audit import audit
from recsys.data.renumber import Renumbering
from recsys.errors import ArtifactError
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.forget import forget_users
from recsys.preparation.prepare import prepare
from recsys.preparation.vector_cache import VectorCache, forget_texts, text_keys
from recsys.privacy.footprints import Id, SearchTargets
from recsys.privacy.membership import membership, separation
from recsys.privacy.proof import is_signed, search_file
from recsys.registry.followed_model import FollowedModel
from recsys.registry.parent import open_parent
from recsys.serving.bundles import read_bundle
from recsys.training.fresh_model import build_graphs
from tests.handmade import small_world
from tests.training_here import training_here

Captured = pytest.CaptureFixture[str]
GONE = ("person-007", "person-021")

# ---------------------------------------------------------------------------------------- the story


def _write_world(folder: Path) -> Path:
    """Sixty users with ten to sixteen films each, friends, and a bad row of a user to forget;
    returns the configuration.
    """
    rng, rows = np.random.default_rng(0), []
    for user in range(60):
        time = 1_600_000_000 + int(rng.integers(0, 1e6))
        for item in rng.permutation(40)[: 10 + user % 7]:
            time += int(rng.integers(60, 90_000))
            rows.append((f"person-{user:03d}", f"film-{item:02d}", time))
    events = [
        "user_id,item_id,timestamp",
        *(",".join(map(str, row)) for row in rows),
        "person-007,,5",
    ]
    (folder / "events.csv").write_text("\n".join(events), encoding="utf-8")
    friends = [f"person-{user:03d},person-{(7 * user + 1) % 60:03d}" for user in range(60)]
    (folder / "social.csv").write_text(
        "\n".join(["src_user_id,dst_user_id", *friends]), encoding="utf-8"
    )
    enabled = {"enabled": True}
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "data": {
            "source": {
                "kind": "canonical",
                "events": [str(folder / "events.csv")],
                "social": [str(folder / "social.csv")],
            },
            "text": {"enabled": False},
            "num_shards": 2,
        },
        "model": {
            "width": 8,
            "max_history": 10,
            "item": {"text": False},
            "fusion": {"stack": True},
            "granularities": {
                **{
                    name: enabled
                    for name in (
                        "evolution",
                        "social",
                        "social_cf",
                        "popularity",
                        "item_knn",
                        "user_cf",
                    )
                },
                "stratum": {**enabled, "num_strata": [3]},
            },
        },
        "train": {
            "epochs": 2,
            "batch_size": 32,
            "metric": "ndcg@5",
            "threads": 1,
            "warmup": 0.0,
            "final": True,
        },
        "evaluate": {"ks": [5], "baselines": ["popularity"], "bootstrap": 100, "num_examples": 60},
        "registry": {"name": "films"},
    }
    path = folder / "films.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Iterator[Path]:
    """A finished run with recommendations, whose version is champion; every test uses a copy."""
    folder = tmp_path_factory.mktemp("films")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        with training_here():
            path = _write_world(folder)
            assert main(["run", "--config", str(path)]) == 0
            store = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
            store.set_registered_model_alias("films", "champion", "1")
            recommendations = {
                "user_id": ["person-007", "person-001"],
                "item_id": ["film-01", "film-02"],
            }
            pq.write_table(pa.table(recommendations), folder / "run" / "recommendations.parquet")
            (folder / "run" / "answers").mkdir()
            pq.write_table(pa.table(recommendations), folder / "run" / "answers" / "asked.parquet")
            with (folder / "run" / "run.log").open("a", encoding="utf-8") as log:
                log.write("a line about person-021.\n")
            yield path


def _proofs(path: Path) -> list[dict[str, Any]]:
    return [
        json.loads(one.read_text())
        for one in sorted((path.parent / "run" / "forgotten").glob("proof-*.json"))
    ]


def _holding(root: Path, word: str) -> list[str]:
    """The files with a word, searched independently of the proof: in bytes and in printed table
    rows.
    """
    found = []
    for path in sorted(one for one in root.rglob("*") if one.is_file()):
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text += str(pq.read_table(path).to_pydict()).encode()
        if word.encode() in text:
            found.append(path.relative_to(root).as_posix())
    return found


def test_forget_leaves_no_trace_and_all_verbs_run(trained: Path, capsys: Captured) -> None:
    """One sequence, since each step needs the one before: forget, search, serve, prepare again,
    forget again.
    """
    root, given = trained.parent, load_config(trained)
    store = f"sqlite:///{root / 'mlflow.db'}"
    served = FollowedModel("models:/films@champion", store)
    before, examples = served.version(), read_bundle(root / "run" / "bundle")
    assert (
        set(GONE) <= set(examples.user_ids)
        and len(_holding(root / "mlartifacts", "person-007")) > 0
    )

    assert main(["forget", "--config", str(trained), "--user", *GONE]) == 0
    shown = capsys.readouterr().out
    assert "nothing found" in shown and not any(user in shown for user in GONE)

    for word in GONE:  # recsys does not change the source
        assert _holding(root, word) == ["events.csv", "social.csv"]
    (proof,) = _proofs(trained)
    assert proof["result"] == "nothing found" and is_signed(proof) and proof["users"]["number"] == 2
    assert [Path(place).name for place in proof["source_files_with_them"]] == [
        "events.csv",
        "social.csv",
    ]
    searched = {one["path"] for one in proof["searched"]}
    assert {
        "dataset/manifest.json",
        "bundle/users.parquet",
        "model/weights.safetensors",
    } <= searched
    assert (
        any(path.endswith("mlflow.db") for path in searched)
        and proof["looked_for"]["stretches_of_history"] >= 12
    )
    assert not is_signed({**proof, "result": "something found"}) and not is_signed(proof, "00" * 32)

    assert served.version() != before, "a server that follows the alias loads the other version"
    bundle, about = served.load(served.version())
    assert (
        about["version"] == "2"
        and len(bundle.user_ids) == 58
        and not set(GONE) & set(bundle.user_ids)
    )
    assert "trained weights of" in about["card"] and "--retrain" in about["card"]
    versions = mlflow.MlflowClient(store).search_model_versions("name = 'films'")
    assert [one.version for one in versions] in (["2"], [2])

    capsys.readouterr()
    assert main(["prepare", "--config", str(trained)]) == 0
    assert "is up to date" in capsys.readouterr().out, (
        "the list keeps them out although the source has them"
    )
    assert main(["forget", "--config", str(trained), "--user", "person-099"]) == 2
    assert "the given user is in no dataset" in capsys.readouterr().err

    (root / "pulled").mkdir()
    with zipfile.ZipFile(root / "pulled" / "old.zip", "w") as archive:
        archive.writestr("notes/a.json.gz", gzip.compress(b'{"who": "person-007"}'))
    again = [
        "forget",
        "--config",
        str(trained),
        "--user",
        GONE[0],
        "--forget.also",
        f"[{root / 'pulled'}]",
    ]
    assert main(again) == 1
    assert "old.zip: id in /notes/a.json.gz/gzip" in capsys.readouterr().err
    assert _proofs(trained)[-1]["result"] == "found"
    shutil.rmtree(root / "pulled")
    assert given.forget.users == [] and "person" not in (root / "run" / "history.jsonl").read_text()

    parent = open_parent(str(root / "run" / "bundle"), store)
    assert parent.vocabulary().forgotten.holds(GONE[0]), (
        "an update in another folder leaves them out as well"
    )


def test_configuration_of_another_model_is_refused_before_anything_is_removed(
    trained: Path, capsys: Captured
) -> None:
    def files() -> dict[str, int]:
        found = [one for one in (trained.parent / "run").rglob("*") if one.suffix != ".log"]
        return {str(one): one.stat().st_mtime_ns for one in found if one.is_file()}

    before = files()
    command = ["forget", "--config", str(trained), "--user", "person-050", "--model.width", "16"]
    assert main(command) != 0
    assert "another model section: model.width was 8, is now 16" in capsys.readouterr().err
    changed = {name for name, when in files().items() if before.get(name) != when}
    assert not [name for name in changed if "/dataset/" in name or "/model/" in name], changed
    assert not (trained.parent / "run" / "forgetting.json").exists()


@pytest.mark.slow
def test_interrupted_forget_continues(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops between the dataset and the model, and again before the registry; the same command
    completes it.
    """
    copied = _copy(trained, tmp_path)
    command = ["forget", "--config", str(copied), "--user", "person-033"]
    for module, name in (
        ("pipelines.forget", "make_models_again"),
        ("pipelines.forget", "forget_versions"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.{name}", _stopped)
            assert main(command) == 1
        assert (tmp_path / "run" / "forgetting.json").is_file()
    assert main(command) == 0
    assert _holding(tmp_path, "person-033") == ["events.csv", "social.csv"]
    assert not (tmp_path / "run" / "forgetting.json").exists()
    assert read_bundle(tmp_path / "run" / "bundle").info.dataset["counts"]["users"] == 59


@pytest.mark.parametrize("is_between", [True, False])
def test_forget_killed_while_it_replaces_the_dataset_continues(
    tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch, is_between: bool
) -> None:
    """Between the two renames there is no dataset; after them, the old one is still next to it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path, place = _write_world(tmp_path), tmp_path / "run/dataset"
    command = ["forget", "--config", str(path), "--user", "person-033"]
    assert main(["prepare", "--config", str(path)]) == 0
    remove = Folder.remove

    def killed(folder: Folder) -> None:
        if ".replaced-" in folder.path:
            raise KeyboardInterrupt
        remove(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove", killed)
        assert main(command) == 130
    assert len(list(place.parent.glob("dataset.replaced-*"))) == 1
    if is_between:
        shutil.rmtree(place)
    assert main(command) == 0
    assert _holding(tmp_path, "person-033") == ["events.csv", "social.csv"]
    assert PreparedDataset(str(place)).num_users == 59
    assert not list(place.parent.glob("dataset.replaced-*"))


def _stopped(*_: Any, **__: Any) -> None:
    raise RuntimeError("stopped")


def _copy(trained: Path, folder: Path) -> Path:
    """A separate world with the same data and its own run."""
    tree = yaml.safe_load(trained.read_text(encoding="utf-8"))
    for name in ("events.csv", "social.csv"):
        shutil.copy(trained.parent / name, folder / name)
    tree["run"]["dir"] = str(folder / "run")
    tree["data"]["source"] |= {
        "events": [str(folder / "events.csv")],
        "social": [str(folder / "social.csv")],
    }
    path = folder / "films.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert main(["run", "--config", str(path)]) == 0
    return path


@pytest.mark.slow
def test_version_of_another_run_folder_is_named_and_deleted_on_request(
    trained: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The version cannot be rebuilt here, so the proof names it; it is deleted only on request."""
    copied = _copy(trained, tmp_path)
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert main(["run", "--config", str(copied), "--run.dir", str(tmp_path / "other")]) == 0
    store.set_registered_model_alias("films", "champion", "2")
    store.set_registered_model_alias("films", "challenger", "1")
    command = ["forget", "--config", str(copied), "--user", "person-040"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert (
        "models:/films/2 holds these users and cannot be made again here (champion; made in"
        in captured.out
    )
    assert "run it there or use --forget.delete_versions true" in captured.err
    assert {str(one.version) for one in store.search_model_versions("name = 'films'")} == {"2", "3"}
    assert main([*command, "--forget.delete_versions", "true"]) == 0
    assert {str(one.version) for one in store.search_model_versions("name = 'films'")} == {"3"}
    found = _holding(tmp_path / "mlartifacts", "person-040")
    assert found == [], "its report and model are gone from the artefacts"


# -------------------------------------------------------------------------------------- the dataset


def test_last_users_get_the_ids_of_forgotten_users() -> None:
    found = Renumbering.without(6, [0, 2, 5])
    assert found.number_U.tolist() == [-1, 1, -1, 0, 2, -1] and found.order_V.tolist() == [3, 1, 4]
    assert found.is_changed_U.tolist() == [True, False, True, True, True, True]


@pytest.mark.parametrize("gone", [[0], [4], [1, 5], [0, 1, 2]])
def test_rewritten_dataset_contains_the_remaining_users(tmp_path: Path, gone: list[int]) -> None:
    """By ids: histories, counts and friendships of the remaining users are unchanged, and the audit
    passes.
    """
    dataset = small_world(tmp_path / "d")
    ids, before = dataset.user_ids.to_pylist(), dataset.histories()
    kept = {ids[user] for user in range(6) if user not in gone}
    events = {
        ids[user]: before.take(np.array([row])) for row, user in enumerate(before.users_U.tolist())
    }
    src, dst, _ = dataset.social_edges()
    friends = {(ids[a], ids[b]) for a, b in zip(src, dst, strict=True)}
    forgotten = Forgotten().having([ids[user] for user in gone])
    after = forget_users(dataset, gone, forgotten, build_config({}).data).dataset

    names = after.user_ids.to_pylist()
    assert set(names) == kept and after.num_users == len(kept)
    found = after.histories()
    for row, user in enumerate(found.users_U.tolist()):
        old, new = events.pop(names[user]), found.take(np.array([row]))
        for part in ("items_E", "types_E", "times_E", "splits_E"):
            assert np.array_equal(getattr(old, part), getattr(new, part))
    assert not set(events) & kept, "everybody else has their row"
    src, dst, _ = after.social_edges()
    assert {(names[a], names[b]) for a, b in zip(src, dst, strict=True)} == {
        pair for pair in friends if set(pair) <= kept
    }
    assert after.manifest.content_hash == forgotten.bound(dataset.manifest.content_hash)
    audit(PreparedDataset(after.root))


def test_two_forgets_give_the_same_dataset_as_one(tmp_path: Path) -> None:
    one, two = small_world(tmp_path / "one"), small_world(tmp_path / "two")
    first = Forgotten().having(["u0"])
    both = first.having(["u2"])
    step = forget_users(one, [0], first, build_config({}).data).dataset
    user = step.user_ids.to_pylist().index("u2")
    step = forget_users(step, [user], both, build_config({}).data).dataset
    whole = forget_users(two, [0, 2], both, build_config({}).data).dataset
    assert step.manifest.content_hash == whole.manifest.content_hash
    assert sorted(step.user_ids.to_pylist()) == sorted(whole.user_ids.to_pylist())
    assert np.array_equal(step.item_counts_N(Split.TEST), whole.item_counts_N(Split.TEST))


def test_graphs_of_the_rewritten_dataset_are_those_of_the_remaining_users(tmp_path: Path) -> None:
    dataset = small_world(tmp_path / "d")
    before = build_graphs(dataset, Split.VALID)
    own = torch.bincount(before.items_E[before.users_E == 0], minlength=dataset.num_items)
    after = build_graphs(
        forget_users(dataset, [0], Forgotten().having(["u0"]), build_config({}).data).dataset,
        Split.VALID,
    )
    assert torch.equal(after.degree_N, before.degree_N - own)


def test_damaged_list_stops_prepare_and_inherited_list_is_kept(tmp_path: Path) -> None:
    place = str(tmp_path / "list.json")
    assert len(Forgotten.read(place)) == 0
    listed = Forgotten().having(["ann"])
    other = Forgotten().having(["bob"])
    both = listed.with_all_of(other)
    both.write(place)
    found = Forgotten.read(place)
    assert (
        found.holds("ann")
        and found.holds("bob")
        and not found.holds("Ann")
        and "ann" not in Path(place).read_text()
    )
    assert found.among(pa.chunked_array([["bob", None, "eve"]])).tolist() == [True, False, False]
    Path(place).write_text("{}")
    with pytest.raises(ArtifactError, match="list of forgotten users, is damaged"):
        Forgotten.read(place)


def _shop(folder: Path, forgotten: Forgotten | None = None) -> PreparedDataset:
    """Purchases with a context column, tags for item text, friends, and one unused row of each
    kind.
    """
    rng, rows = np.random.default_rng(1), []
    for user in range(9):
        name = f"user-{user}"
        for place, item in enumerate(rng.permutation(12)[:6].tolist()):
            weather = f"only-{user}" if place == 0 else "rain"
            rows.append(event(name, f"i{item}", 1000 * place + user, weather=weather))
            rows.append(
                event(
                    name, f"i{item}", 1000 * place + user, event_type="tag", tag=f"tag-{user % 4}"
                )
            )
    rows += [
        event("user-4", "i0", 5, **{schema.REASON: "bad time", schema.RAW: "user-4,i0,soon"}),
        rows[0],
    ]
    edges = [
        {schema.SRC_USER_ID: f"user-{a}", schema.DST_USER_ID: f"user-{(a + 1) % 9}"}
        for a in range(9)
    ]
    tables = {
        "events": rows_of("events", rows, weather=pa.string(), tag=pa.string()),
        "social": rows_of("social", edges),
    }
    text = {"enabled": False, "event_column": "tag", "event_types": ["tag"]}
    settings = config(folder, context=["weather"], text=text, forgotten=str(folder / "list.json"))
    if forgotten is not None:
        forgotten.write(str(folder / "list.json"))
    return prepare(settings, silent, MemorySource(**tables))


def _shown(dataset: PreparedDataset) -> dict[str, Any]:
    """A dataset by external ids, independent of its dense ids."""
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    found, column = dataset.histories(), dataset.context[0]
    weather = ["missing", "unknown", *(column.values or ())]
    events = {}
    for row, user in enumerate(found.users_U.tolist()):
        span = range(found.offsets_U1[row], found.offsets_U1[row + 1])
        events[users[user]] = [
            (
                items[found.items_E[e]],
                int(found.times_E[e]),
                int(found.splits_E[e]),
                weather[found.context_EC[e, 0]],
            )
            for e in span
        ]
    src, dst, _ = dataset.social_edges()
    aside = {
        kind: dataset.table(f"{kind}/events.parquet").num_rows
        for kind in ("quarantine", "dropped")
        if (Path(dataset.root) / kind / "events.parquet").exists()
    }
    counted = (
        "users",
        "items",
        "events",
        "train",
        "valid",
        "test",
        "social_edges",
        "items_with_text",
    )
    return {
        "events": events,
        "friends": sorted((users[a], users[b]) for a, b in zip(src, dst, strict=True)),
        "texts": dict(zip(items, dataset.features.column("text").to_pylist(), strict=True)),
        "counts": {part: dataset.item_counts_N(part).tolist() for part in Split},
        "numbers": {name: dataset.manifest.counts[name] for name in counted},
        "aside": {kind: number for kind, number in aside.items() if number},
    }


@pytest.mark.parametrize("gone", [("user-4",), ("user-8", "user-0")])
def test_forget_equals_prepare_without_the_users(
    tmp_path: Path, ray_local: None, gone: tuple[str, ...]
) -> None:
    """Histories, item text from tags, counts, friends, context and unused rows are equal after a
    rewrite and after a new prepare.
    """
    forgotten = Forgotten().having(gone)
    (tmp_path / "new").mkdir()
    expected = _shop(tmp_path / "new", forgotten)
    before = _shop(tmp_path / "old")
    numbers = [before.user_ids.to_pylist().index(user) for user in gone]
    lines = [user.encode() for user in gone]
    found = forget_users(
        before,
        numbers,
        forgotten,
        config(tmp_path).data,
        lambda text: any(line.decode() in text for line in lines),
    )
    assert _shown(found.dataset) == _shown(expected)
    assert found.dataset.manifest.content_hash == expected.manifest.content_hash
    assert any("context column weather" in line for line in found.left)
    traces = SearchTargets(
        [Id.of(user, pa.array([], pa.string()), pa.array([], pa.string())) for user in gone]
    )
    for path in sorted(one for one in Path(found.dataset.root).rglob("*") if one.is_file()):
        assert not search_file(path, path.name, traces).found, path


def test_rows_of_users_in_unknown_tables_are_deleted(tmp_path: Path) -> None:
    """A table that this release does not know, with external or dense ids, coded or not: the rows
    are deleted.
    """
    dataset = small_world(tmp_path / "d")
    folder = Path(dataset.root) / "text"
    folder.mkdir()
    coded = pa.array(["u0", "u1", "u0"]).dictionary_encode()
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink:
        table = pa.table({"user_id": coded, "what": [1, 2, 3]})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    pq.write_table(
        pa.table({"user": pa.array([0, 5, 1], pa.int32()), "what": [1, 2, 3]}),
        folder / "rows.parquet",
    )
    after = forget_users(dataset, [0], Forgotten().having(["u0"]), build_config({}).data).dataset
    with pa.ipc.open_file(str(Path(after.root) / "text/rows.arrow")) as reader:
        rest = reader.read_all().combine_chunks()
    assert (
        rest.column("what").to_pylist() == [2]
        and b"u0" not in (Path(after.root) / "text/rows.arrow").read_bytes()
    )
    numbers = after.table("text/rows.parquet")
    names = after.user_ids.to_pylist()
    assert [names[user] for user in numbers.column("user").to_pylist()] == ["u5", "u1"]


def test_texts_of_histories_are_deleted_with_their_users(tmp_path: Path) -> None:
    """Remaining texts are unchanged, row by row, and unused vectors are deleted."""
    dataset = user_text_world(tmp_path / "d")
    names, before = dataset.user_ids.to_pylist(), dataset.user_texts(Split.VALID)
    after = forget_users(
        dataset, [2, 5], Forgotten().having([names[2], names[5]]), build_config({}).data
    ).dataset
    texts = after.user_texts(Split.VALID)
    assert before is not None and texts is not None
    for user, name in enumerate(after.user_ids.to_pylist()):
        rows = [
            found.whole(np.array([number]))[0]
            for found, number in ((texts, user), (before, names.index(name)))
        ]
        assert np.array_equal(texts.vectors_RT[rows[0]], before.vectors_RT[rows[1]])
    assert len(texts.vectors_RT) < len(before.vectors_RT)


def test_text_vectors_are_deleted_from_the_cache(tmp_path: Path) -> None:
    cache = VectorCache(str(tmp_path), "some-model")
    cache.store(text_keys(["a", "b", "c"], "some-model"), np.ones((3, 2), dtype=np.float16))
    assert forget_texts(str(tmp_path), ["b", "z"]) == 1
    assert len(cache.load(text_keys(["a", "b", "c"], "some-model"))) == 2


def test_damaged_cache_files_are_deleted_with_the_texts(tmp_path: Path) -> None:
    cache = VectorCache(str(tmp_path), "some-model")
    keys = text_keys(["a", "b", "c"], "some-model")
    for key in keys:
        cache.store([key], np.ones((1, 2), dtype=np.float16))
    damaged, other, gone = sorted((tmp_path / "some-model").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:40])
    other.write_bytes(b"")
    gone.unlink()
    gone.symlink_to(tmp_path / "no file")  # listed, but removed before it is read
    assert forget_texts(str(tmp_path), ["a", "b", "c"]) == 0
    assert [path.name for path in (tmp_path / "some-model").iterdir()] == [gone.name]


# --------------------------------------------------------------------------------------- the search


def _traces(*names: str) -> SearchTargets:
    known, items = pa.array([*names, "annabel-1", "bob"]), pa.array(["tea", "42"])
    return SearchTargets([Id.of(name, known, items) for name in names])


def _packed(kind: str, folder: Path) -> Path:
    """A file of this format that contains ann-smith."""
    text, path = b"made for ann-smith, by hand", folder / f"file.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/b.txt", text)
    elif kind == "gz":
        path.write_bytes(gzip.compress(text))
    elif kind == "zst":
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(text)
    elif kind == "parquet":
        table = pa.table({"who": pa.array(["bob"] * 50 + ["ann-smith"]).dictionary_encode()})
        pq.write_table(table, path, compression="zstd")
    elif kind == "nested.parquet":
        pq.write_table(pa.table({"lists": [[{"name": "ann-smith"}]]}), path, compression="zstd")
    elif kind == "arrow":
        with (
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, pa.schema([("who", pa.string())])) as writer,
        ):
            writer.write_table(pa.table({"who": ["ann-smith"]}))
    elif kind == "sqlite":
        with sqlite3.connect(path) as store:
            store.execute("CREATE TABLE people (name TEXT)")
            store.execute("INSERT INTO people VALUES ('x' || hex(zeroblob(3000)) || ' ann-smith')")
    elif kind == "safetensors":
        save_file({"names": torch.tensor(list(b"ann-smith"), dtype=torch.uint8)}, path)
        assert load_file(path)
    elif kind == "npz":
        np.savez_compressed(path, names=np.array(["ann-smith"]))
    elif kind == "html":
        inner = io.StringIO()
        csv.writer(inner).writerow(["ann-smith", 3])
        import base64

        encoded = base64.b64encode(inner.getvalue().encode()).decode()
        path.write_text(f'<a href="data:text/csv;base64,{encoded}">rows</a>')
    elif kind == "json":
        path.write_text(json.dumps({"user": "ann-smith"}))
    return path


KINDS = [
    "zip",
    "gz",
    "zst",
    "parquet",
    "nested.parquet",
    "arrow",
    "sqlite",
    "safetensors",
    "npz",
    "html",
    "json",
]


@pytest.mark.parametrize("kind", KINDS)
def test_id_is_found_in_any_file_format(kind: str, tmp_path: Path) -> None:
    path = _packed(kind, tmp_path)
    found = search_file(path, path.name, _traces("ann-smith"))
    assert found.found and not found.unreadable and found.sha256
    assert not search_file(path, path.name, _traces("ann-smithe")).found


def test_unreadable_file_fails_the_proof(tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 and nothing that follows from it")
    assert "parquet" in search_file(path, path.name, _traces("ann-smith")).unreadable[0]


@pytest.mark.parametrize(
    ("text", "name", "is_there"),
    [
        ("user annabel.", "annabel", True),
        ("user annabel-1.", "annabel", False),  # another user
        ("user xannabel.", "annabel", False),
        ('{"user_id": "42"}', "42", True),
        ('{"customer": "42"}', "42", True),
        ("customer ²²²²²²²²²", "²²²²²²²²²", True),  # digits that are no number
        ('{"price": 42, "item_id": "42"}', "42", False),  # just a number
        ("j\\u00fcrgen@x.org", "jürgen@x.org", True),
        ("a&lt;b&gt;c", "a<b>c", True),
    ],
)
def test_id_is_matched_as_a_whole_word(
    text: str, name: str, is_there: bool, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text(text, encoding="utf-8")
    assert bool(search_file(tmp_path / "f", "f", _traces(name)).found) == is_there


def test_history_is_found_without_an_id(tmp_path: Path) -> None:
    """By items in time order, by sorted items, and by times; histories that other users share are
    no trace.
    """
    users = Histories.of_items(
        [[5, 3, 9, 1, 7, 2], [4, 8, 6, 0, 1, 2], [4, 8, 6, 0, 1, 2]], [0, 1, 2]
    )
    times = np.arange(18, dtype=np.int64) ** 2 + 1_600_000_000
    users = Histories(
        users.users_U,
        users.offsets_U1,
        users.items_E,
        users.types_E,
        times,
        users.values_E,
        users.splits_E,
    )
    traces = SearchTargets()
    traces.add_history(users, [0], [f"film {number}" for number in range(10)])
    files = {
        "items.safetensors": {"a": torch.tensor([0, 5, 3, 9, 1, 7, 2, 0], dtype=torch.int32)},
        "sorted.safetensors": {"a": torch.tensor([1, 2, 3, 5, 7, 9], dtype=torch.int64)},
        "times.safetensors": {"a": torch.from_numpy(times[:6].copy())},
        "nobody.safetensors": {"a": torch.tensor([5, 3, 9, 1, 2, 7], dtype=torch.int32)},
    }
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
    (tmp_path / "page.html").write_text(
        "<li>film 2</li> <li>film 7</li> <li>film 1</li> <li>film 9</li><li>film 3</li><li>film 5"
    )
    pq.write_table(
        pa.table({"items": [[5, 3, 9, 1, 7, 2]]}), tmp_path / "list.parquet", compression="zstd"
    )
    found = {path.name: search_file(path, path.name, traces).found for path in tmp_path.iterdir()}
    assert {name for name, what in found.items() if what} == {
        *files,
        "page.html",
        "list.parquet",
    } - {"nobody.safetensors"}
    pq.write_table(
        pa.table({"items": [[8, 5, 3, 9], [1, 7, 2, 4]]}),
        tmp_path / "two.parquet",
        compression="zstd",
    )
    two = search_file(tmp_path / "two.parquet", "two", traces)
    assert not two.found, "the end of one list and the start of the next are not a user's history"
    common = SearchTargets()
    common.add_history(users, [1], [])
    assert common.num_common and len(common.stretches) < len(traces.stretches)
    later = Histories.of_items([[5, 3, 9, 1, 7, 2], [0, 5, 3, 9, 1, 7, 2]], [0, 1])
    traces.add_history(later, [0], [f"film {number}" for number in range(10)])
    found = {path.name: search_file(path, path.name, traces).found for path in tmp_path.iterdir()}
    assert {name for name, what in found.items() if what} == {"times.safetensors"}, (
        "a later dataset has somebody else who had these items in this order"
    )


# --------------------------------------------------------------------------------------- membership


def test_separation_is_the_share_of_ordered_pairs() -> None:
    found = separation(np.array([1.0, 3.0]), np.array([0.0, 2.0, 3.0]))
    assert found.auc == pytest.approx((1 + 2.5) / 6) and found.low <= found.auc <= found.high
    assert separation(np.full(40, 2.0), np.full(40, 1.0)).is_blind is False


def test_bad_file_of_unseen_users_is_refused_before_anything_is_removed(
    tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id\nu1,i1\n", encoding="utf-8")
    unseen = tmp_path / "unseen.jsonl"
    unseen.write_text('{"history": ["i1"]}\n{"history": 5}\n', encoding="utf-8")
    tree = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"source": {"kind": "canonical", "events": [str(tmp_path / "events.csv")]}},
        "tracking": {"enabled": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    words = ["--config", str(path), "--user", "u1", "--forget.unseen", str(unseen)]
    assert main(["forget", *words]) == 2
    assert f"forget.unseen: {unseen}, line 2" in capsys.readouterr().err


def test_missing_unseen_users_are_reported() -> None:
    nobody = Histories.of_items([])
    message = membership(None, nobody, nobody, nobody)  # type: ignore[arg-type]
    assert message == {"tested": False, "why": "no deleted user has two known events"}


@pytest.mark.parametrize("is_temporal", [True, False])
def test_temporal_split_is_not_advised_where_the_split_is_temporal(
    is_temporal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "recsys.privacy.membership.statistics", lambda _, histories: np.ones(len(histories))
    )
    one, nobody = Histories.of_items([[1, 2]]), Histories.of_items([])
    found = membership(None, one, nobody, one, is_temporal)  # type: ignore[arg-type]
    assert found["tested"] is False and "forget.unseen" in found["why"]
    assert ("use a temporal split" in found["why"]) == (not is_temporal)


@pytest.mark.slow
def test_retrained_model_does_not_separate_forgotten_from_unseen_users(
    tmp_path: Path, ray_local: None, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that memorises: the attack separates its training users from others, but not the
    forgotten users.
    """
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    rng = np.random.default_rng(3)
    lists = [rng.permutation(80)[:14].tolist() for _ in range(240)]
    rows = [
        f"u-{u:04d},i{item},{1_600_000_000 + 86_400 * p + u}"
        for u in range(180)
        for p, item in enumerate(lists[u])
    ]
    (tmp_path / "events.csv").write_text(
        "\n".join(["user_id,item_id,timestamp", *rows]), encoding="utf-8"
    )
    unseen = [json.dumps({"history": [f"i{item}" for item in row]}) for row in lists[180:]]
    (tmp_path / "unseen.jsonl").write_text("\n".join(unseen), encoding="utf-8")
    tree = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {
            "source": {"kind": "canonical", "events": [str(tmp_path / "events.csv")]},
            "text": {"enabled": False},
        },
        "model": {
            "width": 48,
            "item": {"text": False},
            "granularities": {"evolution": {"enabled": True}},
        },
        "train": {
            "epochs": 60,
            "evaluate_every": 60,
            "batch_size": 32,
            "lr": 0.01,
            "metric": "ndcg@5",
            "threads": 1,
        },
        "evaluate": {"ks": [5], "baselines": ["popularity"], "bootstrap": 100},
        "registry": {"name": "by-heart"},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    gone = [f"u-{u:04d}" for u in range(60)]
    (tmp_path / "gone.txt").write_text("\n".join(gone), encoding="utf-8")
    command = [
        "forget",
        "--config",
        str(tmp_path / "c.yaml"),
        "--forget.unseen",
        str(tmp_path / "unseen.jsonl"),
    ]
    with training_here():
        assert main(["run", "--config", str(tmp_path / "c.yaml")]) == 0
        assert main([*command, "--forget.file", str(tmp_path / "gone.txt"), "--retrain"]) == 0
    (proof,) = _proofs(tmp_path / "c.yaml")
    tested = proof["membership"]
    assert tested["members"]["low"] > 0.6, "the attack tells whom the model was trained on"
    assert tested["is_blind"] and abs(tested["forgotten"]["auc"] - 0.5) < 0.12
    assert (
        "nothing in it depends on them"
        in (tmp_path / "run" / "bundle" / "MODEL_CARD.md").read_text()
    )
