"""``recsys compare RUN RUN``: a paired bootstrap of every accuracy metric over the same test users.

With ``--logs`` it compares the model versions in a server's logs (:mod:`pipelines.compare_logs`).

Reads config.yaml, metrics.json and model/ of both run folders, and the prepared dataset; ranks the
test split with both models and writes RUN/compare.json. It compares the evaluated models. With
``train.final`` the model that answers is another one, which was also trained on test events.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from pipelines.cli import config_of, main
from pipelines.dry_run import plan
from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.folder import RunFolder, write_atomically
from pipelines.plumbing.progress import Progress, table
from pipelines.plumbing.session import quiet
from pipelines.prepare import open_dataset
from pipelines.stages import VERBS
from pipelines.train import model_sha256, open_trained
from recsys.config import Config, EvaluateConfig, load_config
from recsys.config.compare import CompareConfig
from recsys.data.bounded import evaluated_queries
from recsys.data.histories import Split
from recsys.errors import ArtifactError, ConfigError
from recsys.evaluation.bootstrap import LEVEL
from recsys.evaluation.metrics import QUERY_METRICS, outside_kinds, parse_metric
from recsys.evaluation.paired import accuracy_of, paired_metrics
from recsys.registry.logged_values import flatten
from recsys.storage.uris import is_remote
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
_ROUNDING: Final = (
    1e-4  # tolerance between this ranking and the stored one, which another machine may have made
)
_CURE: Final = "give the folder of a finished `recsys run`, or run `recsys evaluate` for it first"


@dataclass(frozen=True)
class Side:
    """One finished run."""

    given: str  # the run folder as the user named it
    folder: RunFolder
    config: Config
    metrics: dict[str, Any]

    @property
    def ks(self) -> set[int]:
        """Cut-offs of the metrics that this run has."""
        return {
            *self.config.evaluate.ks,
            parse_metric(self.config.train.metric, tuple(QUERY_METRICS)).k,
        }


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
        from pipelines.compare_logs import compare_logs

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
        first, second = (stack.enter_context(opened(index)) for index in config.compare.runs)
        check_same(first, second)
        if arguments.dry_run:
            print(plan("compare", config))
        else:
            compare(config, first, second)
    return 0


def _taken_out(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words without the options that take several files, and those options as settings.

    Raises
    ------
    UsageError
        An option has no file.

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


def compare(config: Config, first: Side, second: Side) -> dict[str, Any]:
    """Rank the test split with both models, print and write the differences.

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
    record = compared(config.evaluate, config.seed, first, second)
    for text in _words(record):
        say(text)
    say(f"wrote {_write(config.compare, first, record)}")
    return record


