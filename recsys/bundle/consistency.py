"""Checks that the parts of a bundle fit together.

Why: a person who changes a file can also renew its checksum. A bundle with ids, shapes or numbers
that do not fit would later raise some library's exception during a request; here it is one message
when the bundle is read.

Legend: U users, E events, N items, D width, C context columns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.bundle.checksums import damaged, describe_error
from recsys.config import GranularityConfig
from recsys.config.outside import GRANULARITIES, load, reading_artifact, resolve
from recsys.data.histories import COLD_VALID, Array
from recsys.errors import ArtifactError

if TYPE_CHECKING:
    import torch

    from recsys.bundle.description import BundleInfo
    from recsys.bundle.layout import Bundle
    from recsys.granularities.base import ModelSizes

_LOG = logging.getLogger(__name__)


class Inconsistent(Exception):
    """The parts of a bundle do not fit together."""


def check_names(info: BundleInfo) -> None:
    """Check that file names stay inside the bundle, and that event types are consistent.

    Raises
    ------
    Inconsistent
        A name is not a plain file name, or event types repeat or lack the default.
    """
    for name in info.files:
        if not name or "/" in name or "\\" in name or name in (".", ".."):
            raise Inconsistent(
                f"a file has the name {name!r}, expected a plain file name without a folder"
            )
    kinds = info.event_types
    if len(set(kinds)) < len(kinds) or (kinds and info.default_event_type not in kinds):
        raise Inconsistent(
            f"the event types {kinds} have duplicates or lack the default"
            f" {info.default_event_type!r}"
        )


def check_outside(folder: Path, content: Mapping[str, Any]) -> None:
    """Check that the packages whose granularities the model uses are installed here.

    The bundle names the package. Code is imported only from installed packages with an entry
    point, never because a bundle names it.

    Raises
    ------
    ArtifactError
        A package is missing, or the bundle's list of packages is damaged.
    """  # noqa: DOC501
    outside = content.get("outside")
    for name, entry in outside.items() if isinstance(outside, Mapping) else ():
        try:
            target, package, release = (str(entry[key]) for key in ("target", "package", "version"))
            section = content["model"]["granularities"][name]
            with reading_artifact():
                offer = resolve(GRANULARITIES, str(section.get("kind", name)))
                found = None if offer is None else load(offer, GranularityConfig)
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(folder, f"outside, {name}: {describe_error(error)}") from None
        except ValueError:
            found = None
        if found is not None and offer is not None and offer.version != release:
            _LOG.warning(
                "%s: %s was trained with %s %s, but %s is installed",
                folder,
                name,
                package,
                release,
                offer.version,
            )
        if found is None:
            cure = (
                f"install the package that provides it: pip install {package}=={release}"
                if package
                else (
                    f"install a package that offers {target} as an entry point of {GRANULARITIES};"
                    " when the model was trained, no installed package provided it"
                )
            )
            raise ArtifactError(
                f"{folder} needs the granularity {name} ({target}), which no installed package"
                f" provides; {cure}. For safety, a path that a bundle names is never imported"
                " without an installed package"
            )


def check_counts(sizes: ModelSizes, num_users: int, num_items: int) -> None:
    """Raise :class:`Inconsistent` unless the model has as many users and items; before memory is
    allocated.

    Parameters
    ----------
    sizes : ModelSizes
        Sizes of the model in ``bundle.json``.
    num_users : int
        Number of users in the tables of the bundle.
    num_items : int
        Number of items in these tables.

    Raises
    ------
    Inconsistent
        One of the numbers differs.
    """
    if (num_users, num_items) != (sizes.num_users, sizes.num_items):
        raise Inconsistent(
            f"the tables have {num_users} users and {num_items} items, the model has"
            f" {sizes.num_users} and {sizes.num_items}"
        )


def check_parts(bundle: Bundle) -> None:
    """Raise :class:`Inconsistent` where ids, vectors, events or context do not fit each other."""
    num_users, num_items = len(bundle.user_ids), bundle.num_items
    model, histories = bundle.model, bundle.histories
    _check_ids("item_id", bundle.item_ids)
    _check_ids("user_id", bundle.user_ids)
    if any(not isinstance(title, str) for title in bundle.titles):
        raise Inconsistent("an item has no title")
    for what, shape in (
        ("popularity", np.shape(bundle.popularity_N)),
        ("the model's popularity", tuple(model.popularity_N.shape)),
        ("item vectors", tuple(model.item_vectors_ND.shape)[:1]),
        ("item text", tuple(model.items.text_ST.shape)[:1]),
    ):
        if shape != (num_items,):
            raise Inconsistent(f"{what} has the shape {shape}, expected {num_items} items")
    _check_range("popularity", bundle.popularity_N, 0, None)
    if model.item_vectors_ND.ndim != 2:
        raise Inconsistent(f"item vectors have {model.item_vectors_ND.ndim} dimensions, expected 2")
    if list(bundle.info.granularities) != list(model.names):
        raise Inconsistent(
            f"the description lists the granularities {bundle.info.granularities}, the model has"
            f" {model.names}"
        )
    if len(histories) != num_users or len(histories.items_E) != int(histories.offsets_U1[-1]):
        raise Inconsistent(
            f"there are {len(histories)} histories, expected one for each of {num_users} users"
        )
    events = {
        len(column)
        for column in (histories.types_E, histories.times_E, histories.values_E, histories.splits_E)
    }
    if events - {len(histories.items_E)}:
        raise Inconsistent("lists of a user's events differ in length")
    _check_range("items of events", histories.items_E, 0, num_items - 1)
    _check_range("types of events", histories.types_E, 0, max(len(bundle.info.event_types), 1) - 1)
    _check_range("splits of events", histories.splits_E, 0, COLD_VALID)
    if len(histories.items_E) and histories.context_EC.shape != (
        len(histories.items_E),
        len(bundle.context),
    ):
        raise Inconsistent(
            f"context of events has the shape {histories.context_EC.shape}, expected "
            f"{(len(histories.items_E), len(bundle.context))}"
        )
    _check_rules(bundle, num_users, num_items)
    if bundle.index is not None and bundle.index.shape != tuple(model.item_vectors_ND.shape):
        raise Inconsistent(
            f"the index has the shape {bundle.index.shape}, expected"
            f" {tuple(model.item_vectors_ND.shape)}"
        )


def _check_rules(bundle: Bundle, num_users: int, num_items: int) -> None:
    """Check the files for rules and explanations."""
    for name, column in (
        bundle.attributes.columns if bundle.attributes is not None else {}
    ).items():
        if column.num_items != num_items:
            raise Inconsistent(
                f"attribute {name} has {column.num_items} items, expected {num_items}"
            )
    if bundle.text_NT is not None and len(bundle.text_NT) != num_items:
        raise Inconsistent(f"there are texts of {len(bundle.text_NT)} items, expected {num_items}")
    if bundle.friends is not None:
        starts_U1, friends_F = bundle.friends
        if len(starts_U1) != num_users + 1:
            raise Inconsistent(
                f"there are friends of {len(starts_U1) - 1} users, expected {num_users}"
            )
        _check_range("friends", friends_F, 0, num_users - 1)


def _check_ids(column: str, ids: Sequence[Any]) -> None:
    if not all(isinstance(one, str) and one for one in ids):
        raise Inconsistent(f"{column}: an id is empty or not a string")
    if len(set(ids)) < len(ids):
        raise Inconsistent(f"{column}: {len(ids) - len(set(ids))} ids are duplicates")


def _check_range(what: str, values: Array, low: int, high: int | None) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise Inconsistent(f"{what}: the type is {values.dtype}, expected integers")
    if len(values) and (values.min() < low or (high is not None and values.max() > high)):
        expected = f"at least {low}" if high is None else f"{low} to {high}"
        raise Inconsistent(
            f"{what}: the values are {values.min()} to {values.max()}, expected {expected}"
        )


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Check that all values of tensors are finite; ``where`` names their model in the error.

    Raises
    ------
    ArtifactError
        A tensor has a NaN or an infinity.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ArtifactError(
                f"{where}: tensor {name} has values that are not finite; the training diverged,"
                " train again"
            )
