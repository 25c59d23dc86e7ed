"""Stage ``promote``: compare challenger and champion on the same test users, then move the alias or
refuse.

Reads the prepared dataset and both registered models; writes RUN/promotion.json, RUN/promotion.md,
tags of the versions, and a separate MLflow run with the comparison. A refusal is exit code 1.
"""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

from pipelines.comparison.champion import compare, side_of
from pipelines.plumbing.promotion_record import DECISION, candidate_table, to_markdown, version_tags
from pipelines.plumbing.run_folder import RunFolder, write_atomically
from pipelines.plumbing.session import quiet
from recsys.config import Config, PromoteConfig, RunConfig, TrackingConfig, TrainConfig, redact
from recsys.errors import ArtifactError, ConfigError, Refusal, UserError
from recsys.evaluation.validation import Validator
from recsys.gate.promotion import Check, Findings
from recsys.registry.aliases import CHAMPION, PREVIOUS, Aliases
from recsys.registry.minimum import candidates, newer_below
from recsys.registry.mlflow_client import client, sqlite_path, tracking_uri
from recsys.registry.resolve import pinned
from recsys.registry.tracking import Tracker

_INTERRUPTED: Final = "interrupted"  # in promotion.json while the alias moves
# tag of a version: the MLflow run with the decision; empty until everything is recorded
_RUN: Final = "promotion.run_id"


