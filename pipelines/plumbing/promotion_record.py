"""The record of a promotion for people: a Markdown page, and tags of the version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pipelines.plumbing.progress import table
from recsys.evaluation.bootstrap import shown_p
from recsys.report.wording import segment_name

DECISION: Final = "promotion.decision"  # tag
_COLUMNS: Final = ("alias", "made", "events", "dataset", "decision", "candidate")


def version_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """The tags of the version and the MLflow run that describe the decision."""
    champion, found = record["champion"], record.get("comparison") or {}
    tags = {
        DECISION: record["decision"],
        "promotion.against": champion["version"] if champion else "none",
        "promotion.reasons": "\n".join(record["reasons"]) or "all rules passed",
        "promotion.time": record["time"],
        "promotion.by": record["by"],
    }
    if record["rules"]["force"]:
        tags["promotion.force"] = record["rules"]["force"]
    for key in ("difference", "low", "high", "p"):
        if key in found:
            tags[f"promotion.{key}"] = f"{found[key]:.6g}"
    return tags


def to_markdown(record: Mapping[str, Any]) -> str:
    """A Markdown page with the decision, the result of every rule, and the numbers."""
    challenger, champion = record["challenger"], record["champion"]
    before = f"version {champion['version']}" if champion else "no champion"
    lines = [
        f"# {record['model']} version {challenger['version']}: {record['decision']}",
        "",
        f"Against {before}, on {record['time']} by {record['by']}.",
    ]
    if record["rules"]["force"]:
        lines += ["", f"Reason given: {record['rules']['force']}"]
    if record["reasons"]:
        lines += ["", "## Reasons", "", *(f"- {reason}" for reason in record["reasons"])]
    if record.get("checks"):
        lines += ["", "## Rules", "", "| rule | outcome | why |", "|---|---|---|"]
        lines += [
            f"| {c['name']} | {'passed' if c['passed'] else 'FAILED'} | {c['why']} |"
            for c in record["checks"]
        ]
    if record.get("notes"):
        lines += ["", "## Notes", "", *(f"- {note}" for note in record["notes"])]
    if record.get("candidates"):
        lines += ["", *_candidates(record["candidates"])]
    if record.get("comparison"):
        lines += ["", *_segments(record["comparison"])]
    if (record.get("baselines") or {}).get("against"):
        lines += ["", *_baselines(record["baselines"])]
    return "\n".join([*lines, ""])


def candidate_table(found: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The versions before the decision, for the console; metrics are on each version's own test
    split.
    """
    head, *rows = table(
        [["version", metric, *_COLUMNS], *(_row(one) for one in found)]
    ).splitlines()
    width = max(map(len, rows))
    return "\n".join(
        [head, *(f"{row.ljust(width)}  {one['why']}" for row, one in zip(rows, found, strict=True))]
    )


def _candidates(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same as a Markdown table."""
    lines = [
        "## Versions before the decision",
        "",
        "The main metric of each version is on the test split of its own dataset.",
        "",
        f"| version | metric | {' | '.join(_COLUMNS)} | why |",
        "|--:|--:|---|---|--:|---|---|---|---|",
    ]
    return lines + [f"| {' | '.join([*_row(one), one['why']])} |" for one in found]


def _row(one: Mapping[str, Any]) -> list[str]:
    metric = "–" if one["metric"] is None else f"{one['metric']:.4f}"
    made = datetime.fromtimestamp(one["created_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    events = "–" if one["events"] is None else f"{one['events']:,}"
    aliases = ", ".join(one["aliases"])
    candidate = "yes" if one["is_candidate"] else "no"
    return [
        one["version"],
        metric,
        aliases,
        made,
        events,
        one["dataset"],
        one["decision"],
        candidate,
    ]


def _segments(found: Mapping[str, Any]) -> list[str]:
    rows = [("all", found)]
    for group, labels in found["segments"].items():
        rows += [(f"{group}: {segment_name(label)}", entry) for label, entry in labels.items()]
    lines = [
        f"## {found['metric']}, {found['resamples']:,} paired resamples of users",
        "",
        "| segment | users | challenger | champion | difference | 95 % interval | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    return lines + [
        f"| {name} | {row['queries']:,} | {row['challenger']:.4f} | {row['champion']:.4f} |"
        f" {row['difference']:+.4f} | {row['low']:+.4f} … {row['high']:+.4f} | {_mark(row)} |"
        for name, row in rows
    ]


def _mark(row: Mapping[str, Any]) -> str:
    if row.get("worse"):
        return "worse"
    return "" if row.get("judged", True) else "too few users to judge"


def _baselines(baselines: Mapping[str, Any]) -> list[str]:
    lines = [
        f"## Challenger against the baselines, {baselines['metric']}",
        "",
        "| baseline | difference | 95 % interval | p |",
        "|---|--:|--:|--:|",
    ]
    return lines + [
        f"| {name} | {row['difference']:+.4f} | {row['low']:+.4f} … {row['high']:+.4f} |"
        f" {shown_p(row['p'], baselines.get('resamples', 0))} |"
        for name, row in baselines["against"].items()
    ]
