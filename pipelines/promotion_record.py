"""The record of a promotion for people: a Markdown page, and the tags of the version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys.evaluation.wording import segment_name


def version_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """What the version and the MLflow run say of the decision."""
    champion, found = record["champion"], record.get("comparison") or {}
    tags = {
        "promotion.decision": record["decision"],
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
    """The decision, the rules with their outcome, and the numbers."""
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
        lines += [f"| {c['name']} | {'passed' if c['passed'] else 'FAILED'} | {c['why']} |" for c in record["checks"]]
    if record.get("notes"):
        lines += ["", "## Notes", "", *(f"- {note}" for note in record["notes"])]
    if record.get("comparison"):
        lines += ["", *_segments(record["comparison"])]
    if (record.get("baselines") or {}).get("against"):
        lines += ["", *_baselines(record["baselines"])]
    return "\n".join([*lines, ""])


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
        f"| {name} | {row['queries']:,} | {row['challenger']:.4f} | {row['champion']:.4f} | {row['difference']:+.4f} | "
        f"{row['low']:+.4f} … {row['high']:+.4f} | {_mark(row)} |"
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
        f"| {name} | {row['difference']:+.4f} | {row['low']:+.4f} … {row['high']:+.4f} | {row['p']:.3g} |"
        for name, row in baselines["against"].items()
    ]
