"""``bundle.json``: the description of a bundle, and the names of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pydantic
from pydantic import BaseModel, ConfigDict

from recsys import __version__
from recsys.bundle.checksums import DESCRIPTION as DESCRIPTION
from recsys.bundle.checksums import FileEntry, damaged, describe_error, entry_of
from recsys.bundle.consistency import Inconsistent, check_names, check_outside
from recsys.config import ModelConfig
from recsys.config.outside import reading_artifact
from recsys.errors import ArtifactError, UserError

# 2 added messages of friends and the training weights; 3 added the self-test
FORMAT_VERSION: Final = 3
# bundle of two models; earlier releases refuse it, as they would rank the model that saw test
WITH_MEASURED: Final = 4
WEIGHTS: Final = "weights.safetensors"
ITEMS: Final = "items.parquet"
USERS: Final = "users.parquet"
TRAINING: Final = "training.safetensors"
MEASURED: Final = "measured.safetensors"
MEASURED_KEY: Final = "measured"  # key in ``extra`` with the sizes of the measured model
MEASURED_TRAINING: Final = "measured-training.safetensors"
VOCABULARY: Final = "vocabulary.parquet"
SELF_TEST: Final = "self_test.json"
CARD: Final = "MODEL_CARD.md"
INDEX: Final = "index.faiss"


class OutsideEntry(BaseModel):
    """The origin of a granularity from another package."""

    target: str  # module:Class of its configuration section
    package: str  # empty: no installed package provided it when the model was trained
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
    default_event_type: str  # for events of a request without a type: the most frequent type
    dataset: dict[str, Any]  # name, content_hash, counts, split, ordered, timed
    context: list[dict[str, Any]] = []  # context columns, see ContextColumn
    text_model: str
    # hash of the language model's files, recsys.encoders.text.vector_identity; empty: unknown
    text_identity: str = ""
    # how histories become text: model, fingerprint, max_tokens, encoder, max_items
    user_text: dict[str, Any] = {}
    metrics: dict[str, Any]
    index: dict[
        str, Any
    ] = {}  # reorder (candidates per listed item), recall, at (list length of the recall)
    extra: dict[str, Any]
    files: dict[str, FileEntry]


def read_info(folder: str | Path) -> BundleInfo:
    """Read and check only ``bundle.json``.

    Raises
    ------
    ArtifactError
        There is no bundle, its format is another one, it is damaged, or a package is missing.
    """  # noqa: DOC501
    folder = Path(folder)
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        version = content.get("format_version") if isinstance(content, dict) else None
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder} has no model bundle ({DESCRIPTION} is missing); `recsys train` and `recsys"
            " register` write one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, f"{DESCRIPTION}: {describe_error(error)}") from None
    if version not in (FORMAT_VERSION, WITH_MEASURED):
        raise ArtifactError(
            f"{folder} has bundle format {version}, this release ({__version__}) reads"
            f" {FORMAT_VERSION} and {WITH_MEASURED}; register the model again, or use the release"
            " that wrote it"
        )
    check_outside(folder, content)
    try:
        with reading_artifact():
            info = BundleInfo.model_validate(content)
        check_names(info)
    except (pydantic.ValidationError, UserError, Inconsistent, RecursionError) as error:
        raise damaged(folder, f"{DESCRIPTION}: {describe_error(error)}") from None
    return info


def write_description(folder: Path, info: BundleInfo) -> None:
    """Write ``bundle.json`` last, with the checksum of every other file."""
    info.files = {
        path.name: entry_of(path) for path in sorted(folder.iterdir()) if path.name != DESCRIPTION
    }
    (folder / DESCRIPTION).write_text(info.model_dump_json(indent=1), encoding="utf-8")
