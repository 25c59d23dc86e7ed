"""The nightly recipes use commands that this release understands; the tests do not need Airflow."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from pipelines.plumbing.arguments import parse
from pipelines.stages import VERBS
from recsys.config import build_config, parse_value, set_path

DOCS = Path(__file__).parents[2] / "docs"
DAG = DOCS / "airflow/daily_update.py"


def dag_commands() -> list[str]:
    """The commands of the DAG's operators, with its constants filled in."""
    tree = ast.parse(DAG.read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    names: dict[str, str] = {}
    exec(compile(ast.Module(assigned, []), str(DAG), "exec"), {}, names)
    operators = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "Operator" in ast.unparse(node.func)
    ]
    assert operators and all(ast.unparse(call.func) == "BashOperator" for call in operators)
    return [
        names[ast.unparse(key.value)]
        for call in operators
        for key in call.keywords
        if key.arg == "bash_command"
    ]


def cron_commands() -> list[str]:
    line = next(
        line
        for line in (DOCS / "updating.md").read_text(encoding="utf-8").splitlines()
        if "flock" in line
    )
    assert re.match(r"(\S+ ){5}flock -n ", line) and line.count("%") == line.count(r"\%")
    options = re.search(r'o="([^"]*)"', line)
    assert options is not None
    found = re.findall(r"(recsys (?:update|promote) .*?) (?:&&|\|\|)", line)
    return [command.replace("$o", options[1]) for command in found]


@pytest.mark.parametrize("command", [*dag_commands(), *cron_commands()])
def test_nightly_command_is_valid(command: str) -> None:
    program, verb, *words = shlex.split(command.replace("{{ ds }}", "2026-11-28"))
    assert program == "recsys" and verb in VERBS
    arguments = parse(words)
    assert arguments.config is None
    tree: dict[str, object] = {}
    for dotted, text in arguments.overrides:
        set_path(tree, dotted, parse_value(dotted, text.replace("$", "")))
    config = build_config(tree)
    named = {
        "update": config.update.model,
        "promote": config.promote.model,
        "recommend": config.recommend.model,
    }
    assert named[verb].startswith("models:/shop@") and (verb != "update" or config.update.events)
