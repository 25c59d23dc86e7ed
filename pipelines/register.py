"""Stage ``register``: the trained model → RUN/bundle, complete in itself → a version in the MLflow registry.

With ``tracking.enabled`` false only the bundle is written.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pipelines.cli import main
from pipelines.folder import RunFolder
from pipelines.prepare import open_dataset
from pipelines.session import quiet
from pipelines.tracking import tracked
from pipelines.train import ORIGIN, model_sha256, open_trained
from recsys.config import Config, redact
from recsys.errors import ArtifactError
from recsys.registry.bundle import write_bundle
from recsys.registry.card import model_card
from recsys.registry.item_index import index_bundle
from recsys.registry.provenance import lineage
from recsys.registry.register import register as register_bundle


def register(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Write the bundle and register it; returns the content of ``registered.json`` (empty when tracking is off).

    Raises:
        ArtifactError: no model, or no metrics of this very model.
    """
    quiet()
    metrics = folder.read_json(folder.metrics, "run `recsys evaluate` with the same configuration first")
    dataset = open_dataset(config)
    trained = open_trained(config, folder, dataset)
    if metrics.get("model_sha256") != model_sha256(folder):
        raise ArtifactError(f"{folder.metrics} is of another model than {folder.model}; run `recsys evaluate`")
    digest = hashlib.sha256(folder.metrics.read_bytes()).hexdigest()
    if config.run.resume and (earlier := registered_already(folder, digest)) is not None:
        folder.progress(f"registered already: {earlier['name']} version {earlier['version']}")
        return earlier
    with folder.progress.stage("register"), tracked(config, folder) as tracker:
        comparison = {**metrics.get("comparison", {}), "exclude_seen": config.evaluate.exclude_seen}
        made = lineage(config, dataset.manifest.content_hash, tracker)
        extra = {
            "metrics": metrics.get("model", {}),
            "main_metric": metrics.get("metric", ""),
            "refit": trained.refit,
            "comparison": comparison,
            "lineage": made,
        }
        origin = folder.read_json(folder.model / ORIGIN, "run `recsys train` again")
        if "parent" in origin:
            extra["parent"] = origin["parent"]
        card = model_card(config, dataset.manifest, metrics, made)
        write_bundle(folder.bundle, trained.frozen, dataset, extra, trained.weights, card)
        if said := index_bundle(folder.bundle, config.serve.exact_items):
            folder.progress(said)
        folder.publish(folder.bundle)
        if not tracker.enabled:
            folder.progress(f"wrote {folder.shown(folder.bundle)}; tracking.enabled is false, so nothing is registered")
            folder.forget(folder.registered)
            return {}
        found = register_bundle(tracker, folder.bundle, config, metrics)
        where = {"tracking": redact(tracker.uri), "run_id": tracker.run_id}
        registered = {**asdict(found), **where, "metrics_sha256": digest}
        folder.write_json(folder.registered, registered)
        folder.progress(f"registered {found.name} version {found.version} as {found.alias}")
    return registered


def registered_already(folder: RunFolder, metrics_sha256: str) -> dict[str, Any] | None:
    """What was registered of the model with these very metrics; None when it was not."""
    with suppress(ArtifactError):
        found = folder.read_json(folder.registered, "")
        return found if folder.bundle.is_dir() and found.get("metrics_sha256") == metrics_sha256 else None
    return None


if __name__ == "__main__":
    sys.exit(main(["register", *sys.argv[1:]]))
