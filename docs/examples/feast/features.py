"""Define the features of a user in the store: their history, the oldest event first."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Int64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)

histories = FeatureView(
    name="histories",
    entities=[user],
    ttl=timedelta(0),  # a history does not expire
    schema=[
        Field(name="items", dtype=Array(String)),
        Field(name="times", dtype=Array(Int64)),  # seconds since 1970 UTC
        Field(name="types", dtype=Array(String)),
    ],
    source=FileSource(
        name="histories_file", path="data/histories.parquet", timestamp_field="event_timestamp"
    ),
)
