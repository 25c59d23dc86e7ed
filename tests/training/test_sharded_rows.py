"""Id rows sharded over workers: they train like whole tables, and checkpoints move between numbers
of workers.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recsys.config import Config, TrainConfig, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError, ConfigError
from recsys.evaluation.validation import Validator
from recsys.sharded_rows import Shard, ShardedRows
from recsys.training.checkpoint import (
    TrainResult,
    check_checkpoint,
    load_checkpoint,
    load_trained,
    save_trained,
)
from recsys.training.context import Report, TrainContext
from recsys.training.fresh_model import Start, build_graphs, build_model
from recsys.training.optimizer import build_optimizer, clip_gradients
from recsys.training.phases import fit
from recsys.training.step import StepLoss
from tests.training.test_optimizer import large
from tests.training.test_training import Interrupted, cycles, run
from tests.two_processes import together

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE = "model.tower.id_ND.weight"
ROWS, WIDTH, STEPS = 11, 3, 4


def sharded(**train: Any) -> Config:
    return large(shard_rows="yes", **train)


# ------------------------------------------------------------------------------------- one table


class Table(nn.Module):
    def __init__(self, rows: nn.Module) -> None:
        super().__init__()
        self.rows, self.out = rows, nn.Linear(WIDTH, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.out(self.rows(ids))).square().sum()


def _steps(world: int) -> list[list[list[int]]]:
    """The ids of every worker in every step: other ones for each worker, with repeats, and rows
    that no worker uses.
    """
    draws = torch.Generator().manual_seed(1)
    each = [[torch.randint(ROWS - 2, (5,), generator=draws) for _ in range(world)] for _ in "123"]
    return [*([one.tolist() for one in step] for step in each), [[], *[[3]] * (world - 1)]]


def _trained(module: Table, steps: list[list[int]], world: int, clip: float) -> Table:
    optimizer = build_optimizer(module, TrainConfig(lr=0.05, weight_decay=0.1))
    for ids in steps:
        optimizer.zero_grad(set_to_none=True)
        (module(torch.tensor(ids, dtype=torch.int64)) / world).backward()
        clip_gradients(module, clip)
        optimizer.step()
    return module


class Averaged(Table):
    """A worker's table, whose other gradients are averaged as DDP does it."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * torch.distributed.get_world_size()


def _add_up(parameter: nn.Parameter) -> None:
    torch.distributed.all_reduce(parameter.grad)
    parameter.grad /= torch.distributed.get_world_size()  # type: ignore[operator]


def _table_worker(rank: int, world: int, out: str, clip: float) -> None:
    torch.manual_seed(1)
    module = Averaged(ShardedRows(ROWS, WIDTH, 1.0, Shard(rank, world)))
    for parameter in module.out.parameters():
        parameter.register_post_accumulate_grad_hook(_add_up)
    _trained(module, [step[rank] for step in _steps(world)], world, clip)
    rows = module.rows
    assert isinstance(rows, ShardedRows)
    whole = rows.whole(rows.weight)
    if rank == world - 1:
        torch.save({"rows": whole, "out": module.out.weight}, out)


@pytest.mark.parametrize(("world", "clip"), [(2, 1e3), (3, 1e-2)])
def test_sharded_table_takes_the_steps_of_a_whole_one(
    tmp_path: Path, world: int, clip: float
) -> None:
    """Same initial values, same update of used rows, unused rows stay, and one norm of all
    gradients.
    """
    together(_table_worker, tmp_path, str(tmp_path / "out.pt"), clip, world=world)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    torch.manual_seed(1)
    table = nn.Embedding(ROWS, WIDTH, sparse=True)
    nn.init.normal_(table.weight)
    before = table.weight.detach().clone()
    whole = _trained(Table(table), [sum(step, []) for step in _steps(world)], world, clip)
    torch.testing.assert_close(found["rows"], whole.rows.weight.detach())
    torch.testing.assert_close(found["out"], whole.out.weight.detach())
    assert (found["rows"] != before).any(1).sum() > 5
    assert torch.equal(found["rows"][-2:], before[-2:]), "no worker used these rows"


