"""Settings by kind of data: the members that a dataset supports, and trained models that work well.

The numbers come from the golden configurations (pipelines/configs), each of which was searched on
validation of its data. Here they depend on the size of the data, so that they also apply to
datasets without a search. Without a budget, the first setting of a kind is used; with a budget, the
others are tried too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from recsys.auto.candidate_members import CANDIDATES, Tree
from recsys.auto.traits import Traits
from recsys.config import Config, build_config
from recsys.config.values import merged
from recsys.data.look_ahead import EVENTS
from recsys.granularities.apart.section import KIND

# targets of a step for ordered data: 40 long histories of Last.fm
_TARGETS_A_STEP: Final = 2000.0
_LEAST_TARGETS: Final = 300.0  # of a step of a wide model; reached where few users have two events
_STEPS: Final = 3000  # of a wide model, at least; with fewer and larger ones it learns less
_TARGETS: Final = 1.6e6  # training targets in total; determines the number of epochs
_FEW_EVENTS: Final = 120_000  # below: narrow models, which overfit less
_LONG: Final = 60.0  # mean history length from which relative positions work better
# Above: members that keep all events are left out. Below, a run with a budget leaves out those for
# which it has no time.
_MANY_EVENTS: Final = 50_000_000
_MANY_USERS: Final = 500_000  # above: user_cf, which compares users, is left out
_HOLD_EVENTS: Final = ("item_cf", "item_knn", "als", "user_cf", "social", "social_cf")
_FULL_SCORES: Final = 4e8  # largest number of targets × items for the exact softmax

UNTRAINED: Final = (
    "closed-form members only: the training split has too few events per user to train on"
)


@dataclass(frozen=True)
class Setting:
    """A trained model: its differences from the defaults, as a configuration tree."""

    name: str
    model: Tree
    train: Tree

    def digest(self) -> str:
        """Return a text that is equal for equal settings."""
        return json.dumps([self.model, self.train], sort_keys=True)


def members(traits: Traits) -> Tree:
    """Return the closed-form granularities that the data supports, by name; stacking chooses their
    weights.
    """
    without = left_out(traits)
    return {name: section for name, section in traits.sections.items() if name not in without}


def left_out(traits: Traits) -> dict[str, str]:
    """Return why each excluded candidate is no member: the data is not informative for it, or is
    too large.
    """
    found = dict(traits.idle)
    if traits.events > _MANY_EVENTS:
        found |= dict.fromkeys(_HOLD_EVENTS, f"more than {_MANY_EVENTS:,} events")
    if traits.users > _MANY_USERS:
        found |= {"user_cf": f"more than {_MANY_USERS:,} users"}
    return {name: found[name] for name in CANDIDATES if name in found}


def settings(traits: Traits) -> list[Setting]:
    """Return trained models for such data, the default first; empty if nothing can be trained."""
    if not traits.trainable:
        return []
    return _sequences(traits) if traits.ordered else _sets(traits)


def configured(config: Config, traits: Traits, setting: Setting | None) -> Config:
    """Build the configuration with the members and, if given, the trained granularities of a
    setting.

    Parameters
    ----------
    config : Config
        The user's configuration; keys set under ``train`` take precedence.
    traits : Traits
        What the dataset has, which selects the members.
    setting : Setting or None
        Trained granularities and training settings; None for members in closed form alone.

    Returns
    -------
    Config
        The configuration of one model, checked.
    """
    tree = config.model_dump(mode="json")
    given = config.train.model_dump(mode="json", exclude_unset=True)
    model: Tree = {
        "fusion": {"kind": "learned", "signal_dropout": 0.0, "stack": True},
        "fitted_history": 1000,
    }
    granularities = members(traits)
    if setting is None:
        model["item"] = {"text": False}
    else:
        own = {key: value for key, value in setting.model.items() if key != "granularities"}
        model |= own
        granularities = granularities | setting.model["granularities"]
        tree["train"] = merged(tree["train"], setting.train)
    # keys that the user set take precedence
    tree["train"] = merged(tree["train"], {"final": True}, given)
    tree["model"] = model | {"granularities": granularities}
    return build_config(tree, "auto", expand=False)


def with_separate_model(config: Config, setting: Setting, seed: int) -> Config:
    """Add the trained model of a setting to a configuration as a separately trained member.

    Parameters
    ----------
    config : Config
        Result of :func:`configured`.
    seed : int
        Added to the seed of the run, so that the same setting twice gives two different models.
    """
    tree = config.model_dump(mode="json")
    # without threads, which a resumed run may change in the section train
    given = {key: tree["train"][key] for key in ("epochs", "evaluate_every")}
    granularities, number = tree["model"]["granularities"], 1
    # a user may have such a member already
    while f"apart_{number}" in granularities:
        number += 1
    granularities[f"apart_{number}"] = {
        "kind": KIND,
        "enabled": True,
        "model": {"fusion": {"kind": "learned", "signal_dropout": 0.0}, **setting.model},
        "train": merged(setting.train, given),
        "seed": seed,
    }
    return build_config(tree, "auto", expand=False)


def _sequences(traits: Traits) -> list[Setting]:
    """Attention over ordered histories, plus pooled histories."""
    narrow = _is_narrow(traits)
    far = traits.length > _LONG
    width = 64 if narrow else 128
    dropout = 0.4 if narrow and not far else 0.3
    # ids are more predictive for long histories
    pooled = "text" if traits.text and not far else "item"

    def one(name: str, width: int, changes: Tree | None = None, **evolution: Any) -> Setting:
        attention = {
            "enabled": True,
            "cell": "attention",
            "positions": "relative" if far else "absolute",
            "dropout": dropout,
            "input_dropout": dropout if narrow else 0.5,
            "weight": 1.0,
        }
        model: Tree = {
            "width": width,
            "max_history": 200 if far else 50,
            "item": {"init_std": 0.02, "text": traits.text, "text_whiten": min(2 * width, 256)},
            "granularities": {
                "behaviour": {
                    "enabled": True,
                    "input": pooled,
                    "heads": 1,
                    "dropout": 0.0,
                    "weight": 0.3,
                },
                "evolution": attention | evolution,
            },
        }
        return Setting(name, model, _ordered_training(traits, width) | (changes or {}))

    first = one(f"attention of width {width}", width)
    other = 128 if narrow else 64
    ids = Setting(
        "ids only",
        merged(
            first.model,
            {"item": {"text": False}, "granularities": {"behaviour": {"input": "item"}}},
        ),
        first.train,
    )
    return [
        first,
        *([ids] if traits.text else []),
        one("a higher learning rate", width, {"lr": 2 * first.train["lr"]}),
        one("less dropout", width, dropout=0.2, input_dropout=0.2),
        one(f"attention of width {other}", other),
        *([] if traits.leaves_out_seen is None else [_other_softmax(first, traits)]),
        *([] if traits.look_ahead is None else [_other_targets(first, traits.look_ahead)]),
        *(
            [one("events of one time in the order of the files", width, {"shuffle_ties": False})]
            if traits.tied
            else []
        ),
        one("gru", width, cell="gru"),
        one("a lower learning rate", width, {"lr": first.train["lr"] / 2}),
    ]


def _other_softmax(first: Setting, traits: Traits) -> Setting:
    """The first setting with the other rule on seen items: in the softmax if they are left out by
    default.
    """
    name, seen_items = (
        ("seen items in the softmax", "yes")
        if traits.leaves_out_seen
        else ("no seen items in the softmax", "no")
    )
    return Setting(name, first.model, merged(first.train, {"loss": {"seen_items": seen_items}}))


def _other_targets(first: Setting, default: int) -> Setting:
    """The first setting with targets some events ahead of their queries, or right after them if the
    default is some events.
    """
    name = "targets right after their queries" if default else "targets some events ahead"
    return Setting(name, first.model, first.train | {"look_ahead": 0 if default else EVENTS})


def _is_narrow(traits: Traits) -> bool:
    """Whether models should be narrow: few events, or long histories with many targets a user."""
    return traits.events < _FEW_EVENTS or traits.length > _LONG / 2


def _ordered_training(traits: Traits, width: int) -> Tree:
    targets = max(traits.events - traits.users, 1)
    epochs = int(min(max(_TARGETS / targets, 10), 40))
    far = traits.length > _LONG
    a_step, lr = _TARGETS_A_STEP, 4e-3 if far else 2e-3
    if not _is_narrow(traits):
        # many small steps with a low rate: +12 % on Sports, +2 % on Beauty (validation)
        a_step = min(max(targets * epochs / _STEPS, _LEAST_TARGETS), _TARGETS_A_STEP)
        lr = 1e-3
    batch = int(min(max(a_step / max(traits.length, 1.0), 16), 512))
    loss: Tree = {"kind": "full_softmax"}
    if targets * traits.items > _FULL_SCORES:
        # the exact softmax needs a score for every target and item
        loss = {"kind": "sampled_softmax", "num_negatives": 512, "popularity_power": 0.0}
    return {
        "epochs": epochs,
        "batch_size": batch,
        "lr": lr,
        "beta2": 0.98,
        "weight_decay": 0.1 if width <= 64 else 0.0,
        "clip_norm": 0.0,
        "evaluate_every": max(1, epochs // 10),
        "patience": 3,
        "loss": loss,
    }


def _sets(traits: Traits) -> list[Setting]:
    """Light graph convolution over histories without order."""

    def one(
        name: str, width: int = 128, layers: int = 6, friends: bool = False, **changes: Any
    ) -> Setting:
        granularities: Tree = {"collaborative": {"enabled": True, "layers": layers, "weight": 1.0}}
        if friends:
            granularities["social"] = {
                "enabled": True,
                "conv": "light",
                "dropout": 0.0,
                "weight": 0.4,
            }
        model: Tree = {
            "width": width,
            "max_history": 64,
            "unit_vectors": True,
            "item": {"init_std": 0.1, "text": traits.text, "text_whiten": 0},
            "granularities": granularities,
        }
        train: Tree = {
            "epochs": 80,
            "batch_size": 4096,
            "lr": 0.015,
            "warmup": 0.0,
            "clip_norm": 0.0,
            "history_mask_rate": 0.3,
            "evaluate_every": 5,
            "patience": 3,
            "loss": {"temperature": 0.1, "learn_temperature": True, "event_power": 0.5},
        }
        return Setting(name, model, train | changes)

    return [
        one("graph convolution of width 128, 6 layers"),
        *([one("with friends as a trained granularity", friends=True)] if traits.friends else []),
        one("half of the histories made short", short_history_rate=0.5),
        one("width 256, 4 layers", width=256, layers=4, history_mask_rate=0.4),
        one("3 layers", layers=3),
        one("width 64", width=64),
        one("a lower history mask rate", history_mask_rate=0.15),
    ]
