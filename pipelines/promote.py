"""Stage ``promote``: compare challenger and champion on the same test users, then move the alias or
refuse.

Reads the prepared dataset and both registered models; writes RUN/promotion.json, RUN/promotion.md,
tags of the versions, and a separate MLflow run with the comparison. A refusal is exit code 1.
"""

from __future__ import annotations

import getpass
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.cli import main
from pipelines.plumbing.folder import RunFolder, write_atomically
from pipelines.plumbing.promotion_record import candidate_table, to_markdown, version_tags
from pipelines.plumbing.session import quiet
from pipelines.prepare import open_dataset
from recsys.bundle.files import Bundle
from recsys.bundle.measured import has_measured, measured
from recsys.config import Config, PromoteConfig, redact
from recsys.data.bounded import evaluated_queries, fitted_histories
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Queries, Split
from recsys.errors import ArtifactError, ConfigError, DataError, Refusal
from recsys.evaluation.validation import Validator
from recsys.gate.cross_dataset import CrossDatasetScorer, fitted_through, leak_of
from recsys.gate.promotion import (
    Check,
    Findings,
    against_baselines,
    against_champion,
    against_drift,
    measure_baselines,
    ranked,
    segments_of,
)
from recsys.registry.aliases import CHAMPION, PREVIOUS, Aliases
from recsys.registry.minimum import candidates, newer_below
from recsys.registry.register import pinned, resolve
from recsys.registry.tracking import Tracker, client, tracking_uri
from recsys.serving.bundles import read_bundle
from recsys.training.threads import settle_threads


