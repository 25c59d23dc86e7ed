"""The MLflow model that carries a bundle: model from code, source of this package, signature,
input example and requirements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import recsys
from recsys.bundle.description import DESCRIPTION
from recsys.encoders.text import PACKAGED
from recsys.registry.digest import listing
from recsys.registry.resolve import is_local
from recsys.registry.tracking import Tracker
from recsys.serving.requests import SimilarRequest
from recsys.storage.temporary import temporary

if TYPE_CHECKING:
    from recsys.bundle.layout import Bundle

MODEL_FILE: Final = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS: Final = ("torch", "numpy", "pandas", "pyarrow", "safetensors", "pydantic", "pyyaml")


def log_model(tracker: Tracker, folder: Path, bundle: Bundle) -> Any:
    """Log the bundle as an MLflow model from code, together with the source of this package.

    Parameters
    ----------
    tracker : Tracker
        The open tracker; the model is logged to its run.
    folder : Path
        Folder of the bundle.
    bundle : Bundle
        The same bundle, read.

    Returns
    -------
    Any
        MLflow's description of the logged model.
    """
    import mlflow
    import mlflow.pyfunc

    from recsys.registry.pyfunc_model import BUNDLE, BUNDLE_SHA256, request_schema, signature

    with _active_run(tracker):
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(MODEL_FILE),
            artifacts={BUNDLE: str(folder.absolute())},
            code_paths=[str(Path(recsys.__file__).parent)],
            model_config={
                BUNDLE_SHA256: hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
            },
            signature=signature(bundle.exclude_seen),
            metadata={
                "request": request_schema(bundle.exclude_seen),
                "similar": SimilarRequest.model_json_schema(),
            },
            input_example=input_example(bundle),
            pip_requirements=[
                f"{package}=={version(package).split('+')[0]}" for package in requirements(bundle)
            ],
        )


def logged_files(uri: str) -> dict[str, str]:
    """The :func:`~recsys.registry.digest.listing` of a logged model, read back from MLflow's
    artefact store.
    """
    from mlflow.artifacts import download_artifacts

    with temporary() as into:
        return listing(
            Path(download_artifacts(artifact_uri=uri, dst_path=None if is_local(uri) else into))
        )


def requirements(bundle: Bundle) -> list[str]:
    """The packages that serving needs: few, plus those for an index, other granularities or texts
    of histories.
    """
    found = [*REQUIREMENTS, *(["faiss-cpu"] if bundle.index is not None else [])]
    found += sorted({entry.package for entry in bundle.info.outside.values() if entry.package})
    if bundle.info.user_text:
        found.append("transformers")
        packaged = PACKAGED.get(
            str(bundle.info.user_text["model"]).removeprefix("sentence-transformers/")
        )
        found += [packaged.replace("_", "-")] if packaged else []
    return found


def input_example(bundle: Bundle) -> Any:
    """An input example with invented users, no users of the data.

    They are new users with a history, with an unknown friend and, where the model reads attributes,
    with attributes.
    """
    import pandas as pd

    history, user, friend = bundle.item_ids[:3], "invented-user", "invented-friend"
    known = set(bundle.user_ids)
    while user in known or friend in known:
        user, friend = f"{user}-1", f"{friend}-1"
    rows: list[dict[str, Any]] = [
        {"user_id": user, "history": history[:1]},
        {"user_id": user, "history": history},
        {"user_id": user, "friends": [friend]},
    ]
    nothing: dict[str, Any] = {"history": [], "friends": []}
    from recsys.granularities.profile.attribute_encoding import encoding_of

    profile = encoding_of(bundle.model.sizes)
    if profile is not None and profile.users:
        nothing["attributes"] = {}
        rows.append(
            {"user_id": user, "attributes": {field.name: field.example for field in profile.users}}
        )
    return pd.DataFrame([{**nothing, **row, "k": 5} for row in rows])


@contextmanager
def _active_run(tracker: Tracker) -> Iterator[None]:
    """Make the tracker's run MLflow's active run; MLflow ends it afterwards, so set it to running
    again.
    """
    import mlflow

    with mlflow.start_run(run_id=tracker.run_id):
        yield
    tracker.client.update_run(tracker.run_id, status="RUNNING")
