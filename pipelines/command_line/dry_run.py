"""What ``--dry-run`` prints: the merged configuration, and the files of each stage."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipelines.stages import STAGES, chosen_verb

if TYPE_CHECKING:
    from recsys.config import Config


def plan(verb: str, config: Config) -> str:
    """The merged configuration as YAML, followed by comments that list the stages to run."""
    from recsys.config import dump_config, redact, redacted

    names = _names(config)
    chosen = chosen_verb(verb, config.update, config.tune, config.compare)
    lines = [
        "",
        f"# `recsys {verb}` would run these stages in order:",
    ]
    for stage in chosen.stages:
        lines.append(f"#   {stage}")
        lines += [f"#     reads   {pattern.format(**names)}" for pattern in STAGES[stage].reads]
        lines += [f"#     writes  {pattern.format(**names)}" for pattern in STAGES[stage].writes]
    if chosen.preview:
        module, name = chosen.preview.split(":")
        preview = getattr(importlib.import_module(module), name)(config)
        lines += ["#", *(f"# {line}".rstrip() for line in preview.splitlines())]
    lines.append("# Nothing was done: this is a dry run.")
    return "\n".join([dump_config(redacted(config)).rstrip(), redact("\n".join(lines))])


def _names(config: Config) -> dict[str, str]:
    """The values of the placeholders in the ``reads`` and ``writes`` of the stages."""
    from recsys.config import redact

    run = config.run.dir.rstrip("/")
    return {
        "run": run,
        "dataset": config.dataset_dir.rstrip("/"),
        "source": _source_words(config.data.source.model_dump()),
        "name": config.registry.name,
        "alias": config.registry.alias,
        "tracking": redact(config.tracking.uri) or f"the SQLite store next to {run}",
        "answered": config.recommend.out or f"{run}/{config.recommend.answers}",
        "similar": config.similar.model or f"{run}/bundle/",
        "recommender": config.recommend.model or f"{run}/bundle/",
        "parent": config.update.model or f"models:/{config.registry.name}@champion",
        "candidate": (
            config.promote.model or f"models:/{config.registry.name}@{config.registry.alias}"
        ),
        "compared": " and ".join(config.compare.runs) or "two run folders",
        "comparison": (
            config.compare.out or f"{(config.compare.runs or ['RUN'])[0].rstrip('/')}/compare.json"
        ),
        "logs": ", ".join(config.compare.logs),
        "outcomes": ", ".join(config.compare.feedback),
        "estimated": config.compare.target or "compare.target is empty: no off-policy estimate",
        "pulled": config.pull.model or f"models:/{config.registry.name}@champion",
        "target": config.pull.dir.rstrip("/") or "DIR",
        "exported": config.export.model or f"{run}/bundle/",
        "export": config.export.out.rstrip("/") or "DIR",
        "refereed": (
            ", ".join([config.referee.protocol, *config.referee.lists, *config.referee.runs])
            if config.referee.protocol
            else _source_words(config.data.source.model_dump())
        ),
        "verdict": f"{(config.referee.out or config.referee.protocol or 'DIR').rstrip('/')}/",
        "feedback": ", ".join(config.update.feedback) or "update.feedback is empty",
        "served": (
            (config.serve.model or f"models:/{config.registry.name}@champion")
            + (f" and {config.serve.ab.model}" if config.serve.ab.model else "")
        ),
        "answers": (
            f"{config.serve.log}/answers-….jsonl"
            if config.serve.log
            else "nothing (serve.log is empty)"
        ),
        "shown": ", ".join(config.ui.runs),
        "space": ", ".join(config.tune.space) or "tune.space is empty",
    }


def _source_words(source: dict[str, Any]) -> str:
    """Kind and paths of a source, as a dry run shows them."""
    paths = [source.get(key) for key in ("folder", "events", "split_files", "test_pairs", "items")]
    shown = [str(path) for path in paths if path]
    return f"{source['kind']} source " + ", ".join(shown) if shown else f"{source['kind']} source"
