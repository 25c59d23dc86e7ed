"""Functions take the sections of the configuration that they use, not the whole of it; and those of
three or more arguments say what each is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final, TypeAlias

from pipelines.plumbing.diagnostics.checks import CHECKS
from pipelines.stages import COMPARE_LOGS, FOLLOW, SEARCHES, UPDATES, VERBS
from recsys.config import Config
from tests.project.test_imports import modules

_FEWEST: Final = 4  # sections from which on a function takes the whole configuration
# a contract with granularities of other packages, which need other sections
_HOOKS: Final = {"contradictions", "idle"}
_WHOLE: Final = {"model_copy", "model_dump"}  # these need the whole configuration
_PROPERTIES: Final = {"has_model": "model"}  # properties that read one section

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def _fixed() -> set[str]:
    """Functions ``module:name`` that others call with the whole configuration: verbs, previews of
    dry runs, and checks of `recsys doctor`.
    """
    verbs = [*VERBS.values(), *UPDATES.values(), *SEARCHES.values(), COMPARE_LOGS, FOLLOW]
    return (
        {verb.target for verb in verbs}
        | {verb.preview for verb in verbs}
        | {f"{check.__module__}:{check.__name__}" for check in CHECKS.values()}
    )


def _uses(function: Function, name: str) -> Iterator[str]:
    """The attributes of a parameter that are read; "" where it is passed on whole."""
    attributes = {
        id(node.value): node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
            yield attributes.get(id(node), "")


def _takes(function: Function) -> Iterator[str]:
    """The parameters that are a configuration."""
    given = function.args
    for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs):
        if argument.annotation is not None and ast.unparse(argument.annotation).strip("\"'") in (
            "Config",
            "Config | None",
        ):
            yield argument.arg


def _is_declared_only(function: Function) -> bool:
    """Whether this is a method of a protocol."""
    return ast.unparse(function.body[-1]) == "..."


def _few(source: str) -> Iterator[tuple[str, set[str] | None]]:
    """The functions that take a configuration, each with its sections if these are too few."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, Function):
            continue
        for name in _takes(function):
            uses = {_PROPERTIES.get(use, use) for use in _uses(function, name)}
            is_free = uses & {"", *_WHOLE} or _is_declared_only(function)
            yield function.name, None if is_free or len(uses) >= _FEWEST else uses


def test_function_that_reads_few_sections_takes_these_sections() -> None:
    fixed, found, taking = _fixed(), [], 0
    for module, path in modules():
        for name, sections in _few(path.read_text(encoding="utf-8")):
            taking += 1
            if sections is not None and name not in _HOOKS and f"{module}:{name}" not in fixed:
                found.append(f"{module}:{name} reads {', '.join(sorted(sections)) or 'nothing'}")
    assert taking > 150, "no function was found that takes a Config"
    assert found == []


def test_check_of_sections_finds_what_it_should() -> None:
    few = "def f(config: Config | None, x: int):\n    return config.model, config.has_model, {}"
    assert dict(_few(few.format("config.train, config.seed"))) == {"f": {"model", "train", "seed"}}
    assert dict(_few(few.format("config.train, config.seed, config.run"))) == {"f": None}
    for whole in ("g(config)", "config.model_copy()", "config.model_dump()"):
        assert dict(_few(few.format(whole))) == {"f": None}
    assert set(_PROPERTIES) | _WHOLE <= set(dir(Config))


def _public(node: ast.Module | ast.ClassDef) -> Iterator[Function]:
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _public(child)
        elif isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef
        ) and not child.name.startswith("_"):
            yield child


def test_public_function_of_three_arguments_documents_them() -> None:
    undocumented, long = [], 0
    for module, path in modules():
        for function in _public(ast.parse(path.read_text(encoding="utf-8"))):
            arguments = [*function.args.args, *function.args.kwonlyargs]
            if len([one for one in arguments if one.arg not in ("self", "cls")]) < 3:
                continue
            long += 1
            if "Parameters\n" not in (ast.get_docstring(function) or ""):
                undocumented.append(f"{module} {function.name}")
    assert long > 300, "no functions were found"
    assert undocumented == []
