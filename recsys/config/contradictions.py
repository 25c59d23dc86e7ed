"""Settings that contradict each other for any data: found before a verb starts, and by its dry run.

Why not when the configuration is read: a search space tests values one by one, and two values that
contradict each other may each be valid together with another value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from recsys.config.data import DataConfig
from recsys.config.privacy_rules import privacy_violations
from recsys.config.root import Config, RunConfig
from recsys.config.sharding_rules import sharding_violations
from recsys.config.values import seconds_of
from recsys.config.verbs import UpdateConfig
from recsys.errors import ConfigError
from recsys.storage.uris import is_remote

_PREPARES: Final = "prepare"
_TRAINS: Final = "train"
_UPDATES: Final = "parent"


def check_settings(config: Config, stages: tuple[str, ...]) -> None:
    """Refuse settings that the stages of a verb cannot follow together.

    Raises
    ------
    ConfigError
        With all contradictions, one in each line.
    """
    found = list(_of_data(config.data)) if _PREPARES in stages else []
    found += list(_of_training(config)) if _TRAINS in stages and config.has_model else []
    found += list(_of_update(config.update, config.run)) if _UPDATES in stages else []
    if config.train.privacy.epsilon and (
        "sweep" in stages or (_TRAINS in stages and not config.has_model)
    ):
        found.append(
            "train.privacy trains one model once, but a search and a chosen model (model auto) read"
            " the users' data many times: give a section model, and set train.privacy.epsilon 0 for"
            " the search"
        )
    if found:
        raise ConfigError("settings contradict each other:\n  " + "\n  ".join(found))


def _of_update(update: UpdateConfig, run: RunConfig) -> Iterator[str]:
    if not update.follow:
        if update.idle or update.promote:
            yield (
                "update.idle and update.promote belong to update.follow, which is empty; set it,"
                " such as update.follow 10s, or leave out the others"
            )
        return
    if not seconds_of(update.follow):
        yield f"update.follow: got {update.follow}, expected a time above zero, such as 10s"
    if not update.events:
        yield (
            "update.follow: --events is missing; give the folder or the glob of the files that"
            " arrive, such as --events 'events/*.parquet'"
        )
    if is_remote(run.dir):
        yield (
            f"update.follow: run.dir is {run.dir}, expected a local folder (or one that all nodes"
            " share); the events may be remote"
        )
    if update.only != "all" or update.replace:
        yield (
            "update.follow works with update.only all and without --replace; leave out the others"
        )


def _of_data(data: DataConfig) -> Iterator[str]:
    split = data.split
    for key in ("valid_from", "test_from"):
        if getattr(split, key) and split.kind != "temporal":
            yield (
                f"data.split.{key} is for kind temporal only, and data.split.kind is {split.kind}; "
                "set kind temporal, or remove the time"
            )
    if data.order == "none" and split.kind.startswith("leave-last"):
        yield (
            f"data.split.kind {split.kind} needs an order, and data.order is none; set"
            " data.split.kind ratio"
        )
    unknown = sorted({*data.context_numbers} - {*data.context})
    if unknown:
        yield (
            f"data.context_numbers names {', '.join(unknown)}, not in data.context; add it"
            " there too"
        )
    if data.text.event_types and not data.text.event_column:
        yield (
            "data.text.event_types is set and data.text.event_column is empty: name the column with"
            " their text"
        )
    unknown = sorted({*data.targets} - {*data.interactions}) if data.interactions else []
    unknown += sorted({*data.targets} & {*data.text.event_types})
    if unknown:
        yield (
            f"data.targets names {', '.join(unknown)}, which data.interactions or"
            " data.text.event_types exclude from the history: add it to data.interactions, or"
            " remove it"
        )
    both = sorted({*data.interactions} & {*data.text.event_types})
    if both:
        yield (
            f"data.interactions and data.text.event_types both name {', '.join(both)}; remove it"
            " from one"
        )


def _of_training(config: Config) -> Iterator[str]:
    data, train, enabled = config.data, config.train, config.model.granularities.enabled()
    where = "model.granularities"
    ordered = data.order in ("time", "file")
    if train.loss.label_smoothing and train.loss.seen_items == "no":
        yield (
            "train.loss.label_smoothing gives a share to all items, and train.loss.seen_items no"
            " leaves some out: set label_smoothing to 0, or seen_items to auto"
        )
    if train.loss.kind == "sampled_softmax" and train.loss.label_smoothing:
        yield (
            "train.loss.label_smoothing is for full_softmax only; set it 0, or train.loss.kind"
            " full_softmax"
        )
    if train.privacy.epsilon:
        yield from privacy_violations(data, config.model, train)
    if train.shard_rows == "yes":
        yield from sharding_violations(config.model, train)
    for_sets = (train.history_mask_rate, train.short_history_rate, train.loss.event_power)
    if ordered and for_sets != (0, 0, 1):
        yield (
            f"train.history_mask_rate {for_sets[0]}, train.short_history_rate {for_sets[1]} and"
            f" train.loss.event_power {for_sets[2]} are for data without an order, and data.order"
            f" is {data.order}: set them 0, 0 and 1, or data.order none"
        )
    if data.order == "none" and train.look_ahead:
        yield (
            f"train.look_ahead {train.look_ahead} is for data with an order, and data.order is"
            " none: remove it"
        )
    for name, section in enabled.items():
        yield from section.contradictions(config, f"{where}.{name}")
    if not (config.model.item.id or data.text.enabled):
        yield (
            "model.item.id and data.text.enabled are both false, so items cannot be distinguished;"
            " set one true"
        )
    if config.model.fusion.kind == "weighted" and not any(
        section.weight for section in enabled.values()
    ):
        yield (
            f"model.fusion.kind is weighted and every {where}.NAME.weight is 0; give one of them a"
            " weight"
        )
