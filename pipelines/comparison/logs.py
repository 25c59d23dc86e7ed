"""``recsys compare --logs FILE… --feedback FILE…``: the model versions in a server's logs, by
outcome.

The versions are compared as in an experiment: outcomes per version, with intervals from resampled
users. With ``compare.target`` another model answers the logged requests, and an off-policy estimate
says what its answers would have been worth. The estimate needs answers whose order was drawn with
known probabilities (``serve.explore``).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.command_line.dry_run import plan
from pipelines.comparison.comparison_file import write_record
from pipelines.plumbing.progress import Progress, table
from recsys.config import Config, EvaluateConfig
from recsys.config.compare import CompareConfig
from recsys.data.histories import Array
from recsys.errors import ConfigError, DataError
from recsys.evaluation.bootstrap import LEVEL, outcome, shown_p
from recsys.evaluation.experiment import MEASURES, outcomes
from recsys.evaluation.off_policy import Estimates, Trials, estimate
from recsys.evaluation.preference import preference
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.resolve import resolve
from recsys.serving.answer_log import Logged, read_logs
from recsys.serving.attribution import attributed, read_events
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender

_AT_A_TIME: Final = 1000  # requests per batch for the target model
_FEW_USERS: Final = 20  # the bootstrap of fewer users says too much
_FEW: Final = 100  # effective sample size below which a note warns


def compare_logs(config: Config, dry_run: bool) -> dict[str, Any] | None:
    """Compare, print and write the result.

    Returns
    -------
    dict | None
        The content of ``compare.json``; None for a dry run.

    Raises
    ------
    ConfigError
        A setting is missing, or cannot be used with these logs.
    SourceError
        A file is missing or unreadable.
    DataError
        The files hold nothing to compare.
    """
    settings, say = config.compare, Progress(sys.stdout)
    logged, num_cut = read_logs(settings.logs)
    if settings.target:
        _with_propensities(logged, settings.logs)
    events = read_events(
        settings.feedback, settings.rewards, config.data.quarantine.limit("events")
    )
    if dry_run:
        config.compare.out = record_path(config.compare)
        print(plan("compare", config))
        return None
    rewards, num_lost = attributed(logged, events, settings.window_hours * 3600)
    known = [number for number, one in enumerate(logged) if one.user_id is not None]
    _check_attributed(len(events), num_lost, len(known), settings.window_hours)
    notes = _notes(len(logged) - len(known), num_cut, num_lost, len(events))
    logged, rewards = [logged[number] for number in known], [rewards[number] for number in known]
    say(
        f"{len(logged):,} answers to {len({one.user_id for one in logged}):,} users,"
        f" {len(events):,} events"
    )
    record: dict[str, Any] = {
        "logs": settings.logs,
        "feedback": settings.feedback,
        "rewards": settings.rewards,
        "window_hours": settings.window_hours,
        "level": LEVEL,
        "resamples": config.evaluate.bootstrap,
        "seed": config.seed,
        "answers": len(logged),
    }
    merged = [number for number, one in enumerate(logged) if one.teams is not None]
    if merged:
        record["interleaved"] = _interleaved(
            config.evaluate,
            config.seed,
            [logged[number] for number in merged],
            [rewards[number] for number in merged],
        )
        alone = [number for number, one in enumerate(logged) if one.teams is None]
        logged = [logged[number] for number in alone]
        rewards = [rewards[number] for number in alone]
    record["versions"] = (
        _versions(config.evaluate, config.seed, logged, rewards, notes) if logged else {}
    )
    if settings.target:
        record["target"] = _off_policy(config, logged, rewards, notes, say)
    record |= {"notes": notes, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    for text in _words(record):
        say(text)
    say(f"wrote {write_record(Path(record_path(config.compare)), _without_nan(record))}")
    return record


def _check_attributed(num_events: int, num_lost: int, num_known: int, window_hours: float) -> None:
    if num_lost == num_events:
        raise DataError(
            f"compare.feedback: none of {num_events:,} events belongs to an item that an answer"
            f" showed to the same user in the {window_hours:g} hours before the event;"
            " give events from the time of the logs, with timestamp or answer_id"
        )
    if not num_known:
        raise DataError(
            "compare.logs: no answer has a user_id, but the comparison is by user; callers must"
            " send user_id"
        )


def _notes(num_anonymous: int, num_cut: int, num_lost: int, num_events: int) -> list[str]:
    notes = []
    if num_anonymous:
        notes.append(f"{num_anonymous:,} answers without user_id are left out")
    if num_cut:
        notes.append(f"{num_cut:,} incomplete lines at the end of files are left out")
    if num_lost:
        notes.append(
            f"{num_lost:,} of {num_events:,} events belong to no answer within the window and are"
            " left out"
        )
    return notes


# ----------------------------------------------------------------------------------- the experiment


def _versions(
    evaluate: EvaluateConfig,
    seed: int,
    logged: Sequence[Logged],
    rewards: Sequence[Array],
    notes: list[str],
) -> dict[str, dict[str, Any]]:
    """Label of every version → its outcome. The version with most answers is first, the
    reference.
    """
    labels = [label for label, _ in Counter(one.label for one in logged).most_common()]
    numbers = {label: number for number, label in enumerate(labels)}
    versions_A = np.array([numbers[one.label] for one in logged])
    rewards_A = np.array([float(one.sum()) for one in rewards])
    found, num_shared = outcomes(
        _dense([str(one.user_id) for one in logged]),
        versions_A,
        rewards_A,
        len(labels),
        evaluate.bootstrap,
        seed,
    )
    if num_shared:
        notes.append(
            f"{num_shared:,} users got answers from more than one version (an alias moved, or share"
            " or salt changed): the effect of one version can appear in the outcome of another"
        )
    return {
        label: {
            "answers": outcome.answers,
            "users": outcome.users,
            **{name: one.to_json() for name, one in outcome.measures.items()},
            "differences": {name: one.to_json() for name, one in outcome.differences.items()},
        }
        for label, outcome in zip(labels, found, strict=True)
    }


def _interleaved(
    evaluate: EvaluateConfig, seed: int, logged: Sequence[Logged], rewards: Sequence[Array]
) -> list[dict[str, Any]]:
    """The preference of users between each pair of models whose lists were merged."""
    found = []
    for a, b in dict.fromkeys((one.label, one.second) for one in logged):
        mine = [n for n, one in enumerate(logged) if (one.label, one.second) == (a, b)]
        gains_A = np.array(
            [rewards[n] @ np.where(np.array(logged[n].teams) == "b", 1.0, -1.0) for n in mine]
        )
        users_A = _dense([str(logged[n].user_id) for n in mine])
        one = preference(users_A, gains_A, evaluate.bootstrap, seed)
        found.append({"a": a, "b": b, **one.to_json()})
    return found


def _dense(names: Sequence[str]) -> Array:
    """Number the names from 0 in order of appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


