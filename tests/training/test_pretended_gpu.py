"""Training, freezing and ranking use no tensor of another device: on a pretended GPU, where mixing
devices raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_checks.dataset import write_dataset
from benchmarks.gpu_checks.granularities import _trained, trained, without_dropout
from benchmarks.gpu_checks.training import a_pass, settings
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from tests.pretended_gpu import pretended_gpu

EVOLUTION = {"evolution": {"enabled": True}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_dataset(Path(tmp_path_factory.mktemp("generated")), 60, 40, longest=16)


def test_mixing_devices_raises_and_moving_does_not() -> None:
    with pretended_gpu() as gpu:
        here, there = torch.ones(3), torch.ones(3, device=gpu)
        assert (here.device.type, there.device.type) == ("cpu", "cuda")
        assert (there[1:] + here.to(gpu)[1:]).device.type == "cuda"
        assert there.cpu().numpy().tolist() == [1, 1, 1]
        with pytest.raises(RuntimeError, match="pretended GPU"):
            here + there
        with pytest.raises(TypeError, match="use .cpu"):
            there.numpy()


@pytest.mark.parametrize("name", trained())
def test_a_trained_granularity_trains_and_ranks_on_one_device(
    dataset: PreparedDataset, name: str
) -> None:
    section = {"enabled": True, **without_dropout(trained()[name])}
    here = _trained(dataset, {name: section}, torch.device("cpu"))
    with pretended_gpu() as gpu:
        there = _trained(dataset, {name: section}, gpu)
    for key, found in here.items():
        torch.testing.assert_close(there[key].clone(), found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["frequency", "repeat", "item_cf"])
def test_scores_of_a_closed_form_member_are_on_one_device(
    dataset: PreparedDataset, name: str
) -> None:
    sections: dict[str, Any] = {**EVOLUTION, name: {"enabled": True}}
    model = {"width": 16, "max_history": 12, "fusion": {"stack": True}}
    config = settings(dataset, sections, model=model)
    queries = dataset.histories().queries(Split.VALID)
    with pretended_gpu() as gpu:
        training = a_pass(config, dataset, gpu)
        frozen = training.model.freeze(training.graphs)
        frozen.choose_scales(queries)
        assert {scores_BN.device.type for scores_BN in frozen.member_scores(queries)} == {"cuda"}
