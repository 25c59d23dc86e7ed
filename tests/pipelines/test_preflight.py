"""The memory estimate before a training: by hand and against measured peaks; configurations that it
refuses and that it accepts.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.plumbing.diagnostics import machine
from pipelines.plumbing.nodes import Node, dashboard_nodes
from pipelines.plumbing.preflight import check, check_cluster, planned, preflight, preview
from pipelines.plumbing.training_estimate import Need, described, need, sizes_of
from recsys.config import Config, GranularitiesConfig, load_config
from recsys.config.workload import DataSizes
from recsys.errors import ConfigError

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
Captured = pytest.CaptureFixture[str]

# Sizes of the golden data sets, and the peak memory of a process that trained one epoch on them
# with the golden configuration, in MiB, measured with `/usr/bin/time`; see the slow test below.
GOLDEN = {
    "demo": (DataSizes(1000, 600, 23169, 384, 966, 1500, 9428), 927),
    "ml-100k": (DataSizes(943, 1682, 99057, 384), 1182),
    "beauty": (DataSizes(22363, 12101, 176139, 384), 1161),
    "lastfm": (DataSizes(1892, 17632, 74267, 384, 0, 0, 25434, ordered=False), 1324),
}


def _config(name: str = "demo", *overrides: tuple[str, str]) -> Config:
    return load_config(ROOT / "pipelines" / "configs" / f"{name}.yaml", overrides)


def _need(config: Config, sizes: DataSizes) -> Need:
    return need(config.model, config.train, config.evaluate, sizes)


def _check_cluster(config: Config, nodes: list[Node]) -> None:
    check_cluster(config.train, config.ray, config.submit, nodes)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_estimate_is_between_half_and_twice_the_measured_memory(name: str) -> None:
    sizes, measured = GOLDEN[name]
    estimate = _need(_config(name), sizes).total / (1 << 20)
    assert 0.5 < estimate / measured < 2


@pytest.mark.parametrize("name", list(GOLDEN))
def test_training_that_fits_is_accepted(name: str) -> None:
    """A machine with exactly the measured memory is enough, and twice the memory is enough for two
    workers.
    """
    sizes, measured = GOLDEN[name]
    check(_config(name), sizes, [Node(2, 0, measured << 20)])
    check(_config(name, ("train.num_workers", "2")), sizes, [Node(3, 0, 2 * measured << 20)])


def test_memory_of_tables_equals_the_sum_by_hand() -> None:
    """1,000 items and, in tables with user rows, 50 users; weight, gradient and two moments of 4
    bytes.
    """
    config = _config(
        "demo", ("model.width", "32"), ("model.granularities", "{evolution: {enabled: true}}")
    )
    sizes = DataSizes(50, 1000, 500)
    assert _need(config, sizes).table_bytes == 1000 * 32 * 4 * 4
    config.model.item.id = False
    assert _need(config, sizes).table_bytes == 0
    tree = "{collaborative: {enabled: true, user_embedding: true}, knowledge: {enabled: true}}"
    config = _config("demo", ("model.width", "32"), ("model.granularities", tree))
    assert (
        _need(config, DataSizes(50, 1000, 500, entities=70)).table_bytes
        == (1000 + 50 + 70) * 32 * 4 * 4
    )


def test_number_of_steps_equals_the_count_by_hand() -> None:
    """100 users with 10 events: 4 steps of 32 per epoch. Histories of 11 events trained as windows
    of 5: 2.2 rows each.
    """
    config = _config(
        "demo", ("train.batch_size", "32"), ("train.epochs", "3"), ("train.refit", "false")
    )
    assert _need(config, DataSizes(100, 50, 1000)).steps == 4 * 3
    config.train.refit = True
    assert _need(config, DataSizes(100, 50, 1000)).steps == 4 * 3 * 2
    config.train.refit, config.model.max_history = False, 5
    assert _need(config, DataSizes(100, 50, 1100)).steps == 7 * 3


def test_settings_change_the_estimate() -> None:
    sizes = DataSizes(10**6, 10**6, 10**8)
    base = _need(_config("beauty"), sizes)
    parts = base.memory

    def other(*overrides: tuple[str, str]) -> dict[str, float]:
        return _need(_config("beauty", *overrides), sizes).memory

    assert other(("model.width", "256"))["tables"] > 1.9 * parts["tables"]
    assert other(("train.window_events", "1000000"))["events"] == parts["events"] / 4
    assert parts["graph"] == 0, "no granularity reads the events"
    stratum = ("model.granularities.stratum.enabled", "true")
    assert other(stratum)["graph"] == 2**21 * 200 + 10**6 * 64, (
        "events are in files; the shard that is read, and a few numbers of every user, are not"
    )
    assert other(("model.granularities.collaborative.enabled", "true"))["graph"] == 0, (
        "it samples the events"
    )
    small = ("train.batch_size", "8")
    many, few = (
        _need(
            _config("beauty", small, ("evaluate.chunk_users", chunk)),
            DataSizes(10**6, 10**4, 10**7),
        ).memory["validation"]
        for chunk in ("512", "256")
    )
    assert few < 0.7 * many
    assert base.shuffle == 120 * 10**8


# ------------------------------------------------------------------------------------------ refusal


def test_tables_larger_than_the_largest_machine_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"embedding tables of 500,000,000 items .* more than the 60\.0 GiB"
    ) as error:
        check(
            _config(),
            DataSizes(10**6, 5 * 10**8, 10**7),
            [Node(8, 0, 60 * GIB), Node(8, 0, 8 * GIB)],
        )
    assert "model.width" in str(error.value)


def _large(workers: int, *overrides: tuple[str, str]) -> Config:
    """A sequence model of width 64 whose table takes 51.2 GB with gradient and moments on 5 · 10⁷
    items.
    """
    tree = "{evolution: {enabled: true}}"
    own = [("model.granularities", tree), ("model.width", "64"), ("data.text.enabled", "false")]
    return _config("demo", *own, ("train.num_workers", f"{workers}"), *overrides)


MANY = DataSizes(10**6, 5 * 10**7, 10**7)


def test_tables_too_large_for_one_worker_are_sharded_over_several() -> None:
    nodes = [Node(8, 0, 32 * GIB)] * 4
    config = planned(_large(4), MANY, nodes)
    assert config.train.shard_rows == "yes"
    assert _need(config, MANY).row_bytes == 5 * 10**7 * 64 * 4 * 4 / 4
    text = described(config.model, config.train, config.evaluate, MANY)
    assert "rows of the item table are sharded over 4 workers: 11.9 GiB each" in text
    check(_large(4), MANY, nodes)


def test_rows_are_sharded_only_where_it_is_needed_and_possible() -> None:
    small, large = [Node(8, 0, 32 * GIB)] * 4, [Node(8, 0, 512 * GIB)] * 4
    full = ("train.loss.kind", "full_softmax")
    social = ("model.granularities", "{evolution: {enabled: true}, social: {enabled: true}}")
    for config, nodes in (
        (_large(4), large),
        (_large(1), small),
        (_large(4, full), small),
        (_large(4, social), small),
        (_large(4, ("train.shard_rows", "no")), small),
        (_large(4), [Node(8, 0, None)]),
    ):
        assert planned(config, MANY, nodes).train.shard_rows == "no"
    assert planned(_large(4, ("train.shard_rows", "yes")), MANY, large).train.shard_rows == "yes"


def test_refused_tables_name_the_workers_that_are_enough() -> None:
    for workers in (1, 2):
        with pytest.raises(ConfigError, match="embedding tables") as error:
            check(_large(workers), MANY, [Node(8, 0, 16 * GIB)])
        found = re.search(r"set train.num_workers (\d+) with as many machines", str(error.value))
        assert found is not None and int(found[1]) > workers
        check(_large(int(found[1])), MANY, [Node(8, 0, 16 * GIB)] * int(found[1]))
        fewer = int(found[1]) - 1
        with pytest.raises(ConfigError):
            check(_large(fewer), MANY, [Node(8, 0, 16 * GIB)] * fewer)


@pytest.mark.parametrize(
    ("name", "sizes", "overrides", "cure"),
    [
        ("demo", DataSizes(10**6, 10**6, 10**9, friends=10**9), [], "graph of social"),
        (
            "demo",
            DataSizes(10**6, 5 * 10**6, 10**7),
            [("model.granularities.item_cf.rank", "1024")],
            "item_cf.rank",
        ),
        (
            "beauty",
            DataSizes(10**6, 10**5, 10**7),
            [("train.batch_size", "8"), ("evaluate.chunk_users", "1000000")],
            "evaluate.chunk_users",
        ),
        (
            "demo",
            DataSizes(10**6, 10**5, 10**7),
            [("train.batch_size", "500000"), ("evaluate.chunk_users", "8")],
            "sampled_softmax",
        ),
    ],
)
def test_training_that_does_not_fit_is_refused_with_a_cure_for_its_largest_part(
    name: str, sizes: DataSizes, overrides: list[tuple[str, str]], cure: str
) -> None:
    config = _config(name, *overrides)
    with pytest.raises(ConfigError, match="cannot fit") as error:
        check(config, sizes, [Node(8, 0, 16 * GIB)])
    assert cure in str(error.value)
    check(config, sizes, [Node(8, 0, 4096 * GIB)])


def test_number_of_events_alone_refuses_no_training() -> None:
    """The table of events is in files, and events in order are those of a sample of users."""
    names = ["stratum", "item_cf", "item_knn", "als", "user_cf", "popularity", "repeat"]
    enabled = [(f"model.granularities.{name}.enabled", "true") for name in names]
    config = _config("beauty", *enabled)
    many, more = (_need(config, DataSizes(10**6, 10**5, events)) for events in (10**8, 10**9))
    assert more.total < 1.01 * many.total
    check(config, DataSizes(10**6, 10**5, 10**9), [Node(8, 0, 16 * GIB)])


def test_workers_share_the_memory_of_all_machines() -> None:
    config = _config("demo", ("train.num_workers", "8"))
    sizes = DataSizes(10**5, 10**5, 10**7)
    one = int(_need(config, sizes).total)
    check(config, sizes, [Node(8, 0, one)] * 4)  # each gets half of the estimate
    with pytest.raises(ConfigError, match="8 training workers"):
        check(config, sizes, [Node(8, 0, one)] * 3)


def test_unknown_memory_and_growing_clusters_are_accepted() -> None:
    sizes = DataSizes(10**6, 5 * 10**8, 10**9)
    check(_config(), sizes, [])
    check(_config(), sizes, [Node(8, 0, None), Node(8, 0, GIB)])
    check(_config("demo", ("ray.wait_s", "60")), sizes, [Node(8, 0, GIB)])
    _check_cluster(_config("demo", ("train.num_workers", "9")), [])
    _check_cluster(
        _config("demo", ("train.num_workers", "9"), ("ray.wait_s", "60")), [Node(1, 0, GIB)]
    )


def test_more_workers_than_the_cluster_has_cpus_or_gpus_are_refused() -> None:
    nodes = [Node(2, 1, GIB), Node(2, 0, GIB)]
    _check_cluster(_config("demo", ("train.num_workers", "3"), ("submit.cpus", "1")), nodes)
    with pytest.raises(ConfigError, match="the cluster has 4 CPUs, but 5 are needed"):
        _check_cluster(_config("demo", ("train.num_workers", "4"), ("submit.cpus", "1")), nodes)
    with pytest.raises(ConfigError, match="the cluster has 1 GPUs, but 2 are needed"):
        _check_cluster(_config("demo", ("train.num_workers", "2"), ("train.use_gpu", "yes")), nodes)


def test_nodes_are_read_from_the_answer_of_the_dashboard() -> None:
    node = {
        "raylet": {"state": "ALIVE", "resourcesTotal": {"CPU": 4.0, "GPU": 1.0}},
        "mem": [8 * GIB, 6 * GIB, 25.0, 2 * GIB],
    }
    dead = {"raylet": {"state": "DEAD"}}
    assert dashboard_nodes({"data": {"summary": [node, dead]}}) == [Node(4.0, 1.0, 8 * GIB)]
    bad: list[Any] = [None, {}, {"data": {"summary": [{}]}}, {"data": {"summary": None}}, "<html>"]
    assert [dashboard_nodes(answer) for answer in bad] == [[]] * len(bad)


def test_only_granularities_that_read_the_events_need_memory_for_them() -> None:
    """Preflight counts the same readers of events as the modules declare."""
    from recsys.granularities import granularity_class

    for name in GranularitiesConfig.model_fields:
        for fit in ("training", "counts") if name in ("knowledge", "profile") else ("",):
            own = {
                "enabled": True,
                **({"fit": fit} if fit else {}),
                **({"max_edges": 10**7} if "coll" in name else {}),
            }
            tree = json.dumps({"evolution": {"enabled": True}, name: own})
            config = _config("demo", ("model.granularities", tree))
            section = getattr(config.model.granularities, name)
            reads = _need(config, DataSizes(1000, 100, 10**6)).memory["graph"] > 0
            assert reads == granularity_class(name, section).reads_events, name


def test_granularities_that_read_all_items_in_a_step_are_known_before_it() -> None:
    """What the configuration refuses to shard is what the modules declare."""
    from recsys.granularities import granularity_class
    from recsys.granularities.base import Granularity

    for name, field in GranularitiesConfig.model_fields.items():
        section = field.get_default(call_default_factory=True)
        for fit in ("training", "counts") if hasattr(section, "fit") else ("",):
            section = section.model_copy(update={"fit": fit} if fit else {})
            own = granularity_class(name, section).needs_all_items
            assert section.reads_all_items(0) == (own is not Granularity.needs_all_items), name


# ----------------------------------------------------------------------------------------- messages


def test_dry_run_prints_the_estimate(tmp_path: Path, capsys: Captured) -> None:
    assert main(["run", "--config", "demo", "--run.dir", str(tmp_path / "a"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert (
        "# estimate:" in shown
        and "a worker" in shown
        and "steps" in shown
        and "from the settings of the source" in shown
    )
    words = ["--data.source.num_items", "900000000", "--data.source.num_users", "10000000"]
    assert (
        main(["train", "--config", "demo", "--run.dir", str(tmp_path / "a"), *words, "--dry-run"])
        == 0
    )
    assert "# would be refused: preflight: the embedding tables" in capsys.readouterr().out


def test_run_that_does_not_fit_is_refused_before_prepare(
    tmp_path: Path, capsys: Captured, ray_local: None
) -> None:
    words = ["--data.source.num_items", "900000000", "--tracking.enabled", "false"]
    assert main(["run", "--config", "demo", "--run.dir", str(tmp_path / "a"), *words]) == 2
    assert "preflight: the embedding tables" in capsys.readouterr().err
    assert not (tmp_path / "a" / "dataset").exists()


def test_training_requests_machines_waits_and_withdraws_the_request(ray_local: None) -> None:
    from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    from recsys.training.ray_resources import check_cpus

    config = _config("demo", ("train.num_workers", "9"), ("ray.wait_s", "0.1"))
    with pytest.raises(ConfigError, match=r"has 2 CPUs.*give it time with ray\.wait_s"):
        check_cpus(config.train, config.ray)
    assert json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)) == []
    config = _config("demo", ("train.num_workers", "2"), ("ray.wait_s", "1000"))
    check_cpus(config.train, config.ray)  # they are available: no waiting


def test_data_of_unknown_size_get_no_estimate(tmp_path: Path) -> None:
    source = ("data.source", "{kind: sequences, events: s.txt}")
    config = _config("demo", source, ("run.dir", str(tmp_path)), ("data.order", "file"))
    assert sizes_of(config.data, config.dataset_dir, config.seed) is None
    assert "after the data is prepared" in preview(config)


def test_model_that_auto_will_choose_gets_no_estimate_and_is_not_refused() -> None:
    large = [("data.source.kind", "synthetic"), ("data.source.num_items", "900000000")]
    config, said = load_config(None, large), []
    preflight(config, said.append, [Node(cpus=8, gpus=0, memory=8 * GIB)], None)
    (found,) = machine.training(config)
    expected = "model auto: members and settings are chosen after the data is prepared"
    assert said == [found.found] == [preview(config)] == [expected] and found.state == "ok"


def test_text_of_an_estimate_names_memory_and_steps() -> None:
    config, (sizes, _) = _config("lastfm"), GOLDEN["lastfm"]
    text = described(config.model, config.train, config.evaluate, sizes)
    assert text.startswith("estimate: 1.") and "GiB a worker (program" in text
    assert "steps" in text and "several times more or less" in text


_TRAIN = """
import json, resource, sys, torch
from recsys.config import load_config
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.validation import Validator
from recsys.training.context import TrainContext
from recsys.training.phases import fit
torch.set_num_threads(1)
short = [("train.epochs", "1"), ("train.refit", "false"), ("train.evaluate_every", "1")]
config = load_config(sys.argv[1], short)
validate = Validator.of(config.train, config.evaluate)
fit(config, PreparedDataset(sys.argv[2]), validate, TrainContext())
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "ml-100k", "lastfm"])
def test_estimate_is_close_to_a_real_training(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The peak memory of a process that trains an epoch of a golden configuration, against the
    estimate.
    """
    if name != "demo":
        request.getfixturevalue("real_data")
    words = ["--config", name, "--run.dir", str(tmp_path / "run")]
    prepare = [sys.executable, "-m", "pipelines.cli", "prepare", *words]
    subprocess.run(prepare, cwd=ROOT, check=True, capture_output=True, timeout=600)
    config = _config(name, ("run.dir", str(tmp_path / "run")))
    sizes = sizes_of(config.data, config.dataset_dir, config.seed)
    assert sizes is not None and sizes.exact
    file = ROOT / "pipelines" / "configs" / f"{name}.yaml"
    train = [sys.executable, "-c", _TRAIN, str(file), config.dataset_dir]
    done = subprocess.run(train, cwd=ROOT, check=True, capture_output=True, text=True, timeout=900)
    measured = json.loads(done.stdout.splitlines()[-1]) * 1024
    assert 0.5 < _need(config, sizes).total / measured < 2, (_need(config, sizes), measured)
