"""The verb ``forget``: remove users from the dataset, the models, the registry and all other files
of a run folder. A signed proof lists the files in which nothing of them was found.

The order of the steps makes an interruption harmless, and the same command continues after it.
First the users go on a list, so that ``prepare`` does not read them again. Then a journal records
which rows they had. Then each artefact is rewritten under a temporary name and renamed. With
``--retrain`` the models are trained again, if possible from the newest ancestor that never saw the
users; otherwise the model card says what still depends on them.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.forgetting.copies import Copies, CopiesForgotten, find_copies
from pipelines.forgetting.deletion_search import (
    Evidence,
    conclude,
    membership_test,
    searchable,
    unseen_users,
)
from pipelines.forgetting.models import (
    check_model,
    forget_lines,
    forget_recommendations,
    make_models_again,
    remove_derived,
)
from pipelines.forgetting.training import train_again
from pipelines.forgetting.version_replacement import forget_artefacts, forget_versions
from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.opened_model import ORIGIN
from pipelines.plumbing.run_folder import PROOFS, RunFolder
from pipelines.plumbing.session import quiet, ray_session
from recsys.bundle.description import USERS
from recsys.bundle.layout import read_files
from recsys.config import Config, DataConfig, TrackingConfig
from recsys.config.privacy import ForgetConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.forgotten import Forgotten, list_path
from recsys.data.pseudonyms import Pseudonyms
from recsys.data.renumber import Renumbering
from recsys.data.text_rows import TextRules
from recsys.data.titles import item_titles
from recsys.errors import ArtifactError, ConfigError
from recsys.preparation.dataset_writer import DatasetWriter
from recsys.preparation.forget import forget_users, needs_language_model
from recsys.preparation.user_text import texts_ever
from recsys.preparation.vector_cache import forget_texts
from recsys.privacy.footprints import SearchTargets
from recsys.privacy.proof import signing_key
from recsys.privacy.rows import RowFinder
from recsys.registry.mlflow_client import has_store, tracking_uri
from recsys.registry.versions import Store, Version, holds_users, known_users
from recsys.serving.answer_log import holds_rows
from recsys.storage.temporary import temporary, temporary_folder

JOURNAL: Final = "forgetting.json"


@dataclass
class Forgetting:
    """One run of the verb: the users to forget, and what was found of them."""

    config: Config
    folder: RunFolder
    users: list[str]  # ids as they appear in the artefacts
    forms: list[str]  # the same, and the original ids of pseudonyms
    evidence: Evidence
    copies: Copies
    known: set[str] = field(default_factory=set)  # users of the dataset or a bundle
    actions: dict[str, Any] = field(default_factory=dict)  # what was done, for the proof

    @property
    def ids(self) -> pa.Array:
        """The users as an Arrow array."""
        return pa.array(self.users, pa.string())


def forget(config: Config, folder: RunFolder) -> None:
    """Forget ``forget.users``, and write the proof.

    Raises
    ------
    ConfigError
        No user is given, or no artefact and no list contains the users.
    ArtifactError
        The model cannot be made again.
    Refusal
        The proof found something, or a file could not be searched; everything else is done.
    """
    quiet()
    raw = _named(config.forget)
    # before anything is removed: without these there would be no proof
    unseen = unseen_users(config.forget)
    key = signing_key(config.forget.signing_key)
    pseudonyms = Pseudonyms.of(config.data.pseudonymise)
    # the artefacts hold pseudonyms only
    users = [pseudonyms.of_id(one) for one in raw] if pseudonyms else raw
    was_killed = (folder.root / JOURNAL).is_file()
    dataset = _dataset(config.data, config.dataset_dir, config.seed, was_killed)
    store = _store(config.tracking, config.run.dir)
    with folder.progress.stage("forget"):
        folder.fetch_all()
        copies = find_copies(config, folder, store, temporary_folder())
        work = Forgetting(
            config, folder, users, [*dict.fromkeys([*raw, *users])], Evidence(unseen=unseen), copies
        )
        versions = _gather(work, dataset, store)
        path = list_path(config.data, config.dataset_dir)
        forgotten = Forgotten.read(path)
        _check_known(work, forgotten)
        if dataset is not None:
            _check_model(work, dataset)
        forgotten = forgotten.having(users)
        # first on disk: after a crash ``prepare`` must not read the users again
        forgotten.write(path)
        work.actions["list"] = path
        if dataset is not None:
            dataset = _rewrite_dataset(work, dataset, forgotten)
    config = _with_model(config, folder)
    _renew_models(work, config, dataset)
    if store is not None:
        work.actions["versions"] = forget_versions(
            config.forget, config.tracking, config.run.dir, folder, store, versions, work.ids
        )
        traces, say = work.evidence.traces, folder.progress
        work.actions["artefacts"] = forget_artefacts(
            config.forget, config.run.dir, store, store.versions(), traces, say
        )
    with folder.progress.stage("forget"):
        _clean(work)
        # only now all is done; until here the same command continues by it
        folder.forget(folder.root / JOURNAL)
        folder.settle()
    with (
        folder.progress.stage("prove"),
        temporary() as copied,
    ):
        files = searchable(config, folder, store, Path(copied), copies)
        tested = membership_test(config.dataset_dir, config.seed, work.evidence)
        traces = work.evidence.traces
        conclude(config.run.dir, folder, files, work.users, traces, work.actions, tested, key)


def _named(forget: ForgetConfig) -> list[str]:
    found = list(forget.users)
    if forget.file:
        try:
            # an id may hold other line separators of Unicode
            lines = Path(forget.file).read_bytes().decode("utf-8-sig").split("\n")
            found += [line.strip() for line in lines]
        except (OSError, ValueError) as error:
            raise ConfigError(f"forget.file: {forget.file} cannot be read ({error})") from None
    found = [one for one in dict.fromkeys(found) if one]
    if not found:
        raise ConfigError(
            "forget.users is empty; give the users: recsys forget --config FILE --user ID …"
        )
    return found


def _dataset(
    data: DataConfig, dataset_dir: str, seed: int, was_killed: bool
) -> PreparedDataset | None:
    # a command that was killed while it replaced the dataset leaves the old one next to it
    DatasetWriter(dataset_dir).recover()
    try:
        return open_dataset(data, dataset_dir, seed)
    except ArtifactError as error:
        # an earlier command had one, and the models cannot be made again without it
        if "is not a prepared dataset" in str(error) and not was_killed:
            return None
        raise


def _store(tracking: TrackingConfig, run_dir: str) -> Store | None:
    """The MLflow store; None if tracking is off, or if there is none yet, which holds nothing."""
    if not tracking.enabled:
        return None
    uri = tracking_uri(tracking, run_dir)
    return Store(uri) if has_store(uri) else None


def _with_model(config: Config, folder: RunFolder) -> Config:
    if config.has_model or not (folder.model / ORIGIN).is_file():
        return config
    from pipelines.steps.auto import CHOICE
    from recsys.config import build_config, parse_yaml

    if not (folder.root / CHOICE).is_file():
        raise ArtifactError(
            f"{folder.root} has a model, but the configuration has no section model; give the"
            " configuration that the model was trained with"
        )
    chosen = parse_yaml(folder.config.read_bytes(), str(folder.config))
    tree = config.model_dump(mode="json") | {key: chosen[key] for key in ("model", "train")}
    whole = build_config(tree, str(folder.config), expand=False)
    return whole.model_copy(update={"forget": config.forget})


# ---------------------------------------------------------------------------------------- who it is


def _gather(
    work: Forgetting, dataset: PreparedDataset | None, store: Store | None
) -> list[tuple[Version, bool]]:
    """Collect the traces of the users from dataset, bundles and versions.

    Returns
    -------
    list of (Version, bool)
        Every registered version, and whether it holds one of the users.
    """
    evidence, ids, forms = work.evidence, work.ids, work.forms
    if dataset is not None:
        evidence.add_ids(forms, dataset.user_ids, dataset.item_ids)
        rows = np.flatnonzero(np.asarray(pc.is_in(dataset.user_ids, value_set=ids)))
        if len(rows):
            names = {int(row): dataset.user_ids[int(row)].as_py() for row in rows}
            work.known |= set(names.values())
            evidence.add_histories(
                dataset.histories(),
                names,
                dataset.item_ids.to_pylist(),
                item_titles(dataset.features),
            )
    bundles = [
        path.parent
        for path in sorted(work.folder.root.rglob(USERS))
        if (path.parent / "bundle.json").is_file()
    ]
    bundles += [
        path
        for _, path in work.copies.bundles()
        if (path / USERS).is_file() and path not in bundles
    ]
    versions = []
    for version in store.versions() if store is not None else ():
        held = version.files is not None and holds_users(version.files, ids)
        versions.append((version, held))
        if held and version.files is not None:
            bundles += [path.parent for path in version.files.rglob(USERS)]
    for bundle_folder in bundles:
        users = known_users(bundle_folder / USERS, ids)
        if not users:
            continue
        bundle = read_files(bundle_folder)
        evidence.add_ids(forms, pa.array(bundle.user_ids), pa.array(bundle.item_ids))
        names = {row: bundle.user_ids[row] for row in users}
        work.known |= set(names.values())
        evidence.add_histories(bundle.histories, names, bundle.item_ids, bundle.titles)
    # no dataset or bundle knows them, but logs may
    if not evidence.traces.ids:
        evidence.add_ids(forms, pa.array([], pa.string()), pa.array([], pa.string()))
    return versions


def _check_known(work: Forgetting, forgotten: Forgotten) -> None:
    """Refuse users of whom nothing is known; report how many they are beside known ones."""
    unknown = [one for one in work.users if one not in work.known and not forgotten.holds(one)]
    if not unknown:
        return
    is_new = not work.known and not (work.folder.root / JOURNAL).is_file()
    if is_new and not _are_logged(work):
        raise ConfigError(f"forget.users: {_unknown_words(len(unknown), len(work.users))}")
    # without the ids, which must not be in the log of the run
    work.folder.progress(
        f"{len(unknown):,} of the {len(work.users):,} given users are in no dataset, bundle or"
        " registered version, but may be in logs; check the ids: they are text and case-sensitive"
    )


def _unknown_words(number: int, given: int) -> str:
    """The message about unknown users.

    >>> print(_unknown_words(1, 1))
    ... # doctest: +NORMALIZE_WHITESPACE
    the given user is in no dataset, bundle, registered version or log of answers; check the id: ids
    are text and case-sensitive
    >>> _unknown_words(3, 3)[:32], _unknown_words(1, 2)[:32]
    ('the 3 given users are in no data', '1 of the 2 given users is in no ')
    """
    who = f"the {given:,} given users are" if given > 1 else "the given user is"
    if number < given:
        who = f"{number:,} of the {given:,} given users {'is' if number == 1 else 'are'}"
    others = "; the other users are forgotten already" if number < given else ""
    return (
        f"{who} in no dataset, bundle, registered version or log of answers{others}; check the"
        f" {'id' if number == 1 else 'ids'}: ids are text and case-sensitive"
    )


def _check_model(work: Forgetting, dataset: PreparedDataset) -> None:
    """Check that the model fits the configuration, if it will be fitted again."""
    folder, journal = work.folder, work.folder.root / JOURNAL
    hashes = [dataset.manifest.content_hash]
    if journal.is_file():
        hashes.append(str(folder.read_json(journal, "run `recsys forget` again").get("before")))
    elif not pc.any(pc.is_in(dataset.user_ids, value_set=work.ids)).as_py():
        return
    if (folder.model / ORIGIN).is_file() and not work.config.forget.retrain:
        check_model(_with_model(work.config, folder).model, folder, dataset.root, hashes)


def _are_logged(work: Forgetting) -> bool:
    """Whether a log of answers contains one of the users: a cold-start user may have sent
    requests.
    """
    their_rows = RowFinder(work.forms, SearchTargets())
    return any(holds_rows(path, their_rows) for _, path in work.copies.logs())


# -------------------------------------------------------------------------------------- the dataset


def _rewrite_dataset(
    work: Forgetting, dataset: PreparedDataset, forgotten: Forgotten
) -> PreparedDataset:
    """Rewrite the dataset without the users; the journal holds what a second attempt needs."""
    gone = np.flatnonzero(np.asarray(pc.is_in(dataset.user_ids, value_set=work.ids)))
    if not len(gone):
        return dataset
    before = dataset.manifest.content_hash
    journal = {"before": before, "num_users": dataset.num_users, "gone": gone.tolist()}
    # before the rewrite, because afterwards the numbers of the users are unknown
    work.folder.write_json(work.folder.root / JOURNAL, journal)
    # before the rewrite: the texts are made from the histories
    work.actions["cached_texts"] = _forget_texts(work.config.data, dataset, gone)
    # Ray takes seconds to start, and most datasets need no language model here
    with (
        ray_session(work.config.train, work.config.ray)
        if needs_language_model(dataset, gone)
        else nullcontext()
    ):
        done = forget_users(dataset, gone, forgotten, work.config.data, work.evidence.mentions)
    rows = {name: number for name, number in done.rows.items() if number}
    work.actions["dataset"] = {
        "before": before,
        "after": done.dataset.manifest.content_hash,
        "rows": rows,
    }
    work.actions.setdefault("left", []).extend(done.left)
    work.folder.progress(
        f"{dataset.root}: removed {len(gone):,} users with {sum(rows.values()):,} rows in"
        f" {len(rows)} files; the audit passed"
    )
    return open_dataset(work.config.data, work.config.dataset_dir, work.config.seed)


def _forget_texts(data: DataConfig, dataset: PreparedDataset, gone: Any) -> int:
    """Remove the texts of the users' histories, at any length, from the cache of the language
    model.
    """
    described = dataset.manifest.text.get("users")
    if not described:
        return 0
    manifest = dataset.manifest
    rules = TextRules(tuple(manifest.event_types), manifest.ordered, *data.text.users.how)
    gone_V = np.zeros(dataset.num_users, dtype=bool)
    gone_V[gone] = True
    titles = item_titles(dataset.features)
    texts = texts_ever(dataset.histories(gone_V), titles, rules)
    return forget_texts(data.text.cache_dir, sorted(texts))


# --------------------------------------------------------------------------------------- the models


def _renew_models(work: Forgetting, config: Config, dataset: PreparedDataset | None) -> None:
    """Make or train the models again; evaluate and register them if they were before."""
    folder, journal = work.folder, work.folder.root / JOURNAL
    had = {
        name: path.exists()
        for name, path in (("metrics", folder.metrics), ("bundle", folder.bundle))
    }
    if not (folder.model / ORIGIN).is_file():
        if had["bundle"] and known_users(folder.bundle / USERS, work.ids):
            folder.forget(folder.bundle)
            folder.progress(
                f"{folder.bundle} is deleted: without {folder.model.name}/ it cannot be made again"
            )
        return
    if dataset is None or not journal.is_file():
        return
    journalled = folder.read_json(journal, "run `recsys forget` again")
    stages = {**had, **journalled.get("had", {})}
    # stored, because a second attempt finds the metrics and the bundle deleted already
    folder.write_json(journal, {**journalled, "had": stages})
    numbering = Renumbering.without(int(journalled["num_users"]), journalled["gone"])
    if config.forget.retrain:
        work.actions["model"] = {"trained": train_again(config, folder, dataset, work.ids)}
    else:
        with folder.progress.stage("refit"):
            left = make_models_again(config, folder, dataset, numbering, str(journalled["before"]))
        work.actions["model"] = {"fitted again": True}
        work.actions.setdefault("left", []).extend(left)
        if left:
            folder.progress(f"still depends on these users: {'; '.join(left)}")
    remove_derived(folder)
    _measure(config, folder, stages)
    work.evidence.model = folder.model


def _measure(config: Config, folder: RunFolder, had: dict[str, bool]) -> None:
    from pipelines.evaluate import evaluate
    from pipelines.register import register

    resumed = config.model_copy(
        update={"run": config.run.model_copy(update={"resume": not config.forget.retrain})}
    )
    if had.get("metrics"):
        evaluate(config, folder)
    if had.get("bundle"):
        # the aliases of the replaced version move to the new one in `forget_versions`
        register(resumed, folder, says_by_hand=False)


def _clean(work: Forgetting) -> None:
    """Remove the users from everything that is neither dataset nor model."""
    folder = work.folder
    rows = sum(forget_recommendations(path, work.users) for path in folder.answers)
    lines = forget_lines(folder.root, work.evidence.mentions)
    their_rows = RowFinder(work.forms, work.evidence.traces)
    done = CopiesForgotten(
        work.config, folder, work.copies, work.forms, their_rows, _hashes_before(folder)
    ).forget()
    work.actions["copies"] = done
    work.actions |= {
        "recommendations": rows,
        "log_lines": lines,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _hashes_before(folder: RunFolder) -> set[str]:
    """Content hashes of the dataset before users were removed, by this command or an earlier
    one.
    """
    found = set[str]()
    for path in (folder.root / JOURNAL, *(folder.root / PROOFS).glob("proof-*.json")):
        if path.is_file():
            content = folder.read_json(path, "restore or delete it")
            found.add(str((content.get("done", {}).get("dataset") or content).get("before", "")))
    return found - {""}


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["forget", *sys.argv[1:]]))
