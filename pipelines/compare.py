"""``recsys compare RUN RUN``: a paired bootstrap of every accuracy metric over the same test users.

With ``--logs`` it compares the model versions in a server's logs, see
:mod:`pipelines.comparison.logs`.

Reads config.yaml, metrics.json and model/ of both run folders, and the prepared dataset; ranks the
test split with both models and writes RUN/compare.json. It compares the evaluated models. With
``train.final`` the model that answers is another one, which was also trained on test events.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.cli import config_of
from pipelines.command_line.dry_run import plan
from pipelines.comparison.comparison_file import write_record
from pipelines.comparison.finished_runs import FinishedRun, check_same, difference_error, opened_run
from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.opened_model import open_trained
from pipelines.plumbing.progress import table
from pipelines.plumbing.session import quiet
from pipelines.stages import VERBS
from recsys.config import EvaluateConfig
from recsys.config.compare import CompareConfig
from recsys.data.bounded import evaluated_queries
from recsys.data.histories import Split
from recsys.evaluation.bootstrap import LEVEL, shown_p
from recsys.evaluation.metrics import main_first, outside_kinds
from recsys.evaluation.paired_test import accuracy_of, paired_metrics
from recsys.registry.logged_values import flatten
from recsys.training.threads import settle_threads

_READ: Final = ("compare.", "evaluate.bootstrap", "evaluate.chunk_users", "seed")
_READ_OF_LOGS: Final = (
    "compare.",
    "evaluate.bootstrap",
    "seed",
    "tracking.uri",
    "data.quarantine.max_share",
)
_LISTS: Final = {"--logs": "compare.logs", "--feedback": "compare.feedback"}
# tolerance between this ranking and the stored one, which another machine may have made
_ROUNDING: Final = 1e-4


def command(words: Sequence[str]) -> int:
    """Run ``compare`` with the words after it: two run folders and options, or ``--logs`` and
    options.

    Raises
    ------
    UsageError
        The words are others, or this verb does not read an option.
    """
    words, lists = _taken_out(words)
    options = [index for index, word in enumerate(words) if word.startswith("-")]
    run_words = list(words[: options[0] if options else len(words)])
    arguments = parse(words[len(run_words) :])
    config = config_of(arguments.config, [*arguments.overrides, *lists])
    of_logs = bool(config.compare.logs)
    reads = _READ_OF_LOGS if of_logs else _READ
    for name, _ in arguments.overrides:
        if not name.startswith(reads[0]) and name not in reads:
            whose = (
                "the logs hold what it compares"
                if of_logs
                else "it uses the settings of the two runs"
            )
            raise UsageError(
                f"compare does not read --{name}: {whose}; it reads --compare.out, "
                f"{', '.join(f'--{key}' for key in reads[1:-1])} and --{reads[-1]}"
            )
    if of_logs:
        if run_words or config.compare.runs:
            raise UsageError(
                "got run folders and --logs, expected one of the two; usage:"
                f" {VERBS['compare'].usage}"
            )
        quiet()
        from pipelines.comparison.logs import compare_logs

        compare_logs(config, arguments.dry_run)
        return 0
    if config.compare.feedback or config.compare.target:
        raise UsageError(
            f"--feedback and --compare.target need --logs; usage: {VERBS['compare'].usage}"
        )
    config.compare.runs = run_words or config.compare.runs
    if len(config.compare.runs) != 2:
        raise UsageError(
            f"got {len(config.compare.runs)} run folders, expected two; usage:"
            f" {VERBS['compare'].usage}"
        )
    quiet()
    with ExitStack() as stack:
        first, second = (stack.enter_context(opened_run(index)) for index in config.compare.runs)
        check_same(first, second)
        if arguments.dry_run:
            print(plan("compare", config))
        else:
            compare(config.evaluate, config.compare, config.seed, first, second)
    return 0


def _taken_out(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words without the options that take several files, and those options as settings.

    Raises
    ------
    UsageError
        An option has no file.

    Examples
    --------
    >>> _taken_out(["--logs", "a", "b", "--dry-run"])
    (['--dry-run'], [('compare.logs', '["a", "b"]')])
    """
    rest, waiting, found = list[str](), list(words), dict[str, list[str]]()
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        if name not in _LISTS:
            rest.append(name + equals + value)
            continue
        files = [value] if equals else []
        while waiting and not waiting[0].startswith("-"):
            files.append(waiting.pop(0))
        if not files:
            raise UsageError(f"{name} needs one or more files: {name} FILE…")
        found.setdefault(_LISTS[name], []).extend(files)
    return rest, [(key, json.dumps(files)) for key, files in found.items()]


def compare(
    evaluate: EvaluateConfig,
    compare: CompareConfig,
    seed: int,
    first: FinishedRun,
    second: FinishedRun,
) -> dict[str, Any]:
    """Rank the test split with both models, print and write the differences.

    Parameters
    ----------
    evaluate : EvaluateConfig
        The metrics and the number of bootstrap samples.
    compare : CompareConfig
        Names the file that is written.
    seed : int
        Seed of the bootstrap.
    first, second : FinishedRun
        The two runs.

    Returns
    -------
    dict
        The content of ``compare.json``.

    Raises
    ------
    ArtifactError, ConfigError
        As :func:`compared`.
    """
    say = first.folder.progress
    record = compared(evaluate, seed, first, second)
    for text in _words(record):
        say(text)
    say(f"wrote {_write(compare, first, record)}")
    return record


