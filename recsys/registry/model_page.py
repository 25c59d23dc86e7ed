"""The descriptions of a registered model and of its versions as Markdown for MLflow's pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from recsys.config import RegistryConfig
from recsys.evaluation.member_scores import kept_names
from recsys.registry.aliases import CHAMPION, PREVIOUS
from recsys.registry.card import short_card, use_of
from recsys.registry.logged_values import numbers
from recsys.registry.markdown import plain_line, shown_as_text, table

if TYPE_CHECKING:
    from recsys.bundle.layout import Bundle

PAGE_END: Final = "*Written by `recsys register`; a text without this line is left as it is.*"
_LONGEST: Final = 5_000  # characters, MLflow's limit


def describe_model(client: Any, registry: RegistryConfig) -> None:
    """Write the description of the registered model, unless a user has written their own."""
    name = registry.name
    before = client.get_registered_model(name).description or ""
    if not before or before.endswith(PAGE_END):
        client.update_registered_model(name, description=model_page(registry))


def model_page(registry: RegistryConfig) -> str:
    """The intended use, the aliases, and how to load and call the model; nothing that depends on a
    version.
    """
    name, alias = registry.name, registry.alias
    aliases = [
        [
            CHAMPION,
            (
                "serves: the gate (`recsys promote`) found it better than the one before, with no"
                " guardrail broken"
            ),
        ],
        [
            alias,
            (
                "the newest version above the minimum: not below the best baseline, and trained on"
                " enough data"
            ),
        ],
        [
            PREVIOUS,
            "the champion before this one; `recsys promote --promote.rollback true` restores it",
        ],
    ]
    if alias == CHAMPION:  # a registry without a gate
        del aliases[0]
    head = [
        f"# {plain_line(name)}",
        "",
        use_of(registry),
        "",
        *table(["alias", "meaning"], aliases),
        "",
    ]
    code = [
        "```python",
        f'model = mlflow.pyfunc.load_model("models:/{name}@champion")',
        'model.predict([{"history": ["ITEM", "ITEM"], "k": 10}])',
        "```",
    ]
    rest = [
        "",
        (
            "The tag `minimum.why` of a version says why it may or may not have the alias"
            f" {plain_line(alias)}; a version without an alias is pulled by its number. The card of"
            " a version is `MODEL_CARD.md` in the artefacts of its run."
        ),
    ]
    text = shown_as_text("\n".join([*head, *code, *rest]))
    return f"{text[: _LONGEST - len(PAGE_END) - 2]}\n\n{PAGE_END}"


def version_description(
    bundle: Bundle, registry: RegistryConfig, metrics: Mapping[str, Any]
) -> str:
    """The card of a version in a few lines, with the model and the baselines in a table.

    Parameters
    ----------
    bundle : Bundle
        The bundle of the version.
    registry : RegistryConfig
        Names the licence of the data.
    metrics : Mapping[str, Any]
        The content of ``metrics.json``, or only the metrics of the model.

    Returns
    -------
    str
        Markdown, cut to the longest description that MLflow takes.
    """
    info = bundle.info
    kept = kept_names(metrics.get("members") or {}, info.granularities)
    lines = [
        (
            f"**Multigrain {info.package_version}**: {', '.join(kept)} on dataset"
            f" {info.dataset.get('name', '')} ({len(bundle.user_ids)} users, {bundle.num_items}"
            " items)."
        ),
        "",
        *_beside_baselines(metrics),
    ]
    figures = {
        key: value for key, value in numbers(metrics.get("model", metrics)).items() if "@" in key
    }
    if figures:
        lines.append(
            f"- {', '.join(f'{key} {value:.4f}' for key, value in list(figures.items())[:4])}."
        )
    if "lineage" in info.extra:
        lines += [f"- {line}" for line in short_card(registry, metrics, info.extra["lineage"])]
    lines.append(
        "- Columns of a request: user_id, history (item ids, oldest first), friends (user ids),"
        " attributes, k, exclude_seen; or item_id, for similar items. Rules: candidates, exclude,"
        " filters, boost, diversify, offset, per_user_limit, explain."
    )
    return shown_as_text("\n".join(lines))[:_LONGEST]


def _beside_baselines(metrics: Mapping[str, Any]) -> list[str]:
    """The main metric of the model and of every baseline, best first, as a Markdown table."""
    metric, baselines = metrics.get("metric", ""), metrics.get("baselines") or {}
    if metric not in metrics.get("model", {}) or not baselines:
        return []
    values = {
        "**this model**": metrics["model"][metric],
        **{name: of[metric] for name, of in baselines.items()},
    }
    ordered = sorted(values.items(), key=lambda pair: -pair[1])
    return [
        *table(["recommender", metric], [[name, f"{value:.4f}"] for name, value in ordered]),
        "",
    ]
