"""`recsys export`: graphs, indices and tables give the same answers as PyTorch, or the export is
refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipelines.cli import main
from recsys.bundle.checksums import entry_of
from recsys.config import build_config
from recsys.data.context_columns import ContextColumn
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError, ConfigError, Refusal
from recsys.export import closed_form_graphs
from recsys.export import export_folder as exports
from recsys.export.encoder import QueryEncoder
from recsys.export.export_folder import export
from recsys.export.questions import Examiner
from recsys.granularities.als.model import Als
from recsys.model import FrozenModel
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.register import register
from recsys.registry.tracking import Tracker
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.item_index import index_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.training.fresh_model import build_graphs, build_model
from tests.encoded import encoded_and_expected
from tests.handmade import HISTORIES, ITEMS, small_model, small_world, write_dataset

pytest.importorskip("onnxruntime", reason="needs `pip install 'multigrain[export]'`")
pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = Path(__file__).parents[2] / "docs/examples/export/recommend.py"
Captured = pytest.CaptureFixture[str]
ON: dict[str, Any] = {"enabled": True}
TRAINED = {name: ON for name in ("behaviour", "evolution", "social", "collaborative")}
TRAINED |= {"stratum": {**ON, "num_strata": 2}}
EVERYTHING = {
    **TRAINED,
    "evolution": {**ON, "query_context": ["weather"], "time_gaps": True},
    "profile": {**ON, "min_frequency": 1},
    "item_cf": {**ON, "rank": 4, "event_weights": "rank", "recency": 0.5},
    "user_cf": {**ON, "rank": 4, "neighbours": 5},
    "social_cf": {**ON, "rank": 4},
    "item_knn": {**ON, "half_life": [30.0], "itself": [True]},
    "als": {**ON, "factors": 4},
    "content": {**ON, "half_life": [30.0]},
    "place": {**ON, "numbers": ["price"]},
    "moment": {**ON, "query_context": ["weather"]},
    "popularity": ON,
    "frequency": ON,
    "repeat": ON,
}
COUNTED = {
    "evolution": {**ON, "cell": "gru", "states": "parallel"},
    "social": {**ON, "fit": "counts", "half_life": [30.0]},
    "profile": {**ON, "fit": "counts", "min_frequency": 1, "crosses": [["age", "town"]]},
    "item_cf": {**ON, "form": "neighbours", "neighbours": 3},
}


def world(folder: Path) -> PreparedDataset:
    return write_dataset(
        folder,
        HISTORIES,
        ITEMS,
        event_types=("view", "buy"),
        friends=((0, 3), (1, 2), (4, 0)),
        text_width=6,
        item_columns={"price": pa.array([float(place) for place in range(ITEMS)])},
        user_columns={
            "age": pa.array([20.0, 30.0, 40.0, None, 25.0, 35.0]),
            "town": pa.array(["Ulm", "Bonn", "Ulm", "Bonn", None, "Ulm"]),
        },
        context=(ContextColumn("weather", ("rain", "sun")),),
        codes=[
            [[2 + (user + place) % 2] for place in range(len(row))]
            for user, row in enumerate(HISTORIES)
        ],
    )


def random_model(
    dataset: PreparedDataset, granularities: dict[str, Any], **fusion: Any
) -> FrozenModel:
    """A model with random weights and, if its members are stacked, random weights of the
    members.
    """
    torch.manual_seed(0)
    model = {
        "width": 8,
        "max_history": 4,
        "item": {"init_std": 0.5},
        "granularities": granularities,
        "fusion": fusion,
    }
    tree: dict[str, Any] = {"data": {"dir": dataset.root, "context": ["weather"]}, "model": model}
    tree["evaluate"] = {"exclude_seen": False}  # `repeat` requires it
    config = build_config(tree)
    made = build_model(config.model, config.train, dataset, Split.VALID)
    with torch.no_grad():
        for parameter in made.encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        graphs = build_graphs(dataset, Split.VALID, made)
        items, _ = made.view(graphs)
        for _, module in made.encoders.each():
            if module.refit_due(0):
                module.refit(graphs, items, 0)
        if made.encoders.stack is not None:
            made.encoders.stack.weights_GM.uniform_(0.1, 1.0)
        made.encoders.fitted_weights.uniform_(0.1, 1.0)
    frozen = made.freeze(graphs)
    if made.encoders.stack is not None:
        frozen.choose_scales(dataset.histories().queries(Split.VALID))
    return frozen


def bundle_of(folder: Path, granularities: dict[str, Any], **fusion: Any) -> Path:
    dataset = world(folder / "dataset")
    write_bundle(folder / "bundle", random_model(dataset, granularities, **fusion), dataset, {})
    return folder / "bundle"


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with nearly every member, and its export in every format.

    Without the optimiser of onnxscript, which takes a third of the time of a large graph. A slow
    test exports the same bundle with it; other tests use it on smaller models.
    """
    folder = tmp_path_factory.mktemp("stacked")
    bundle = bundle_of(folder, EVERYTHING, kind="gated", stack=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", partial(torch.onnx.export, optimize=False))
        export(bundle, folder / "exported", ["onnx", "faiss", "parquet"], users=True)
    return bundle, folder / "exported"


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_graph_of_every_kind_of_member_answers_as_pytorch_does(
    stacked: tuple[Path, Path],
) -> None:
    """Compared again, on questions that the export was not tested with."""
    import onnxruntime

    bundle, folder = stacked
    about = manifest(folder)["onnx"]
    assert (
        about["self_test"]["questions"] >= 100 and about["self_test"]["largest_difference"] <= 1e-4
    )
    assert about["inside"] == list(read_bundle(bundle).model.names) and not about["left_out"]
    examiner = Examiner(read_bundle(bundle))
    session = onnxruntime.InferenceSession(str(folder / about["file"]))
    for rows in (
        [{"user_id": "nobody"}],
        [{"history": ["i1", "i1", "i9"]}],
        [{"user_id": f"u{n}"} for n in range(6)],
    ):
        tensors, parts = examiner.ask(parse_requests([{**row, "at": "2020-01-01"} for row in rows]))
        vectors, added = session.run(
            None, {each["name"]: tensors[each["name"]] for each in about["inputs"]}
        )
        vectors_ND = examiner.bundle.model.item_vectors_ND
        np.testing.assert_allclose(
            vectors @ vectors_ND.numpy().T + added, parts.scores(vectors_ND), atol=1e-4
        )


@pytest.mark.slow
def test_optimised_graph_of_every_kind_of_member_answers_as_pytorch_does(
    stacked: tuple[Path, Path], tmp_path: Path
) -> None:
    about = export(stacked[0], tmp_path / "exported", ["onnx"])["onnx"]
    assert about["self_test"]["largest_difference"] <= 1e-4
    assert about["inside"] == list(read_bundle(stacked[0]).model.names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "granularities", [COUNTED, {"evolution": {**ON, "cell": "lstm", "states": "formula"}}]
)
def test_counted_members_and_recurrent_cells_are_exported(
    granularities: dict[str, Any], tmp_path: Path
) -> None:
    about = export(bundle_of(tmp_path, granularities), tmp_path / "exported", ["onnx"])["onnx"]
    assert about["self_test"]["largest_difference"] <= 1e-4 and about["inside"] == list(
        granularities
    )


@pytest.mark.parametrize(
    "evolution", [{"cell": "hstu"}, {"cell": "attention", "layers": 2, "positions": "relative"}]
)
def test_other_cells_have_a_form_for_graphs(evolution: dict[str, Any], tmp_path: Path) -> None:
    """Only the form, without tracing it."""
    bundle = bundle_of(tmp_path, {"evolution": {**ON, **evolution}}, kind="learned")
    torch.testing.assert_close(*encoded_and_expected(read_bundle(bundle)), atol=1e-5, rtol=0)


def test_questions_of_the_check_are_of_every_kind(stacked: tuple[Path, Path]) -> None:
    requests = Examiner(read_bundle(stacked[0])).questions()
    lengths = {len(request.history or ()) for request in requests}
    assert {0, 1, 200} <= lengths, "short, empty and long histories"
    assert any(request.friends for request in requests) and any(
        request.attributes for request in requests
    )
    assert any(request.context for request in requests) and any(
        request.user_id == "u0" for request in requests
    )


@pytest.mark.slow
def test_graph_with_differing_answers_is_refused_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path, {"collaborative": ON})
    kept = export(bundle, tmp_path / "exported", ["faiss"])
    trained = QueryEncoder._trained
    monkeypatch.setattr(QueryEncoder, "_trained", lambda self, seen: trained(self, seen) * 1.01)
    with pytest.raises(Refusal, match="differ from PyTorch by .* nothing was exported"):
        export(bundle, tmp_path / "exported", ["onnx"])
    assert manifest(tmp_path / "exported") == kept, "the earlier export is unchanged"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "dataset", "exported"]