def promote(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Decide, record the decision, and move the alias if the gate agrees.

    Returns
    -------
    dict
        The content of ``promotion.json``.

    Raises
    ------
    Refusal
        The challenger is not promoted. The record is written before.
    ConfigError
        Tracking is off, ``promote.model`` is not a registered version, or there is no data to
        compare on.
    ArtifactError
        There is no challenger.
    """
    quiet()
    Validator.of(config.train, config.evaluate)
    if not config.tracking.enabled:
        raise ConfigError(
            "promote needs the MLflow registry, but tracking.enabled is false; set it true"
        )
    going_back = config.promote.rollback
    uri = config.promote.model or f"models:/{config.registry.name}@{config.registry.alias}"
    uri = f"models:/{config.registry.name}@{CHAMPION}" if going_back else uri
    if not uri.startswith("models:"):
        raise ConfigError(
            f"promote.model: got {uri!r}, expected a registered version: models:/NAME@ALIAS or"
            " models:/NAME/VERSION"
        )
    # a fixed version from here on: the alias may move while models are compared
    name, version = _name_and_version(config.run, config.train, config.tracking, folder, uri)
    with (
        folder.progress.stage("promote"),
        Tracker(_recorded_apart(config), f"promote {name}", apart=True) as tracker,
        _without_a_record_of_wrong_input(tracker),
    ):
        aliases = Aliases(tracker.client, name)
        found = candidates(tracker.client, name, config.train.metric)
        folder.progress(candidate_table(found, config.train.metric))
        record = (
            _roll_back(config.promote, aliases)
            if going_back
            else _decide(config, folder, aliases, version)
        )
        if "candidates" not in record:  # those of an interrupted command are from before
            record["candidates"] = found
            if not going_back:
                record = _with_minimum(record, found, by_alias="@" in uri)
        if record["decision"] in ("promoted", "forced") and version != aliases.version_of(CHAMPION):
            folder.write_json(folder.promotion, record | {_INTERRUPTED: True})
            before = (record["champion"] or {}).get("version", "")
            aliases.promote(version, before, version_tags(record) | {_RUN: ""})
        _record(folder, tracker, aliases, record)
        folder.progress(_closing(record))
    _complete(aliases, record)
    if record["decision"] == "refused":
        raise Refusal("\n  - ".join([_closing(record), *record["reasons"]]) + _way_on(record))
    return record


@contextmanager
def _without_a_record_of_wrong_input(tracker: Tracker) -> Iterator[None]:
    """Delete the MLflow run if the input is wrong: only a decision is a result."""
    try:
        yield
    except UserError:
        tracker.discard()
        raise


def _name_and_version(
    run: RunConfig, train: TrainConfig, tracking: TrackingConfig, folder: RunFolder, uri: str
) -> tuple[str, str]:
    """Name and version of the requested model; if no version has the alias, print the candidates
    first.

    Raises
    ------
    ArtifactError
        There is no such version.
    """
    try:
        name, version = (
            pinned(uri, tracking_uri(tracking, run.dir)).removeprefix("models:/").rsplit("/", 1)
        )
    except ArtifactError:
        store = tracking_uri(tracking, run.dir)
        path = sqlite_path(store)
        if path is None or path.is_file():  # else the client would create it
            with suppress(Exception):  # no such name: the first error says so
                name = uri.removeprefix("models:/").partition("@")[0]
                found = candidates(client(store), name, train.metric)
                folder.progress(candidate_table(found, train.metric))
        raise
    return name, version


def _with_minimum(
    record: dict[str, Any], found: list[dict[str, Any]], by_alias: bool
) -> dict[str, Any]:
    """The record with the result of the minimum check for the version, or for a newer version.

    Why a newer one: a version below the minimum does not get the alias, so the alias still names
    the champion. Without this check the result would be "unchanged", and nobody would notice that
    the daily update fails. It is a refusal instead.
    """
    version = record["challenger"]["version"]
    own = next((one for one in found if one["version"] == version), None)
    if own is not None and not own["is_candidate"]:
        note = f"version {version} is below the minimum for the alias: {own['why']}"
        return record | {"notes": [*record.get("notes", []), note]}
    newest = newer_below(found, version) if by_alias else None
    if newest is None:
        return record
    note = (
        f"version {newest['version']} is newer and below the minimum for the alias: {newest['why']}"
    )
    if record["decision"] != "unchanged":
        return record | {"notes": [*record.get("notes", []), note]}
    uri = f"models:/{record['model']}/{newest['version']}"
    return record | {
        "challenger": {"version": newest["version"], "run_id": newest["run_id"]},
        "decision": "refused",
        "promoted": False,
        "reasons": [f"{note}; to compare it anyway, give its number: --promote.model {uri}"],
    }


def _recorded_apart(config: Config) -> Config:
    """The configuration with a separate MLflow experiment, so that promotions are not between
    trainings.
    """
    tracking = config.tracking.model_copy(
        update={"experiment": f"{config.tracking.experiment}-promotions"}
    )
    return config.model_copy(update={"tracking": tracking})


def _decide(config: Config, folder: RunFolder, aliases: Aliases, version: str) -> dict[str, Any]:
    """Compare and decide; return the record. The alias is not moved yet."""
    name, store = aliases.name, tracking_uri(config.tracking, config.run.dir)
    champion = aliases.version_of(CHAMPION)
    record = _begin(config.promote, aliases, version, champion)
    if champion == version:
        return _interrupted(folder, aliases, record) or record | {
            "decision": "unchanged",
            "promoted": True,
            "reasons": [f"version {version} is the champion"],
        }
    challenger = side_of(name, version, store)
    holder = side_of(name, champion, store) if champion else None
    record["challenger"] |= challenger.describe(name)
    record["champion"] = holder.describe(name) if holder is not None else None
    findings = Findings()
    if challenger.bundle is None:
        findings.checks.append(
            Check("self_test", False, f"the challenger cannot be loaded: {challenger.broken}")
        )
    else:
        findings.checks.append(
            Check("self_test", True, "the challenger gives the same answers as when it was written")
        )
        compare(config, folder, challenger.bundle, holder, findings)
    decision = "refused" if findings.reasons else "promoted"
    # force overrides a judgement, but a model that cannot be loaded answers nothing
    if findings.reasons and config.promote.force and challenger.bundle is not None:
        decision = "forced"
    elif findings.reasons and config.promote.force:
        findings.notes.append(
            "promote.force has no effect: a model that cannot be loaded cannot answer requests"
        )
    return record | {
        "decision": decision,
        "promoted": decision != "refused",
        "reasons": findings.reasons,
        "checks": [check.to_json() for check in findings.checks],
        "comparison": findings.comparison,
        "baselines": findings.baselines,
        "notes": findings.notes,
    }


def _interrupted(
    folder: RunFolder, aliases: Aliases, record: dict[str, Any]
) -> dict[str, Any] | None:
    """The record of a command that was interrupted after it had moved the alias, if there is
    one.
    """
    version = record["challenger"]["version"]
    if aliases.tags(version).get(_RUN) != "":
        return None
    with suppress(ArtifactError):
        found = folder.read_json(folder.promotion, "")
        found.pop(_INTERRUPTED, None)
        if (found["model"], found["challenger"]["version"]) == (record["model"], version):
            return found
    return None


def _begin(promote: PromoteConfig, aliases: Aliases, version: str, champion: str) -> dict[str, Any]:
    """The fields that every record has."""
    return {
        "model": aliases.name,
        "challenger": {"version": version, "run_id": aliases.run_id(version)},
        "champion": {"version": champion} if champion else None,
        "rules": promote.model_dump(mode="json"),
        "by": f"{_user()}@{socket.gethostname()}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"


def _roll_back(promote: PromoteConfig, aliases: Aliases) -> dict[str, Any]:
    """Make the previous champion the champion again, and return the record."""
    was, now = aliases.roll_back()
    return _begin(promote, aliases, now, was) | {
        "decision": "rolled back",
        "promoted": True,
        "reasons": [promote.force or "requested by promote.rollback"],
        "checks": [],
        "notes": [f"{PREVIOUS} is now: version {aliases.version_of(PREVIOUS) or 'none'}"],
    }


def _record(folder: RunFolder, tracker: Tracker, aliases: Aliases, record: dict[str, Any]) -> None:
    """Write the record to the run folder, the MLflow run and the tags of the versions."""
    name, version = record["model"], record["challenger"]["version"]
    record |= {"tracking": redact(tracker.uri), "promotion_run_id": tracker.run_id}
    folder.write_json(folder.promotion, record)
    page = folder.promotion.with_suffix(".md")
    write_atomically(page, to_markdown(record))
    folder.publish(page)
    tags = version_tags(record)
    title = f"promote {name} {version}: {record['decision']}"
    tracker.set_tags(
        {"mlflow.runName": title, "promotion.model": name, "promotion.version": version, **tags}
    )
    numbers = {
        key: value for key, value in (record.get("comparison") or {}).items() if key != "segments"
    }
    tracker.log_metrics({"promotion": numbers})
    for path in (folder.promotion, page):
        tracker.log_file(path)
    former = (record["champion"] or {}).get("version", "")
    if former and former != version and record["promoted"]:
        aliases.tag(former, {"promotion.replaced_by": version})
    if record["decision"] != "unchanged" or DECISION not in aliases.tags(version):
        aliases.tag(version, tags)


def _complete(aliases: Aliases, record: dict[str, Any]) -> None:
    """Note that everything is recorded; until then, the same command completes an interrupted
    one.
    """
    version = record["challenger"]["version"]
    if record["decision"] != "unchanged" or not aliases.tags(version).get(_RUN):
        aliases.tag(version, {_RUN: record["promotion_run_id"]})
    aliases.end_rollback(version)


def _way_on(record: dict[str, Any]) -> str:
    """How to promote a refused version anyway; empty if it was not measured or cannot answer."""
    failed = {check["name"] for check in record.get("checks", ()) if not check["passed"]}
    return "\n`--force REASON` promotes it anyway" if failed and "self_test" not in failed else ""


def _closing(record: dict[str, Any]) -> str:
    name, version, champion = record["model"], record["challenger"]["version"], record["champion"]
    holder = f"version {champion['version']}" if champion else "none"
    stays = f"{holder} stays champion" if champion else "and there is no champion"
    return {
        "promoted": f"{name} version {version} is now champion (before: {holder})",
        "forced": (
            f"{name} version {version} is now champion by force ({record['rules']['force']};"
            f" before: {holder})"
        ),
        "refused": f"{name} version {version} is not promoted, {stays}",
        "rolled back": f"{name} version {version} is champion again (before: {holder})",
        "unchanged": f"{name} version {version} is already the champion",
    }[record["decision"]]


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["promote", *sys.argv[1:]]))