# --------------------------------------------------------------------------------- whole trainings


def _worker(
    rank: int, world: int, folder: str, out: str, config: dict[str, Any], stop: int, resume: str
) -> None:
    """Train; with ``stop``, every worker leaves the files of its checkpoint of this number in the
    folder ``out``.
    """
    count = 0

    def save(checkpoint: Path | None) -> None:
        nonlocal count
        count += 1
        if count == stop:
            assert checkpoint is not None, "each worker has own rows"
            (Path(out) / "held").mkdir(parents=True, exist_ok=True)
            for path in checkpoint.iterdir():
                path.rename(Path(out) / "held" / path.name)
            torch.distributed.barrier()
            raise Interrupted

    def report(values: Report, checkpoint: Path | None) -> None:
        return None

    context = TrainContext(
        rank, world, report=report, save=save, resume_from=Path(resume) if resume else None
    )
    with contextlib.suppress(Interrupted):
        result = run(build_config(config), PreparedDataset(folder), context)
        if rank == world - 1:
            save_trained(Path(out), result)


def of_some(
    config: Config,
    dataset: PreparedDataset,
    out: Path,
    world: int,
    stop: int = 0,
    resume: Path | None = None,
) -> Any:
    """A training by some workers; None if it stopped at a checkpoint within an epoch."""
    out.mkdir()
    words = (config.model_dump(mode="json"), stop, "" if resume is None else str(resume))
    together(_worker, out, dataset.root, str(out), *words, world=world)
    return None if stop else load_trained(out)


def _losses(result: Any) -> list[float]:
    return [report["loss"] for report in result.history]


def test_sharded_training_equals_one_with_whole_tables(tmp_path: Path) -> None:
    """Losses, validation, item vectors, and the whole tables that a warm start needs, with a refit
    and gradients that are clipped.
    """
    dataset = cycles(tmp_path / "data")
    config = large(refit=True, clip_norm=0.01, weight_decay=0.1)
    whole = run(config, dataset)
    config.train.shard_rows = "yes"
    both = of_some(config, dataset, tmp_path / "two", 2)
    assert _losses(both) == pytest.approx(_losses(whole), rel=1e-5)
    assert [one.get("ndcg@5") for one in both.history] == pytest.approx(
        [one.get("ndcg@5") for one in whole.history]
    )
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(both.frozen.item_vectors_ND, whole.frozen.item_vectors_ND, **close)
    torch.testing.assert_close(both.weights[TABLE], whole.weights[TABLE], **close)
    assert both.selected is not None and whole.selected is not None
    torch.testing.assert_close(both.selected[TABLE], whole.selected[TABLE], **close)


def test_checkpoint_moves_between_numbers_of_workers(tmp_path: Path) -> None:
    """Four workers, then two, then three, then one: the training ends as if uninterrupted."""
    dataset, config = cycles(tmp_path / "data"), sharded(batch_size=6, checkpoint_steps=2)
    whole, place = run(config, dataset), None
    for world in (4, 2, 3):
        out = tmp_path / f"of-{world}"
        of_some(config, dataset, out, world, stop=2, resume=place)
        place = out / "held"
        check_checkpoint(place)
        assert len(list(place.glob("rows-*.safetensors"))) == world
    last = run(config, dataset, TrainContext(resume_from=place))
    assert _losses(last) == pytest.approx(_losses(whole), rel=1e-5)
    torch.testing.assert_close(
        last.frozen.item_vectors_ND, whole.frozen.item_vectors_ND, rtol=1e-3, atol=1e-5
    )


