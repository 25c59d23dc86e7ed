"""An export: a folder with a manifest. It is written to a temporary folder, tested, then
renamed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from recsys import __version__
from recsys.bundle.checksums import creation_errors, entry_of, writing_aside
from recsys.bundle.description import DESCRIPTION
from recsys.bundle.layout import Bundle
from recsys.config import redact
from recsys.config.export import Format
from recsys.errors import ArtifactError, ConfigError
from recsys.export.onnx_file import write_onnx
from recsys.export.questions import Examiner
from recsys.export.vector_files import (
    ITEMS,
    VECTORS,
    write_faiss,
    write_items,
    write_tables,
    write_vectors,
)
from recsys.granularities.profile.attribute_encoding import encoding_of
from recsys.serving.bundles import read_bundle

MANIFEST: Final = "manifest.json"
KIND: Final = "multigrain-export"
_NEEDED: Final[dict[Format, tuple[str, ...]]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "faiss": ("faiss",),
    "parquet": (),
}


def check_installed(formats: Sequence[Format]) -> None:
    """Raise :class:`ConfigError` if a library for a format is not installed."""
    missing = [
        name
        for chosen in formats
        for name in _NEEDED[chosen]
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            f"export.to {', '.join(formats)} needs {', '.join(missing)}, which is not installed:"
            " run `pip install 'multigrain[export]'`"
        )


def check_target(folder: Path) -> None:
    """Check that a folder is free or holds an export, because its content is replaced.

    Raises
    ------
    ArtifactError
        It holds something else, which would be lost, or its name is too long.
    """
    with creation_errors(folder):
        is_there = folder.exists()
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if not is_there or is_empty or read_manifest(folder) is not None:
        return
    raise ArtifactError(
        f"{folder} exists and is not an export, so it is not replaced; give another folder or"
        " move it"
    )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an export; None if the folder is not an export."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("kind") == KIND else None


def export(
    bundle: Path,
    folder: Path,
    formats: Sequence[Format],
    users: bool = False,
    without: Sequence[str] = (),
    model_uri: str = "",
) -> dict[str, Any]:
    """Export a bundle and return the manifest. A failed export changes nothing.

    Parameters
    ----------
    bundle : Path
        Folder of the bundle.
    folder : Path
        Folder for the export.
    formats : Sequence[Format]
        Formats to write.
    users : bool
        Whether to write the table of users, see :func:`~recsys.export.vector_files.write_tables`.
    without : Sequence[str]
        Closed-form members to leave out of ``onnx``.
    model_uri : str
        The model as the user named it, for the manifest.

    Raises
    ------
    ArtifactError
        There is no bundle, it is damaged or cannot be exported, or ``folder`` holds something else.
    ConfigError
        A library is missing.
    Refusal
        The exported files give other scores than PyTorch.
    """
    check_installed(formats)
    check_target(folder)
    read = read_bundle(bundle)
    examiner = Examiner(read)
    with writing_aside(folder, MANIFEST) as aside:
        manifest = _about(read, bundle, examiner, model_uri) | {"formats": list(formats)}
        if "onnx" in formats:
            manifest["onnx"] = write_onnx(aside, examiner, list(without))
        manifest |= _write_catalogue(aside, read, formats)
        if "faiss" in formats:
            manifest["faiss"] = write_faiss(aside, bundle, read, examiner)
        if "parquet" in formats:
            manifest["parquet"] = write_tables(aside, read, examiner, users)
        manifest["files"] = {
            path.name: entry_of(path).model_dump() for path in sorted(aside.iterdir())
        }
        (aside / MANIFEST).write_text(
            json.dumps(manifest, ensure_ascii=False, indent=1), encoding="utf-8"
        )
    return manifest


def _write_catalogue(folder: Path, bundle: Bundle, formats: Sequence[Format]) -> dict[str, Any]:
    """Write the vectors and the ids of the items, where a format needs them; returns their
    entries of the manifest.
    """
    entries: dict[str, Any] = {}
    if "onnx" in formats or (bundle.index is not None and "faiss" in formats):
        write_vectors(folder, bundle)
        shape = [*bundle.model.item_vectors_ND.shape]
        entries["item_vectors"] = {"file": VECTORS, "type": "float32", "shape": shape}
    if "onnx" in formats or "faiss" in formats:
        write_items(folder, bundle)
        keys = ["item_ids", "titles", "popularity", "order_of_equals"]
        entries["items"] = {"file": ITEMS, "keys": keys}
    return entries


def _about(bundle: Bundle, folder: Path, examiner: Examiner, model_uri: str) -> dict[str, Any]:
    """Description of the model, and what a program needs to query the export."""
    info, model = bundle.info, bundle.model
    encoding = encoding_of(model.sizes)
    return {
        "kind": KIND,
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "release": __version__,
        "model": {
            "asked_for": redact(model_uri),
            "created": info.created,
            "description_sha256": entry_of(folder / DESCRIPTION).sha256,
            "granularities": info.granularities,
            "dataset": {key: info.dataset.get(key) for key in ("name", "content_hash")},
        },
        "items_and_users": {"items": bundle.num_items, "users": len(bundle.user_ids)},
        "event_types": info.event_types,
        "default_event_type": info.default_event_type,
        "targets": info.targets,
        "ordered": model.sizes.ordered,
        "exclude_seen": bundle.exclude_seen,
        "asked_after": examiner.recommender.newest,
        "context": info.context,
        "attributes": [] if encoding is None else encoding.to_json()["users"],
    }
