"""How ``profile`` reads the attributes of a dataset; the encoding is saved with the model."""

from __future__ import annotations

from recsys import schema
from recsys.data.attribute_fitter import FieldFitter
from recsys.data.attributes import ProfileEncoding, Profiles, encode_table
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ConfigError, choices
from recsys.granularities.base import ModelSizes
from recsys.granularities.profile.section import ProfileConfig


def profile_encoding(
    config: ProfileConfig, dataset: PreparedDataset, through: Split
) -> ProfileEncoding:
    """Fit vocabularies and statistics on the users and items that have events through a split.

    Parameters
    ----------
    config : ProfileConfig
        The section of the granularity.
    dataset : PreparedDataset
        The dataset, with the attributes of users and items.
    through : Split
        The last split whose events are seen.

    Returns
    -------
    ProfileEncoding
        The encodings of the fields of users and of items.

    Raises
    ------
    ConfigError
        A field that the configuration names does not exist, or cannot be read as configured.
    """
    from recsys.preparation.items import TEXT  # imports Ray, which serving must not load

    users = FieldFitter(
        dataset.user_features,
        dataset.active_users_V(through),
        config,
        "user_fields",
        (schema.USER_ID,),
    )
    items = FieldFitter(
        dataset.features,
        dataset.item_counts_N(through) > 0,
        config,
        "item_fields",
        (schema.ITEM_ID, schema.ENTITY_ID, TEXT),
    )
    unknown = sorted({*config.numeric, *config.categorical} - {*users.columns, *items.columns})
    if unknown:
        raise ConfigError(
            f"model.granularities.profile: numeric and categorical name {', '.join(unknown)};"
            f" columns of users: {choices(users.columns) or 'none'}; of items:"
            f" {choices(items.columns) or 'none'}"
        )
    return ProfileEncoding(users.fit(), items.fit())


def encoding_of(sizes: ModelSizes) -> ProfileEncoding | None:
    """Return how a model reads attributes; None if it reads none."""
    content = sizes.inputs.get(ProfileConfig.reads)
    return None if content is None else ProfileEncoding.parse(content)


def encoded_attributes(sizes: ModelSizes, dataset: PreparedDataset) -> Profiles | None:
    """Return the attributes of all users and items, encoded for a model."""
    encoding = encoding_of(sizes)
    if encoding is None:
        return None
    users, items = (
        encode_table(table, fields)
        for table, fields in (
            (dataset.user_features, encoding.users),
            (dataset.features, encoding.items),
        )
    )
    return Profiles(users, items)
