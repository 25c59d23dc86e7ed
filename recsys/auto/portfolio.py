"""Settings for kinds of data: the members that a dataset can feed, and trained models that have proved good.

Where the numbers come from: the golden configurations (pipelines/configs), each searched on validation of its data, and
put in terms of the size of the data here, so that they hold for sets that nobody searched. The first setting of a kind
is what is taken without a budget; a budget tries the others too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from recsys.auto.candidates import CANDIDATES, Tree
from recsys.auto.traits import Traits
from recsys.config import Config, build_config
from recsys.config.values import merged
from recsys.granularities.apart.section import KIND

_TARGETS_A_STEP: Final = 2000  # of ordered data: 240 short histories of Beauty, 40 long ones of Last.fm
_TARGETS: Final = 1.6e6  # trained on in all, by which the number of epochs is chosen
_FEW_EVENTS: Final = 120_000  # below it narrow models, which overfit less
_LONG: Final = 60.0  # mean history from which order matters by distance
_MANY_EVENTS: Final = 5_000_000  # beyond it the members that hold all events are left out
_MANY_USERS: Final = 50_000  # beyond it user_cf, which looks at every user, is left out
_HOLD_EVENTS: Final = ("item_cf", "item_knn", "als", "user_cf", "social")
_FULL_SCORES: Final = 4e8  # targets times items up to which the exact softmax is affordable

UNTRAINED: Final = "fitted members alone, as the training part has too few events of a user to train on"


@dataclass(frozen=True)
class Setting:
    """A trained model: what differs from the defaults, as a configuration's tree."""

    name: str
    model: Tree
    train: Tree

    def digest(self) -> str:
        """A text that is equal for equal settings."""
        return json.dumps([self.model, self.train], sort_keys=True)


def members(traits: Traits) -> Tree:
    """The fitted granularities that the data can feed, by name; stacking gives each its weight, or none."""
    without = left_out(traits)
    return {name: section for name, section in traits.sections.items() if name not in without}


def left_out(traits: Traits) -> dict[str, str]:
    """Why a candidate is no member, by its name: the data tells it nothing, or is too large for it."""
    found = dict(traits.idle)
    if traits.events > _MANY_EVENTS:
        found |= dict.fromkeys(_HOLD_EVENTS, f"more than {_MANY_EVENTS:,} events")
    if traits.users > _MANY_USERS:
        found |= {"user_cf": f"more than {_MANY_USERS:,} users"}
    return {name: found[name] for name in CANDIDATES if name in found}


def settings(traits: Traits) -> list[Setting]:
    """Trained models for such data, the one that is taken without a search first; none where nothing can be trained."""
    if not traits.trainable:
        return []
    return _sequences(traits) if traits.ordered else _sets(traits)


def configured(config: Config, traits: Traits, setting: Setting | None) -> Config:
    """The configuration with the members and a setting's trained granularities, every constant of it."""
    tree = config.model_dump(mode="json")
    given = config.train.model_dump(mode="json", exclude_unset=True)
    model: Tree = {"fusion": {"kind": "learned", "signal_dropout": 0.0, "stack": True}, "fitted_history": 1000}
    granularities = members(traits)
    if setting is None:
        model["item"] = {"text": False}
    else:
        own = {key: value for key, value in setting.model.items() if key != "granularities"}
        model |= own
        granularities = granularities | setting.model["granularities"]
        tree["train"] = merged(tree["train"], setting.train)
    tree["train"] = merged(tree["train"], {"final": True}, given)  # what the user says counts
    tree["model"] = model | {"granularities": granularities}
    return build_config(tree, "auto", expand=False)


def with_apart(config: Config, setting: Setting, seed: int) -> Config:
    """The configuration with the trained model of a setting as a member that is trained apart.

    Parameters
    ----------
    config : Config
        That :func:`configured` made.
    seed : int
        Added to that of the run, so that the same setting twice is not the same model twice.
    """
    tree = config.model_dump(mode="json")
    given = {key: value for key, value in tree["train"].items() if key in ("epochs", "evaluate_every", "threads")}
    granularities, number = tree["model"]["granularities"], 1
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
    """Attention over ordered histories, and a pooled view of them."""
    narrow = traits.events < _FEW_EVENTS or traits.length > _LONG / 2
    far = traits.length > _LONG
    width = 64 if narrow else 128
    dropout = 0.4 if narrow and not far else 0.3
    pooled = "text" if traits.text and not far else "item"  # long histories tell more by ids

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
                "behaviour": {"enabled": True, "input": pooled, "heads": 1, "dropout": 0.0, "weight": 0.3},
                "evolution": attention | evolution,
            },
        }
        return Setting(name, model, _ordered_training(traits, width) | (changes or {}))

    first = one(f"attention of width {width}", width)
    other = 128 if narrow else 64
    ids = Setting(
        "ids alone",
        merged(first.model, {"item": {"text": False}, "granularities": {"behaviour": {"input": "item"}}}),
        first.train,
    )
    return [
        first,
        *([ids] if traits.text else []),
        one("a higher learning rate", width, {"lr": 2 * first.train["lr"]}),
        one("less dropout", width, dropout=0.2, input_dropout=0.2),
        one(f"attention of width {other}", other),
        one("gru", width, cell="gru"),
        one("a lower learning rate", width, {"lr": first.train["lr"] / 2}),
    ]


def _ordered_training(traits: Traits, width: int) -> Tree:
    targets = max(traits.events - traits.users, 1)
    batch = int(min(max(_TARGETS_A_STEP / max(traits.length, 1.0), 16), 512))
    epochs = int(min(max(_TARGETS / targets, 10), 40))
    far = traits.length > _LONG
    loss: Tree = {"kind": "full_softmax"}
    if targets * traits.items > _FULL_SCORES:
        loss = {"kind": "sampled_softmax", "num_negatives": 512, "popularity_power": 0.0}
    return {
        "epochs": epochs,
        "batch_size": batch,
        "lr": 4e-3 if far else 2e-3,
        "beta2": 0.98,
        "weight_decay": 0.1 if width <= 64 else 0.0,
        "clip_norm": 0.0,
        "evaluate_every": max(1, epochs // 10),
        "patience": 3,
        "loss": loss,
    }


def _sets(traits: Traits) -> list[Setting]:
    """Light graph convolution over histories without order."""

    def one(name: str, width: int = 128, layers: int = 6, friends: bool = False, **changes: Any) -> Setting:
        granularities: Tree = {"collaborative": {"enabled": True, "layers": layers, "weight": 1.0}}
        if friends:
            granularities["social"] = {"enabled": True, "conv": "light", "dropout": 0.0, "weight": 0.4}
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
            "hide_history": 0.3,
            "evaluate_every": 5,
            "patience": 3,
            "loss": {"temperature": 0.1, "learn_temperature": True, "event_power": 0.5},
        }
        return Setting(name, model, train | changes)

    return [
        one("graph convolution of width 128, 6 layers"),
        *([one("friends in the training", friends=True)] if traits.friends else []),
        one("3 layers", layers=3),
        one("width 64", width=64),
        one("less hidden", hide_history=0.15),
    ]
