"""Objects on an S3-compatible server: read and written like local files, one writer, complete or
absent, one clear message.

The server is moto's, in a separate process; Arrow, boto3 and MLflow use it over HTTP like any
other.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.plumbing.run_folder import open_run
from pipelines.plumbing.user_message import user_message
from recsys import schema
from recsys.config import (
    CanonicalSource,
    Config,
    HetRecLastFmSource,
    RecBoleSource,
    Section,
    SequencesSource,
    build_config,
    load_config,
)
from recsys.data.dataset import PreparedDataset
from recsys.data.manifest import Manifest
from recsys.errors import ArtifactError, ConfigError, DataError, SourceError, StorageError
from recsys.preparation.dataset_writer import DatasetWriter
from recsys.preparation.image_vectors import digest_block
from recsys.preparation.vector_cache import VectorCache
from recsys.registry.mlflow_client import client
from recsys.registry.parent import open_parent
from recsys.registry.resolve import resolve
from recsys.registry.tracking import Tracker
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.request_files import read_requests
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.sources.files import find, input_file
from recsys.storage import filesystems, locks
from recsys.storage.filesystems import check_writable, filesystem_of, read_bytes
from recsys.storage.locks import holding
from recsys.storage.mirror import Mirror, download, upload
from tests.handmade import small_model, small_world

SMALL: dict[str, Any] = {"model": {"granularities": {"evolution": {"enabled": True}}}}


def put(place: str, content: str | bytes) -> str:
    filesystem, inner = filesystem_of(place)
    with filesystem.open_output_stream(inner) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
    return place


def names(place: str) -> list[str]:
    """All objects below a URI."""
    filesystem, inner = filesystem_of(place)
    found = filesystem.get_file_info(
        pyarrow.fs.FileSelector(inner, recursive=True, allow_not_found=True)
    )
    return sorted(info.path[len(inner) + 1 :] for info in found if info.is_file)


# ------------------------------------------------------------------------------------------ sources


def write_sources(folder: Path) -> None:
    """One small data set in every format."""
    (folder / "log/day=2").mkdir(parents=True)
    (folder / "log/one.csv").write_text("user_id,item_id,timestamp\nu1,a,1\nu2,b,2\n")
    (folder / "log/day=2/two more.csv").write_text("user_id,item_id,timestamp\nu3,c,3\n")
    (folder / "log/_hidden.csv").write_text("nothing\n")
    (folder / "lines.jsonl").write_text(
        '{"user_id": "u1", "item_id": "a"}\n{"user_id": "u2", "item_id": "b"}\n'
    )
    events = pa.table({"user_id": ["u1", "u2", "u3"], "item_id": ["a", "b", "c"]})
    pq.write_table(events, folder / "rows.parquet", row_group_size=2)
    (folder / "walks.txt").write_text("u1 a b c\nu2 b\n")
    (folder / "atoms").mkdir()
    (folder / "atoms/atoms.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\nu1\ta\t1\nu2\tb\t2\n"
    )
    (folder / "atoms/atoms.item").write_text(
        "item_id:token\tname:token_seq\na\tfirst song\nb\tsecond song\n"
    )
    (folder / "hetrec").mkdir()
    for name, lines in {
        "user_artists.dat": "userID\tartistID\tweight\n1\t10\t5\n2\t11\t7\n",
        "artists.dat": "id\tname\turl\tpictureURL\n10\tA\thttp://x\thttp://y\n11\tB\thttp://x\t\n",
        "tags.dat": "tagID\ttagValue\n1\trock\n",
        "user_taggedartists.dat": (
            "userID\tartistID\ttagID\tday\tmonth\tyear\n1\t10\t1\t1\t4\t2009\n"
        ),
        "user_friends.dat": "userID\tfriendID\n1\t2\n2\t1\n",
    }.items():
        (folder / "hetrec" / name).write_text(lines)


SOURCES: dict[str, Callable[[str], Section]] = {
    "csv, a folder": lambda root: CanonicalSource(events=[f"{root}/log"]),
    "csv, a glob": lambda root: CanonicalSource(events=[f"{root}/log/**/*.csv"]),
    "parquet": lambda root: CanonicalSource(events=[f"{root}/rows.parquet"]),
    "jsonl": lambda root: CanonicalSource(events=[f"{root}/*.jsonl"]),
    "recbole": lambda root: RecBoleSource(folder=f"{root}/atoms"),
    "hetrec": lambda root: HetRecLastFmSource(folder=f"{root}/hetrec"),
    "sequences": lambda root: SequencesSource(events=f"{root}/walks.txt"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_reads_remote_files_like_local_ones(
    kind: str, tmp_path: Path, bucket: str
) -> None:
    write_sources(tmp_path)
    raw = f"{bucket}/{tmp_path.name}"
    upload(tmp_path, raw)
    here, there = (open_source(SOURCES[kind](root)) for root in (str(tmp_path), raw))
    pieces, same = here.pieces(), there.pieces()
    assert pieces.keys() == same.keys() and there.name == here.name and there.size() == here.size()
    for table in pieces:
        assert read_all(same[table]).equals(read_all(pieces[table])), table
    assert read_all(same["events"]).num_rows >= 2
    before = there.fingerprint()
    assert there.fingerprint() == before
    put(there.files()[0].path, "something else")
    assert open_source(SOURCES[kind](raw)).fingerprint() != before


def test_missing_remote_file_is_named(bucket: str) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        input_file(f"{bucket}/none.csv")
    with pytest.raises(SourceError, match="matches no file"):
        find([f"{bucket}/none/*.csv"])
    for look in (
        lambda: input_file("s3://no-such-bucket/a.csv"),
        lambda: find(["s3://no-such-bucket/*.csv"]),
    ):
        with pytest.raises(StorageError, match="there is no bucket no-such-bucket; create it"):
            look()


# ----------------------------------------------------------------------------------------- messages


def test_unreachable_server_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for attempt in (lambda: check_writable(f"{bucket}/x"), lambda: input_file(f"{bucket}/x.csv")):
        with pytest.raises(
            StorageError, match=rf"{port} does not answer; check the network.*AWS_ENDPOINT_URL"
        ):
            attempt()
    with (
        pytest.raises(StorageError, match="does not answer"),
        holding(f"{bucket}/run/.lock", "a test", "wait"),
    ):
        pass


def test_server_without_an_answer_gives_one_message_in_time(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without time limits the wait would not end; each attempt has one."""
    for name, value in {"CONNECT_S": 1.0, "READ_TIMEOUT_S": 1.0, "ATTEMPTS": 1}.items():
        monkeypatch.setattr(filesystems, name, value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageError, match="does not answer"):
            input_file(f"{bucket}/x.csv")
        with (
            pytest.raises(StorageError, match="does not answer"),
            holding(f"{bucket}/run/.lock", "a test", "wait"),
        ):
            pass


