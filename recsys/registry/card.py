"""The model card (Mitchell et al. 2019): what a model is, its measured quality, and what it must
not be used for.

Why in the bundle: a person who deploys a model has the bundle and not the report. The card is
written once, from the same numbers as ``metrics.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from recsys.config import DataConfig, ModelConfig, RegistryConfig
from recsys.data.manifest import Manifest
from recsys.evaluation.member_scores import kept_names, single_line
from recsys.registry.card_results import (
    baseline_lines,
    final_lines,
    granularity_lines,
    interval_of,
    measured_lines,
    member_lines,
    segment_lines,
    signal_lines,
)
from recsys.registry.markdown import plain_line, shown_as_text
from recsys.report.wording import sentence

NOT_STATED: Final = "not stated (set registry.data_license)"
_USE: Final = (
    "Ranking the items of its catalogue for users of the service that the events come from,"
    " including new users."
)
_NO_USE: Final = (
    "Decisions about people other than which items to show (credit, work, health, law); groups of"
    " people that the events do not cover; inferring attributes of people from their"
    " recommendations."
)


def model_card(
    data: DataConfig,
    model: ModelConfig,
    registry: RegistryConfig,
    manifest: Manifest,
    metrics: Mapping[str, Any],
    lineage: Mapping[str, Any],
    influence: Sequence[str] = (),
    private: Mapping[str, Any] | None = None,
) -> str:
    """The card of an evaluated model as Markdown.

    Parameters
    ----------
    data : DataConfig
        Names the kind of the source.
    model : ModelConfig
        Granularities and fusion of the model.
    registry : RegistryConfig
        Name of the model, its intended use, and the licence of the data.
    manifest : Manifest
        Manifest of the dataset that it was trained and evaluated on.
    metrics : Mapping[str, Any]
        The content of ``metrics.json``; empty where there is none.
    lineage : Mapping[str, Any]
        See :func:`recsys.registry.provenance.lineage`.
    influence : Sequence[str]
        Contributions of the model that still depend on forgotten users.
    private : Mapping[str, Any] | None
        Privacy budget of a private training (:class:`recsys.training.private.Budget`); None for
        other trainings.
    """
    names = kept_names(metrics.get("members") or {}, model.granularities.enabled())
    lines = [
        f"# Model card: {plain_line(registry.name)}",
        "",
        (
            f"A recommender with {len(names)} granularities ({', '.join(names)}; fusion"
            f" {model.fusion.kind}), made by Multigrain {lineage['release']}. A score is the"
            " product of a user vector and an item vector, and is the exact sum of the shares of"
            " the granularities."
        ),
        *_section("Intended use", [use_of(registry)]),
        *_section("Not for", [_NO_USE]),
        *_section("Data", _data(data, registry, manifest)),
    ]
    if metrics.get("model"):
        lines += _section("Measured on the test split", measured_lines(metrics))
        lines += _section("Trained on all events afterwards", final_lines(metrics))
        lines += _section("Against the baselines", baseline_lines(metrics))
        lines += _section("By segment", segment_lines(metrics))
        lines += _section("By the signals of a query", signal_lines(metrics))
        lines += _section("Members", member_lines(metrics))
        lines += _section("Granularities", granularity_lines(metrics))
    lines += _section("Limits", _limits(manifest, metrics))
    lines += _section("Differential privacy", _private(private))
    lines += _section("Influence of forgotten users", _influence(manifest, influence))
    lines += _section("Lineage", lineage_lines(lineage))
    return shown_as_text("\n".join([*lines, ""]))


def use_of(registry: RegistryConfig) -> str:
    """The intended use of the model."""
    return plain_line(registry.intended_use or _USE)


def short_card(
    registry: RegistryConfig, metrics: Mapping[str, Any], lineage: Mapping[str, Any]
) -> list[str]:
    """The card in a few lines, for the description of a registered version.

    Parameters
    ----------
    registry : RegistryConfig
        Names the licence of the data.
    metrics : Mapping[str, Any]
        The content of ``metrics.json``; entries may be missing.
    lineage : Mapping[str, Any]
        Dataset, git commit and MLflow run of the version.

    Returns
    -------
    list[str]
        One sentence or two in each line.
    """
    found = []
    metric, interval = metrics.get("metric"), interval_of(metrics)
    if metric and interval:
        found.append(f"{metric} {metrics['model'][metric]:.4f}, 95 % interval {interval}.")
    against = (metrics.get("comparison") or {}).get("against") or {}
    if against:
        shown = (f"{name} {entry['difference']:+.4f}" for name, entry in against.items())
        found.append(f"Difference from the baselines: {', '.join(shown)}.")
    if members := single_line(metrics.get("members") or {}):
        found.append(sentence(members))
    final = (metrics.get("data") or {}).get("final")
    if final:
        found.append(
            "The metrics belong to a model that was not trained on the test split; this one was"
            f" trained on all {final['events']:,} events."
        )
    commit = str(lineage.get("git_commit", ""))[:12]
    changed = " with uncommitted changes" if lineage.get("git_changed") else ""
    return [
        *found,
        f"Data licence: {plain_line(registry.data_license or NOT_STATED)}.",
        (
            f"Dataset {str(lineage.get('dataset', ''))[:12]}, git {commit}{changed}, MLflow run"
            f" {lineage.get('run_id')}."
        ),
        "The full model card is MODEL_CARD.md in the bundle and in the artefacts of the run.",
    ]


def refitted_card(
    parent: str,
    parent_card: str,
    what: str,
    metrics: Mapping[str, float],
    lineage: Mapping[str, Any],
) -> str:
    """The card of a model in which one part was refitted and which has no evaluation of its own
    yet.

    Parameters
    ----------
    parent : str
        URI of the parent.
    parent_card : str
        Text of its card; empty: it has none.
    what : str
        The part that was refitted: ``fusion`` or ``strata``.
    metrics : Mapping[str, float]
        Measured values by name; may be empty.
    lineage : Mapping[str, Any]
        Dataset, git commit and MLflow run of the new version.

    Returns
    -------
    str
        The card as Markdown; the parent's card is its end.
    """
    lines = [
        f"# Model card: {parent} with refitted {what}",
        "",
        (
            f"The model {parent} in which only the {what} {'was' if what == 'fusion' else 'were'}"
            " refitted. **The numbers of the card below are the parent's**: this model has not"
            " been evaluated on the test split; `recsys promote` does that."
        ),
    ]
    if metrics:
        lines += _section("Measured", [f"- {name}: {value:.5f}" for name, value in metrics.items()])
    lines += _section("Lineage", lineage_lines(lineage))
    return shown_as_text(
        "\n".join([*lines, "", "---", "", parent_card or "(the parent has no card)", ""])
    )


def lineage_lines(lineage: Mapping[str, Any]) -> list[str]:
    """The lineage of a model as a Markdown list."""
    changed = " (with uncommitted changes)" if lineage.get("git_changed") else ""
    return [
        f"- MLflow run: {lineage.get('run_id') or 'none, because tracking was off'}",
        f"- dataset digest: {lineage.get('dataset')}",
        f"- configuration digest: {lineage.get('config')}",
        f"- git commit of the working directory: {lineage.get('git_commit')}{changed}",
        f"- release: {lineage.get('release')}",
    ]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _data(data: DataConfig, registry: RegistryConfig, manifest: Manifest) -> list[str]:
    counts = {name: f"{count:,}" for name, count in manifest.counts.items()}
    split = ", ".join(
        f"{key} {plain_line(value)}"
        for key, value in manifest.split.items()
        if value not in (None, False, "")
    )
    bad = sum(sum(reasons.values()) for reasons in manifest.quarantined.values())
    return [
        f"- name: {plain_line(manifest.name)}, from a {data.source.kind} source",
        f"- licence: {plain_line(registry.data_license or NOT_STATED)}",
        (
            f"- {counts.get('users', 0)} users, {counts.get('items', 0)} items,"
            f" {counts.get('events', 0)} events"
            f" ({', '.join(plain_line(kind) for kind in manifest.event_types)}); {bad:,} bad rows"
            " left out"
        ),
        (
            f"- split: {split}; {counts.get('train', 0)} training events, {counts.get('valid', 0)}"
            f" validation events, {counts.get('test', 0)} test events"
        ),
        f"- language model for item texts: {plain_line(manifest.text.get('model') or 'none')}",
        *(f"- note: {plain_line(note)}" for note in manifest.notes),
    ]


def _private(private: Mapping[str, Any] | None) -> list[str]:
    """What the privacy guarantee ε covers, and what it does not cover."""
    if private is None:
        return []
    return [
        (
            f"Trained by DP-SGD with the {private['unit']} as the unit: **ε"
            f" {private['epsilon']:.3f} at δ {private['delta']:.0e}** ({private['accountant']};"
            f" noise {private['noise_multiplier']:.3f}, gradients clipped to {private['clip']:g},"
            f" {private['steps']:,} steps, each with a share of {private['sample_rate']:.4f} of"
            f" {private['users']:,} users)."
        ),
        "",
        "- The guarantee covers the trained weights, the item vectors and the item counts.",
        (
            "- It does not cover the set of items and event types, the histories that a bundle"
            " stores to answer known users, or the metrics of this card, which were measured on"
            " real users."
        ),
    ]


def _influence(manifest: Manifest, influence: Sequence[str]) -> list[str]:
    """The removed users, and the parts of the model that were not trained again without them."""
    if not manifest.forgotten.get("users"):
        return []
    number = sum(len(hashes) for hashes in manifest.forgotten["users"].values())
    influence = [*influence, *manifest.forgotten.get("left", [])]
    if not influence:
        return [
            f"The model was trained without the {number:,} forgotten users; nothing in it depends"
            " on them."
        ]
    return [
        (
            f"The rows of {number:,} forgotten users were removed, and all counted or closed-form"
            " parts were computed again without them. These parts were trained, or chosen, on data"
            " with these users, and so still depend on them:"
        ),
        "",
        *(f"- {plain_line(what)}" for what in influence),
        "",
        "`recsys forget --retrain` trains the model without them.",
    ]


def _limits(manifest: Manifest, metrics: Mapping[str, Any]) -> list[str]:
    cold = (metrics.get("segments") or {}).get("users", {})
    found = [
        (
            "- Measured on past behaviour: only an online experiment shows how people react to"
            " other lists."
        ),
        (
            "- The model repeats biases of the events, such as the popularity and exposure of items"
            " in the service; see `trust` in the report."
        ),
        (
            "- Items and users that the model does not know are skipped in a request; a request"
            " without any known signal gets the most popular items."
        ),
    ]
    if note := ((metrics.get("data") or {}).get("foresight") or {}).get("note"):
        found.append(f"- The split is {note}.")
    if not manifest.ordered:
        found.append("- Histories are sets: the order and the times of events are unknown.")
    if "new users" not in cold:
        found.append(
            "- All test users were known in training: quality for new users is not measured here."
        )
    return found
