"""``model: auto`` chooses settings that fit the prepared data. It is the default without a section
``model``.

Without a budget, rules choose one setting (:mod:`recsys.auto`). With ``run.budget``,
:mod:`tune.auto_search` searches for settings. RUN/auto.json holds the choice; RUN/config.yaml
holds the whole configuration, which trains the same model again without a search.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.run_folder import RunFolder
from recsys.auto.portfolio import UNTRAINED, configured, left_out, members, settings
from recsys.auto.traits import Traits
from recsys.config import Config, EvaluateConfig, TrainConfig, build_config
from recsys.config.values import seconds_of
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError

CHOICE: Final = "auto.json"
SEARCH_TIME: Final = "search_s"  # in auto.json and the timing of the report
SEARCH: Final = "tune.auto_search:search"  # by name: tune imports pipelines, not the reverse
_SECTIONS: Final = ("model", "train")
# of the section train: the resources of the machine, which a resumed run may change
_RESOURCES: Final = {"num_workers", "use_gpu", "threads", "max_failures"}
_USERS: Final = "max_users"  # of the section evaluate, unless the user sets it


def with_model(config: Config, folder: RunFolder, chooses: bool) -> Config:
    """The configuration with the sections that auto chose; unchanged if it has a section ``model``.

    Parameters
    ----------
    config : Config
        May lack the section ``model``.
    folder : RunFolder
        Folder of the run.
    chooses : bool
        Whether the verb may choose. Other verbs use an earlier choice.

    Raises
    ------
    ArtifactError
        No earlier choice exists and the verb does not choose.
    """
    if config.has_model:
        return config
    dataset = open_dataset(config.data, config.dataset_dir, config.seed)
    identity = {
        "dataset": dataset.manifest.content_hash,
        "given": _given(config.train, config.evaluate, config.seed),
    }
    if not chooses or config.run.resume:
        earlier = _earlier(config, folder, identity)
        if earlier is not None:
            folder.write_config(earlier)
            return earlier
        if not chooses:
            raise ArtifactError(
                "the configuration has no section model, and "
                f"{folder.shown(folder.root)} holds no earlier choice of auto; "
                "run `recsys run` or `recsys train` with this configuration first"
            )
    with folder.timed(SEARCH_TIME):
        chosen, why = _choose(config, dataset, folder)
    tree = chosen.model_dump(mode="json")
    folder.write_json(
        folder.root / CHOICE,
        {
            **identity,
            "why": why,
            **{section: tree[section] for section in _SECTIONS},
            _USERS: chosen.evaluate.max_users,
            SEARCH_TIME: folder.timing[SEARCH_TIME],
        },
    )
    folder.write_config(chosen)
    folder.progress(f"all chosen settings: {folder.shown(folder.config.absolute())}")
    return chosen


def _choose(
    config: Config, dataset: PreparedDataset, folder: RunFolder
) -> tuple[Config, list[str]]:
    """The configuration, and lines that say what the choice is based on."""
    traits = Traits.of(dataset, config)
    portfolio = settings(traits)
    why = [traits.describe(), members_line(traits)]
    folder.progress(f"model auto: {traits.describe()}")
    folder.progress(members_line(traits))
    budget = seconds_of(config.run.budget)
    if budget:
        module, name = SEARCH.split(":")
        search = getattr(importlib.import_module(module), name)
        chosen, decision = search(config, dataset, folder, traits, folder.progress.started + budget)
        return chosen, why + decision
    first = portfolio[0] if portfolio else None
    chosen = configured(config, traits, first)
    decision = f"setting by rules: {first.name if first else UNTRAINED}"
    folder.progress(decision)
    return chosen, [*why, decision]


def members_line(traits: Traits) -> str:
    """The members, and the granularities that are left out, each with the reason.

    >>> traits = Traits(999_999, 5, 60_000_000, True, True, idle={"place": "no columns"})
    >>> print(members_line(traits))  # doctest: +NORMALIZE_WHITESPACE
    members: popularity, frequency, repeat, content, moment, profile, knowledge
    left out: item_cf (more than 50,000,000 events), item_knn (more than 50,000,000 events),
        als (more than 50,000,000 events), user_cf (more than 500,000 users), social_cf (more than
        50,000,000 events), place (no columns), social (more than 50,000,000 events)
    """
    without = [f"{name} ({reason})" for name, reason in left_out(traits).items()]
    return f"members: {', '.join(members(traits))}" + (
        f"\nleft out: {', '.join(without)}" if without else ""
    )


def _earlier(config: Config, folder: RunFolder, identity: dict[str, Any]) -> Config | None:
    """The earlier choice for the same data and settings, or None."""
    try:
        choice = folder.read_json(folder.fetch(CHOICE), "")
    except ArtifactError:
        return None
    if {key: choice.get(key) for key in identity} != identity:
        return None
    tree = config.model_dump(mode="json")
    given = {key: tree["train"][key] for key in _RESOURCES}
    tree |= {section: choice[section] for section in _SECTIONS}
    tree["train"] = {**tree["train"], **given}
    if _USERS in choice and _USERS not in config.evaluate.model_fields_set:
        tree["evaluate"][_USERS] = choice[_USERS]
    return build_config(tree, CHOICE, expand=False)


def _given(train: TrainConfig, evaluate: EvaluateConfig, seed: int) -> dict[str, Any]:
    """The settings that a choice depends on."""
    given = train.model_dump(mode="json", exclude=_RESOURCES)
    return {"train": given, "exclude_seen": evaluate.exclude_seen, "seed": seed}
