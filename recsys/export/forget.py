"""Remove forgotten users from an export: export the new model again, or remove the rows of the
users.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.bundle.checksums import entry_of, writing_aside
from recsys.export.export_folder import MANIFEST, export, read_manifest
from recsys.export.vector_files import USER_TABLE


@dataclass(frozen=True)
class Exported:
    """An existing export, described by its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def at(cls, folder: Path) -> Exported | None:
        """The export in a folder, or None."""
        manifest = read_manifest(folder)
        return None if manifest is None else cls(folder, manifest)

    @property
    def dataset(self) -> str:
        """Content hash of the dataset that its model was trained on."""
        return str(((self.manifest.get("model") or {}).get("dataset") or {}).get("content_hash"))

    @property
    def members_with_users(self) -> list[str]:
        """Members whose part of the graph has a row per known user (without the id)."""
        return list((self.manifest.get("onnx") or {}).get("holds_of_users") or [])

    def num_rows(self, users: Sequence[str]) -> int:
        """The rows of these users in its table of users."""
        path = self.folder / USER_TABLE
        if not path.is_file():
            return 0
        ids = pq.read_table(path, columns=["user_id"]).column("user_id")
        return int(pc.sum(pc.is_in(ids, value_set=pa.array(users, pa.string()))).as_py() or 0)

    def make_again(self, bundle: Path) -> None:
        """Replace it by an export of another model with the same options.

        Raises
        ------
        ArtifactError, ConfigError, Refusal
            As :func:`~recsys.export.export_folder.export`; the export then stays unchanged.
        """
        onnx, formats = self.manifest.get("onnx") or {}, self.manifest["formats"]
        users = "users" in (self.manifest.get("parquet") or {})
        model_uri = str((self.manifest.get("model") or {}).get("asked_for") or "")
        export(bundle, self.folder, formats, users, onnx.get("left_out") or [], model_uri)

    def remove_rows(self, users: Sequence[str]) -> None:
        """Remove the rows of users from its table of users."""
        with writing_aside(self.folder, MANIFEST) as aside:
            shutil.copytree(self.folder, aside, dirs_exist_ok=True)
            table = pq.read_table(aside / USER_TABLE)
            theirs = pc.is_in(table.column("user_id"), value_set=pa.array(users, pa.string()))
            kept = table.filter(pc.invert(theirs))
            pq.write_table(kept, aside / USER_TABLE, compression="zstd")
            manifest = json.loads((aside / MANIFEST).read_text(encoding="utf-8"))
            manifest["parquet"]["users"]["rows"] = len(kept)
            manifest["files"][USER_TABLE] = entry_of(aside / USER_TABLE).model_dump()
            (aside / MANIFEST).write_text(
                json.dumps(manifest, ensure_ascii=False, indent=1), encoding="utf-8"
            )
