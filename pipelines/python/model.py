"""A trained model as an object: recommend, evaluate, explain, save and register."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pipelines.python.dotted_changes import Settings, gives, with_settings
from pipelines.python.request_arguments import (
    history_of,
    ids_of_users,
    one_id,
    plain,
    plain_arguments,
    request_rows,
    requests_of,
    seconds_of,
)
from recsys.bundle.checksums import writing_aside
from recsys.bundle.description import DESCRIPTION, BundleInfo, read_info
from recsys.config import Config, load_config
from recsys.errors import ArtifactError, ConfigError, RequestError
from recsys.registry.copy_records import Copy, owner_of, remember, write_origin
from recsys.serving.answer_rows import BatchRecommender, Defaults, named_users, output_schema
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import one_request, parse_rules, parse_similar
from recsys.serving.requests import MAX_K
from recsys.storage.temporary import keep
from recsys.storage.uris import expanded

if TYPE_CHECKING:
    import pandas as pd

_AT_A_TIME: Final = 4096  # users


class Model:
    """A model: its bundle, and its run folder if it was trained here.

    Made by :func:`recsys.fit` or :func:`recsys.load`.

    Parameters
    ----------
    bundle : path
        The folder of the bundle.
    run : path, optional
        The run folder, with metrics and report.

    Examples
    --------
    ```python
    print(model.evaluate())  # the model and every baseline on the test split
    print(model.recommend("ann", k=5))
    ```
    """

    def __init__(
        self,
        bundle: str | Path,
        run: str | Path | None = None,
        model_uri: str = "",
        tracking_uri: str = "",
    ) -> None:
        self.bundle = Path(bundle)
        self.run = None if run is None else Path(run)
        self._model_uri, self._tracking_uri = model_uri or str(run or bundle), tracking_uri
        self.info: BundleInfo = read_info(self.bundle)

    def __repr__(self) -> str:
        metric = self.info.extra.get("main_metric", "")
        value = self.info.metrics.get(metric)
        metric_text = "" if value is None else f", {metric} {value:.4f}"
        return f"Model({', '.join(self.info.granularities)}{metric_text})"

    @cached_property
    def recommender(self) -> Recommender:
        """The object that answers requests; loaded when it is first needed."""
        return Recommender(read_bundle(self.bundle))

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``; for a loaded model, the metrics stored in its bundle."""
        if self.run is None:
            return {
                "metric": self.info.extra.get("main_metric", ""),
                "model": dict(self.info.metrics),
            }
        found: dict[str, Any] = json.loads((self.run / "metrics.json").read_text(encoding="utf-8"))
        return found

    @property
    def report(self) -> Path:
        """The HTML report of the run.

        Raises
        ------
        ArtifactError
            The model was loaded, and has no run folder.
        """
        return self._run("report") / "report.html"

    def evaluate(self, settings: Settings = None) -> pd.DataFrame:
        """The metrics of the model and of every baseline on the test split.

        Parameters
        ----------
        settings : mapping, optional
            Changes of the section ``evaluate``, such as ``{"evaluate.ks": [5, 50]}``; the test
            split is ranked again with them. The run keeps its own metrics, report and
            configuration.

        Returns
        -------
        DataFrame
            One row per recommender (``model`` first), one column per metric; means over the test
            users.

        Raises
        ------
        ArtifactError
            The model was loaded, and has no run folder.
        ConfigError
            A setting does not belong to the section ``evaluate``.
        """
        import pandas as pd

        run = self._run("evaluate")
        metrics = self.metrics
        if settings:
            from pipelines.evaluate import measure
            from pipelines.plumbing.progress import Progress
            from pipelines.plumbing.run_folder import RunFolder

            if other := [key for key in settings if not key.startswith("evaluate.")]:
                raise ConfigError(
                    f"settings: {', '.join(other)}: expected keys of the section evaluate only"
                )
            config = with_settings(
                load_config(run / "config.yaml"), {**settings, "run.dir": str(run)}
            )
            metrics = measure(config, RunFolder(run, Progress(sys.stdout, run / "run.log")))
        return pd.DataFrame.from_dict(
            {"model": metrics["model"], **metrics["baselines"]}, orient="index"
        )

    def recommend(
        self,
        users: str | Sequence[str] | None = None,
        *,
        histories: Sequence[Sequence[str]] | Mapping[str, Sequence[str]] | None = None,
        requests: Sequence[Mapping[str, Any]] | None = None,
        k: int = 20,
        at: Any = None,
        **rules: Any,
    ) -> pd.DataFrame:
        """The best items for users, histories or requests.

        Parameters
        ----------
        users : str or sequence of str, optional
            Known users. Without users, histories and requests: every user that the model knows.
        histories : sequence of sequences, or mapping of user → sequence, optional
            Item ids, oldest first: for cold-start users, or the newest events of known users. The
            users of a sequence are named by position, ``"0"``, ``"1"``, …
        requests : sequence of mappings, optional
            Complete requests, as for the server: ``user_id``, ``history``, ``friends``,
            ``attributes``, ``context``, ``at``, …
        k : int
            Length of a list.
        at : str, datetime or epoch seconds, optional
            Time for which the lists are computed; UTC without a time zone. Without it, the time of
            the newest event that the model knows, so that a model gives the same lists on any day;
            a server answers for now.
        **rules
            Defaults for all requests: ``candidates``, ``exclude``, ``filters``, ``boost``,
            ``diversify``, ``offset``, ``per_user_limit``, ``explain``, and ``exclude_seen``.

        Returns
        -------
        DataFrame
            One row per item: ``user_id, rank, item_id, score``, ``share_GRANULARITY`` (its
            contribution to the score) and ``source`` (``model``, or ``popularity`` if nothing is
            known about the user).

        Raises
        ------
        RequestError
            Several of users, histories and requests are given, or one of the arguments is
            malformed.
        """
        import pyarrow as pa

        if sum(given is not None for given in (users, histories, requests)) > 1:
            raise RequestError("got several of users, histories and requests; expected one of them")
        rules = plain_arguments({"k": k, **rules})
        k, exclude_seen = rules.pop("k"), rules.pop("exclude_seen", None)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
            raise RequestError(f"k: got {k!r}; expected a whole number from 1 to {MAX_K:,}")
        answering = BatchRecommender(
            self.recommender,
            Defaults(k, exclude_seen, seconds_of(at), parse_rules(rules, "rules")),
        )
        if histories is not None:
            return answering.rows(requests_of(histories)).to_pandas()
        if requests is not None:
            return answering.rows(request_rows(requests)).to_pandas()
        if users is None:
            rows = pa.table({"user_id": pa.array(self.recommender.bundle.user_ids, pa.string())})
        else:
            rows = named_users(self.recommender.bundle, ids_of_users(users))
        starts = range(0, len(rows), _AT_A_TIME)
        with one_request():  # the rules are those of the call, and no user has a request
            tables = [answering(rows.slice(start, _AT_A_TIME)) for start in starts]
        return pa.concat_tables(
            tables or [output_schema(self.recommender.speaking).empty_table()]
        ).to_pandas()

    def similar(
        self,
        item: str,
        *,
        k: int = 20,
        by: Literal["auto", "vectors", "use", "text"] = "auto",
        **rules: Any,
    ) -> pd.DataFrame:
        """The items most similar to an item.

        Parameters
        ----------
        item : str
            Its id.
        k : int
            Length of the list.
        by : {"auto", "vectors", "use", "text"}
            Model vectors, common users, or texts; auto: vectors, but texts for an item without
            events.
        **rules
            As in :meth:`recommend`.

        Returns
        -------
        DataFrame
            ``rank, item_id, title, score, by``.

        Raises
        ------
        RequestError
            The model does not know the item, or cannot compare items in this way.
        """
        import pandas as pd

        rules = parse_rules(plain_arguments(rules), "rules")
        request = {"item_id": one_id(item), "k": plain(k), "by": by, **rules}
        with one_request():
            [answer] = self.recommender.similar.answer(parse_similar([request]))
        columns = {"item_id": answer.item_ids, "title": answer.titles, "score": answer.scores}
        found = pd.DataFrame({"rank": range(1, len(answer.item_ids) + 1), **columns})
        return found.assign(by=answer.by)

    def explain(
        self,
        user: str,
        *,
        history: Sequence[str] | None = None,
        k: int = 10,
        at: Any = None,
        **rules: Any,
    ) -> pd.DataFrame:
        """The list of a user, with the reasons for each item.

        Parameters
        ----------
        user : str
            A known user, or a name for the history.
        history : sequence of str, optional
            Item ids, oldest first.
        k : int
            Length of the list.
        at : str, datetime or epoch seconds, optional
            As in :meth:`recommend`.
        **rules
            As in :meth:`recommend`.

        Returns
        -------
        DataFrame
            As :meth:`recommend`, with ``why`` (a sentence) and ``explanation`` (past items and
            friends that contribute, each with its contribution).

        Raises
        ------
        RequestError
            The request is malformed.
        """
        row: dict[str, Any] = {
            "user_id": one_id(user),
            **({} if history is None else {"history": history_of(history)}),
        }
        with one_request():
            found = self.recommend(requests=[row], k=k, at=at, **{**rules, "explain": True})
        explanations = [json.loads(text) for text in found.explanation]
        return found.assign(
            explanation=explanations, why=[entry["sentence"] for entry in explanations]
        )

    def save(self, folder: str | Path) -> Path:
        """Save the model to a folder, which :func:`recsys.load` and ``recsys serve`` read.

        The run folder or the registered model notes the path, so that ``recsys forget`` can replace
        it.

        Parameters
        ----------
        folder : path
            A new folder; its parents are created.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ArtifactError
            The folder exists.
        """
        target = Path(folder).expanduser()
        if target.exists():
            raise ArtifactError(f"{target} exists; choose another folder")
        with writing_aside(target, DESCRIPTION) as aside:  # so that nobody reads half a model
            # first: after a kill, `recsys forget` must find what was copied
            remember([Copy.here("model", target)], self._model_uri, self._tracking_uri)
            shutil.copytree(self.bundle, aside, dirs_exist_ok=True)
            owner = owner_of(self._model_uri, self._tracking_uri)
            if owner is not None:
                write_origin(aside, owner)
        return target

    def register(self, name: str = "", *, tracking_uri: str = "", settings: Settings = None) -> str:
        """Register the model in MLflow.

        It gets the alias ``registry.alias`` (challenger) if it meets the minimum: it is not
        significantly worse than the best baseline, and was trained on at least as much data as the
        version that has the alias. Otherwise a line says why not.

        Parameters
        ----------
        name : str
            Name of the registered model; default: that of the configuration.
        tracking_uri : str
            MLflow's URI; default: that of the configuration, or a SQLite store next to the run
            folder.
        settings : mapping, optional
            Other changes of the configuration, such as ``{"registry.alias": "candidate"}``.

        Returns
        -------
        str
            ``models:/NAME/VERSION``.

        Raises
        ------
        ArtifactError
            The model was loaded, and has no run folder.
        ConfigError
            ``settings`` name another run folder.
        """
        from pipelines.plumbing.run_folder import open_run
        from pipelines.register import register

        run = self._run("register")
        if gives(settings, "run.dir"):
            raise ConfigError(
                f"settings: run.dir: this model has the run folder {run}; for another one use"
                " recsys.load(RUN_FOLDER).register()"
            )
        changes: dict[str, Any] = {
            "tracking.enabled": True,
            **(settings or {}),
            "run.dir": str(run),
        }
        changes |= {"registry.name": name} if name else {}
        changes |= {"tracking.uri": tracking_uri} if tracking_uri else {}
        config: Config = with_settings(load_config(run / "config.yaml"), changes)
        with open_run(config, "register") as folder:
            done = register(config, folder)
            if config.tracking.uri == "" and keep(run):
                folder.progress(f"{run.parent} stays after this process: it has the MLflow store")
        return f"models:/{done['name']}/{done['version']}"

    def _run(self, what: str) -> Path:
        if self.run is None:
            raise ArtifactError(
                f"{what}: this model was loaded from {self.bundle} and has no run folder; use the"
                " model that recsys.fit returned, or recsys.load(RUN_FOLDER)"
            )
        return self.run


def load(model: str | Path, *, tracking_uri: str = "") -> Model:
    """Load a model that was saved, pulled, registered or trained before.

    Parameters
    ----------
    model : path or str
        A run folder, a bundle's folder, or ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``.
    tracking_uri : str
        MLflow's URI, for a registered model.

    Returns
    -------
    Model
        With a run folder it also has the report and all metrics.

    Raises
    ------
    ArtifactError
        There is no model.
    """
    model = expanded(str(model))
    folder = Path(model)
    if (
        not model.startswith("models:")
        and (folder / "bundle").is_dir()
        and (folder / "metrics.json").is_file()
    ):
        return Model(folder / "bundle", folder)
    from recsys.registry.resolve import resolve

    return Model(resolve(model, tracking_uri), None, model, tracking_uri)
