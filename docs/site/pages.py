"""Write the reference pages from the code at every build: the verbs and every configuration key."""

from __future__ import annotations

from itertools import groupby
from typing import Final

from pipelines.command_line.help import usage
from pipelines.plumbing.reference import Key, SectionKeys, sections
from pipelines.stages import COMPARE_LOGS, SEARCHES, STAGES, UPDATES, VERBS, Verb
from recsys.config import Config

CONFIGURATION: Final = "reference/configuration"
CLI: Final = "reference/cli.md"
_WRITTEN: Final = "This page is written from the code at every build of the documents.\n"
_ABOUT: Final = {  # of top-level sections whose models have no docstring
    "run": "Where a run leaves its files, and how long it may take.",
    "data": "What is read, how it is checked, and how it is split.",
    "model": "Which granularities see the user, and how they are fused.",
    "train": "The training: steps, batches, loss, early stopping.",
    "evaluate": "What is measured, and against which baselines.",
    "recommend": "`recsys recommend`: lists of every user, to Parquet.",
    "similar": "`recsys similar`: similar items.",
    "update": "`recsys update`: newer events, feedback or user clusters.",
    "tune": "`recsys tune`: sweeps and the search of fusion weights.",
    "serve": "`recsys serve`: answers over HTTP.",
    "promote": "`recsys promote`: the gate that guards `@champion`.",
    "compare": "`recsys compare`: two runs, or the versions behind a server.",
    "referee": "`recsys referee`: protocols, and the lists of any library.",
    "ui": "`recsys ui`: the dashboard.",
    "pull": "`recsys pull`: a registered model as a folder.",
    "export": "`recsys export`: ONNX, FAISS, Parquet.",
    "forget": "`recsys forget`: users removed, with a proof.",
    "tracking": "MLflow's tracking store.",
    "registry": "The registered model's name, alias and tags.",
    "ray": "Which Ray is used.",
    "submit": "`recsys submit`: jobs on a cluster.",
}


def configuration() -> dict[str, str]:
    """Every page of the configuration by its path: an overview and one page per section."""
    every = sections()
    root, others = every[0], every[1:]
    pages = {}
    for name, group in groupby(others, key=lambda section: section.path.split(".")[0]):
        pages[f"{CONFIGURATION}/{name}.md"] = _page(name, list(group))
    sizes = {name: sum(len(s.keys) for s in others if _is_in(s, name)) for name in _names(others)}
    rows = [f"| [`{name}`]({name}.md) | {_about(name)} | {size} |" for name, size in sizes.items()]
    overview = (
        "# Configuration\n\n"
        "One typed configuration says everything. A dotted path is the same in YAML (`train:` with "
        "`lr: 0.01` below), on the command line (`--train.lr 0.01`), in a search space of "
        "`recsys tune` and in `settings` of the [Python API](../../api.md). An unknown key is "
        "refused with the valid ones.\n\n"
        "`recsys help SECTION` prints the same in the terminal, and `recsys VERB --dry-run` the "
        "merged configuration.\n\n"
        "| section | what it says | keys |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "## Outside any section\n\n" + _table(root.keys) + "\n\n" + _WRITTEN
    )
    return {f"{CONFIGURATION}/index.md": overview, **pages}


def section_names() -> list[str]:
    """The top-level sections, in the order of the configuration."""
    return _names(sections()[1:])


def _names(others: list[SectionKeys]) -> list[str]:
    return list(dict.fromkeys(section.path.split(".")[0] for section in others))


def _is_in(section: SectionKeys, name: str) -> bool:
    return section.path.split(".")[0] == name


def _about(name: str) -> str:
    field = Config.model_fields[name]
    return _ABOUT.get(name) or field.description or ""


def _page(name: str, inside: list[SectionKeys]) -> str:
    parts = [f"# `{name}`\n\n{_about(name)}\n"]
    for section in inside:
        if section.path != name:
            kind = f", kind `{section.kind}`" if section.kind else ""
            parts.append(f"## `{section.path}`{kind}\n")
        if section.about:
            parts.append(section.about + "\n")
        if section.keys:
            parts.append(_table(section.keys) + "\n")
    return "\n".join([*parts, _WRITTEN])


def _table(keys: list[Key]) -> str:
    rows = [
        f"| `{key.path.rpartition('.')[2]}` | {_cell(key.type)} | {_default(key)} "
        f"| {_cell(key.about)} |"
        for key in keys
    ]
    table = "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)
    return f'<div class="keys" markdown>\n\n{table}\n\n</div>'


def _default(key: Key) -> str:
    return f"`{key.default}`".replace("|", "\\|") if key.default else "*needed*"


def _cell(text: str) -> str:
    """
    >>> _cell("a|b of <c>")
    'a \\\\| b of &lt;c&gt;'
    """
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("|", " \\| ").replace("*", "\\*")


def cli() -> str:
    """The page of the command line."""
    rows = [f"| [`{name}`](#{name}) | {verb.summary} |" for name, verb in VERBS.items()]
    parts = [
        "# Command line\n",
        "```text\nrecsys VERB --config FILE [--section.key VALUE …] [--dry-run]\n```\n",
        "`--config` takes a YAML file or the name of a shipped one (`demo`, `lastfm`, …). "
        "`recsys VERB --help` shows the keys that a verb reads, `--dry-run` what would run. "
        "[Exit codes](../contracts.md#exit-codes) are the same for all.\n",
        '<div class="verbs" markdown>\n\n| verb | what it does |\n|---|---|\n'
        + "\n".join(rows)
        + "\n\n</div>\n",
    ]
    for name, verb in VERBS.items():
        parts.append(_verb(name, verb))
    return "\n".join([*parts, _WRITTEN])


def _verb(name: str, verb: Verb) -> str:
    kinds = {"update": UPDATES, "tune": SEARCHES}.get(name, {})
    stages = list(
        dict.fromkeys([*verb.stages, *(stage for kind in kinds.values() for stage in kind.stages)])
    )
    stages += list(COMPARE_LOGS.stages) if name == "compare" else []
    parts = [
        f"## {name}\n",
        f"{verb.summary[0].upper()}{verb.summary[1:]}.\n",
        f"```text\n{usage(name)}\n```\n",
    ]
    if verb.options:
        rows = [f"| `{word}` | {meaning} |" for word, meaning in verb.options]
        parts.append("| option | meaning |\n|---|---|\n" + "\n".join(rows) + "\n")
    if stages:
        rows = [
            f"| {stage} | {_listed(STAGES[stage].reads)} | {_listed(STAGES[stage].writes) or '–'} |"
            for stage in stages
        ]
        parts.append("| stage | reads | writes |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    if verb.sections:
        links = ", ".join(
            f"[`{section}`](configuration/{section if section in section_names() else 'index'}.md)"
            for section in verb.sections
        )
        parts.append(f"Sections of the configuration: {links}.\n")
    return "\n".join(parts)


def _listed(patterns: tuple[str, ...]) -> str:
    return "<br>".join(pattern.replace("{", "").replace("}", "") for pattern in patterns)
