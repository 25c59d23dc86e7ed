"""The models that pages query: named by a key, loaded when first needed; the last few are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import redact
from recsys.errors import ArtifactError
from recsys.registry.followed_model import FollowedModel
from recsys.serving.recommender import Recommender
from recsys.ui.gate import Gate, Version
from recsys.ui.runs import Run, Runs

_MOST_LOADED: Final = 2
_SUGGESTED: Final = 8


@dataclass(frozen=True)
class Choice:
    """A model that can be queried."""

    key: str
    label: str
    uri: str
    run_key: str = ""  # of a version: the key of the run folder with the same bundle


class LoadedModel:
    """A loaded model."""

    def __init__(
        self, choice: Choice, version: str, recommender: Recommender, about: Mapping[str, Any]
    ) -> None:
        self.choice = choice
        self.version = version
        self.recommender = recommender
        self.about = about
        self.bundle = recommender.bundle
        self.lock = threading.Lock()  # a recommender handles one call at a time

    def title(self, item_id: str) -> str:
        """The title of an item, or its id if the model does not know it."""
        row = self.recommender.item_row(item_id)
        return self.bundle.titles[row] if row >= 0 else item_id

    def find(self, text: str) -> list[str]:
        """Ids of items whose title or id contains a text: exact matches first, then prefixes, then
        by popularity.
        """
        text = _folded(pa.scalar(text.strip(), pa.large_string())).as_py()
        if not text:
            return []
        ids, titles = self._ids_and_titles
        fits_N = pc.or_(pc.match_substring(ids, text), pc.match_substring(titles, text)).to_numpy(
            zero_copy_only=False
        )
        rows = np.flatnonzero(fits_N)
        if not len(rows):
            return []
        begins = pc.or_(
            pc.starts_with(ids.take(rows), text), pc.starts_with(titles.take(rows), text)
        )
        equals = pc.or_(pc.equal(ids.take(rows), text), pc.equal(titles.take(rows), text))
        rank = (
            2
            - begins.to_numpy(zero_copy_only=False).astype(int)
            - equals.to_numpy(zero_copy_only=False).astype(int)
        )
        # the last key is the most important one
        order = np.lexsort((-self.bundle.popularity_N[rows], rank))[:_SUGGESTED]
        return [self.bundle.item_ids[row] for row in rows[order]]

    @cached_property
    def _ids_and_titles(self) -> tuple[pa.Array, pa.Array]:
        ids, titles = (
            # the titles of a large catalogue may have more than 2 GiB, the limit of ``string``
            pa.array(texts, pa.large_string())
            for texts in (self.bundle.item_ids, self.bundle.titles)
        )
        return _folded(ids), _folded(titles)


class LoadedModels:
    """Finds and keeps models.

    Parameters
    ----------
    runs, gate
        The sources of models.
    named
        URI of one more model; empty: none.
    """

    def __init__(self, runs: Runs, gate: Gate, named: str = "") -> None:
        self._runs, self._gate, self._named = runs, gate, named
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, LoadedModel] = OrderedDict()

    def choices(self) -> list[Choice]:
        """All models: the model given at the start, champions, other versions, run folders.

        A run folder and the version that was registered from it are one model and one choice.
        """
        found = [Choice("named", redact(self._named), self._named)] if self._named else []
        versions = [version for model in self._gate.models() for version in model.versions]
        # the first choice is the default of every page
        versions.sort(key=lambda version: ("champion" not in version.aliases, not version.aliases))
        runs = [run for run in self._runs.all() if run.has_bundle and run.folder is not None]
        for version in versions:
            run = next((run for run in runs if run.run_id and _is_of(version, run)), None)
            label, key = version.label, ""
            if run is not None:
                runs.remove(run)
                label, key = f"{label} · run {run.name}", f"run:{run.key}"
            found.append(Choice(version.key, label, version.uri, key))
        found += [
            Choice(f"run:{run.key}", f"run {run.name}", f"{run.folder}/bundle") for run in runs
        ]
        return found

    def open(self, key: str) -> LoadedModel:
        """The model with a key; the first one for an empty key.

        Raises
        ------
        ArtifactError
            There is no such model, or its files are missing or damaged.
        """
        choices = self.choices()
        if not choices:
            raise ArtifactError("there is no model yet; `recsys run` trains and registers one")
        chosen = (one for one in choices if key in (one.key, one.run_key))
        choice = next(chosen, None) if key else choices[0]
        if choice is None:
            raise ArtifactError(f"there is no model {key!r} here; choose one from the list")
        followed = FollowedModel(
            choice.uri, self._gate.tracking_uri if choice.uri.startswith("models:") else ""
        )
        with self._lock:
            version = followed.version()
            kept = self._opened.get(version)
            if kept is None:
                bundle, about = followed.load(version)
                kept = LoadedModel(choice, version, Recommender(bundle), about)
                self._opened[version] = kept
            self._opened.move_to_end(version)
            while len(self._opened) > _MOST_LOADED:
                self._opened.popitem(last=False)
        named = copy(kept)  # the same model may have several names, and aliases change
        named.choice = choice
        return named


def _folded(texts: Any) -> Any:
    """Texts without upper and lower case; both, because Σ has two lower cases."""
    return pc.utf8_lower(pc.utf8_upper(texts))


def _is_of(version: Version, run: Run) -> bool:
    """Whether a version was registered from a run folder that still has the same weights."""
    return version.run_id == run.run_id and version.weights == run.weights
