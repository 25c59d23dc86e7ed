"""What the documents promise about the tree is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_slow_test_is_listed() -> None:
    """The table of docs/tests.md names the slow tests, all of them and no other."""
    slow = {
        node.name
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and any("mark.slow" in ast.unparse(mark) for mark in node.decorator_list)
    }
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/tests.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(slow)