# --------------------------------------------------------------------------------------- off policy


def _with_propensities(logged: Sequence[Logged], paths: Sequence[str]) -> list[int]:
    """Numbers of the answers whose order was drawn with known probabilities.

    Raises
    ------
    DataError
        There is none.
    """
    found = [
        number
        for number, one in enumerate(logged)
        if one.propensities is not None and one.user_id is not None
    ]
    if not found:
        raise DataError(
            f"compare.logs: {', '.join(paths)}: none of {len(logged):,} answers has propensities"
            " (the probability that each item was shown at its position); log with"
            " serve.explore.share above 0, or leave out compare.target to compare only the"
            " versions that answered"
        )
    return found


def _off_policy(
    config: Config,
    logged: Sequence[Logged],
    rewards: Sequence[Array],
    notes: list[str],
    say: Progress,
) -> dict[str, Any]:
    """Estimate the value of the target from answers that are newer than its training data.

    Raises
    ------
    ConfigError
        The target's newest event is later than all answers.
    """
    target = config.compare.target
    recommender = Recommender(
        read_bundle(resolve(target, tracking_uri(config.tracking, config.run.dir)))
    )
    drawn = _with_propensities(logged, config.compare.logs)
    if len(drawn) < len(logged):
        notes.append(
            f"{len(logged) - len(drawn):,} answers without propensities are left out of the"
            " estimates"
        )
    # a model that was trained on the outcomes would be judged on what it has memorised
    kept = [number for number in drawn if logged[number].time > recommender.newest]
    if not kept:
        newest = datetime.fromtimestamp(recommender.newest, UTC).isoformat()
        raise ConfigError(
            f"compare.target: {target} was trained on events up to {newest}, later than every"
            " logged answer, so it has seen their outcomes; give later logs, or a model that was"
            " trained before them"
        )
    if len(kept) < len(drawn):
        notes.append(
            f"{len(drawn) - len(kept):,} answers are older than the target's newest event and are"
            " left out"
        )
    say(f"asking {target} {len(kept):,} logged requests")
    trials = _trials(
        [logged[number] for number in kept], [rewards[number] for number in kept], recommender
    )
    found = estimate(trials, config.evaluate.bootstrap, config.seed)
    notes += _doubts(found)
    return {
        "model": target,
        "answers": len(kept),
        "users": len(trials.answers_U),
        **found.to_json(),
    }


def _trials(logged: Sequence[Logged], rewards: Sequence[Array], recommender: Recommender) -> Trials:
    """Pair each shown item with the target's item at that position, for the time of the request."""
    numbers: dict[str, int] = {}
    users, ranks, shown, target, chances = [], [], [], [], []
    answered_A = _dense([str(one.user_id) for one in logged])
    for start in range(0, len(logged), _AT_A_TIME):
        piece = logged[start : start + _AT_A_TIME]
        requests = [
            (
                one.request
                if one.request.at is not None
                else one.request.model_copy(update={"at": datetime.fromtimestamp(one.time, UTC)})
            )
            for one in piece
        ]
        for number, (one, answer) in enumerate(
            zip(piece, recommender.recommend(requests), strict=True), start=start
        ):
            for rank, item in enumerate(one.item_ids):
                theirs = answer.item_ids[rank] if rank < len(answer.item_ids) else None
                users.append(int(answered_A[number]))
                ranks.append(one.request.offset + rank)
                shown.append(numbers.setdefault(item, len(numbers)))
                target.append(-1 if theirs is None else numbers.setdefault(theirs, len(numbers)))
            chances += one.propensities or []
    return Trials(
        np.array(users, dtype=np.int64),
        np.bincount(answered_A),
        np.array(ranks, dtype=np.int64),
        np.array(shown, dtype=np.int64),
        np.array(target, dtype=np.int64),
        np.array(chances, dtype=np.float64),
        np.concatenate(rewards),
    )