def test_denied_access_gives_one_message(bucket: str, s3_server: str) -> None:
    """From now on Moto checks credentials, and no user exists."""

    def asked_before_checking(number: str) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(
            f"{s3_server}/moto-api/reset-auth", number.encode(), plain, method="POST"
        )
        urllib.request.urlopen(request, timeout=200).close()

    asked_before_checking("0")
    try:
        with pytest.raises(StorageError, match="access is denied; set AWS_ACCESS_KEY_ID") as caught:
            check_writable(f"{bucket}/run")
        with (
            pytest.raises(StorageError, match="access is denied"),
            holding(f"{bucket}/.lock", "a test", "wait"),
        ):
            pass
        with pytest.raises(StorageError, match="access is denied"):
            input_file(f"{bucket}/x.csv")
    finally:
        asked_before_checking("inf")
    assert "word-that-nobody" not in str(caught.value) and "AKIATESTING" not in str(caught.value)


def test_check_of_writing_leaves_no_file(bucket: str, tmp_path: Path) -> None:
    check_writable(f"{bucket}/deep/run")
    check_writable(str(tmp_path))
    assert names(bucket) == [] and list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="cannot write to .*new"):
        check_writable(str(tmp_path / "new"))
    with pytest.raises(StorageError, match="there is no bucket no-such-bucket"):
        check_writable("s3://no-such-bucket/run")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://AKIA0:secret@bucket/x", "has credentials"),
        ("s3://AKIA0:se/cret@bucket/x", "has credentials"),
        ("s3://bucket/x?secret_key=secret", "has credentials"),
        ("s3://bucket/x?zone=here", "unknown option zone"),
        ("s3:///x", "names no bucket"),
        ("unknown://bucket/x", "expected a path, s3:// or gs://"),
    ],
)
def test_uris_with_credentials_or_unknown_options_are_refused(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        filesystem_of(uri)
    assert "secret@" not in str(caught.value) and "=secret" not in str(caught.value)
    if "credentials" in message:
        with pytest.raises(ConfigError, match="run.dir: the s3:// URI has credentials") as refused:
            build_config({**SMALL, "run": {"dir": uri}})
        assert "secret@" not in str(refused.value) and "=secret" not in str(refused.value)


def test_options_of_a_uri_win_over_the_environment(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(f"{bucket}/data/a.csv", "user_id,item_id\nu,i\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    query = f"?endpoint_override={s3_server}&region=eu-west-1"
    assert [file.name for file in find([f"{bucket}/data{query}"])] == ["a.csv"]
    assert read_bytes(find([f"{bucket}/*/*.csv{query}"])[0].path).startswith(b"user_id")
    config = build_config({**SMALL, "run": {"dir": f"{bucket}/run/{query}"}})
    assert config.dataset_dir == f"{bucket}/run/dataset{query}"


def test_missing_boto3_gives_one_message(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with (
        pytest.raises(StorageError, match=r"boto3; run `pip install 'multigrain\[s3\]'`"),
        open_run(remote_config(bucket), "train"),
    ):
        pass
    with pytest.raises(StorageError, match="boto3"), DatasetWriter(f"{bucket}/set").writing():
        pass
    put(f"{bucket}/a.csv", "user_id,item_id\nu,i\n")
    assert (
        read_all(
            open_source(CanonicalSource(events=[f"{bucket}/a.csv"])).pieces()["events"]
        ).num_rows
        == 1
    )


def test_error_inside_a_library_gives_one_message() -> None:
    error = OSError(
        "When reading information for key 'a/b' in bucket 'c': AWS Error ACCESS_DENIED during"
        " HeadObject"
    )
    assert (user_message(error) or "").startswith("cannot read s3://c/a/b: access is denied")
    assert user_message(OSError("disk full")) is None


# ------------------------------------------------------------------------------------------ dataset


def manifest(content_hash: str) -> Manifest:
    return Manifest(content_hash, "x", {}, [], True, True, {}, {}, {}, [], {}, {})


def write_set(place: str, content_hash: str) -> None:
    writer = DatasetWriter(place)
    with writer.writing() as folder:
        folder.write_table("vocab/users.parquet", pa.table({"user_id": [content_hash]}))
        writer.commit(manifest(content_hash))


def test_dataset_is_replaced_with_its_manifest_removed_first_and_written_last(bucket: str) -> None:
    place = f"{bucket}/deep/set"
    write_set(place, "one")
    # no lock is left
    assert names(f"{bucket}/deep") == ["set/manifest.json", "set/vocab/users.parquet"]
    assert PreparedDataset(place).user_ids.to_pylist() == ["one"]
    writer = DatasetWriter(place)
    with writer.writing() as folder:
        assert names(place) == []
        folder.write_text("vocab/context.json", "[]")
        with pytest.raises(ArtifactError, match="no manifest.json"):
            PreparedDataset(place)
        with (
            pytest.raises(
                ArtifactError,
                match=r"is in use by `recsys prepare`, process \d+ on .*another data.dir",
            ),
            DatasetWriter(place).writing(),
        ):
            pass
        writer.commit(manifest("two"))
    assert PreparedDataset(place).manifest.content_hash == "two" and names(place) == [
        "manifest.json",
        "vocab/context.json",
    ]


def test_interrupted_write_leaves_no_dataset(bucket: str) -> None:
    place = f"{bucket}/set"
    write_set(place, "one")
    with pytest.raises(KeyboardInterrupt), DatasetWriter(place).writing() as folder:
        folder.write_table("histories/part-00000.parquet", pa.table({"user": [1]}))
        raise KeyboardInterrupt
    assert names(bucket) == []


def test_next_writer_takes_the_lock_of_a_killed_one(bucket: str) -> None:
    place = f"{bucket}/set"
    write_set(place, "one")
    code = (
        "import os, sys\nfrom recsys.preparation.dataset_writer import DatasetWriter\nwith"
        " DatasetWriter(sys.argv[1]).writing() as folder:\n    folder.write_text('vocab/x', 'x')\n "
        "   os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, place], timeout=500).returncode == 9
    assert names(bucket) == ["set.lock", "set/vocab/x"]
    with pytest.raises(ArtifactError, match="no manifest.json"):
        PreparedDataset(place)
    write_set(place, "two")
    assert names(bucket) == ["set/manifest.json", "set/vocab/users.parquet"]


def test_folder_that_is_not_a_dataset_is_not_deleted(bucket: str) -> None:
    put(f"{bucket}/papers/thesis.tex", "years of work")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        write_set(f"{bucket}/papers", "one")
    with pytest.raises(DataError, match="whole bucket"):
        write_set(bucket, "one")
    assert names(bucket) == ["papers/thesis.tex"]


# -------------------------------------------------------------------------------------------- locks


def test_lock_of_another_machine_names_holder_and_object(bucket: str) -> None:
    other = locks.Holder(
        "`recsys run`", 7, "node-2", "another boot", "2026-01-01T00:00:00+00:00", "t"
    )
    put(f"{bucket}/run/.lock", locks._dump(other))
    with (
        pytest.raises(ArtifactError) as caught,
        holding(f"{bucket}/run/.lock", "`recsys train`", "choose another folder with --run.dir"),
    ):
        pass
    assert (
        str(caught.value) == f"{bucket}/run is in use by `recsys run`, process 7 on node-2, since"
        " 2026-01-01T00:00:00+00:00; choose another folder with --run.dir. If that process has"
        f" ended, delete the object {bucket}/run/.lock"
    )
    assert locks._parse(read_bytes(f"{bucket}/run/.lock")) == other


def test_lock_that_another_writer_took_over_is_not_released(bucket: str) -> None:
    with holding(f"{bucket}/.lock", "one", "wait"):
        put(f"{bucket}/.lock", "of somebody else")
    assert names(bucket) == [".lock"]


@pytest.mark.parametrize("remote", [True, False])
def test_locks_work_on_servers_without_conditional_writes(
    remote: bool, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = locks.s3_client

    class Old:
        """A server without conditional writes."""

        def __init__(self, place: str) -> None:
            self._client = real(place)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

        def put_object(self, **words: Any) -> Any:
            from botocore.exceptions import ClientError

            if "IfNoneMatch" in words or "IfMatch" in words:
                raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")
            return self._client.put_object(**words)

    monkeypatch.setattr(locks, "s3_client", Old)
    place = f"{bucket}/.lock" if remote else f"file://{tmp_path}/.lock"
    with holding(place, "one", "wait"):
        with pytest.raises(ArtifactError, match="in use by one"), holding(place, "two", "wait"):
            pass
        assert locks._parse(read_bytes(place)).work == "one"
    with holding(place, "two", "wait"):
        pass


# --------------------------------------------------------------------------------------- run folder


def remote_config(bucket: str, **sections: Any) -> Config:
    return build_config({**SMALL, "run": {"dir": f"{bucket}/runs/one"}, **sections})


def test_refused_command_leaves_nothing_in_a_new_remote_run_folder(bucket: str) -> None:
    config = remote_config(bucket)
    with pytest.raises(ConfigError), open_run(config, "prepare"):
        raise ConfigError("wrong")
    assert not {"config.yaml", "history.jsonl"} & {*names(f"{bucket}/runs/one")}


def test_another_machine_finds_the_run_folder(bucket: str) -> None:
    config = remote_config(bucket)
    with open_run(config, "train") as folder:
        assert names(f"{bucket}/runs/one") == [".lock", "config.yaml", "history.jsonl"]
        (folder.root / "model").mkdir()
        for name in ("model.safetensors", "trained.json"):
            (folder.root / "model" / name).write_text(name)
        folder.publish(folder.model)
        folder.write_json(folder.metrics, {"model": 1})
        assert "metrics.json" in names(f"{bucket}/runs/one")
        (folder.root / "trials").mkdir()
        (folder.root / "trials/table.csv").write_text("1")  # not published
        assert folder.shown(folder.report) == f"{bucket}/runs/one/report.html"
        with (
            pytest.raises(ArtifactError, match="is in use by `recsys train`"),
            open_run(config, "evaluate"),
        ):
            pass
    first = folder.root
    assert not first.exists()
    with open_run(remote_config(bucket, seed=7), "evaluate") as folder:
        # nothing is fetched before it is needed
        assert folder.root != first and not (folder.root / "model").exists()
        assert (folder.model / "trained.json").read_text() == "trained.json"
        assert folder.read_json(folder.metrics, "") == {"model": 1}
        assert (folder.fetch("trials") / "table.csv").read_text() == "1"
        folder.forget_model()
        assert [
            name for name in names(f"{bucket}/runs/one") if name.startswith(("model", "metrics"))
        ] == []
    log = read_bytes(f"{bucket}/runs/one/run.log").decode()
    assert f"differs from the last one of {bucket}/runs/one:\n" in log and "seed: 42 → 7" in log
    assert len(read_bytes(f"{bucket}/runs/one/history.jsonl").splitlines()) == 2
    assert load_config(f"{bucket}/runs/one/config.yaml").seed == 7
    assert ".lock" not in names(f"{bucket}/runs/one")


def test_stage_without_a_lock_leaves_no_lock_object(bucket: str) -> None:
    """A server runs for weeks while its run folder trains, and must not replace the log of the
    training.
    """
    config = remote_config(bucket)
    with open_run(config, "serve", io.StringIO(), locks=False) as serving:
        assert names(bucket) == []
        with open_run(config, "train", io.StringIO()) as folder:
            folder.progress("the training's line")
        serving.progress("the server's line")
    assert (
        b"training's line" in (log := read_bytes(f"{bucket}/runs/one/run.log"))
        and b"server's" not in log
    )
    assert not serving.root.exists()


def test_failing_stage_names_the_remote_folder_and_releases_the_lock(
    bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(f"{bucket}/c.yaml", json.dumps({**SMALL, "tracking": {"enabled": False}}))
    words = ["--config", f"{bucket}/c.yaml", "--run.dir", f"{bucket}/run"]
    assert main(["recommend", *words]) == 2
    message = capsys.readouterr().err
    assert f"\nrecsys: {bucket}/run/bundle has no model bundle" in message and "/tmp" not in message
    assert names(f"{bucket}/run") == []
    assert main(["recommend", *words, "--run.dir", "s3://no-such-bucket/run"]) == 2
    assert "there is no bucket no-such-bucket" in capsys.readouterr().err
    assert main(["recommend", *words, "--run.dir", bucket]) == 2
    assert " is a bucket; choose a folder" in capsys.readouterr().err


def test_marker_of_a_folder_is_written_last(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(tmp_path, f"{bucket}/run")
    (tmp_path / "bundle").mkdir()
    for name in ("bundle.json", "weights.safetensors"):
        (tmp_path / "bundle" / name).write_text("one")
    mirror.publish(tmp_path / "bundle")
    real = pyarrow.fs.copy_files

    def cut(source: str, target: str, **rest: Any) -> None:
        if target.endswith("weights.safetensors"):
            raise OSError("power cut")
        real(source, target, **rest)

    monkeypatch.setattr(pyarrow.fs, "copy_files", cut)
    with pytest.raises(OSError, match="power cut"):
        mirror.publish(tmp_path / "bundle")
    assert names(f"{bucket}/run") == []


# --------------------------------------------------------------------------- models and small files


def test_remote_bundle_equals_the_local_one(tmp_path: Path, bucket: str) -> None:
    dataset = small_world(tmp_path / "dataset")
    write_bundle(tmp_path / "run/bundle", small_model(dataset), dataset, {})
    upload(tmp_path / "run", f"{bucket}/run")
    put(f"{bucket}/run/checkpoints/large", "not to be downloaded")
    for place in (f"{bucket}/run", f"{bucket}/run/bundle/"):
        found = resolve(place, "")
        assert read_bundle(found).info == read_bundle(tmp_path / "run/bundle").info
        assert sorted(path.name for path in found.iterdir()) == sorted(
            path.name for path in (tmp_path / "run/bundle").iterdir()
        )
    assert open_parent(f"{bucket}/run", "").uri == f"{bucket}/run"
    with pytest.raises(ArtifactError, match="has no model bundle"):
        resolve(f"{bucket}/nothing", "")
    with pytest.raises(StorageError, match="no bucket no-such-bucket"):
        resolve("s3://no-such-bucket/run", "")


def test_artefacts_of_mlflow_are_stored_remotely(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artefacts go to ``tracking.artifacts``; a setting that cannot work is refused before the run
    starts.
    """
    (tmp_path / "report.html").write_text("<html>fine</html>")
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": f"{bucket}/mlflow"}
    config = remote_config(bucket, tracking=tracking)
    with Tracker(config, folder=tmp_path) as tracker:
        tracker.log_file(tmp_path / "report.html")
    assert (tmp_path / "tracking.json").is_file()
    stored = names(f"{bucket}/mlflow")
    assert stored == [
        f"{tracker.run_id}/artifacts/{name}" for name in ("config.yaml", "report.html")
    ]
    assert not list(tmp_path.glob("mlartifacts"))
    shown = [place.read_bytes() for place in (tmp_path / "mlflow.db", tmp_path / "tracking.json")]
    assert not any(b"word-that-nobody" in content or b"AKIATESTING" in content for content in shown)

    other = remote_config(bucket, tracking={**tracking, "artifacts": f"{bucket}/elsewhere"})
    with (
        pytest.raises(
            ConfigError, match="stores its artefacts at s3://.* another tracking.experiment"
        ),
        Tracker(other),
    ):
        pass
    wrong = remote_config(
        bucket,
        tracking={**tracking, "experiment": "wrong", "artifacts": "s3://no-such-bucket/mlflow"},
    )
    with pytest.raises(StorageError, match="there is no bucket no-such-bucket"), Tracker(wrong):
        pass
    assert [run.info.status for run in client(config.tracking.uri).search_runs(["2"])] == ["FAILED"]
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StorageError, match=r"pip install 'multigrain\[s3\]'"), Tracker(config):
        pass


def test_requests_images_and_cached_vectors_are_read_remotely(bucket: str) -> None:
    put(f"{bucket}/asked.jsonl", '{"user_id": "ü"}\n\n{"history": ["a"]}\n')
    assert read_requests(f"{bucket}/asked.jsonl") == {
        f"recommend.requests: {bucket}/asked.jsonl, line 1": {"user_id": "ü"},
        f"recommend.requests: {bucket}/asked.jsonl, line 3": {"history": ["a"]},
    }
    put(f"{bucket}/pictures/a.png", b"pixels")
    found = digest_block(
        pa.table({"path": [f"{bucket}/pictures/a.png", f"{bucket}/pictures/b.png"]})
    )
    assert len(found[0]) == 64 and found[1] == "missing"
    cache, vectors = VectorCache(f"{bucket}/cache", "model"), np.ones((2, 4), np.float16)
    cache.store(["x", "y"], vectors)
    assert sorted(VectorCache(f"{bucket}/cache", "model").load(["y", "z"])) == ["y"]


def test_remote_dataset_equals_its_local_copy(tmp_path: Path, bucket: str) -> None:
    """Read a copy of a prepared dataset."""
    here = small_world(tmp_path / "dataset")
    upload(tmp_path / "dataset", f"{bucket}/dataset")
    there = PreparedDataset(f"{bucket}/dataset")
    assert there.manifest == here.manifest
    assert there.features.equals(here.features) and there.item_ids.equals(here.item_ids)
    assert np.array_equal(there.histories().items_E, here.histories().items_E)
    assert here.features.column(schema.ITEM_ID).to_pylist()
    copy = tmp_path / "copy"
    assert download(f"{bucket}/dataset", copy) and (copy / "manifest.json").is_file()
    assert not download(f"{bucket}/none", tmp_path / "none") and not os.path.exists(
        tmp_path / "none"
    )
