"""Stage ``register``: the trained model → RUN/bundle → a version in the MLflow registry.

The bundle holds everything that is needed to answer requests. If ``tracking.enabled`` is false,
only the bundle is written.
"""

from __future__ import annotations

import hashlib
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from pipelines.plumbing.inherited import CONFIG, handed_on
from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.opened_model import ORIGIN, model_sha256, open_trained
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.run_tracking import tracked
from pipelines.plumbing.session import quiet
from pipelines.steps.final import FinalModel, final_model
from recsys.bundle.writing import Measured
from recsys.config import Config, redact
from recsys.errors import ArtifactError
from recsys.registry.card import model_card
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.provenance import lineage
from recsys.registry.register import register as register_bundle
from recsys.registry.resolve import pinned
from recsys.serving.bundles import write_bundle
from recsys.serving.item_index import index_bundle
from recsys.training.checkpoint import TrainResult
from recsys.training.private import PRIVACY

# in registered.json: ``registry.alias``, also of a version that did not get it
_ALIAS: Final = "wanted_alias"


def register(
    config: Config,
    folder: RunFolder,
    go_on: int | None = None,
    given: Config | None = None,
    says_by_hand: bool = True,
) -> dict[str, Any]:
    """Write the bundle and register it. With ``train.final``, train the final model on all events
    first.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    folder : RunFolder
        Folder of the run.
    go_on : int | None
        As in :func:`pipelines.steps.final.final_model`.
    given : Config | None
        The configuration that later verbs take from the model, if this training changed it.
    says_by_hand : bool
        Whether a version without the alias is printed with the reason and the command that sets the
        alias. False where the caller moves the aliases next.

    Returns
    -------
    dict
        The content of ``registered.json``; empty if tracking is off.

    Raises
    ------
    ArtifactError
        There is no model, or no metrics of this model.
    """
    quiet()
    metrics = folder.read_json(
        folder.metrics, "run `recsys evaluate` with the same configuration first"
    )
    dataset = open_dataset(config.data, config.dataset_dir, config.seed)
    trained = open_trained(config.model, folder, dataset)
    _check_same_model(folder, metrics)
    digest = hashlib.sha256(folder.metrics.read_bytes()).hexdigest()
    if config.run.resume and (earlier := registered_already(config, folder, digest)) is not None:
        folder.progress(f"already registered: {earlier['name']} version {earlier['version']}")
        with tracked(config, folder):  # ends the MLflow run of a driver that died after that
            return earlier
    with folder.progress.stage("register"), tracked(config, folder) as tracker:
        folder.turn_to("training on all events")
        final = final_model(config, folder, dataset, trained, go_on)
        before = time.perf_counter()
        folder.turn_to("registration")
        metrics, digest = _say_final(folder, metrics, final)
        made = lineage(config, dataset.manifest.content_hash, tracker)
        extra = {**_stored(folder, trained, metrics, final), "lineage": made}
        extra[CONFIG] = handed_on(given or config)
        card = model_card(
            config.data,
            config.model,
            config.registry,
            dataset.manifest,
            metrics,
            made,
            extra.get("influence", ()),
            extra.get(PRIVACY),
        )
        served = trained if final is None else final.result
        measured = None if final is None else Measured(trained.frozen, trained.weights)
        write_bundle(folder.bundle, served.frozen, dataset, extra, served.weights, card, measured)
        if note := index_bundle(folder.bundle, config.serve.exact_items):
            folder.progress(note)
        folder.publish(folder.bundle)
        if not tracker.enabled:
            folder.progress(
                f"wrote {folder.shown(folder.bundle)}; tracking.enabled is false, so nothing is"
                " registered"
            )
            folder.forget(folder.registered)
            _rewrite_report(folder, metrics, time.perf_counter() - before)
            return {}
        found = register_bundle(
            tracker,
            folder.bundle,
            config.registry,
            metrics,
            resumes=config.run.resume,
            replaces=config.update.replace,
        )
        registered = {
            **asdict(found),
            _ALIAS: config.registry.alias,
            "tracking": redact(tracker.uri),
            "run_id": tracker.run_id,
            "final": final is not None,
            "metrics_sha256": digest,
        }
        folder.write_json(folder.registered, registered)
        folder.progress(found.summary if says_by_hand or found.alias else found.registered)
        if _rewrite_report(folder, metrics, time.perf_counter() - before):
            tracker.log_file(folder.report)
    return registered


