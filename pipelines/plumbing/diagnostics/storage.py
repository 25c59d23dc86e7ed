"""Checks of what a run reads and writes: folders, input files, the language model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipelines.plumbing.diagnostics.finding import GIB, Finding, fix_if

if TYPE_CHECKING:
    from recsys.config import Config

_SMALL_DISK: Final = 5 * GIB
_FULL: Final = 0.95  # share of a disk; above it Ray moves no objects there


def folders(config: Config | None) -> Iterator[Finding]:
    """Folders that are written to: create a file in each and remove it."""
    named = {"temporary files": tempfile.gettempdir()}
    if config is not None:
        named |= {"run.dir": config.run.dir, "data.dir": config.dataset_dir}
    for name, uri in named.items():
        yield from (_remote(name, uri) if "://" in uri else _local(name, uri))


def _local(name: str, path: str) -> Iterator[Finding]:
    folder = existing_parent(Path(path).absolute())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            name,
            "fail",
            f"{path}: cannot write in {folder} ({error.strerror})",
            f"choose another {name}",
        )
        return
    usage = shutil.disk_usage(folder)
    shown = f"{path}: writable, {usage.free / GIB:.1f} GiB free"
    if 1 - usage.free / usage.total > _FULL:
        cure = (
            f"free space: on a disk that is more than {_FULL:.0%} full, Ray keeps no objects that"
            " do not fit in memory"
        )
    else:
        cure = fix_if(usage.free < _SMALL_DISK, "free space, or choose another place")
    yield Finding(name, "warn" if cure else "ok", shown, cure)


def existing_parent(path: Path) -> Path:
    """The path or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _remote(name: str, uri: str) -> Iterator[Finding]:
    from recsys.errors import StorageError
    from recsys.storage.filesystems import check_writable, require_s3_client
    from recsys.storage.uris import without_query

    try:
        if uri.startswith("s3://"):
            require_s3_client(uri)
        check_writable(uri)
        yield Finding(name, "ok", f"{without_query(uri)}: writable")
    except StorageError as error:
        what, _, cure = str(error).rpartition("; ")
        yield Finding(name, "fail", what, cure)


def source(config: Config | None) -> Iterator[Finding]:
    """Whether the input files exist."""
    if config is None:
        return
    from recsys.errors import UserError
    from recsys.sources import open_source

    try:
        size = open_source(config.data.source).size()
        yield Finding("data.source", "ok", f"{config.data.source.kind}, {size / 1e6:.1f} MB")
    except UserError as error:
        yield Finding(
            "data.source",
            "fail",
            str(error),
            "see data.source; $RECSYS_DATA names the folder of data sets",
        )


def text_model(config: Config | None) -> Iterator[Finding]:
    """Whether the language model is here; without the network."""
    from recsys.config import TextConfig
    from recsys.encoders.text import resolve_model
    from recsys.errors import UserError

    section = config.data.text if config is not None else TextConfig()
    if not section.enabled:
        yield Finding("text model", "ok", "not needed: data.text.enabled is false")
        return
    try:
        folder = resolve_model(section.model)
        yield Finding("text model", "ok", f"{section.model} at {folder}")
    except UserError as error:
        if section.allow_download:
            yield Finding(
                "text model",
                "warn",
                f"{section.model} is not here",
                "it is downloaded when first used",
            )
        else:
            yield Finding(
                "text model",
                "fail" if config else "warn",
                f"{section.model} is not here",
                str(error),
            )