def _warm_worker(rank: int, world: int, folder: str, out: str, config: dict[str, Any]) -> None:
    built, start = build_config(config), _start(load_trained(Path(out) / "before"))
    validate = Validator.of(built.train, built.evaluate)
    result = fit(built, PreparedDataset(folder), validate, TrainContext(rank, world), start)
    if rank == 0:
        save_trained(Path(out) / "after", result)


def _start(trained: TrainResult) -> Start:
    names = tuple(trained.frozen.trained_names)
    return Start(trained.weights, trained.frozen.sizes.inputs, names)


def test_warm_start_from_whole_tables_equals_one_without_sharded_rows(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path / "data"), large(epochs=1)
    first = run(config, dataset)
    save_trained(tmp_path / "before", first)
    validate = Validator.of(config.train, config.evaluate)
    whole = fit(config, dataset, validate, TrainContext(), _start(first))
    config.train.shard_rows = "yes"
    words = (dataset.root, str(tmp_path), config.model_dump(mode="json"))
    together(_warm_worker, tmp_path, *words)
    both = load_trained(tmp_path / "after")
    assert _losses(both) == pytest.approx(_losses(whole), rel=1e-5)
    torch.testing.assert_close(both.weights[TABLE], whole.weights[TABLE], rtol=1e-3, atol=1e-5)


def test_draws_beyond_the_limit_of_torch_have_the_same_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of 40,000 draws, within five standard errors of q; items without weight never."""
    dataset, config = cycles(tmp_path), large()
    config.train.loss.num_negatives, config.train.loss.new_items = 40_000, False
    monkeypatch.setattr("recsys.training.step._MAX_CATEGORIES", 10)
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    model.tower.trained_N[3] = 0
    graphs = build_graphs(dataset, Split.TRAIN, model)
    loss = StepLoss(model, graphs, config.train.loss, dataset)
    found_N = torch.bincount(loss._draw((1, 2, 3)), minlength=20).double() / 40_000
    error_N = (loss.q_N * (1 - loss.q_N) / 40_000).sqrt()
    assert ((found_N - loss.q_N).abs() <= 5 * error_N).all() and found_N[3] == 0


def test_damaged_or_missing_rows_of_a_worker_are_refused(tmp_path: Path) -> None:
    config = sharded(batch_size=6, checkpoint_steps=2)
    of_some(config, cycles(tmp_path / "data"), tmp_path / "out", 2, stop=1)
    held = tmp_path / "out" / "held"
    model, best, _ = load_checkpoint(held, None)
    assert len(model[TABLE]) == len(best[TABLE]) == 20
    (held / "rows-1-of-2.safetensors").unlink()
    with pytest.raises(ArtifactError, match="rows-1-of-2"):
        check_checkpoint(held)
    with pytest.raises(ArtifactError, match="the rows of 1 of 2 workers"):
        load_checkpoint(held, None)


def _refused(rank: int, world: int, folder: str, out: str, config: dict[str, Any]) -> None:
    try:
        run(build_config(config), PreparedDataset(folder), TrainContext(rank, world))
    except ConfigError as error:
        Path(out).write_text(str(error))
    torch.distributed.barrier()  # none may leave before the other has met it


@pytest.mark.parametrize(
    ("kind", "granularity", "cure"),
    [
        ("full_softmax", {}, "sampled_softmax"),
        ("sampled_softmax", {"social": {"enabled": True}}, "social"),
    ],
)
def test_step_that_reads_all_items_is_refused(
    tmp_path: Path, kind: str, granularity: dict[str, Any], cure: str
) -> None:
    tree = json.loads(json.dumps(sharded().model_dump(mode="json")))
    tree["train"]["loss"]["kind"] = kind
    for name, section in granularity.items():
        tree["model"]["granularities"][name].update(section)
    dataset = cycles(tmp_path / "data")
    together(_refused, tmp_path, dataset.root, str(tmp_path / "error"), tree)
    message = (tmp_path / "error").read_text()
    assert "train.shard_rows" in message and cure in message
