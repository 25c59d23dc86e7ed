"""Functions take the sections of the configuration that they use, not the whole of it; and those of
three or more arguments say what each is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.project.test_imports import modules

# a contract with granularities of other packages, which need other sections
HOOKS = {"contradictions", "idle"}


def _functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for module, path in modules():
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if ": Config" in text else ():
            if isinstance(node, ast.FunctionDef) and node.name not in HOOKS:
                yield module, node


def _uses(function: ast.FunctionDef, name: str) -> Iterator[str]:
    """The attributes of a parameter that are read; "" where it is passed on whole."""
    attributes = {
        id(node.value): node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == name:
            yield attributes.get(id(node), "")


def test_function_that_reads_one_section_takes_that_section() -> None:
    found, reading = [], 0
    for where, function in _functions():
        for argument in (*function.args.args, *function.args.kwonlyargs):
            annotation = argument.annotation
            if not (isinstance(annotation, ast.Name) and annotation.id == "Config"):
                continue
            uses = set(_uses(function, argument.arg))
            reading += 1
            if len(uses) == 1 and not uses & {"", "model_dump", "model_copy"}:
                found.append(f"{where} {function.name}: {uses.pop()}")
    assert reading > 50, "no function was found that takes a Config"
    assert found == []


def _public(
    node: ast.Module | ast.ClassDef,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
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
