"""``model: auto``, the default where the section ``model`` is missing: settings that fit the prepared data.

Without a budget one setting is taken by rules (:mod:`recsys.auto`); with ``run.budget`` settings are searched by
:mod:`tune.auto`. What was chosen is in RUN/auto.json, and whole in RUN/config.yaml, from which the same model can be
trained again without a search.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

from pipelines.plumbing.folder import RunFolder
from pipelines.prepare import open_dataset
from recsys.auto.portfolio import UNTRAINED, configured, left_out, members, settings
from recsys.auto.traits import Traits
from recsys.config import Config, build_config
from recsys.config.values import seconds_of
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError

CHOICE: Final = "auto.json"
SEARCH: Final = "tune.auto:search"  # stands above the pipelines, as the verb `tune` does
_SECTIONS: Final = ("model", "train")


def with_model(config: Config, folder: RunFolder, chooses: bool) -> Config:
    """The configuration with the sections that auto chose; itself where it has a model.

    Parameters
    ----------
    config : Config
        may lack the section ``model``.
    folder : RunFolder
        of the run.
    chooses : bool
        whether the verb may choose; the others follow an earlier choice.

    Raises
    ------
    ArtifactError
        nothing was chosen yet and the verb does not choose.
    """
    if config.has_model:
        return config
    dataset = open_dataset(config)
    identity = {"dataset": dataset.manifest.content_hash, "given": _given(config)}
    if not chooses or config.run.resume:
        earlier = _earlier(config, folder, identity)
        if earlier is not None:
            folder.write_config(earlier)
            return earlier
        if not chooses:
            raise ArtifactError(
                f"the configuration has no section model, and nothing was chosen yet in {folder.shown(folder.root)}; "
                "run `recsys run` or `recsys train` with it first"
            )
    chosen, why = _choose(config, dataset, folder)
    tree = chosen.model_dump(mode="json")
    folder.write_json(
        folder.root / CHOICE, {**identity, "why": why, **{section: tree[section] for section in _SECTIONS}}
    )
    folder.write_config(chosen)
    folder.progress(f"every constant that was chosen: {folder.shown(folder.config.absolute())}")
    return chosen


def _choose(config: Config, dataset: PreparedDataset, folder: RunFolder) -> tuple[Config, list[str]]:
    """The configuration, and what was seen of the data and tried."""
    traits = Traits.of(dataset, config)
    portfolio = settings(traits)
    why = [traits.describe(), members_line(traits)]
    folder.progress(f"model auto: {traits.describe()}")
    folder.progress(members_line(traits))
    budget = seconds_of(config.run.budget)
    if budget:
        module, name = SEARCH.split(":")
        search = getattr(importlib.import_module(module), name)
        chosen, said = search(config, dataset, folder, traits, folder.progress.started + budget)
        return chosen, why + said
    first = portfolio[0] if portfolio else None
    chosen = configured(config, traits, first)
    said = f"setting by rules: {first.name if first else UNTRAINED}"
    folder.progress(said)
    return chosen, [*why, said]


def members_line(traits: Traits) -> str:
    """The members, and what is left out, each with the reason.

    >>> print(members_line(Traits(99_999, 5, 6_000_000, True, True, idle={"place": "no columns"})))
    members: popularity, frequency, repeat, content, moment, profile, knowledge
    left out: item_cf (more than 5,000,000 events), item_knn (more than 5,000,000 events), als (more than 5,000,000 \
events), user_cf (more than 50,000 users), place (no columns), social (more than 5,000,000 events)
    """
    without = [f"{name} ({reason})" for name, reason in left_out(traits).items()]
    return f"members: {', '.join(members(traits))}" + (f"\nleft out: {', '.join(without)}" if without else "")


def _earlier(config: Config, folder: RunFolder, identity: dict[str, Any]) -> Config | None:
    """What was chosen before for the same data and settings; None where nothing was."""
    try:
        choice = folder.read_json(folder.fetch(CHOICE), "")
    except ArtifactError:
        return None
    if {key: choice.get(key) for key in identity} != identity:
        return None
    tree = config.model_dump(mode="json")
    return build_config({**tree, **{section: choice[section] for section in _SECTIONS}}, CHOICE, expand=False)


def _given(config: Config) -> dict[str, Any]:
    """The settings that a choice depends on."""
    train = config.train.model_dump(mode="json", exclude={"num_workers", "use_gpu", "threads", "max_failures"})
    return {"train": train, "exclude_seen": config.evaluate.exclude_seen, "seed": config.seed}
