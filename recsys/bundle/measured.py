"""The model of a bundle that may be ranked on the test part.

Why: where the model that answers was trained on all events, it has seen the answers of every test. The one that its
figures are of has not; it lies beside it, under the same checksums, and whoever compares models takes it from here.
A bundle without one, as every earlier release wrote it, holds a single model, which is the measured one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from recsys.bundle.checks import check_counts, check_finite, check_parts
from recsys.bundle.checksums import check_file, damaged, said_by
from recsys.bundle.description import MEASURED, MEASURED_KEY, BundleInfo
from recsys.bundle.files import Bundle
from recsys.errors import ArtifactError
from recsys.model import FrozenModel, load_sizes


def has_measured(info: BundleInfo) -> bool:
    """Whether the model that answers is another one than the measured one."""
    return MEASURED_KEY in info.extra or MEASURED in info.files


def measured(folder: Path, bundle: Bundle) -> Bundle:
    """The bundle with the measured model in place of the one that answers; the same where there is only one.

    Raises
    ------
    ArtifactError
        the measured model is missing, damaged or does not fit the bundle.
    """
    info = bundle.info
    if not has_measured(info):
        return bundle
    check_file(folder, MEASURED, info.files.get(MEASURED))
    try:
        sizes = load_sizes(info.extra[MEASURED_KEY]["sizes"])
        check_counts(sizes, len(bundle.user_ids), bundle.num_items)
        tensors = load_file(folder / MEASURED)
        check_finite(tensors, str(folder / MEASURED))
        found = replace(bundle, model=FrozenModel.from_tensors(info.model, sizes, tensors), index=None)
        check_parts(found)
    except ArtifactError:
        raise
    except Exception as error:  # a bundle that was changed and sealed anew fails in any library that reads it
        raise damaged(folder, f"{MEASURED}: {said_by(error)}") from None
    return found
