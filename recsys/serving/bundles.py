"""Bundles with their self-test, which runs on every load.

The files without the self-test are in :mod:`recsys.bundle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recsys.bundle.checksums import check_file, writing_aside
from recsys.bundle.description import DESCRIPTION, SELF_TEST, BundleInfo
from recsys.bundle.layout import Bundle, read_card, read_files
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
    """Write a bundle to a temporary folder and rename it into place, over an existing bundle.

    The arguments are those of :func:`recsys.bundle.writing.write_files`.

    Parameters
    ----------
    folder : str | Path
        Folder of the bundle; replaced if it holds one.
    frozen : FrozenModel
        The model to serve.
    dataset : PreparedDataset
        The dataset that it was trained on.
    extra : Mapping[str, Any]
        Plain JSON values, among them ``metrics``.
    training : Mapping[str, torch.Tensor] | None
        Weights of the trainable model; None: no update can warm-start from the bundle.
    card : str
        Text of the model card.
    measured : Measured | None
        The model that the metrics belong to; None: ``frozen`` itself.

    Raises
    ------
    ArtifactError
        The model was not trained on this dataset or has values that are not finite, or ``folder``
        holds something other than a bundle, which would be lost.
    """
    with writing_aside(folder, DESCRIPTION) as aside:
        write_files(aside, frozen, dataset, extra, training, card, measured)
        add_self_test(aside)


def finish(aside: Path, info: BundleInfo, card: str) -> None:
    """Finish a bundle whose other files are written: add its card, its checksums and
    its self-test.

    Parameters
    ----------
    aside : Path
        The temporary folder with all other files.
    info : BundleInfo
        Content of ``bundle.json``; its list of files is set.
    card : str
        Text of the model card; empty: no card is written.
    """
    close(aside, info, card)
    add_self_test(aside)


def read_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle and run its self-test.

    Raises
    ------
    ArtifactError
        There is no bundle, its format is another one, it is damaged, or it answers the stored
        requests differently on this machine.
    """
    folder = Path(folder)
    bundle = read_files(folder)
    check_file(folder, SELF_TEST, bundle.info.files.get(SELF_TEST))
    run_self_test(folder, bundle)
    read_card(folder, bundle.info)
    return bundle
