"""``bundle.json``: what a bundle says of itself, and the names of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pydantic
from pydantic import BaseModel, ConfigDict

from recsys import __version__
from recsys.bundle.checks import Inconsistent, check_names, check_outside
from recsys.bundle.checksums import DESCRIPTION as DESCRIPTION
from recsys.bundle.checksums import FileEntry, damaged, entry_of, said_by
from recsys.config import ModelConfig
from recsys.config.outside import from_artifact
from recsys.errors import ArtifactError, UserError

FORMAT_VERSION: Final = 3  # 2: what friends send, and the training weights; 3: the test of itself
WITH_MEASURED: Final = 4  # of a bundle of two models: an earlier release would rank the one that has seen test
WEIGHTS: Final = "weights.safetensors"
ITEMS: Final = "items.parquet"
USERS: Final = "users.parquet"
TRAINING: Final = "training.safetensors"
MEASURED: Final = "measured.safetensors"
MEASURED_KEY: Final = "measured"  # of the description's extra: its sizes
MEASURED_TRAINING: Final = "measured-training.safetensors"
VOCABULARY: Final = "vocabulary.parquet"
SELF_TEST: Final = "self_test.json"
CARD: Final = "MODEL_CARD.md"
INDEX: Final = "index.faiss"


class OutsideEntry(BaseModel):
    """Where a granularity from outside this package comes from."""

    target: str  # module:Class of its section
    package: str  # empty: of no installed package when the model was trained
    version: str


class BundleInfo(BaseModel):
    """The content of ``bundle.json``."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format_version: int
    package_version: str
    created: str  # ISO time, UTC
    model: ModelConfig
    sizes: dict[str, Any]
    granularities: list[str]
    outside: dict[str, OutsideEntry] = {}  # granularities that other packages provide, by name
    event_types: list[str]
    targets: list[str] = []  # event types that the model predicts; empty: all
    default_event_type: str  # of history events that a request gives without a type: the most frequent one
    dataset: dict[str, Any]  # name, content_hash, counts, split, ordered, timed
    context: list[dict[str, Any]] = []  # context columns, see ContextColumn
    text_model: str
    text_identity: str = ""  # of the language model's files, see recsys.encoders.text.vector_identity; empty: unknown
    user_text: dict[str, Any] = {}  # how users' pasts become text: model, fingerprint, max_tokens, max_items
    metrics: dict[str, Any]
    index: dict[str, Any] = {}  # how many times too long its lists are, and the recall of that
    extra: dict[str, Any]
    files: dict[str, FileEntry]


def read_info(folder: str | Path) -> BundleInfo:
    """Only ``bundle.json``.

    Raises
    ------
    ArtifactError
        as :func:`read_bundle`.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        version = content.get("format_version") if isinstance(content, dict) else None
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder} holds no model bundle ({DESCRIPTION} is missing); `recsys train` and `recsys register` make one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, f"{DESCRIPTION}: {said_by(error)}") from None
    if version not in (FORMAT_VERSION, WITH_MEASURED):
        raise ArtifactError(
            f"{folder} has bundle format {version}, this release ({__version__}) reads {FORMAT_VERSION}; "
            "register the model again, or use the release that made it"
        )
    check_outside(folder, content)
    try:
        with from_artifact():
            info = BundleInfo.model_validate(content)
        check_names(info)
    except (pydantic.ValidationError, UserError, Inconsistent, RecursionError) as error:
        raise damaged(folder, f"{DESCRIPTION}: {said_by(error)}") from None
    return info


def seal(folder: Path, info: BundleInfo) -> None:
    """Write ``bundle.json`` last, with the checksum of every other file."""
    info.files = {path.name: entry_of(path) for path in sorted(folder.iterdir()) if path.name != DESCRIPTION}
    (folder / DESCRIPTION).write_text(info.model_dump_json(indent=1), encoding="utf-8")