def compared(evaluate: EvaluateConfig, seed: int, first: Side, second: Side) -> dict[str, Any]:
    """Rank the test split with both models; return the content of ``compare.json`` without writing
    it.

    Raises
    ------
    ArtifactError
        A model or the dataset is not the one that the run was evaluated with.
    ConfigError
        The two runs were not evaluated on the same users.
    """
    say = first.folder.progress
    dataset = open_dataset(first.config)
    queries = evaluated_queries(dataset, Split.TEST, first.config.evaluate, first.config.seed)
    theirs = evaluated_queries(dataset, Split.TEST, second.config.evaluate, second.config.seed)
    if not np.array_equal(queries.histories.users_U, theirs.histories.users_U):
        raise _differ(
            first, second, ["evaluated users: two different samples (seed, evaluate.max_users)"]
        )
    ks = sorted(first.ks & second.ks)
    if not ks:
        raise _differ(
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
        "metrics": paired_metrics(values[0], values[1], evaluate.bootstrap, seed),
        "settings": _settings(first, second),
        "notes": _notes(first, second, values),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# ---------------------------------------------------------------------------------- the two folders


@contextmanager
def opened(run: str, stream: TextIO | None = None) -> Iterator[Side]:
    """Open a run folder for reading, a remote one as a temporary copy; it is neither made nor
    locked.

    Raises
    ------
    ArtifactError
        It is not the folder of a finished and evaluated run.
    """
    with tempfile.TemporaryDirectory(prefix="multigrain-") as name:
        mirror = None
        root = Path(run)
        if is_remote(run):
            from recsys.storage.mirror import Mirror

            root, mirror = Path(name), Mirror(Path(name), run)
            mirror.fetch_small(leave=(".lock", "dataset.lock", "recommendations.parquet"))
        elif not root.is_dir():
            raise ArtifactError(f"{run} is not a folder; {_CURE}")
        folder = RunFolder(root, Progress(stream or sys.stdout, Path(name) / "compare.log"), mirror)
        if not folder.config.is_file():
            raise ArtifactError(f"{run} is not a run folder: config.yaml is missing; {_CURE}")
        metrics = folder.read_json(folder.metrics, _CURE)
        if not (folder.model / "model.safetensors").is_file():
            raise ArtifactError(f"{run} has no trained model: model/ is missing; {_CURE}")
        if metrics.get("model_sha256") != model_sha256(folder):
            raise ArtifactError(
                f"metrics.json in {run} belongs to another model than the one in model/; "
                "run `recsys evaluate` for this run folder"
            )
        yield Side(run, folder, load_config(folder.config, [("run.dir", run)]), metrics)


def check_same(first: Side, second: Side) -> None:
    """Check by their metrics that both runs were evaluated on the same queries.

    Raises
    ------
    ConfigError
        They were not; the message names every difference.
    """
    ours, theirs = first.metrics["data"], second.metrics["data"]
    keys = ["split"] if ours["content_hash"] != theirs["content_hash"] else []
    keys += ["exclude_seen", "asked_queries", "queries"]
    found = []
    if ours["content_hash"] != theirs["content_hash"]:
        shown = [f"{data['name']} {data['content_hash'][:12]}" for data in (ours, theirs)]
        found.append(f"dataset: {shown[0]} and {shown[1]}{_prepared_differently(first, second)}")
    found += [
        f"{key}: {ours.get(key)} and {theirs.get(key)}"
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]
    if found:
        raise _differ(first, second, found)


def _prepared_differently(first: Side, second: Side) -> str:
    """The settings of section ``data`` that differ, for a message; none means that the files
    differ.
    """
    before, after = (
        flatten(side.config.data.model_dump(mode="json"), "data.") for side in (first, second)
    )
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    shown = [
        f"{key} {before.get(key)!r} and {after.get(key)!r}" for key in keys if key != "data.dir"
    ]
    return (
        f" ({'; '.join(shown[:5])}{' …' if len(shown) > 5 else ''})"
        if shown
        else " (the files of the source differ)"
    )


def _differ(first: Side, second: Side, found: list[str]) -> ConfigError:
    return ConfigError(
        f"{first.given} and {second.given} were not evaluated on the same queries, so a paired test"
        f" is not possible: {'; '.join(found)}; train and evaluate both with the same data and"
        " evaluate settings"
    )


# ---------------------------------------------------------------------------------------- the words


def _described(side: Side) -> dict[str, Any]:
    return {
        "run": side.given,
        "model_sha256": side.metrics["model_sha256"],
        "granularities": [*side.metrics["granularities"]],
        "fitted_through": side.metrics["data"].get("fitted_through", ""),
    }


def _settings(first: Side, second: Side) -> dict[str, list[Any]]:
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


def _notes(first: Side, second: Side, values: list[dict[str, Any]]) -> list[str]:
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
        means = [f"{entry[key]:.4f}" for key in ("first", "second")]
        rows.append([name, *means, f"{entry['difference']:+.4f}", interval, f"{entry['p']:.3g}"])
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
        lines.append(
            f"{record['metric']}: {verdict} ({entry['difference']:+.4f}, p {entry['p']:.3g})"
        )
    return [*lines, *(f"note: {note}" for note in record["notes"])]


def _write(compare: CompareConfig, first: Side, record: dict[str, Any]) -> str:
    """Write the comparison to ``compare.out`` or the first run folder; return its path."""
    folder = first.folder
    if not compare.out:
        path = folder.root / "compare.json"
        folder.write_json(path, record)
        return folder.shown(path)
    return write_record(Path(compare.out), record)


def write_record(path: Path, record: dict[str, Any]) -> str:
    """Write a comparison to a file and return its path.

    Raises
    ------
    ConfigError
        The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(
            f"compare.out: cannot write {path} ({error.strerror}); choose another file"
        ) from None
    return str(path)


if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
