"""``recsys export MODEL --to onnx,faiss,parquet --out FOLDER``: a model for programs without this
package.

The export is written to a temporary folder, compared with PyTorch, and then renamed. docs/export.md
describes its files and how to query them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

from pipelines.cli import config_of
from pipelines.command_line.dry_run import plan
from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.progress import say_starting
from pipelines.plumbing.session import quiet
from pipelines.stages import VERBS
from recsys.config import RunConfig, TrackingConfig
from recsys.config.export import ExportConfig, Format
from recsys.errors import ConfigError
from recsys.registry.copy_records import Copy, remember
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.resolve import resolve

_SHORT: Final = {"to": "export.to", "out": "export.out"}


def command(words: Sequence[str]) -> int:
    """Run ``export`` with the words after it: a model, or a configuration whose run made one.

    Raises
    ------
    UsageError
        There is more than one word before the options, neither a model nor a configuration, or
        ``--to`` twice.
    """
    options = [index for index, word in enumerate(words) if word.startswith("-")]
    models = words[: options[0] if options else len(words)]
    if len(models) > 1:
        raise UsageError(f"got {len(models)} models, expected one; usage: {VERBS['export'].usage}")
    arguments = parse(words[len(models) :], _SHORT)
    if [key for key, _ in arguments.overrides].count("export.to") > 1:
        raise UsageError("--to is given twice; give all formats at once: --to onnx,faiss")
    config = config_of(
        arguments.config, [*arguments.overrides, *(("export.model", model) for model in models)]
    )
    if arguments.config is None:
        if not config.export.model:
            raise UsageError(f"no model is given; usage: {VERBS['export'].usage}")
        config.tracking.uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    check(config.export)
    if arguments.dry_run:
        print(plan("export", config))
        return 0
    say_starting("export")
    export(config.run, config.export, config.tracking)
    return 0


def check(export: ExportConfig) -> None:
    """Check the section ``export`` before anything is read.

    Raises
    ------
    ConfigError
        The section lacks formats or a folder, or contradicts itself.
    """
    formats = ", ".join(get_args(Format))
    if not export.to:
        raise ConfigError(
            f"export.to is empty; give one or more of {formats}, such as --to onnx,faiss"
        )
    if not export.out:
        raise ConfigError(
            f"export.out is empty; give a folder: --out DIR. Usage: {VERBS['export'].usage}"
        )
    if "://" in export.out:
        raise ConfigError(
            f"export.out: {export.out} must be a local folder; copy it to remote storage afterwards"
        )
    if export.users and "parquet" not in export.to:
        raise ConfigError("export.users needs the format parquet; add it: --to parquet")
    if export.without and "onnx" not in export.to:
        raise ConfigError(
            "export.without needs the format onnx; leave it out, or add onnx: --to onnx"
        )


def export(run: RunConfig, export: ExportConfig, tracking: TrackingConfig) -> dict[str, Any]:
    """Export ``export.model`` to ``export.out``, print a summary and return the manifest.

    Parameters
    ----------
    run : RunConfig
        The run whose bundle is exported if ``export.model`` is empty.
    export : ExportConfig
        Model, formats and folder.
    tracking : TrackingConfig
        Names the MLflow store.
    """
    from recsys.export.export_folder import check_installed, check_target
    from recsys.export.export_folder import export as write

    quiet()
    check_installed(export.to)
    check_target(Path(export.out))
    model_uri = export.model or run.dir
    bundle = resolve(model_uri, tracking_uri(tracking, run.dir))
    # first: after a kill, `recsys forget` must find what was written
    is_noted = remember(
        [Copy.here("export", export.out)], model_uri, tracking_uri(tracking, run.dir)
    )
    print(
        f"writing     {', '.join(export.to)} to {export.out}; large models take minutes", flush=True
    )
    manifest = write(bundle, Path(export.out), export.to, export.users, export.without, model_uri)
    print(_words(manifest, export.out))
    if not is_noted:
        print(
            "note        `recsys forget` does not know this folder: call it with --also"
            f" {export.out}"
        )
    return manifest


def _words(manifest: dict[str, Any], folder: str) -> str:
    counts = manifest["items_and_users"]
    lines = [
        f"exported    {', '.join(manifest['model']['granularities'])}: {counts['items']:,} items"
    ]
    if found := manifest.get("onnx"):
        test = found["self_test"]
        lines.append(
            f"onnx        {found['file']}, opset {found['opset']}; reads {_names(found['inputs'])}"
        )
        gap = test["largest_difference"]
        lines.append(
            f"checked     {test['questions']} questions; scores differ from PyTorch by at most"
            f" {gap:.2g}"
        )
        if found["left_out"]:
            lines.append(
                f"left out    {', '.join(found['left_out'])}: scores differ from those of the model"
            )
        if found["holds_of_users"]:
            lines.append(
                "users       the graph holds one row per known user, from"
                f" {', '.join(found['holds_of_users'])}"
            )
    if found := manifest.get("faiss"):
        lines.append(f"faiss       {found['file']}, {found['kind']}")
    for name, found in manifest.get("parquet", {}).items():
        lines.append(f"parquet     {found['file']}, {found['rows']:,} {name}")
    return "\n".join([*lines, f"folder      {folder}"])


def _names(inputs: Sequence[dict[str, Any]]) -> str:
    return ", ".join(found["name"] for found in inputs)


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["export", *sys.argv[1:]]))
