"""``recsys doctor``: check this machine and the paths of a configuration, and say how to fix
problems.

Exit code 0 if no check fails (warnings are allowed), otherwise 1. It changes nothing. A check that
takes too long becomes a finding.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from pipelines.cli import config_file
from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.diagnostics.checks import CHECKS
from pipelines.plumbing.diagnostics.finding import Check, Finding
from pipelines.plumbing.session import quiet
from pipelines.stages import VERBS
from recsys.config import Config, load_config

_PATIENCE_S: Final = 30.0  # for all checks together; they run in parallel


def command(words: Sequence[str]) -> int:
    """Run ``doctor`` with the words after it; return the exit code.

    Raises
    ------
    UsageError
        ``--doctor.json`` is neither true nor false, or an option needs ``--config``.
    """
    arguments = parse(words, {"doctor.json": "doctor.json"})
    as_json = dict(arguments.overrides).get("doctor.json", "false").lower()
    if as_json not in ("true", "false"):
        raise UsageError(f"--doctor.json: got {as_json!r}, expected true or false")
    rest = [(name, value) for name, value in arguments.overrides if name != "doctor.json"]
    if rest and arguments.config is None:
        raise UsageError(
            f"--{rest[0][0]} changes a configuration, but --config FILE is missing. Usage:"
            f" {VERBS['doctor'].usage}"
        )
    if arguments.dry_run:
        print(
            f"`recsys doctor` would check: {', '.join(CHECKS)}\nNothing was done: this is a dry"
            " run."
        )
        return 0
    config = load_config(config_file(arguments.config), rest) if arguments.config else None
    quiet()
    findings = examine(config)
    print(
        json.dumps([asdict(finding) for finding in findings], indent=2)
        if as_json == "true"
        else shown(findings)
    )
    sys.stdout.flush()
    return int(any(finding.state == "fail" for finding in findings))


def examine(
    config: Config | None, checks: Mapping[str, Check] = CHECKS, patience: float = _PATIENCE_S
) -> list[Finding]:
    """Run all checks in parallel and return their findings in the order of the checks.

    A check that raises or is not done after ``patience`` seconds becomes a failed finding.

    Parameters
    ----------
    config : Config | None
        The configuration to check; None: only this machine is checked.
    checks : Mapping[str, Check]
        Check by name.
    patience : float
        Seconds for all checks together.

    Returns
    -------
    list[Finding]
        The findings of every check; one failed finding for a check that raises or is late.
    """
    found: dict[str, list[Finding]] = {}

    def run(name: str, check: Check) -> None:
        try:
            found[name] = list(check(config))
        except Exception as error:  # one broken check must not hide the other findings
            found[name] = [
                Finding(name, "fail", f"{type(error).__name__}: {error}", "this check itself broke")
            ]

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in checks.items()]
    for thread in threads:
        thread.start()
    last = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, last - time.monotonic()))
    late = f"the check did not end within {patience:g} s"
    cure = (
        "the machine is busy, or the service cannot be reached: run `recsys doctor` again; all"
        " other checks were done"
    )
    return [
        finding
        for name in checks
        for finding in found.get(name, [Finding(name, "fail", late, cure)])
    ]


def shown(findings: Sequence[Finding]) -> str:
    """One line per finding, the cure below it, and the number of failures and warnings.

    >>> full = Finding("disk", "fail", "full", "free space")
    >>> print(shown([Finding("cpu", "ok", "2 cores"), full]))
    ok    cpu                2 cores
    fail  disk               full
                             → free space
    1 failure, 0 warnings
    """
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<4}  {finding.name:<18} {finding.found}")
        if finding.cure:
            lines.append(f"{'':<24} → {finding.cure}")
    failures, warnings = (
        sum(finding.state == state for finding in findings) for state in ("fail", "warn")
    )
    return "\n".join([*lines, f"{_number(failures, 'failure')}, {_number(warnings, 'warning')}"])


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
