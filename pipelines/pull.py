"""``recsys pull models:/NAME@ALIAS DIR``: copy a registered model to a folder.

Deployment then needs no tracking server. The folder is the whole MLflow model (MLmodel,
requirements.txt, code, artefacts): ``mlflow models serve -m DIR``,
``mlflow.pyfunc.load_model(DIR)`` and ``recsys recommend --recommend.model DIR`` work with it. The
model is written to a temporary folder, checked (every checksum, and the model's self-test) and then
renamed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.cli import config_of
from pipelines.command_line.dry_run import plan
from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.progress import say_starting
from pipelines.plumbing.session import quiet
from pipelines.stages import VERBS
from recsys.bundle.description import CARD
from recsys.config import Config, redact
from recsys.errors import ConfigError
from recsys.registry.mlflow_client import tracking_uri

if TYPE_CHECKING:
    from recsys.registry.pull import Pulled


def command(words: Sequence[str]) -> int:
    """Run ``pull`` with the words after it: a model and a folder, or a configuration that names
    them.

    Raises
    ------
    UsageError
        The words are others, or one of the two is missing.
    """
    positional = [word for word in _before_options(words)]
    if len(positional) not in (0, 2):
        raise UsageError(
            f"got {len(positional)} words, expected two: MODEL and DIR; usage:"
            f" {VERBS['pull'].usage}"
        )
    arguments = parse(words[len(positional) :])
    overrides = list(arguments.overrides)
    if positional:
        overrides += [("pull.model", positional[0]), ("pull.dir", positional[1])]
    config = config_of(arguments.config, overrides)
    if arguments.config is None and not config.tracking.uri:
        config.tracking.uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if arguments.dry_run:
        print(plan("pull", config))
        return 0
    say_starting("pull")
    pull(config)
    return 0


def _before_options(words: Sequence[str]) -> list[str]:
    """The words before the first option."""
    options = [index for index, word in enumerate(words) if word.startswith("-")]
    return list(words[: options[0] if options else len(words)])


def pull(config: Config) -> Pulled:
    """Copy ``pull.model`` to ``pull.dir`` and print a summary.

    Raises
    ------
    ConfigError
        ``pull.dir`` is empty or remote.
    """
    from recsys.registry.pull import pull_model  # it imports torch, which takes seconds

    quiet()
    settings = config.pull
    if not settings.dir:
        raise ConfigError(f"pull.dir is empty; give a folder. Usage: {VERBS['pull'].usage}")
    if "://" in settings.dir:
        raise ConfigError(f"pull.dir: {settings.dir} must be a local folder")
    model_uri = settings.model or f"models:/{config.registry.name}@champion"
    found = pull_model(model_uri, settings.dir, tracking_uri(config.tracking, config.run.dir))
    print(_words(found, redact(tracking_uri(config.tracking, config.run.dir))))
    if not found.is_noted:
        print(
            "note        `recsys forget` does not know this folder: call it with --also"
            f" {settings.dir}"
        )
    return found


def _words(found: Pulled, tracking: str) -> str:
    info = found.info
    main_metric = str(info.extra.get("main_metric", ""))
    shown: dict[str, Any] = {main_metric: info.metrics.get(main_metric)} | info.metrics
    values = [
        f"{key} {value:.4f}" for key, value in shown.items() if isinstance(value, (int, float))
    ]
    lines = [
        f"pulled      {found.name} version {found.version} from {tracking}",
        f"aliases     {', '.join(found.aliases) or 'none'}",
        (
            f"created     {info.created} by release {info.package_version}:"
            f" {', '.join(info.granularities)}"
        ),
        f"metrics     {', '.join(values[:5]) or 'none'}",
        f"checked     the checksums of {len(info.files)} files, and the model's self-test",
    ]
    lines[-1] += "" if found.note else ", and all checksums of the registry"
    if found.note:
        lines.append(f"note        {found.note}")
    if CARD in info.files:
        lines.append(f"card        {found.bundle / CARD}")
    return "\n".join(
        [
            *lines,
            f"folder      {found.folder}",
            f"serve       mlflow models serve -m {found.folder}",
        ]
    )


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["pull", *sys.argv[1:]]))
