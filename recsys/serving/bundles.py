"""Bundles that are tested: the questions that one stores are asked when it is written, and on every load.

The files themselves, without the questions, are in :mod:`recsys.bundle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recsys.bundle.checksums import check_file, writing_aside
from recsys.bundle.description import DESCRIPTION, SELF_TEST, BundleInfo
from recsys.bundle.files import Bundle, read_card, read_files
from recsys.bundle.writing import Measured, close, write_files
from recsys.data.dataset import PreparedDataset
from recsys.model import FrozenModel
from recsys.serving.self_test import add_self_test, run_self_test


def write_bundle(
    folder: str | Path,
    frozen: FrozenModel,
    dataset: PreparedDataset,
    extra: Mapping[str, Any],
    training: Mapping[str, torch.Tensor] | None = None,
    card: str = "",
    measured: Measured | None = None,
) -> None:
    """Write a bundle aside and rename it into place; one that is there already is replaced.

    The arguments are those of :func:`recsys.bundle.writing.write_files`.

    Raises
    ------
    ArtifactError
        the model was not trained on this dataset, has values that are not finite, or ``folder`` holds
        something that is not a bundle and would be lost.
    """
    with writing_aside(folder, DESCRIPTION) as aside:
        write_files(aside, frozen, dataset, extra, training, card, measured)
        add_self_test(aside)


def finish(aside: Path, info: BundleInfo, card: str) -> None:
    """Seal a bundle whose files are all written, with its card and the test of itself."""
    close(aside, info, card)
    add_self_test(aside)


def read_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle, and ask it the questions whose answers it stores.

    Raises
    ------
    ArtifactError
        no bundle there, one of another format, one that is damaged, or one that answers otherwise here.
    """
    folder = Path(folder)
    bundle = read_files(folder)
    check_file(folder, SELF_TEST, bundle.info.files.get(SELF_TEST))
    run_self_test(folder, bundle)
    read_card(folder, bundle.info)
    return bundle