def test_member_without_a_graph_form_is_refused_unless_it_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Example: a fitted granularity of another package."""
    bundle = bundle_of(tmp_path, {"collaborative": ON, "als": {**ON, "factors": 4}})
    monkeypatch.delitem(closed_form_graphs.VECTORS, Als)
    with pytest.raises(
        ArtifactError, match="the member als cannot be expressed in ONNX.* --export.without"
    ):
        export(bundle, tmp_path / "exported", ["onnx"])
    with pytest.raises(ArtifactError, match="'alz' is not a member of this model"):
        export(bundle, tmp_path / "exported", ["onnx"], without=["alz"])
    with pytest.raises(
        ArtifactError, match="collaborative was trained together with other granularities"
    ):
        export(bundle, tmp_path / "exported", ["onnx"], without=["collaborative"])
    assert not (tmp_path / "exported").exists()
    about = export(bundle, tmp_path / "exported", ["onnx"], without=["als"])["onnx"]
    assert about["left_out"] == ["als"] and about["inside"] == ["collaborative"]


def test_index_gives_the_lists_of_an_exhaustive_search(stacked: tuple[Path, Path]) -> None:
    import faiss

    bundle, folder = stacked
    model = read_bundle(bundle).model
    index = faiss.read_index(str(folder / "items.faiss"))
    users = torch.randn(
        20, model.item_vectors_ND.shape[1], generator=torch.Generator().manual_seed(1)
    )
    scores, _ = index.search(users.numpy(), 5)
    np.testing.assert_allclose(scores, (users @ model.item_vectors_ND.T).topk(5).values, atol=1e-4)
    items = json.loads((folder / "items.json").read_text())
    assert (
        items["item_ids"] == [f"i{item}" for item in range(ITEMS)]
        and len(items["popularity"]) == ITEMS
    )


def test_compressed_index_is_exported_with_the_vectors_it_needs(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORIES, 400, event_types=("view", "buy"))
    write_bundle(tmp_path / "bundle", random_model_without_context(dataset), dataset, {})
    assert "recall" in index_bundle(tmp_path / "bundle", 100)
    found = export(tmp_path / "bundle", tmp_path / "exported", ["faiss"])
    assert found["faiss"]["lists_too_long"] >= 1 and found["faiss"]["self_test"]["recall@100"] > 0.9
    assert np.load(tmp_path / "exported/item_vectors.npy").shape == (400, 8)


def random_model_without_context(dataset: PreparedDataset) -> FrozenModel:
    torch.manual_seed(0)
    tree = {"model": {"width": 8, "item": {"init_std": 0.5}, "granularities": {"evolution": ON}}}
    config = build_config(tree)
    model = build_model(config.model, config.train, dataset, Split.VALID)
    return model.freeze(build_graphs(dataset, Split.VALID, model))


def test_tables_contain_everything_to_compute_scores(stacked: tuple[Path, Path]) -> None:
    bundle, folder = stacked
    items, users = (pq.read_table(folder / name) for name in ("items.parquet", "users.parquet"))
    assert items.column_names == ["item_id", "title", "popularity", "vector"]
    examiner = Examiner(read_bundle(bundle))
    ids = users["user_id"].to_pylist()
    _, parts = examiner.ask(
        parse_requests([{"user_id": user, "at": examiner.asked_at} for user in ids])
    )
    vectors_ND = np.array(items["vector"].to_pylist(), dtype=np.float32)
    scores = np.array(users["vector"].to_pylist(), dtype=np.float32) @ vectors_ND.T
    for row, (added_items, values) in enumerate(
        zip(users["added_items"], users["added_values"], strict=True)
    ):
        scores[row, added_items.as_py()] += values.as_py()
    np.testing.assert_allclose(scores, parts.scores(torch.from_numpy(vectors_ND)), atol=1e-5)
    assert {len(values) for values in users["added_items"]} != {0}, (
        "sparse members add to the scores"
    )


def test_manifest_lists_every_file_and_no_user(stacked: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, folder = stacked
    found = manifest(folder)
    assert set(found["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    for name, entry in found["files"].items():
        assert entry_of(folder / name).model_dump() == entry
    assert found["model"]["description_sha256"] == entry_of(bundle / "bundle.json").sha256
    assert {"social", "profile", "user_cf", "social_cf"} <= set(found["onnx"]["holds_of_users"])
    export(bundle, tmp_path / "plain", ["parquet"])
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == [
        "items.parquet",
        "manifest.json",
    ]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder with a registered model, and the tracking URI."""
    folder = tmp_path_factory.mktemp("registered")
    config = build_config({"run": {"dir": str(folder / "run")}, "registry": {"name": "pocket"}})
    dataset = small_world(folder / "dataset", ordered=False)
    write_bundle(folder / "run/bundle", small_model(dataset, fusion="weighted"), dataset, {})
    with Tracker(config) as tracker:
        register(
            tracker,
            folder / "run/bundle",
            config.registry,
            {"model": {"ndcg@20": 0.25}},
            resumes=config.run.resume,
            replaces=config.update.replace,
        )
    return folder, tracking_uri(config.tracking, config.run.dir)