def compared(
    evaluate: EvaluateConfig, seed: int, first: FinishedRun, second: FinishedRun
) -> dict[str, Any]:
    """Rank the test split with both models; return the content of ``compare.json`` without writing
    it.

    Parameters
    ----------
    evaluate : EvaluateConfig
        The metrics and the number of bootstrap samples.
    seed : int
        Seed of the bootstrap.
    first, second : FinishedRun
        The two runs.

    Raises
    ------
    ArtifactError
        A model or the dataset is not the one that the run was evaluated with.
    ConfigError
        The two runs were not evaluated on the same users.
    """  # noqa: DOC501
    say = first.folder.progress
    dataset = open_dataset(first.config.data, first.config.dataset_dir, first.config.seed)
    queries = evaluated_queries(dataset, Split.TEST, first.config.evaluate, first.config.seed)
    theirs = evaluated_queries(dataset, Split.TEST, second.config.evaluate, second.config.seed)
    if not np.array_equal(queries.histories.users_U, theirs.histories.users_U):
        raise difference_error(
            first, second, ["evaluated users: two different samples (seed, evaluate.max_users)"]
        )
    ks = sorted(first.ks & second.ks)
    if not ks:
        raise difference_error(
            first,
            second,
            [f"evaluate.ks: {sorted(first.ks)} and {sorted(second.ks)} have nothing in common"],
        )
    settle_threads(first.config.model, first.config.train, dataset.num_items, say)
    say(f"ranking all {dataset.num_items:,} items for {len(queries):,} test users with both models")
    chunk, values, rows = evaluate.chunk_users, [], []
    more = outside_kinds(first.config.train.metric, evaluate.metrics)
    for side in (first, second):
        scorer = open_trained(side.config.model, side.folder, dataset).frozen
        ranking, found = accuracy_of(
            scorer, queries, ks, side.config.evaluate.exclude_seen, chunk, more
        )
        values.append(found)
        rows.append(ranking.rows_B)
    assert np.array_equal(rows[0], rows[1]), "the same queries count for both"
    return {
        "first": _described(first),
        "second": _described(second),
        "dataset": {key: first.metrics["data"][key] for key in ("name", "content_hash", "split")},
        "queries": len(rows[0]),
        "metric": first.config.train.metric,
        "level": LEVEL,
        "resamples": evaluate.bootstrap,
        "seed": seed,
        "metrics": main_first(
            paired_metrics(values[0], values[1], evaluate.bootstrap, seed),
            first.config.train.metric,
        ),
        "settings": _settings(first, second),
        "notes": _notes(first, second, values),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _described(side: FinishedRun) -> dict[str, Any]:
    return {
        "run": side.given,
        "model_sha256": side.metrics["model_sha256"],
        "settings_sha256": side.metrics.get("settings_sha256"),
        "granularities": [*side.metrics["granularities"]],
        "fitted_through": side.metrics["data"].get("fitted_through", ""),
    }


def _settings(first: FinishedRun, second: FinishedRun) -> dict[str, list[Any]]:
    """Dotted key → both values, for the settings of model and training that differ."""
    trees = []
    for side in (first, second):
        tree = side.config.model_dump(mode="json")
        trees.append(
            flatten({name: tree[name] for name in ("seed", "model", "train") if name in tree})
        )
    keys = sorted(
        key for key in trees[0].keys() | trees[1].keys() if trees[0].get(key) != trees[1].get(key)
    )
    return {key: [trees[0].get(key), trees[1].get(key)] for key in keys}


def _notes(first: FinishedRun, second: FinishedRun, values: list[dict[str, Any]]) -> list[str]:
    notes = []
    through = [side.metrics["data"].get("fitted_through", "") for side in (first, second)]
    if through[0] != through[1]:
        notes.append(
            f"the first model was trained on events through {through[0]}, the second through"
            f" {through[1]} (train.refit)"
        )
    for side, found in zip((first, second), values, strict=True):
        for name, values_B in found.items():
            reported = side.metrics["model"].get(name)
            if reported is not None and abs(reported - float(values_B.mean())) > _ROUNDING:
                notes.append(
                    f"{side.given}: {name} is {values_B.mean():.4f} here, {reported:.4f} in its"
                    " metrics.json"
                )
    return notes


def _words(record: dict[str, Any]) -> list[str]:
    """The table and the verdict on the main metric."""
    rows = [["metric", "first", "second", "difference", "95 % interval", "p"]]
    for name, entry in record["metrics"].items():
        interval = f"{entry['low']:+.4f} to {entry['high']:+.4f}"
        p = shown_p(entry["p"], record["resamples"])
        means = [f"{entry[key]:.4f}" for key in ("first", "second")]
        rows.append([name, *means, f"{entry['difference']:+.4f}", interval, p])
    first, second = record["first"]["run"], record["second"]["run"]
    lines = [
        f"first {first}, second {second}: {record['queries']:,} test users, paired\n{table(rows)}"
    ]
    changed = [
        f"{key} {before!r} and {after!r}" for key, (before, after) in record["settings"].items()
    ]
    shown = f"{'; '.join(changed[:8])}{' …' if len(changed) > 8 else ''}"
    lines += [f"settings that differ: {shown}"] if changed else []
    entry = record["metrics"].get(record["metric"])
    if entry is not None:
        better = first if entry["low"] > 0 else second if entry["high"] < 0 else ""
        verdict = f"{better} is significantly better" if better else "no significant difference"
        p = shown_p(entry["p"], record["resamples"])
        lines.append(f"{record['metric']}: {verdict} ({entry['difference']:+.4f}, p {p})")
    return [*lines, *(f"note: {note}" for note in record["notes"])]


def _write(compare: CompareConfig, first: FinishedRun, record: dict[str, Any]) -> str:
    """Write the comparison to ``compare.out`` or the first run folder; return its path."""
    folder = first.folder
    if not compare.out:
        path = folder.root / "compare.json"
        folder.write_json(path, record)
        return folder.shown(path)
    return write_record(Path(compare.out), record)


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["compare", *sys.argv[1:]]))
