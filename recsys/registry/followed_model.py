"""The model that a server follows: a registry name or a folder, its current version, and its
content.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.bundle.description import DESCRIPTION
from recsys.registry.resolve import description_at, pinned, resolve
from recsys.storage.temporary import temporary
from recsys.storage.uris import is_remote

if TYPE_CHECKING:
    from recsys.bundle.layout import Bundle


@dataclass(frozen=True)
class FollowedModel:
    """``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or the folder of a bundle or
    pulled model.
    """

    uri: str
    tracking_uri: str

    def version(self) -> str:
        """A text that identifies the current model; it changes when the name refers to another
        model.

        Raises
        ------
        ArtifactError
            There is no such model.
        """
        if self.uri.startswith("models:"):
            return pinned(self.uri, self.tracking_uri)
        if is_remote(self.uri):
            content = description_at(self.uri)
        else:
            content = (resolve(self.uri, self.tracking_uri) / DESCRIPTION).read_bytes()
        return f"{self.uri} of SHA-256 {hashlib.sha256(content).hexdigest()[:12]}"

    def load(self, version: str) -> tuple[Bundle, dict[str, Any]]:
        """The bundle of a :meth:`version` and its description for GET /model; downloads are removed
        again.

        Raises
        ------
        ArtifactError
            Its files are missing or damaged.
        """
        from recsys.bundle.layout import read_card
        from recsys.serving.bundles import read_bundle

        registered = self.uri.startswith("models:")
        with temporary() as into:
            folder = resolve(version if registered else self.uri, self.tracking_uri, Path(into))
            bundle = read_bundle(folder)
            card = read_card(folder, bundle.info) or None
        info = bundle.info
        _, _, alias = self.uri.partition("@") if registered else ("", "", "")
        name, _, number = (
            version.removeprefix("models:/").rpartition("/")
            if registered
            else ("", "", version.rpartition(" ")[2])
        )
        about = {
            "uri": version if registered else _public(self.uri),
            "name": name,
            "version": number,
            "alias": alias,
            "created": info.created,
            "package_version": info.package_version,
            "granularities": info.granularities,
            "dataset": {key: value for key, value in info.dataset.items() if key != "root"},
            "metrics": info.metrics,
            "exclude_seen": bundle.exclude_seen,
            "index": info.index,
            "card": card,
        }
        return bundle, about


def _public(uri: str) -> str:
    """A URI as callers may see it: the name of a local folder without the folders above it.

    >>> _public("/home/ann/pulled"), _public("s3://bucket/pulled")
    ('pulled', 's3://bucket/pulled')
    """
    return uri if is_remote(uri) else Path(uri).resolve().name