def test_model_is_named_as_in_other_verbs(
    registered: tuple[Path, str], tmp_path: Path, capsys: Captured
) -> None:
    folder, uri = registered
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"run": {"dir": str(folder / "run")}}))
    models = (
        [str(folder / "run")],
        [str(folder / "run/bundle")],
        ["--config", str(tmp_path / "own.yaml")],
    )
    for words in (*models, ["models:/pocket@challenger", "--tracking.uri", uri]):
        assert main(["export", *words, "--to", "parquet", "--out", str(tmp_path / "out")]) == 0
        assert "items.parquet, 12 items" in capsys.readouterr().out
    assert manifest(tmp_path / "out")["model"]["asked_for"] == "models:/pocket@challenger", (
        "an export is replaced"
    )
    assert (
        main(
            [
                "export",
                str(folder / "run"),
                "--to=faiss,parquet",
                "--out",
                str(tmp_path / "x"),
                "--dry-run",
            ]
        )
        == 0
    )
    assert "x/" in capsys.readouterr().out and not (tmp_path / "x").exists()


def test_invalid_exports_are_refused(
    registered: tuple[Path, str], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = str(registered[0] / "run"), str(tmp_path / "out")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/manifest.json").write_text('{"kind": "years of work"}')
    for words, message in (
        ([run, "--to", "onxx", "--out", out], "'onnx', 'faiss' or 'parquet'"),
        ([run, "--out", out], "export.to is empty; give one or more of onnx, faiss, parquet"),
        ([run, "--to", "faiss"], "export.out is empty; give a folder"),
        ([run, "--to", "faiss", "--out", "s3://bucket/x"], "must be a local folder"),
        (
            [run, "--to", "faiss", "--out", str(tmp_path / "thesis")],
            "is not an export, so it is not replaced",
        ),
        (
            [run, "--to", "faiss", "--out", out, "--export.users", "true"],
            "export.users needs the format parquet",
        ),
        (
            [run, "--to", "faiss", "--out", out, "--export.without", "[als]"],
            "export.without needs the format onnx",
        ),
        ([run, run, "--to", "faiss", "--out", out], "got 2 models, expected one"),
        (["--to", "faiss", "--out", out], "no model is given; usage: recsys export MODEL"),
        ([str(tmp_path), "--to", "faiss", "--out", out], "has no model bundle"),
    ):
        assert main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "thesis/manifest.json").read_text() == '{"kind": "years of work"}'
    monkeypatch.setattr(exports.importlib.util, "find_spec", lambda name: None)
    assert main(["export", run, "--to", "onnx", "--out", out]) == 2
    printed = capsys.readouterr().err
    assert (
        "needs onnx, onnxscript, onnxruntime, which is not" in printed
        and "pip install 'multigrain[export]'" in printed
    )
    with pytest.raises(ConfigError):
        exports.check_installed(["faiss"])
    assert not Path(out).exists()


