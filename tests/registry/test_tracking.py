"""Metrics of epochs reach MLflow, here a real SQLite store, exactly once, whatever happens in
between.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowException
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_tracking import EpochLog
from pipelines.plumbing.user_message import user_message
from recsys.config import Config, build_config
from recsys.errors import ConfigError, StorageError
from recsys.registry.mlflow_client import outage
from recsys.registry.tracking import Tracker
from recsys.storage.filesystems import storage_errors
from tune.ledger import Trial
from tune.trial_lines import Children

DOWN = MlflowException(
    "API request to http://user:word@host:1/api failed with exception: refused\nand more"
)


def configured(run: Path, enabled: bool = True) -> Config:
    model = {"granularities": {"evolution": {"enabled": True}}}
    tree = {"run": {"dir": str(run)}, "data": {"source": {"kind": "synthetic"}}, "model": model}
    return build_config({**tree, "tracking": {"enabled": enabled}})


def report(phase: str, epoch: int, loss: float) -> dict[str, Any]:
    own = {"ndcg@10": 0.5} if phase == "select" else {}
    return {
        "phase": phase,
        "epoch": epoch,
        "epochs": 3,
        "loss": loss,
        "lr": 0.1,
        "seconds": 0.01,
        **own,
    }


HISTORY = [
    report("select", 1, 3.1),
    report("select", 2, 1 / 3),
    report("refit", 1, 3.0),
    report("refit", 2, 0.3),
]


def steps(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    return [
        (one.step, one.value) for one in tracker.client.get_metric_history(tracker.run_id, name)
    ]


def test_every_epoch_arrives_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(tmp_path / "run")
    message: list[str] = []
    with Tracker(config) as tracker:
        log = EpochLog(tracker, message.append)
        log(HISTORY[0])
        log({**HISTORY[0], "seconds": 7.0})  # the epoch ran again after a worker was lost
        with monkeypatch.context() as patch:
            patch.setattr(
                tracker._client, "log_batch", lambda *_, **__: (_ for _ in ()).throw(DOWN)
            )
            log(HISTORY[1])
            log(HISTORY[2])
        assert (
            len(message) == 1
            and "the training continues" in message[0]
            and "word" not in message[0]
        )
        log(HISTORY[3])
        assert message[1:] == ["MLflow answers again"]
        log.complete(HISTORY)
        assert message[2:] == ["logged 2 earlier epochs to MLflow"]
        log.complete(HISTORY)
        run_id = tracker.run_id
    with Tracker(config, run_id=run_id) as tracker:  # as after a driver was lost
        again = EpochLog(tracker, message.append)
        again(HISTORY[3])
        again.complete([{**HISTORY[0], "phase": "checked"}, *HISTORY[1:], report("select", 1, 2.9)])
        assert sorted(steps(tracker, "train.loss")) == [(1, 2.9), (1, 3.1), (2, 1 / 3)]
        assert sorted(steps(tracker, "refit.loss")) == [(1, 3.0), (2, 0.3)]
        assert sorted(step for step, _ in steps(tracker, "valid.ndcg_at_10")) == [1, 1, 2]
    assert message[-1] == "logged 1 earlier epoch to MLflow"


def test_validation_of_a_model_without_training_arrives_once(tmp_path: Path) -> None:
    """Its only value is a metric with @, which MLflow stores under another name."""
    config, message = configured(tmp_path / "run"), list[str]()
    fitted = {"phase": "select", "epoch": 0, "epochs": 0, "ndcg@10": 0.25, "seconds": 1.5}
    with Tracker(config) as tracker:
        EpochLog(tracker, message.append)(fitted)
        run_id = tracker.run_id
    with Tracker(config, run_id=run_id) as tracker:  # as after a driver was lost
        EpochLog(tracker, message.append).complete([fitted])
        assert steps(tracker, "valid.ndcg_at_10") == [(0, 0.25)] and message == []


def test_metrics_delayed_by_a_hanging_server_arrive_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delayed write may end before the metrics are sent again, or after that."""
    late: list[tuple[Any, Any]] = []
    with Tracker(configured(tmp_path / "run")) as tracker:
        log, real = EpochLog(tracker, lambda _: None), tracker.client.log_batch

        def hang(*words: Any, **named: Any) -> None:
            if late:
                real(*words, **named)
            late.append((words, named))
            raise DOWN

        with monkeypatch.context() as patch:
            patch.setattr(tracker._client, "log_batch", hang)
            log(HISTORY[0])
            log(HISTORY[1])
        assert steps(tracker, "train.loss") == [(2, 1 / 3)]
        log.complete(HISTORY[:2])
        real(*late[0][0], **late[0][1])
        assert sorted(steps(tracker, "train.loss")) == [(1, 3.1), (2, 1 / 3)]
        assert sorted(step for step, _ in steps(tracker, "valid.ndcg_at_10")) == [1, 2]


