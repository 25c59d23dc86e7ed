"""Finding files and unpacking them: ~, odd names and globs, gzip, zstd and zip by name and by their
bytes.
"""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import CanonicalSource, Config, RecBoleSource, SequencesSource
from recsys.errors import SourceError
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.sources.files import exists, find, input_file
from recsys.storage.filesystems import filesystem_of

CONTENT = b"user_id,item_id\n" + b"".join(b"u%d,i%d\n" % (n % 50, n % 30) for n in range(500))


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def zipped(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def num_events(path: str) -> int:
    return read_all(open_source(CanonicalSource(events=[path])).pieces()["events"]).num_rows


def error_of(path: str) -> str:
    with pytest.raises(SourceError) as caught:
        num_events(path)
    return str(caught.value)


# --------------------------------------------------------------------------------------- compressed


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz", "E.CSV.GZ", "e.csv.zst"])
def test_gzip_is_recognised_by_its_bytes(name: str, tmp_path: Path) -> None:
    assert num_events(write(tmp_path / name, gzip.compress(CONTENT))) == 500


@pytest.mark.parametrize("name", ["e.csv", "e.csv.zst", "e.csv.zstd", "e.csv.gz"])
def test_zstd_is_recognised_by_its_bytes(name: str, tmp_path: Path) -> None:
    assert num_events(write(tmp_path / name, zstd(CONTENT))) == 500


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_concatenated_gzip_files_are_one_file(pack: object, tmp_path: Path) -> None:
    halves = CONTENT[:1000], CONTENT[1000:]
    assert num_events(write(tmp_path / "e.csv.gz", b"".join(map(pack, halves)))) == 500  # type: ignore[call-overload]


@pytest.mark.parametrize("archive", ["e.csv.zip", "e.csv", "e.zip"])
@pytest.mark.parametrize(
    "more", [{}, {"__MACOSX/._log.csv": b"x", ".DS_Store": b"y"}], ids=["alone", "with a mac's"]
)
def test_zip_archive_of_one_file_is_read(
    archive: str, more: dict[str, bytes], tmp_path: Path
) -> None:
    assert num_events(zipped(tmp_path / archive, {"data/log.csv": CONTENT, **more})) == 500


def test_zip_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    members = {"a.csv": CONTENT, "b.csv": CONTENT}
    message = error_of(zipped(tmp_path / "e.csv.zip", members))
    assert "zip archive of 2 files" in message and "unpack it" in message
    assert "a.csv" in message and "b.csv" in message


def test_empty_zip_archive_is_refused(tmp_path: Path) -> None:
    assert "e.csv.zip" in error_of(zipped(tmp_path / "e.csv.zip", {}))


@pytest.mark.parametrize("pack", ["gz", "zst", "zip"])
@pytest.mark.parametrize("cut", [1, 3, 9, 100, 0.5])
def test_truncated_file_is_an_error(pack: str, cut: float, tmp_path: Path) -> None:
    path = tmp_path / f"e.csv.{pack}"
    if pack == "zip":
        zipped(path, {"e.csv": CONTENT})
    else:
        path.write_bytes(gzip.compress(CONTENT) if pack == "gz" else zstd(CONTENT))
    whole = path.read_bytes()
    kept = len(whole) - cut if cut >= 1 else int(len(whole) * cut)
    path.write_bytes(whole[: int(kept)])
    message = error_of(str(path))
    assert "cannot be read" in message and "complete" in message and path.name in message


def test_damage_inside_a_compressed_file_is_an_error(tmp_path: Path) -> None:
    for name, content in {
        "e.csv.gz": gzip.compress(CONTENT),
        "e.csv.zst": b"\x28\xb5\x2f\xfd\0\1\2",
    }.items():
        damaged = bytearray(content)
        damaged[-6] ^= 0xFF
        assert "cannot be read" in error_of(write(tmp_path / name, bytes(damaged)))
    path = tmp_path / "e.csv.zip"
    zipped(path, {"e.csv": CONTENT})
    damaged = bytearray(path.read_bytes())
    damaged[60] ^= 0xFF
    assert "cannot be read" in error_of(write(path, bytes(damaged)))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ],
)
def test_other_compressions_are_named(head: bytes, kind: str, tmp_path: Path) -> None:
    message = error_of(write(tmp_path / "e.csv", head + b"\0" * 50))
    assert f"compressed with {kind}" in message and ".gz, .zst, and .zip" in message


def test_compressed_parquet_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"]}), tmp_path / "e.parquet")
    content = gzip.compress((tmp_path / "e.parquet").read_bytes())
    assert "is a compressed file; unpack it" in error_of(write(tmp_path / "x.parquet.gz", content))


def test_compressed_sequences_are_read(tmp_path: Path) -> None:
    for name, content in {
        "s.txt": gzip.compress(b"u a b\nv a\n"),
        "s.txt.zst": zstd(b"u a b\nv a\n"),
    }.items():
        pieces = open_source(SequencesSource(events=write(tmp_path / name, content))).pieces()
        assert read_all(pieces["events"]).num_rows == 3