@dataclass(frozen=True)
class Side:
    """One of the two models: a version, and its bundle if it can be read."""

    version: str
    # with its evaluated model: the one that answers may be trained on test events
    bundle: Bundle | None
    broken: str  # why it cannot be read; otherwise empty

    def describe(self, name: str) -> dict[str, Any]:
        """The version and its bundle, for the record."""
        found: dict[str, Any] = {"version": self.version, "uri": f"models:/{name}/{self.version}"}
        if self.bundle is not None:
            info = self.bundle.info
            found |= {
                "created": info.created,
                "granularities": info.granularities,
                "dataset": info.dataset.get("content_hash", ""),
                "users": len(self.bundle.user_ids),
                "items": self.bundle.num_items,
            }
        return found


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
    ConfigError, ArtifactError
        There is no challenger, or no data to compare on.
    """
    quiet()
    Validator.of(config)
    if not config.tracking.enabled:
        raise ConfigError(
            "promote needs the MLflow registry, but tracking.enabled is false; set it true"
        )
    going_back = config.promote.rollback
    asked = config.promote.model or f"models:/{config.registry.name}@{config.registry.alias}"
    asked = f"models:/{config.registry.name}@{CHAMPION}" if going_back else asked
    if not asked.startswith("models:"):
        raise ConfigError(
            f"promote.model: got {asked!r}, expected a registered version: models:/NAME@ALIAS or"
            " models:/NAME/VERSION"
        )
    name, version = _asked(config, folder, asked)
    with (
        folder.progress.stage("promote"),
        Tracker(_recorded_apart(config), f"promote {name}", apart=True) as tracker,
    ):
        aliases = Aliases(tracker.client, name)
        found = candidates(tracker.client, name, config.train.metric)
        folder.progress(candidate_table(found, config.train.metric))
        record = (
            _roll_back(config.promote, aliases)
            if going_back
            else _decide(config, folder, aliases, version)
        )
        record["candidates"] = found
        if not going_back:
            record = _with_minimum(record, found, by_alias="@" in asked)
        if record["decision"] in ("promoted", "forced"):
            aliases.promote(version, (record["champion"] or {}).get("version", ""))
        _record(folder, tracker, aliases, record)
        folder.progress(_closing(record))
    if record["decision"] == "refused":
        raise Refusal("\n  - ".join([_closing(record), *record["reasons"]]))
    return record


def _asked(config: Config, folder: RunFolder, asked: str) -> tuple[str, str]:
    """Name and version of the requested model; if no version has the alias, print the candidates
    first.
    """
    try:
        name, version = pinned(asked, tracking_uri(config)).removeprefix("models:/").rsplit("/", 1)
    except ArtifactError:
        with suppress(Exception):  # no store or no such name: the first error says so
            name = asked.removeprefix("models:/").partition("@")[0]
            found = candidates(client(tracking_uri(config)), name, config.train.metric)
            folder.progress(candidate_table(found, config.train.metric))
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
    asked = record["challenger"]["version"]
    own = next((one for one in found if one["version"] == asked), None)
    if own is not None and not own["is_candidate"]:
        said = f"version {asked} is below the minimum for the alias: {own['why']}"
        return record | {"notes": [*record.get("notes", []), said]}
    newest = newer_below(found, asked) if by_alias else None
    if newest is None:
        return record
    said = (
        f"version {newest['version']} is newer and below the minimum for the alias: {newest['why']}"
    )
    if record["decision"] != "unchanged":
        return record | {"notes": [*record.get("notes", []), said]}
    uri = f"models:/{record['model']}/{newest['version']}"
    return record | {
        "challenger": {"version": newest["version"], "run_id": newest["run_id"]},
        "decision": "refused",
        "promoted": False,
        "reasons": [f"{said}; to compare it anyway, give its number: --promote.model {uri}"],
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
    name, place = aliases.name, tracking_uri(config)
    champion = aliases.version_of(CHAMPION)
    record = _begin(config.promote, aliases, version, champion)
    if champion == version:
        return record | {
            "decision": "unchanged",
            "promoted": True,
            "reasons": [f"version {version} is the champion"],
        }
    challenger = _side(name, version, place)
    holder = _side(name, champion, place) if champion else None
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
        _compare(config, folder, challenger.bundle, holder, findings)
    decision = "refused" if findings.reasons else "promoted"
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


def _side(name: str, version: str, place: str) -> Side:
    try:
        folder = resolve(f"models:/{name}/{version}", place)
        return Side(version, measured(folder, read_bundle(folder)), "")
    except ArtifactError as error:
        return Side(version, None, str(error))


# ---------------------------------------------------------------------------------------- comparing


def _compare(
    config: Config, folder: RunFolder, challenger: Bundle, champion: Side | None, findings: Findings
) -> None:
    """Rank the test split with both models, and apply every rule."""
    dataset = open_dataset(config)
    same = challenger.info.dataset.get("content_hash") == dataset.manifest.content_hash
    settle_threads(config.model, config.train, dataset.num_items, folder.progress)
    queries = evaluated_queries(dataset, Split.TEST, config.evaluate, config.seed)
    findings.notes.append(_what_is_compared(challenger, dataset, same))
    findings.notes += [note] if (note := _feedback_note(challenger)) else []
    findings.notes += [note] if (note := _final_note(challenger, champion)) else []
    against_drift(challenger.info.extra.get("drift"), config.promote, findings)
    scorer = CrossDatasetScorer(challenger, dataset)
    _check_leak("challenger", leak_of(challenger, scorer, dataset), findings)
    folder.progress(
        f"ranking all {dataset.num_items:,} items for {len(queries):,} test users: the challenger"
    )
    ranking, ours_B = ranked(scorer, queries, config.train, config.evaluate)
    if not len(ranking):
        raise DataError(
            f"{dataset.root} has no test user with a target that counts, so models cannot be"
            " compared"
        )
    if champion is None:
        findings.notes.append("there is no champion yet: only the baselines decide")
    elif champion.bundle is None:
        findings.checks.append(
            Check("champion", False, f"the champion cannot be loaded: {champion.broken}")
        )
    else:
        folder.progress(f"ranking with the champion, version {champion.version}")
        theirs = CrossDatasetScorer(champion.bundle, dataset)
        findings.notes += _vocabulary_notes(champion.bundle, theirs, dataset)
        _check_leak("champion", leak_of(champion.bundle, theirs, dataset), findings)
        _, theirs_B = ranked(theirs, queries, config.train, config.evaluate)
        groups = segments_of(ranking.queries, dataset, config.evaluate, fitted_through(challenger))
        groups |= _by_champion(theirs, ranking.queries)
        against_champion(ours_B, theirs_B, groups, config, findings)
    stored = challenger.info.extra.get("comparison") or {}
    as_now = (
        stored.get("metric") == config.train.metric
        and stored.get("exclude_seen") == config.evaluate.exclude_seen
    )
    if not (same and as_now and stored.get("against")) and config.promote.beat_baselines:
        names = ", ".join(config.evaluate.baselines)
        folder.progress(
            "measuring the baselines, as the challenger has no results on this data:"
            f" {names or 'none'}"
        )
        refit = fitted_through(challenger) == Split.VALID
        stored = measure_baselines(
            ranking,
            ours_B,
            fitted_histories(dataset, config.evaluate, config.seed),
            dataset.num_items,
            config,
            refit,
        )
    against_baselines(stored, config.promote, findings)


def _check_leak(who: str, leak: str, findings: Findings) -> None:
    if leak:
        why = f"the {who} was trained on test events, so its metrics cannot be trusted: {leak}"
        findings.checks.append(
            Check("leak", False, f"{why}; give newer test events, or promote.force with a reason")
        )
    else:
        findings.checks.append(
            Check("leak", True, f"no test event was among the {who}'s training events")
        )


def _what_is_compared(challenger: Bundle, dataset: PreparedDataset, same: bool) -> str:
    here = f"dataset {dataset.manifest.name} {dataset.manifest.content_hash[:12]}"
    if same:
        return (
            f"compared on the test split of {here}; the challenger was trained on its training"
            " split"
        )
    theirs = str(challenger.info.dataset.get("content_hash", ""))[:12]
    return (
        f"compared on the test split of {here}; the challenger was trained on another dataset,"
        f" {theirs}"
    )


def _feedback_note(challenger: Bundle) -> str:
    """A note if some parameters were fitted on events that the bundle does not hold."""
    later = [name for name in ("fusion", "strata") if name in challenger.info.extra]
    if not later:
        return ""
    return (
        f"`recsys update` fitted the challenger's {' and '.join(later)} again on events that its"
        " bundle does not hold, so it cannot be checked whether test events were among them"
    )


def _final_note(challenger: Bundle, champion: Side | None) -> str:
    """A note on models that answer with weights trained on test events, and are compared by
    others.
    """
    sides = {
        "challenger": challenger,
        "champion": champion.bundle if champion is not None else None,
    }
    named = [
        who for who, bundle in sides.items() if bundle is not None and has_measured(bundle.info)
    ]
    if not named:
        return ""
    return (
        f"the {' and the '.join(named)} answer{'s' if len(named) == 1 else ''} with weights trained"
        " on all events (train.final); the comparison uses the evaluated weights, which were not"
        " trained on test events"
    )


def _vocabulary_notes(
    champion: Bundle, scorer: CrossDatasetScorer, dataset: PreparedDataset
) -> list[str]:
    users, items = scorer.num_unknown
    if champion.info.dataset.get("content_hash") == dataset.manifest.content_hash:
        return ["the champion was trained on the same dataset"]
    theirs = str(champion.info.dataset.get("content_hash", ""))[:12]
    return [
        f"the champion was trained on another dataset ({theirs}) and answers as it does in"
        f" production: {users:,} of {dataset.num_users:,} users are cold-start users for it; it"
        f" does not know {items:,} of {dataset.num_items:,} items and never recommends them"
    ]


def _by_champion(scorer: CrossDatasetScorer, queries: Queries) -> dict[str, Any]:
    """Segments of users known and unknown to the champion, if both exist."""
    known_B = scorer.user_of_V[queries.histories.users_U] >= 0
    masks = {"known to the champion": known_B, "new to the champion": ~known_B}
    return {"champion": masks} if known_B.any() and not known_B.all() else {}


# ---------------------------------------------------------------------------- going back, recording


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
    aliases.tag(version, {**tags, "promotion.run_id": tracker.run_id})
    former = (record["champion"] or {}).get("version", "")
    if former and former != version and record["promoted"]:
        aliases.tag(former, {"promotion.replaced_by": version})


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
    sys.exit(main(["promote", *sys.argv[1:]]))