def test_without_tracking_nothing_is_logged(tmp_path: Path) -> None:
    message: list[str] = []
    with Tracker(configured(tmp_path, enabled=False)) as tracker:
        log = EpochLog(tracker, message.append)
        log(HISTORY[0])
        log.complete(HISTORY)
    assert not message and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_store_moved_with_its_artefacts_raises_one_message(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    with Tracker(configured(before / "run")) as tracker:
        tracker.client.log_text(tracker.run_id, "kept", "a.txt")
    before.rename(after)
    with pytest.raises(
        ConfigError, match=rf"was moved.*{before}/mlartifacts.*ln -s.*tracking\.experiment"
    ):
        Tracker(configured(after / "run")).__enter__()
    before.symlink_to(after)
    with Tracker(configured(after / "run")) as tracker:
        assert tracker.run_id
    (tmp_path / "elsewhere").mkdir()
    (after / "run").rename(tmp_path / "elsewhere" / "run")
    with Tracker(configured(tmp_path / "elsewhere" / "run")) as tracker:
        assert tracker.run_id, "a run folder that was moved alone begins another store"


def test_server_without_answer_raises_one_message() -> None:
    message = outage(DOWN)
    assert (
        message is not None
        and "word" not in message
        and "--resume" in message
        and "\n" not in message
    )
    assert (
        outage(MlflowException("no such run")) is None and outage(OSError("API request to")) is None
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_full_disk_error_names_the_path() -> None:
    with pytest.raises(OSError) as failure:
        Progress(None, Path("/dev/full"))("a line")
    assert "'/dev/full'); free space there" in str(user_message(failure.value))
    message = "cannot write to /small/run: the disk is full; free space there"
    with pytest.raises(StorageError, match=message), storage_errors("/small/run", "write to"):
        Path("/dev/full").write_text("a line")
    with pytest.raises(FileNotFoundError), storage_errors("/small/run"):
        Path("/small/run/nothing").read_text()


def test_full_disk_raises_one_message() -> None:
    """In a task of Ray, in safetensors and in SQLite."""
    lost = RuntimeError("a task failed")
    lost.cause = OSError(errno.ENOSPC, "No space left on device", "/small/run/part.parquet")  # type: ignore[attr-defined]
    texts = (
        "I/O error: No space left on device (os error 28)",
        "(sqlite3.OperationalError) database or disk is full",
    )
    for error in (lost, *(RuntimeError(f"first line\n{text}\nlast line") for text in texts)):
        message = user_message(error)
        assert (
            message is not None
            and message.startswith("the disk is full (")
            and "--resume" in message
            and "\n" not in message
        )
    assert "/small/run/part.parquet" in str(user_message(lost))


def test_worker_error_is_reported_without_rays_quoting() -> None:
    known = StorageError("cannot write checkpoints to /small/run: the disk is full")
    quoted = "OSError: Error writing bytes to file. Detail: [errno 28] No space left on device"
    for failure in (known, UserExceptionWithTraceback(known, quoted)):
        assert user_message(WorkerGroupError(quoted, {0: failure})) == str(known)
    assert "the disk is full (OSError: " in str(
        user_message(WorkerGroupError(quoted, {0: RuntimeError(quoted)}))
    )


@pytest.mark.parametrize(
    ("error", "state"), [(SystemExit(143), "KILLED"), (OSError("disk full"), "FAILED")]
)
def test_an_interrupted_sweep_leaves_no_trial_running(
    error: BaseException, state: str, tmp_path: Path
) -> None:
    config = configured(tmp_path / "run")
    done, cut = Trial(0, 0, 1, {}), Trial(1, 0, 1, {})
    with Tracker(config) as tracker:
        with pytest.raises(type(error)), Children(tracker, Progress(None)) as children:
            for trial in (done, cut):
                children.started(trial, config)
            done.state = "finished"
            children.ended(done)
            raise error
        with Children(tracker, Progress(None)) as children:
            known = children.known
        states = {
            name: tracker.client.get_run(run_id).info.status for name, run_id in known.items()
        }
        assert states == {"000": "FINISHED", "001": state}
        assert str(error) in tracker.client.get_run(known["001"]).data.tags["error"]
        with Children(
            tracker, Progress(None)
        ) as children:  # the same command goes on with the same run
            children.started(cut, config)
            cut.state = "finished"
            children.ended(cut)
        again = tracker.client.get_run(known["001"])
        assert again.info.status == "FINISHED" and "error" not in again.data.tags
