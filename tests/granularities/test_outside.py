"""Granularities, losses, sources and metrics of other packages: the package of docs/extending.md
is written and used.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from pipelines.cli import main
from pipelines.plumbing.reference import reference
from recsys.config import Config, build_config, dump_config, outside
from recsys.config.granularity import GranularityConfig
from recsys.data.attributes import Field
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError, ConfigError
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.validation import Validator
from recsys.granularities.base import Granularity
from recsys.granularities.profile.attribute_encoding import encoding_of
from recsys.model import dump_sizes, load_sizes
from recsys.registry.logged_model import requirements
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.training.checkpoint import load_trained, save_trained
from recsys.training.context import TrainContext
from recsys.training.phases import fit
from tests.handmade import leave_last, write_dataset
from tests.training_here import training_here

ROOT = Path(__file__).parents[2]
USERS, ITEMS, LEVELS = 150, 400, 4
Modules = dict[str, Any]


def written(folder: Path, names: Mapping[str, str] | None = None) -> Path:
    """The modules of docs/extending.md in a folder, optionally under other names, in the role of
    another package.
    """
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    for path, code in re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL):
        for old, new in (names or {}).items():
            path, code = path.replace(old, new), code.replace(old, new)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(code, encoding="utf-8")
        if "/" in path:
            (folder / path).with_name("__init__.py").touch()
    return folder


def installed(
    folder: Path, package: str, version: str, points: Mapping[str, str], group: str
) -> None:
    """The metadata with entry points that pip installs for a package."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = "\n".join(f"{name} = {target}" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
    (info / "top_level.txt").write_text(
        "".join(f"{re.split('[.:]', target)[0]}\n" for target in points.values())
    )


@pytest.fixture
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reset the state of the process: no outside names, and imports of the test are undone."""
    before = set(sys.modules)
    monkeypatch.setattr(outside, "_named", set())
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("budget", "taste", "thrift", "hinge", "ledger", "rbp"):
            del sys.modules[name]


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_process: None) -> Path:
    """The modules of the document on Python's path, without an installed package."""
    folder = written(tmp_path / "site")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> PreparedDataset:
    """Users buy random items of one of four price levels; with few events, ids alone learn
    little.
    """
    draw = np.random.default_rng(5)
    level_N = np.repeat(np.arange(LEVELS), ITEMS // LEVELS)
    histories = []
    for user in range(USERS):
        own = np.flatnonzero(level_N == user % LEVELS)
        histories.append(leave_last(*draw.choice(own, 7, replace=False).tolist()))
    price = pa.array(
        [None if item == 3 else float(10 ** level_N[item] + item % 7) for item in range(ITEMS)]
    )
    return write_dataset(tmp_path / "shop", histories, ITEMS, item_columns={"price": price})


def config_of(
    dataset: PreparedDataset, own: Mapping[str, Any] | None = None, **train: Any
) -> Config:
    granularities: dict[str, Any] = {"evolution": {"enabled": True, "dropout": 0.0}, **(own or {})}
    return build_config(
        {
            "data": {"dir": dataset.root},
            "model": {
                "width": 16,
                "max_history": 8,
                "item": {"text": False},
                "granularities": granularities,
            },
            "train": {
                "metric": "ndcg@10",
                "epochs": 6,
                "lr": 0.02,
                "batch_size": 32,
                "warmup": 0.0,
                **train,
            },
        }
    )


def trained(config: Config, dataset: PreparedDataset) -> Any:
    return fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())


BY_PATH = {
    "money": {
        "kind": "budget.section:BudgetConfig",
        "enabled": True,
        "levels": LEVELS,
        "weight": 0.9,
    }
}


def test_outside_granularity_trains_explains_and_improves_the_metric(
    importable: Path, shop: PreparedDataset, tmp_path: Path
) -> None:
    """Configured by its path under the user's own name; the whole life cycle in one process."""
    config = config_of(shop, BY_PATH)
    assert build_config(yaml.safe_load(dump_config(config))) == config, (
        "config.yaml of the run names it again"
    )
    result, plain = trained(config, shop), trained(config_of(shop), shop)
    model, queries = result.frozen, shop.histories().queries(Split.TEST)
    assert model.names == ["evolution", "money"] and len(model.sizes.inputs["price"]) == LEVELS - 1
    metric = Validator("ndcg@10", True, 512)
    assert metric(model, queries).mean() > 1.3 * metric(plain.frozen, queries).mean(), (
        "price levels determine the next item here"
    )
    assert load_sizes(json.loads(json.dumps(dump_sizes(model.sizes)))) == model.sizes
    save_trained(tmp_path / "model", result)
    assert torch.equal(
        load_trained(tmp_path / "model").frozen.scores(queries), model.scores(queries)
    )
    write_bundle(tmp_path / "bundle", model, shop, {})
    bundle = read_bundle(tmp_path / "bundle")
    entry = bundle.info.outside["money"]
    assert (entry.target, entry.package) == ("budget.section:BudgetConfig", "")
    for answer in Recommender(bundle).recommend(
        parse_requests([{"user_id": "u0"}, {"history": ["i1", "i2"]}])
    ):
        assert answer.scores == pytest.approx(np.sum(list(answer.shares.values()), axis=0).tolist())
        assert any(answer.shares["money"])


