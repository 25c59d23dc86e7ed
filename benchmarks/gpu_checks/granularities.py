"""Does every trained granularity compute on the GPU what it computes on the CPU?

From the same seed and without dropout, a few steps of the product's loop; then the mean loss, the
item vectors of the frozen model and the user vectors of a ranking are compared. The granularities
come from the registry, each with every value of its keys that name a choice (cell, conv, input …).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from benchmarks.gpu_checks.dataset import write_dataset
from benchmarks.gpu_checks.setting import Setting, matrix_precision
from benchmarks.gpu_checks.training import a_pass, settings
from recsys.config import SECTIONS, GranularityConfig, section_class
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ConfigError
from recsys.evaluation.ranking import rank

TOLERANCE = 2e-3  # relative: Adam divides small gradients by their size, so rounding grows
FIXED = {"fit"}  # choices that are not of the trained form


def equal_the_cpu(setting: Setting) -> dict[str, Any]:
    """Train every case on both devices and compare.

    Parameters
    ----------
    setting : Setting
        The device.

    Returns
    -------
    dict
        Number of cases, the largest differences, and the cases that differ or fail.

    Raises
    ------
    AssertionError
        A case differs or fails; the message names it.
    """
    largest: dict[str, float] = {}
    wrong: dict[str, Any] = {}
    not_here, number = [], 0
    with tempfile.TemporaryDirectory() as folder, matrix_precision("fp32"):
        users, items = setting.size(400, 60), setting.size(600, 40)
        dataset = write_dataset(Path(folder), users, items, longest=16)
        chosen = [*cases(), *whole_models(dataset)]
        if not setting.on_gpu:  # the defaults alone show that the code runs
            chosen = [case for case in chosen if case[0] in {*trained(), "all trained ones"}]
        for name, case in chosen:
            try:
                found = compared(dataset, case, setting.device)
            except ConfigError:
                not_here.append(name)
                continue
            except Exception as error:  # goes on with the others; raised below
                wrong[name] = f"{type(error).__name__}: {error}"[:300]
                continue
            number += 1
            if max(found.values()) > TOLERANCE:
                wrong[name] = found
            largest = {key: max(value, largest.get(key, 0.0)) for key, value in found.items()}
    if wrong:
        raise AssertionError(f"{len(wrong)} of {number} cases differ from the CPU: {wrong}")
    rounded = {name: float(f"{value:.2g}") for name, value in largest.items()}
    return {"cases": number, "largest_relative_difference": rounded, "not_for_this_data": not_here}


def trained() -> dict[str, type[GranularityConfig]]:
    """The sections of all granularities that a training step trains, by name."""
    sections = {name: section_class(name) for name in SECTIONS}
    return {name: cls for name, cls in sections.items() if not cls(enabled=True).is_closed_form}


def without_dropout(cls: type[GranularityConfig]) -> dict[str, float]:
    """Every dropout of a section, set to zero."""
    return {key: 0.0 for key in cls.model_fields if "dropout" in key}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every trained granularity with every combination of its choices, the defaults first.

    Yields
    ------
    tuple of (str, dict)
        Name of the case, and the section ``model.granularities``.
    """
    for name, cls in trained().items():
        base = {"enabled": True, **without_dropout(cls)}
        choices = {
            key: sorted(get_args(field.annotation), key=lambda value, f=field: value != f.default)
            for key, field in cls.model_fields.items()
            if get_origin(field.annotation) is Literal and key not in FIXED
        }
        for values in product(*choices.values()):
            said = " ".join(
                f"{key} {value}"
                for key, value in zip(choices, values, strict=True)
                if value != cls.model_fields[key].default
            )
            chosen = dict(zip(choices, values, strict=True))
            yield f"{name} {said}".strip(), {name: {**base, **chosen}}


def whole_models(dataset: PreparedDataset) -> Iterator[tuple[str, dict[str, Any]]]:
    """All trained granularities together, and the same with every closed-form one.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset, which says which closed-form granularities have a signal.

    Yields
    ------
    tuple of (str, dict)
        Name of the case, and the section ``model.granularities``.
    """
    together = {name: {"enabled": True, **without_dropout(cls)} for name, cls in trained().items()}
    yield "all trained ones", together
    evolution = {"evolution": together["evolution"]}
    for name in SECTIONS:
        if name not in together:
            yield f"evolution with {name}", {**evolution, name: {"enabled": True}}
        elif "fit" in section_class(name).model_fields:
            yield (
                f"evolution with {name} fit counts",
                {
                    **evolution,
                    name: {"enabled": True, "fit": "counts"},
                },
            )


def compared(
    dataset: PreparedDataset, granularities: dict[str, Any], device: torch.device
) -> dict[str, float]:
    """Largest difference of loss, item vectors and user vectors between device and CPU, relative to
    the largest number of the CPU.
    """
    here, there = (
        _trained(dataset, granularities, torch.device(kind)) for kind in ("cpu", device.type)
    )
    return {
        name: float(
            (there[name] - here[name]).abs().max() / here[name].abs().max().clamp(min=1e-12)
        )
        for name in here
    }


def _trained(
    dataset: PreparedDataset, granularities: dict[str, Any], device: torch.device
) -> dict[str, Tensor]:
    config = settings(
        dataset,
        granularities,
        model={"width": 16, "max_history": 12, "item": {"id_dropout": 0.0}},
        train={"batch_size": 64},
    )
    training = a_pass(config, dataset, device)
    training._refit(0)
    loss = torch.tensor([training._epoch(0)])
    frozen = training.model.freeze(training.graphs)
    queries = dataset.histories().queries(Split.VALID)
    rank(frozen, queries, 10)
    users_BD, _, added = frozen.user_vectors(queries)
    found = {
        "loss": loss,
        "item_vectors": frozen.item_vectors_ND.float().cpu(),
        "user_vectors": users_BD.float().cpu(),
    }
    return found | ({"added_scores": added.values_P.float().cpu()} if len(added) else {})
