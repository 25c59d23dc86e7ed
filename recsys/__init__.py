"""Multigrain: recommenders that see a user at several granularities, trained data-parallel on Ray.

The front door for people who write Python::

    import recsys

    dataset = recsys.Dataset.from_pandas(orders, items=products)
    model = recsys.fit(dataset, budget="10m")
    model.recommend(["ann"], k=5)

Names are imported on first use, so that ``import recsys`` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pipelines.python.dataset import Dataset
    from pipelines.python.fit import fit
    from pipelines.python.init import init
    from pipelines.python.model import Model, load
    from recsys.config import Config

__version__ = "0.1.0"
__all__ = ["Config", "Dataset", "Model", "__version__", "fit", "init", "load"]

_WHERE: Final = {
    "Config": "recsys.config",
    "Dataset": "pipelines.python.dataset",
    "Model": "pipelines.python.model",
    "fit": "pipelines.python.fit",
    "init": "pipelines.python.init",
    "load": "pipelines.python.model",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