def _doubts(found: Estimates) -> list[str]:
    """Warnings about the reliability of the estimates."""
    doubts = []
    if found.effective < _FEW:
        doubts.append(
            f"the effective sample size is {found.effective:,.0f} shown items, fewer than {_FEW},"
            " so the estimates are unreliable: log longer, or explore a larger share or a smaller"
            " pool"
        )
    if found.support.high < 1:
        doubts.append(
            f"the log could have shown about {found.support.value:.0%} of the target's items: IPS"
            " gives the rest the value 0, SNIPS the mean value of the others, DR the value that"
            " its reward model predicts"
        )
    if found.support.low > 1:
        doubts.append(
            f"the mean weight is {found.support.value:.2f}, expected at most 1: the propensities"
            " are too small, or the draws depended on the user"
        )
    return doubts


# ---------------------------------------------------------------------------------------- the words


def _words(record: dict[str, Any]) -> list[str]:
    lines = [_preferred(one, record["resamples"]) for one in record.get("interleaved", ())]
    rows = [["version", "answers", "users", *(name.replace("_", " ") for name in MEASURES)]]
    for label, one in record["versions"].items():
        rows.append(
            [
                label,
                f"{one['answers']:,}",
                f"{one['users']:,}",
                *(_shown(one[name]) for name in MEASURES),
            ]
        )
    lines += [table(rows)] if record["versions"] else []
    first = next(iter(record["versions"]), "")
    for label, one in record["versions"].items():
        if one["differences"]:
            found = one["differences"]["reward_per_answer"]
            users = min(record["versions"][name]["users"] for name in (first, label))
            verdict = _verdict(found, first, label, users)
            lines.append(
                f"{label} minus {first}, reward per answer: {_shown(found, '+')}, p"
                f" {shown_p(found['p'], record['resamples'])}: {verdict}"
            )
    if "target" in record:
        one = record["target"]
        rows = [
            ["off policy", "reward per answer", "minus shown items"],
            ["shown items", _shown(one["shown"]), ""],
        ]
        rows += [
            [name.upper(), _shown(one[name]), _shown(one["gains"][name], "+")]
            for name in ("ips", "snips", "dr")
        ]
        lines.append(
            f"{one['model']}, estimated from {one['answers']:,} answers to {one['users']:,}"
            f" users\n{table(rows)}\neffective sample size {one['effective_sample_size']:,.0f}"
            f" shown items, largest weight {one['largest_weight']:,.1f}, mean weight"
            f" {_shown(one['support'])}"
        )
    return [*lines, *(f"note: {note}" for note in record["notes"])]


def _verdict(found: dict[str, float], first: str, second: str, num_users: int) -> str:
    """Which version is better, from the interval of second − first."""
    if num_users < _FEW_USERS:
        return f"fewer than {_FEW_USERS} users, too few to say which is better"
    better = {"better": second, "worse": first}.get(outcome(found))
    return f"{better} is significantly better" if better else "no significant difference"


def _preferred(one: dict[str, Any], resamples: int) -> str:
    """The outcome of merged lists as a sentence."""
    a, b, found = one["a"], one["b"], one["preference"]
    lists = f"lists merged from {a} and {b}, {one['answers']:,} answers to {one['users']:,} users"
    if found is None:
        return f"{lists}: no list has a winner, so the preference is unknown"
    verdict = _verdict(found, a, b, one["users"])
    return (
        f"{lists}: {b} won {one['won_b']:,}, {a} won {one['won_a']:,}; preference for {b}"
        f" {_shown(found, '+')}, p {shown_p(found['p'], resamples)}: {verdict}"
    )


def _shown(found: dict[str, float], sign: str = "") -> str:
    """Value and interval as text.

    >>> _shown({"difference": 0.5, "low": 0.25, "high": 0.75}, "+")
    '+0.5000 (+0.2500 to +0.7500)'
    """
    value = found["value"] if "value" in found else found["difference"]
    return f"{value:{sign}.4f} ({found['low']:{sign}.4f} to {found['high']:{sign}.4f})"


def record_path(compare: CompareConfig) -> str:
    """Path of the file that the comparison is written to."""
    if compare.out:
        return compare.out
    first = Path(compare.logs[0])
    return str((first if first.is_dir() else first.parent) / "compare.json")


def _without_nan(tree: Any) -> Any:
    """Replace NaN and infinity by None, because JSON has neither."""
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    return None if isinstance(tree, float) and not np.isfinite(tree) else tree