def test_one_file_with_section_and_module_trains_and_has_shares(
    importable: Path, shop: PreparedDataset
) -> None:
    own = {"taste": {"kind": "taste:TasteConfig", "enabled": True, "column": "price"}}
    model = trained(config_of(shop, own, epochs=1), shop).frozen
    assert model.names == ["evolution", "taste"] and len(model.sizes.inputs["category"]) == 28


@pytest.mark.slow
def test_outside_granularity_validates_its_own_inputs(importable: Path, tmp_path: Path) -> None:
    bare = write_dataset(
        tmp_path / "bare", [leave_last(*range(user, user + 5)) for user in range(8)], 13
    )
    with pytest.raises(
        ConfigError, match=r"budget needs a price of items, and column 'price' has none"
    ):
        trained(config_of(bare, BY_PATH), bare)
    for keys, message in [
        (
            {"level": 4},
            "money: unknown key level; valid keys here: column, enabled, levels, weight",
        ),
        ({"levels": 1}, "money.levels: expected greater than or equal to 2"),
        ({"kind": "budget.section:Missing"}, "budget.section:Missing cannot be imported"),
        (
            {"kind": "budget.model:Budget"},
            "is not a subclass of recsys.config.granularity.GranularityConfig",
        ),
        ({"kind": "nobody"}, "neither module:Class nor offered by an installed package"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            config_of(bare, {"money": {**BY_PATH["money"], **keys}})


@pytest.mark.slow
def test_model_with_an_installed_package_is_registered_and_pulled(
    importable: Path,
    shop: PreparedDataset,
    tmp_path: Path,
    ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Configured by its entry point, through the commands; then read with and without the
    package.
    """
    installed(
        importable,
        "budget-granularity",
        "1.2",
        {"budget": "budget.section:BudgetConfig"},
        outside.GRANULARITIES,
    )
    outside._offers.cache_clear()
    tree = config_of(shop, {"budget": {"enabled": True, "levels": LEVELS}}).model_dump(mode="json")
    assert "kind" not in tree["model"]["granularities"]["budget"]
    assert (
        "--model.granularities.budget.levels" in reference()
        and "--model.granularities.budget.weight" in reference()
    )
    tree |= {
        "run": {"dir": str(tmp_path / "run")},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    tree["evaluate"] = {
        "ks": [10],
        "baselines": ["popularity"],
        "bootstrap": 100,
        "num_examples": 1,
        "ablate": False,
    }
    tree["registry"] = {"name": "priced"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with training_here():
        for verb in ("train", "evaluate", "register"):
            words = [
                verb,
                "--config",
                str(tmp_path / "c.yaml"),
                "--model.granularities.budget.weight",
                "0.6",
            ]
            assert main(words) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert sum(number for _, number in metrics["panels"]["budget"]["rows"]) == ITEMS - 1, (
        "one has no price"
    )
    report = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "Price levels" in report and "budget" in report
    assert (
        main(
            [
                "pull",
                "models:/priced@challenger",
                str(tmp_path / "pulled"),
                "--tracking.uri",
                tree["tracking"]["uri"],
            ]
        )
        == 0
    )
    found = next((tmp_path / "pulled").rglob("bundle.json")).parent
    assert (
        "budget-granularity==1.2" in (tmp_path / "pulled/requirements.txt").read_text().splitlines()
    )
    assert "budget-granularity" in requirements(read_bundle(found))
    assert Recommender(read_bundle(found)).names == ["evolution", "budget"]
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(importable)])
    with pytest.raises(ArtifactError, match="pip install budget-granularity==1.2"):
        read_bundle(found)


def test_path_in_a_bundle_is_never_imported(
    importable: Path, shop: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Covers the path of a model trained elsewhere, and one that was edited into the bundle by
    hand.
    """
    config = config_of(shop, BY_PATH, epochs=1)
    result = trained(config, shop)
    write_bundle(tmp_path / "bundle", result.frozen, shop, {})
    save_trained(tmp_path / "model", result)
    (importable / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr(outside, "_named", set())  # as in another process
    with pytest.raises(
        ArtifactError,
        match=r"needs the granularity money \(budget\.section:BudgetConfig\).*never imported",
    ):
        read_bundle(tmp_path / "bundle")
    with pytest.raises(
        ArtifactError, match="named only in an artifact, which may come from anywhere"
    ):
        load_trained(tmp_path / "model")
    place = tmp_path / "bundle/bundle.json"
    honest = json.loads(place.read_text())
    for outside_of in ({}, {"money": {"target": "trap:Config", "package": "", "version": ""}}):
        tampered = json.loads(json.dumps(honest))
        tampered["model"]["granularities"]["money"]["kind"] = "trap:Config"
        tampered["outside"] = outside_of
        place.write_text(json.dumps(tampered))
        with pytest.raises(ArtifactError):
            read_bundle(tmp_path / "bundle")
    assert "trap" not in sys.modules
    place.write_text(json.dumps(honest))
    config_of(shop, BY_PATH)  # the configuration of this process names it
    assert read_bundle(tmp_path / "bundle").model.names == ["evolution", "money"]


def test_sizes_of_earlier_bundles_are_read() -> None:
    """Separate keys of an earlier release are now sizes of signals."""
    plain = dict.fromkeys(
        ("width", "max_history", "num_users", "num_items", "num_types", "text_width"), 4
    )
    plain |= {"ordered": True, "timed": False, "context": [["weather", 3]]}
    fields = {"users": [asdict(Field("age", "number", edges=(3.0,)))], "items": []}
    signals = {"profile": fields, "num_strata": 8, "user_text_width": 384, "media": [["image", 4]]}
    read = load_sizes(
        {**plain, **json.loads(json.dumps(signals)), "num_entities": 9, "num_relations": 2}
    )
    assert read.context == (("weather", 3),) and read.inputs == {
        "profile": json.loads(json.dumps(fields)),
        "stratum": 8,
        "user_text": 384,
        "media": [["image", 4]],
        "knowledge": {"entities": 9, "relations": 2},
    }
    encoding = encoding_of(read)
    assert encoding is not None and encoding.users == (Field("age", "number", edges=(3.0,)),)
    nothing = {
        "profile": None,
        "num_strata": 0,
        "user_text_width": 0,
        "media": [],
        "num_entities": 0,
    }
    assert load_sizes({**plain, **nothing, "num_relations": 0}).inputs == {}


def test_sections_need_no_torch() -> None:
    """The command line and a dry run must not wait for the import of torch."""
    code = (
        "import sys, recsys.config, importlib, pkgutil, recsys.granularities\nfor part in"
        " pkgutil.iter_modules(recsys.granularities.__path__, 'recsys.granularities.'):\n   "
        " part.ispkg and importlib.import_module(part.name + '.section')\nprint([name for name in"
        " ('torch', 'ray', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_loss_from_another_package_is_used(importable: Path, shop: PreparedDataset) -> None:
    """By path and by entry point, with its own settings; invalid settings are refused before
    anything starts.
    """
    loss = {"kind": "hinge:Hinge", "options": {"margin": 0.5}, "num_negatives": 64}
    result = trained(config_of(shop, loss=loss), shop)
    losses = [report["loss"] for report in result.history if report["phase"] == "select"]
    assert losses[-1] < losses[0]
    installed(importable, "hinge-loss", "1.0", {"hinge": "hinge:Hinge"}, outside.LOSSES)
    outside._offers.cache_clear()
    again = trained(config_of(shop, loss={**loss, "kind": "hinge"}), shop)
    assert [report["loss"] for report in again.history] == [
        report["loss"] for report in result.history
    ]
    with pytest.raises(
        ConfigError,
        match="did you mean hinge\\? Expected one of: auto, full_softmax, hinge, sampled_softmax",
    ):
        config_of(shop, loss={"kind": "hings"})
    with pytest.raises(
        ConfigError, match=r"train\.loss\.kind 'hinge:Missing': .* cannot be imported"
    ):
        trained(config_of(shop, loss={"kind": "hinge:Missing"}), shop)


def test_source_from_another_package_is_used(importable: Path, tmp_path: Path) -> None:
    (tmp_path / "purchases.txt").write_text("ann tea\nbob milk\nann milk\n")
    source = {"kind": "ledger:LedgerSource", "path": str(tmp_path / "purchases.txt")}
    config = build_config({"data": {"source": source}})
    assert build_config(yaml.safe_load(dump_config(config))).data == config.data
    events = read_all(open_source(config.data.source).pieces()["events"])
    assert events.column("user_id").to_pylist() == ["ann", "bob", "ann"]
    assert events.column("_row").to_pylist() == [1, 2, 3] and not any(
        events.column("_reason").to_pylist()
    )
    for keys, message in [
        ({"file": "x"}, "unknown key file; valid keys here: kind, path"),
        (
            {"kind": "ledger:Ledger"},
            "ledger:Ledger is not a subclass of recsys.config.sources.OutsideSource",
        ),
        ({"kind": "ledgr"}, "got 'ledgr'; expected one of: canonical, hetrec-lastfm, recbole"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            build_config({"data": {"source": {**source, **keys}}})


@pytest.mark.slow
def test_metric_from_another_package_chooses_epochs_and_is_reported(
    importable: Path, shop: PreparedDataset
) -> None:
    """By path and by entry point, for the model and for every baseline, with an interval."""
    own = {"evaluate": {"metrics": ["rbp:rbp"], "ks": [5], "baselines": ["popularity"]}}
    config = config_of(shop, metric="rbp:rbp@5")
    config = build_config({**yaml.safe_load(dump_config(config)), **own})
    result = trained(config, shop)
    assert max(report.get("rbp:rbp@5", 0.0) for report in result.history) > 0
    found = evaluate(result.frozen, shop, config, refit=True)
    hits = found.ranking.hits_BK[:, :5]
    by_hand = sum(0.2 * 0.8**r * hits[:, r] for r in range(5)).mean()
    assert found.model["rbp:rbp@5"] == pytest.approx(by_hand) and by_hand > 0
    assert "rbp:rbp@5" in found.baselines["popularity"] and "rbp:rbp@5" in found.confidence["model"]

    installed(importable, "rbp", "1.0", {"rbp": "rbp:rbp"}, outside.METRICS)
    outside._offers.cache_clear()
    named = build_config({"train": {"metric": "rbp@5"}})
    assert (
        Validator.of(named.train, named.evaluate).metric == "rbp@5"
        and parse_metric("rbp@5").kind == "rbp"
    )


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("rbq@5", "precision@K, recall@K, or module:function@K, with K from 1 to"),
        ("rbp:missing@5", "rbp:missing cannot be imported"),
        ("rbp:P@5", "rbp:P is not a function"),
        ("rbp:rbp", "with K from 1 to"),
    ],
)
def test_invalid_metric_of_another_package_is_refused_before_anything_starts(
    importable: Path, metric: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_config({"train": {"metric": metric}})


def test_metric_that_only_an_artifact_names_is_not_imported(importable: Path) -> None:
    with outside.reading_artifact(), pytest.raises(ConfigError, match="named only in an artifact"):
        build_config({"train": {"metric": "rbp:rbp@5"}})
    assert parse_metric("rbp:rbp@5").k == 5 and "rbp" not in sys.modules


def test_metric_that_gives_no_number_per_query_is_refused(importable: Path) -> None:
    (importable / "rbp.py").write_text("def rbp(hits_BK, num_targets_B, k):\n    return 0.5\n")
    with pytest.raises(ConfigError, match=r"values of shape \(\); expected one finite number"):
        QUERY_METRICS["rbp:rbp"](np.ones((2, 5), dtype=bool), np.array([1, 1]), 5)


def test_examples_of_the_documentation_are_valid_configurations(
    importable: Path, tmp_path: Path
) -> None:
    installed(
        importable,
        "budget-granularity",
        "1.2",
        {"budget": "budget.section:BudgetConfig"},
        outside.GRANULARITIES,
    )
    outside._offers.cache_clear()
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    trees = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(trees) == 5
    for tree in trees:
        build_config(tree)


def test_old_names_of_class_attributes_are_taken_with_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Old(Granularity):
        fitted = True

    class OldConfig(GranularityConfig):
        always_fitted: ClassVar[bool] = True

    assert Old.closed_form and OldConfig().is_closed_form
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r".*<locals>\.", "", line) for line in lines] == [
        f"{old} is now called {new}; the next release ignores the old name"
        for old, new in (
            ("Old.fitted", "closed_form"),
            ("OldConfig.always_fitted", "always_closed_form"),
        )
    ]