def _rewrite_report(folder: RunFolder, metrics: dict[str, Any], seconds: float) -> bool:
    """Write the report of this command's evaluation again, with the time of this stage; False if
    another command wrote it.
    """
    if folder.rewrite_report is None:
        return False
    folder.rewrite_report({**metrics, "timing": {**metrics["timing"], "register_s": seconds}})
    folder.publish(folder.report)
    return True


def _check_same_model(folder: RunFolder, metrics: dict[str, Any]) -> None:
    if metrics.get("model_sha256") != model_sha256(folder):
        raise ArtifactError(
            f"{folder.metrics} belongs to another model than the one in {folder.model}; run `recsys"
            " evaluate` again"
        )


def _stored(
    folder: RunFolder,
    trained: TrainResult,
    metrics: dict[str, Any],
    final: FinalModel | None,
) -> dict[str, Any]:
    """What the bundle stores about the evaluation, the parent and the training of its model."""
    # of the evaluation, which the settings of this command do not change
    excludes = metrics["data"]["exclude_seen"]
    comparison = {**metrics.get("comparison", {}), "exclude_seen": excludes}
    origin = folder.read_json(folder.model / ORIGIN, "run `recsys train` again")
    private = trained.choices.get(PRIVACY)
    return {
        "metrics": metrics.get("model", {}),
        "main_metric": metrics.get("metric", ""),
        "refit": trained.refit,
        "comparison": comparison,
        **({"drift": metrics["drift"]} if "drift" in metrics else {}),
        **({"final": final.description} if final is not None else {}),
        **{key: origin[key] for key in ("parent", "influence") if key in origin},
        **({PRIVACY: private} if private else {}),
    }


def _say_final(
    folder: RunFolder, metrics: dict[str, Any], final: FinalModel | None
) -> tuple[dict[str, Any], str]:
    """Write to ``data.final`` of ``metrics.json`` what the final model was trained on, and to
    ``timing`` how long that took.

    Returns
    -------
    tuple of (dict, str)
        The metrics, and the SHA-256 of their file.
    """
    data = metrics.get("data", {})
    description = None if final is None else final.description
    timing = {key: of for key, of in metrics.get("timing", {}).items() if key != "final_s"}
    timing |= {"final_s": final.result.seconds} if final is not None else {}
    if (data.get("final"), metrics.get("timing", {})) != (description, timing):
        data = {
            **{key: value for key, value in data.items() if key != "final"},
            **({"final": description} if description else {}),
        }
        metrics = {**metrics, "data": data, "timing": timing}
        folder.write_json(folder.metrics, metrics)
    return metrics, hashlib.sha256(folder.metrics.read_bytes()).hexdigest()


def registered_already(
    config: Config, folder: RunFolder, metrics_sha256: str
) -> dict[str, Any] | None:
    """The registration that an earlier command has already made of this model, in the same way.

    Parameters
    ----------
    config : Config
        Configuration of the run; it names the store, the registered model and the alias.
    folder : RunFolder
        Folder of the run.
    metrics_sha256 : str
        SHA-256 of ``metrics.json``, in hexadecimal.

    Returns
    -------
    dict[str, Any] | None
        The content of ``registered.json``; None if it is of other metrics or settings, or if the
        version or the bundle no longer exists.
    """
    if not config.tracking.enabled or not folder.bundle.is_dir():
        return None
    uri, name = tracking_uri(config.tracking, config.run.dir), config.registry.name
    with suppress(ArtifactError):
        found = folder.read_json(folder.registered, "")
        made = {"final": False, _ALIAS: found.get("alias")} | found
        same = {
            "name": name,
            _ALIAS: config.registry.alias,
            "tracking": redact(uri),
            "final": config.train.final,
            "metrics_sha256": metrics_sha256,
        }
        if same.items() <= made.items():
            pinned(f"models:/{name}/{found.get('version')}", uri)  # raises if it was deleted
            return found
    return None


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["register", *sys.argv[1:]]))
