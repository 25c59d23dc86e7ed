"""``python -m benchmarks.gpu --all`` answers question after question, also after an error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.gpu_checks import table
from benchmarks.gpu_checks.setting import Setting, Skipped


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_error_and_a_skipped_check_do_not_stop_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(setting: Setting) -> dict[str, Any]:
        raise RuntimeError("no kernel image")

    def skips(setting: Setting) -> dict[str, Any]:
        raise Skipped("needs two devices")

    real = {check.name: check for check in table.CHECKS}
    checks = (
        table.Check("fails", "does it fail", 0.1, fails),
        table.Check("skips", "is it skipped", 0.1, skips),
        real["optimizer"],
        real["ranking"],
    )
    assert not table.run([], 100, checks)
    found = {line["check"]: line for line in lines(capsys)}
    assert found["fails"]["error"] == "RuntimeError: no kernel image"
    assert found["skips"]["skipped"] == "needs two devices"
    assert found["optimizer"]["rows only"]["ms"] > 0
    assert found["ranking"]["ours"]["users_a_second"] > 0
    assert all("seconds" in line and "device" in line for line in found.values())


def test_a_sound_run_of_named_checks_returns_true_and_prints_only_those(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert table.run(["optimizer"], 100)
    assert [line["check"] for line in lines(capsys)] == ["optimizer"]


def test_checks_that_would_start_after_the_time_are_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert table.run(["optimizer", "ranking"], 0)
    assert {line["skipped"] for line in lines(capsys)} == {"the time is over"}


def test_the_shares_of_time_are_at_most_the_whole() -> None:
    assert sum(check.share for check in table.CHECKS) <= 1.03