BLOCKED = """
import runpy, sys
NAMES = {
    "torch", "ray", "mlflow", "transformers", "recsys", "pipelines", "pandas", "pyarrow"
}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in NAMES:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def answers_of_the_example(folder: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(EXAMPLE), str(folder)],
        input="\n".join(map(json.dumps, requests)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_example_answers_as_recsys_recommend_does(
    registered: tuple[Path, str], tmp_path: Path, ray_local: None, answering_here: None
) -> None:
    """For the same model, with torch, Ray, MLflow and transformers blocked."""
    run = registered[0] / "run"
    requests = [
        {"user_id": "one", "history": ["i1", "i5", "i9"], "k": 4},
        {"user_id": "twice", "history": ["i2", "i2", "unknown", "i0"], "k": 12},
        {"user_id": "shown again", "history": ["i3"], "k": 3, "exclude_seen": False},
        {"user_id": "empty", "history": [], "k": 5},
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, requests)))
    words = ["--run.dir", str(tmp_path / "answers"), "--recommend.model", str(run / "bundle")]
    (tmp_path / "own.yaml").write_text("{}")
    words += [
        "--config",
        str(tmp_path / "own.yaml"),
        "--recommend.requests",
        str(tmp_path / "requests.jsonl"),
    ]
    assert main(["recommend", *words]) == 0
    expected = pq.read_table(tmp_path / "answers/answers/requests.parquet").to_pylist()
    assert (
        main(["export", str(run), "--to", "onnx,faiss", "--out", str(tmp_path / "exported")]) == 0
    )
    for request, found in zip(
        requests, answers_of_the_example(tmp_path / "exported", requests), strict=True
    ):
        mine = [row for row in expected if row["user_id"] == request["user_id"]]
        assert found["item_ids"] == [row["item_id"] for row in mine]
        np.testing.assert_allclose(found["scores"], [row["score"] for row in mine], atol=1e-4)
    assert found["source"] == "popularity"


def test_example_adds_the_scores_of_sparse_members(stacked: tuple[Path, Path]) -> None:
    """Requests have types and times of events; the recommender computes the expected answers."""
    bundle, folder = stacked
    at = 1_600_000_000
    event = {"item_id": "i3", "event_type": "buy", "timestamp": at - 90_000}
    requests = [
        {"history": [event, "i7"], "k": 12},
        {"history": ["i1"] * 9, "k": 2, "exclude_seen": False},
    ]
    found = answers_of_the_example(folder, [{**row, "at": at} for row in requests])
    expected = Recommender(read_bundle(bundle)).recommend(
        parse_requests([{**row, "at": at} for row in requests])
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["item_ids"] == theirs.item_ids
        np.testing.assert_allclose(mine["scores"], theirs.scores, atol=1e-4)
