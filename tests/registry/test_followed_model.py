"""A model that a server follows at a remote URI: polling is cheap, and loading leaves nothing on
the disk.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_storage import put, remote_config

from recsys.errors import ArtifactError
from recsys.registry.followed_model import FollowedModel
from recsys.registry.register import register
from recsys.registry.tracking import Tracker
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Request
from recsys.storage.mirror import upload
from tests.handmade import small_model, small_world


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    dataset = small_world(tmp_path / "dataset")
    write_bundle(tmp_path / "run/bundle", small_model(dataset), dataset, {})
    return tmp_path / "run/bundle"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all temporary files of this process."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_remote_folder_reloads_when_its_content_changes(
    bundle_folder: Path, bucket: str, temporary: Path
) -> None:
    upload(bundle_folder.parent, f"{bucket}/run")
    followed = FollowedModel(f"{bucket}/run", "")
    first = followed.version()
    assert first == followed.version() and list(temporary.iterdir()) == []
    bundle, about = followed.load(first)
    assert bundle.info == read_bundle(bundle_folder).info and about["uri"] == f"{bucket}/run"
    assert list(temporary.iterdir()) == []
    [answer] = Recommender(bundle).recommend([Request(user_id=bundle.user_ids[0])])
    assert answer.source == "model", "all of it is in memory"
    put(f"{bucket}/run/bundle/bundle.json", "{}")
    assert followed.version() != first
    with pytest.raises(ArtifactError):
        followed.load("another")
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_registered_model_with_remote_files_loads_and_leaves_nothing(
    bundle_folder: Path, tmp_path: Path, bucket: str, temporary: Path
) -> None:
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": f"{bucket}/mlflow"}
    config = remote_config(
        bucket, tracking=tracking, registry={"name": "pocket", "alias": "champion"}
    )
    with Tracker(config, folder=tmp_path) as tracker:
        register(
            tracker,
            bundle_folder,
            config.registry,
            {},
            resumes=config.run.resume,
            replaces=config.update.replace,
        )
    before = sorted(temporary.iterdir())  # files that registering left are not the server's
    followed = FollowedModel("models:/pocket@champion", tracking["uri"])
    bundle, about = followed.load(followed.version())
    assert bundle.info == read_bundle(bundle_folder).info
    assert (about["name"], about["version"], about["alias"]) == ("pocket", "1", "champion")
    assert sorted(temporary.iterdir()) == before
