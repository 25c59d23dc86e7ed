"""The measured model of a bundle: the one that may be ranked on the test split.

Why: a served model that was trained on all events has seen the test events. The measured model, to
which the metrics belong, has not. It is stored next to the served model under the same checksums,
and comparisons of models use it. A bundle without it, as earlier releases wrote them, has a single
model, which is also the measured one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from recsys.bundle.checksums import check_file, damaged, describe_error
from recsys.bundle.consistency import check_counts, check_finite, check_parts
from recsys.bundle.description import MEASURED, MEASURED_KEY, BundleInfo
from recsys.bundle.layout import Bundle
from recsys.errors import ArtifactError
from recsys.model import FrozenModel, load_sizes


def has_measured(info: BundleInfo) -> bool:
    """Whether the served model differs from the measured one."""
    return MEASURED_KEY in info.extra or MEASURED in info.files


def measured(folder: Path, bundle: Bundle) -> Bundle:
    """The bundle with the measured model instead of the served one; unchanged where there is only
    one model.

    Raises
    ------
    ArtifactError
        The measured model is missing, damaged or does not fit the bundle.
    """  # noqa: DOC501
    info = bundle.info
    if not has_measured(info):
        return bundle
    check_file(folder, MEASURED, info.files.get(MEASURED))
    try:
        sizes = load_sizes(info.extra[MEASURED_KEY]["sizes"])
        check_counts(sizes, len(bundle.user_ids), bundle.num_items)
        tensors = load_file(folder / MEASURED)
        check_finite(tensors, str(folder / MEASURED))
        found = replace(
            bundle, model=FrozenModel.from_tensors(info.model, sizes, tensors), index=None
        )
        check_parts(found)
    except ArtifactError:
        raise
    except (
        Exception
    ) as error:  # a bundle that was changed together with its checksums can fail in any library
        raise damaged(folder, f"{MEASURED}: {describe_error(error)}") from None
    return found
