"""The leaderboard as text, Markdown and HTML, and the page of several protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from recsys.evaluation.bootstrap import shown_p
from recsys.evaluation.metrics import QUERY_METRICS
from recsys.report.pages import stylesheet

Record = Mapping[str, Any]


def ranked(record: Record) -> list[str]:
    """The methods, sorted by the main metric, the best first."""
    metric = record["protocol"]["metric"]
    return sorted(
        record["methods"], key=lambda name: -record["methods"][name]["metrics"][metric]["value"]
    )


def against_best(record: Record) -> dict[str, Record]:
    """Method → its pair with the best method, on the main metric."""
    best, found = ranked(record)[0], {}
    for pair in record["pairs"][record["protocol"]["metric"]]:
        if best in (pair["first"], pair["second"]):
            found[pair["second"] if pair["first"] == best else pair["first"]] = pair
    return found


def _corrected(pair: Record, resamples: int) -> str:
    """The corrected p-value of a pair; ``≤`` if more resamples could make it smaller."""
    is_least = shown_p(pair["p"], resamples).startswith("≤")
    return f"{'≤ ' * is_least}{shown_p(pair['p_holm'])}"


def _shown_kinds(record: Record) -> list[str]:
    """Kinds of metrics with a column. If every query has one target, recall equals hit, map equals
    mrr, and precision is hit / k: these three are left out.
    """
    metrics = [one["metrics"] for one in record["methods"].values()]
    one_target = all(
        of[f"recall@{k}"]["value"] == of[f"hit@{k}"]["value"]
        for of in metrics
        for k in record["protocol"]["ks"]
    )
    left_out = ("recall", "precision", "map") if one_target else ()
    return [kind for kind in (*QUERY_METRICS, "coverage") if kind not in left_out]


def board(record: Record) -> list[list[str]]:
    """The leaderboard: a header and one row per method."""
    metric, ks = record["protocol"]["metric"], record["protocol"]["ks"]
    k = int(metric.split("@")[1])
    others = [f"{kind}@{k}" for kind in _shown_kinds(record) if f"{kind}@{k}" != metric and k in ks]
    pairs, best = against_best(record), ranked(record)[0]
    rows = [["method", "setting", "seeds", metric, "95 % interval"]]
    rows[0] += ["minus the best, 95 % interval", "p vs best", *others]
    for name in ranked(record):
        one = record["methods"][name]
        main = one["metrics"][metric]
        spread = f" ± {main['sd']:.4f}" if "sd" in main else ""
        cells = [name, one["setting"] or "–", str(one["seeds"]), f"{main['value']:.4f}{spread}"]
        cells += [f"{main['low']:.4f} – {main['high']:.4f}"]
        cells += _difference(pairs[name], best, record["resamples"]) if name in pairs else ["–"] * 2
        rows.append([*cells, *(f"{one['metrics'][other]['value']:.4f}" for other in others)])
    return rows


def _difference(pair: Record, best: str, resamples: int) -> list[str]:
    """A method minus the best one with its interval, and the corrected p-value."""
    value, low, high = (pair[key] for key in ("difference", "low", "high"))
    if pair["first"] == best:
        value, low, high = -value, -high, -low
    return [f"{value:+.4f}, {low:+.4f} to {high:+.4f}", _corrected(pair, resamples)]


def head(record: Record) -> str:
    """The protocol in one line."""
    protocol = record["protocol"]
    items = f"{protocol['sample']} sampled items ({protocol['sampler']}, seed {protocol['seed']})"
    candidates = items if protocol["sample"] else f"all {protocol['items']:,} items"
    mask = (
        "items that the user had are excluded"
        if protocol["mask"] == "seen"
        else "items that the user had may be recommended"
    )
    windows = f", {len(protocol['windows'])} windows" if len(protocol["windows"]) > 1 else ""
    return (
        f"{protocol['name']}, split {protocol['split']['kind']}{windows}: {protocol['queries']:,}"
        f" questions, {candidates} ranked, {mask}; protocol {protocol['hash'][:12]}"
    )


def findings(record: Record) -> list[str]:
    """Sentences: the best method, methods not significantly worse, choices on test, windows."""
    metric, order, pairs = record["protocol"]["metric"], ranked(record), against_best(record)
    lines = []
    if len(order) > 1:
        alike = [name for name in order[1:] if pairs[name]["p_holm"] >= 0.05]
        same = (
            f"; not significantly worse: {', '.join(alike)}"
            if alike
            else ", significantly better than every other"
        )
        lines.append(
            f"{order[0]} has the best {metric}{same} (paired bootstrap over users, Holm correction"
            " over all pairs)"
        )
    for name in order:
        one = record["methods"][name]
        if chosen := one.get("selection"):
            gap = chosen["inflation"]
            claimed = (
                "also the best on test"
                if chosen["chosen"] == chosen["best_on_test"]
                else f"the best on test is {chosen['best_on_test']}: selection inflation"
                f" {gap['difference']:+.4f}, {gap['low']:+.4f} to {gap['high']:+.4f}"
            )
            lines.append(
                f"{name}: validation chooses {chosen['chosen']} of {len(chosen['settings'])}"
                f" settings; {claimed}"
            )
        if windows := one.get("windows"):
            lines.append(
                f"{name}: {metric}"
                f" {', '.join(f'{key} {of[metric]:.4f}' for key, of in windows.items())}"
            )
    return lines


def markdown(record: Record) -> str:
    """The leaderboard as Markdown."""
    lines = [
        head(record),
        "",
        *_markdown_table(board(record)),
        "",
        *(f"- {line}" for line in findings(record)),
    ]
    lines += [f"- note: {note}" for note in record["notes"]]
    return "\n".join([*lines, "", f"`{record['command']}`, {record['time'][:10]}", ""])


def html(record: Record) -> str:
    """The leaderboard as an HTML page without scripts or external files."""
    rows = board(record)
    cells = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:]
    )
    top = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = [*findings(record), *(f"note: {note}" for note in record["notes"])]
    points = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width">'
        f"<title>Referee: {escape(record['protocol']['name'])}</title>"
        f"<style>{stylesheet()}</style></head><body><main>"
        f'<p class="eyebrow">Referee</p><h1>{escape(record["protocol"]["name"])}</h1>'
        f'<p class="lead">{escape(head(record))}</p>'
        '<section class="card"'
        f' style="overflow-x:auto"><table><thead><tr>{top}</tr></thead><tbody>{cells}</tbody>'
        f'</table></section><section><ul>{points}</ul><p class="faint'
        f' small">{escape(record["command"])}, '
        f"{escape(record['time'])}</p></section></main></body></html>\n"
    )


def page(records: Sequence[Record]) -> str:
    """``docs/leaderboard.md``: method × data set, then each protocol with leaderboard, commands and
    date.
    """
    lines = [
        "# Leaderboard",
        "",
        (
            "Written by `recsys referee page`; do not edit. Every figure is from `recsys referee"
            " score` on lists of the"
        ),
        (
            "method's own library, with the same queries, targets and catalogue. If a method has"
            " several settings,"
        ),
        (
            "validation chooses one. *Lists* says what each method was fitted on, and for how long."
            " p-values are from a"
        ),
        (
            "paired bootstrap over users, with Holm's correction over all pairs of the table. See"
            " [referee.md](referee.md)."
        ),
        "",
    ]
    lines += _markdown_table(_matrix(records))
    for record in sorted(records, key=lambda one: str(one["protocol"]["name"])):
        lines += [
            "",
            f"## {record['protocol']['name']}, {_rules(record)}",
            "",
            markdown(record).rstrip(),
        ]
        commands = [
            f"- {name}: `{command}`"
            for name in ranked(record)
            for command in record["methods"][name]["commands"]
        ]
        lines += ["", "Lists:", "", *commands] if commands else []
    return "\n".join([*lines, ""])


def _matrix(records: Sequence[Record]) -> list[list[str]]:
    """The main metric: one row per method, one column per protocol."""
    records = sorted(records, key=lambda one: str(one["protocol"]["name"]))
    names = list(dict.fromkeys(name for record in records for name in ranked(record)))
    rows = [["method"], *([name] for name in names)]
    for record in records:
        protocol, best = record["protocol"], ranked(record)[0]
        metric = protocol["metric"]
        rows[0].append(f"{protocol['name']}, {_rules(record)}: {metric}")
        for row in rows[1:]:
            one = record["methods"].get(row[0])
            figure = f"{one['metrics'][metric]['value']:.4f}" if one else "–"
            row.append(f"**{figure}**" if row[0] == best else figure)
    return rows


def _rules(record: Record) -> str:
    protocol = record["protocol"]
    ranks = f", {protocol['sample']} sampled" if protocol["sample"] else ""
    return f"{protocol['split']['kind']}, mask {protocol['mask']}{ranks}"


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]