def test_byte_order_mark_in_sequences_is_not_part_of_a_user(tmp_path: Path) -> None:
    for name, content in {
        "s.txt": b"\xef\xbb\xbfu a b\nv a\n",
        "s.txt.gz": gzip.compress(b"\xef\xbb\xbfu a\n"),
    }.items():
        table = read_all(
            open_source(SequencesSource(events=write(tmp_path / name, content))).pieces()["events"]
        )
        assert table.column(schema.USER_ID).to_pylist()[0] == "u"


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["log[1].csv", "[z-a].csv", "what?.csv", "a*b.csv", "open[.csv", "~x.csv"]
)
def test_existing_file_with_the_name_of_a_glob_is_read(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, CONTENT)
    assert [file.path for file in find([path])] == [path]
    assert num_events(path) == 500


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("d[12].csv", ["d1.csv", "d2.csv"]),
        ("d[!1].csv", ["d2.csv"]),
        ("d[1-2].csv", ["d1.csv", "d2.csv"]),
        ("d[z-a].csv", []),
        ("d[.csv", []),
        ("d[", []),
        ("d?.csv/", ["d1.csv", "d2.csv"]),
        ("**", ["d1.csv", "d2.csv", "e.csv"]),
        ("**/*.csv", ["d1.csv", "d2.csv", "e.csv"]),
        ("sub/", ["e.csv"]),
        ("sub//", ["e.csv"]),
        ("*/e.csv", ["e.csv"]),
        ("s*/**/e.csv", ["e.csv"]),
        ("nothing\0.csv", []),
    ],
)
def test_odd_globs_match_or_give_one_message(
    pattern: str, names: list[str], tmp_path: Path
) -> None:
    for name in ("d1.csv", "d2.csv", "sub/e.csv"):
        write(tmp_path / name, CONTENT)
    if names:
        assert [file.name for file in find([f"{tmp_path}/{pattern}"])] == names
    else:
        with pytest.raises(SourceError, match="matches no file|cannot look up|does not exist"):
            find([f"{tmp_path}/{pattern}"])


def test_glob_lists_only_matching_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A glob whose first folder is a pattern must not list the disk; files below ``other`` are not
    read.
    """
    write(tmp_path / "logs1/day=1/a.csv", CONTENT)
    write(tmp_path / "other/deep/b.csv", CONTENT)
    listed: list[str] = []
    selector = pyarrow.fs.FileSelector
    monkeypatch.setattr(
        pyarrow.fs,
        "FileSelector",
        lambda path, **more: listed.append(path) or selector(path, **more),
    )
    assert [file.path for file in find([f"{tmp_path}/l*/day=?/*.csv"])] == [
        f"{tmp_path}/logs1/day=1/a.csv"
    ]
    assert listed == [str(tmp_path), f"{tmp_path}/logs1", f"{tmp_path}/logs1/day=1"]
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in find(["l*/*/a.csv"])] == ["logs1/day=1/a.csv"]
    with pytest.raises(SourceError, match="^/no-such-folder-.* matches no file"):
        find(["/no-such-folder-*/x.csv"])


def test_glob_from_the_root_folder_gives_absolute_paths(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", CONTENT)
    pattern = f"/[{tmp_path.parts[1][0]}]{path[2:]}"
    assert [file.path for file in find([pattern])] == [path]


def test_path_that_is_not_a_file_is_named(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SourceError, match="is a device or a pipe"):
        input_file(str(tmp_path / "pipe.csv"))
    with pytest.raises(SourceError, match="is a folder"):
        input_file(str(tmp_path))


def test_tilde_is_the_home_folder_in_every_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "logs/log.csv", CONTENT)
    assert [
        file.path
        for pattern in ("~/logs/log.csv", "~/logs", "~/logs/*.csv")
        for file in find([pattern])
    ] == [path] * 3
    assert exists("~/logs/log.csv") and input_file("~/logs/log.csv").path == path
    assert filesystem_of("~/logs")[1] == str(tmp_path / "logs")
    write(tmp_path / "toy/toy.inter", b"user_id:token\titem_id:token\nu\ti\n")
    assert read_all(open_source(RecBoleSource(folder="~/toy")).pieces()["events"]).num_rows == 1
    write(tmp_path / "s.txt", b"u i\n")
    assert read_all(open_source(SequencesSource(events="~/s.txt")).pieces()["events"]).num_rows == 1


def test_tilde_is_the_home_folder_in_every_path_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = {
        "run": {"dir": "~/runs/x"},
        "data": {"dir": "~/set", "text": {"cache_dir": "~/cache", "model": "~/lm"}},
        "recommend": {"requests": "~/r.jsonl", "model": "models:/a@b"},
        "update": {"feedback": ["~/f.csv"]},
        "pull": {"dir": "~/model"},
        "tune": {"space": ["~/space.yaml", "lr"]},
        "serve": {"model": "~/served", "ab": {"model": "~/other"}},
        "compare": {"target": "~/served"},
        "model": {"granularities": {"collaborative": {"enabled": True}}},
    }
    config = Config.model_validate(given)
    places = [
        config.run.dir,
        config.data.dir,
        config.data.text.cache_dir,
        config.data.text.model,
        config.pull.dir,
    ]
    places += [config.recommend.requests, *config.update.feedback, config.tune.space[0]]
    places += [config.serve.model, config.serve.ab.model, config.compare.target]
    assert all(place.startswith("/home/me/") for place in places)
    assert config.recommend.model == "models:/a@b" and config.tune.space[1] == "lr"
    config.run.dir = "~/later"
    assert config.run.dir == "/home/me/later"
