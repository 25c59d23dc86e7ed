"""Training from Python: the stages of ``recsys run``."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from pipelines.python.dataset import Dataset
from pipelines.python.dotted_changes import Settings, gives, with_settings
from pipelines.python.model import Model
from recsys.errors import ConfigError


def fit(
    dataset: Dataset,
    *,
    budget: str = "",
    folder: str | Path | None = None,
    settings: Settings = None,
    verbose: bool = True,
) -> Model:
    """Train on the dataset, measure on its test split, and return the model.

    The same as ``recsys run``, but without registration unless ``settings`` enable tracking
    (:meth:`Model.register` registers later). Without a section ``model`` in the dataset's
    configuration or the settings, the model is chosen automatically.

    Parameters
    ----------
    dataset : Dataset
        What to train on.
    budget : str
        Time for the search of a good model and its training, such as ``"20m"``. Default: one good
        setting by rules.
    folder : path, optional
        The run folder, with report and checkpoints. Default: ``run`` in the dataset's folder.
    settings : mapping, optional
        Changes of the configuration by dotted path, such as ``{"train.epochs": 5}``; not of the
        section ``data``, nor ``run.dir``, which is ``folder``.
    verbose : bool
        Whether to print progress lines; ``run.log`` in the folder always has them.

    Returns
    -------
    Model
        Its metrics are in :attr:`Model.metrics`, its report in :attr:`Model.report`.

    Raises
    ------
    UserError
        The data or a setting is wrong; the message says what, where and how to fix it.
    ConfigError
        ``settings`` change the section ``data``, which the dataset decides, or name a run folder,
        which is ``folder``.

    Examples
    --------
    ```python
    model = recsys.fit(dataset, budget="10m")
    ```
    """
    from pipelines.command_line.configuration_checks import check
    from pipelines.plumbing.run_folder import open_run
    from pipelines.run import run
    from pipelines.stages import VERBS

    of_data = [key for key in settings or {} if key.split(".")[0] == "data"]
    if of_data:
        raise ConfigError(
            f"{', '.join(of_data)}: the dataset decides this; make a recsys.Dataset with these"
            " settings"
        )
    if gives(settings, "run.dir"):
        raise ConfigError("settings: run.dir: give the run folder as folder=, not in the settings")
    run_dir = dataset.folder / "run" if folder is None else Path(folder).expanduser().absolute()
    ours: dict[str, Any] = {"tracking.enabled": False, **({"run.budget": budget} if budget else {})}
    if (settings or {}).get("seed", dataset.config.seed) != dataset.config.seed:
        ours["data.dir"] = ""  # another seed needs its own dataset, in the run folder
    config = with_settings(dataset.config, {**ours, **(settings or {}), "run.dir": str(run_dir)})
    check(config, VERBS["run"].stages)
    with open_run(config, "run", sys.stdout if verbose else io.StringIO()) as open_folder:
        run(config, open_folder)
    return Model(run_dir / "bundle", run_dir)
