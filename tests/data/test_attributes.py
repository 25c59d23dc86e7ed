"""Attributes become codes and values as computed by hand; vocabularies and statistics use training
rows only.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.data.attribute_fitter import FieldFitter
from recsys.data.attributes import (
    MISSING,
    NOT_GIVEN,
    PADDING,
    UNKNOWN,
    Field,
    ProfileEncoding,
    as_numbers,
    encode_table,
)
from recsys.data.request_attributes import RequestEncoder
from recsys.errors import ConfigError, DataError, RequestError
from recsys.granularities.profile.section import ProfileConfig

AGE = Field("age", "number", 1, (), (20.0, 40.0), center=30.0, scale=10.0)
CITY = Field("city", "category", 1, ("rome", "oslo"))
LIKES = Field("likes", "list", 2, ("jazz", "rock", "folk"))


def fit(table: pa.Table, active: list[bool] | None = None, **options: Any) -> tuple[Field, ...]:
    config = ProfileConfig(**{"min_frequency": 1, **options})
    rows = np.ones(len(table), dtype=bool) if active is None else np.array(active)
    return FieldFitter(table, rows, config, "user_fields", ("user_id",)).fit()


def test_codes_and_values_equal_those_by_hand() -> None:
    table = pa.table(
        {
            "age": pa.array([19.9, 20.0, 45.0, None, math.nan, 1e9]),
            "city": ["oslo", " rome ", "paris", None, "", "rome"],
            "likes": [
                ["rock", "jazz", "folk"],
                ["polka", "folk"],
                ["polka"],
                [],
                None,
                ["", "jazz"],
            ],
        }
    )
    rows = encode_table(table, (AGE, CITY, LIKES))
    expected = [
        [2, 3, 3, 2],  # below the first edge; oslo; rock, jazz, no slot for folk
        [3, 2, 4, PADDING],  # on the edge counts as above; trimmed; unknown members are skipped
        [4, UNKNOWN, UNKNOWN, PADDING],
        [MISSING, MISSING, MISSING, PADDING],
        [MISSING, MISSING, MISSING, PADDING],
        [4, 2, 2, PADDING],
    ]
    assert rows.codes_XS.tolist() == expected
    np.testing.assert_allclose(rows.values_XM[:, 0], [-1.01, -1.0, 1.5, 0.0, 0.0, 3.0], rtol=1e-5)


def test_statistics_equal_those_by_hand() -> None:
    """Quartiles of 0 … 100 are 25, 50, 75; they give four bins."""
    (field,) = fit(pa.table({"price": np.arange(101)}), bins=4)
    assert (field.kind, field.edges, field.center) == ("number", (25.0, 50.0, 75.0), 50.0)
    assert field.scale == pytest.approx(50 / 1.349)
    (plain,) = fit(pa.table({"price": np.arange(101)}), bins=0)
    assert plain.edges == () and plain.num_codes == 3
    (steady,) = fit(pa.table({"price": [7.0] * 5}))
    assert (steady.edges, steady.scale) == ((), 1.0)


def test_vocabularies_are_the_frequent_categories() -> None:
    table = pa.table(
        {
            "city": ["b", "a", "c", "a", "b", None, "a"],
            "likes": [["x", "y"], ["x"], [], ["z"], *[None] * 3],
        }
    )
    city, likes = fit(table, min_frequency=2)
    assert (city.categories, city.slots) == (("a", "b"), 1)
    assert (likes.categories, likes.kind, likes.slots) == (("x",), "list", 2)
    assert fit(table, max_categories=1, user_fields=["city"])[0].categories == ("a",)
    assert fit(table, max_members=1, user_fields=["likes"])[0].slots == 1


def test_field_with_many_categories_keeps_the_frequent_ones() -> None:
    cities = [f"city {number // 2}" for number in range(20)]
    table = pa.table({"city": [*cities, "a", "a", "a"], "name": [f"n{k}" for k in range(23)]})
    [field] = fit(table, min_frequency=2, max_categories=2)
    assert field.categories == ("a", "city 0"), "the name says nothing, the city does"


def test_encoding_uses_training_rows_only() -> None:
    """A user with test events only changes no vocabulary, bin or statistic."""
    table = pa.table({"age": [10.0, 20, 30, 9999], "city": ["rome", "oslo", "rome", "gotham"]})
    known = [True, True, True, False]
    fields = fit(table, known)
    assert fields == fit(table.slice(0, 3))
    assert encode_table(table, fields).codes_XS[3].tolist() == [fields[0].num_codes - 1, UNKNOWN]


def test_column_type_sets_the_kind_unless_the_configuration_does() -> None:
    table = pa.table(
        {
            "user_id": ["u0", "u1", "u2", "u3"],
            "age": ["24", "53", "V", "33"],
            "zone": [1, 2, 1, 1],
            "paid": [True, False, None, True],
            "name": ["Ann", "Bob", "Cid", "Dan"],
            "face": pa.array([[0.1, 0.2]] * 4, pa.list_(pa.float32(), 2)),
            "since": pa.array([0, 1, 2, 3], pa.timestamp("s")),
        }
    )
    chosen = {field.name: field for field in fit(table, min_frequency=2)}
    assert {name: field.kind for name, field in chosen.items()} == {
        "zone": "number",
        "paid": "category",
    }
    assert chosen["paid"].categories == ("true",), (
        "names and ages, each of one user alone, tell nothing"
    )
    forced = fit(table, numeric=["age"], categorical=["zone"], user_fields=["age", "zone"])
    assert [field.kind for field in forced] == ["number", "category"] and forced[0].center == 33.0
    assert forced[1].categories == ("1", "2")
    rows = encode_table(table, forced)
    assert rows.codes_XS[2, 0] == MISSING, "V is no number"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"user_fields": ["height"]},
            r"user_fields: height not among the columns; columns: age, face, name",
        ),
        ({"user_fields": ["face"]}, r"face is fixed_size_list.*expected numbers, texts"),
        (
            {"user_fields": ["name"], "min_frequency": 2},
            r"name has no category in at least 2 rows .*; lower min_freq",
        ),
        (
            {"numeric": ["name"]},
            (
                r"name is read as numbers, but only 0 of its 2 values .* are numbers; take it out"
                r" of numeric"
            ),
        ),
    ],
)
def test_wrong_fields_are_refused(options: dict[str, Any], message: str) -> None:
    face = pa.array([[0.1, 0.2]] * 2, pa.list_(pa.float32(), 2))
    table = pa.table({"user_id": ["u0", "u1"], "age": [1, 2], "name": ["Ann", "Bob"], "face": face})
    with pytest.raises(ConfigError, match=message):
        fit(table, **options)


def test_field_in_numeric_and_categorical_is_refused() -> None:
    with pytest.raises(ValueError, match="age: in numeric and in categorical"):
        ProfileConfig(numeric=["age"], categorical=["age"])


def test_encoding_survives_json() -> None:
    encoding = ProfileEncoding((AGE, CITY), (LIKES,))
    assert ProfileEncoding.parse(json.loads(json.dumps(asdict(encoding)))) == encoding


def test_request_gets_the_codes_of_an_equal_table_row() -> None:
    """A request with the values of a table row gets the same codes and values."""
    fields = (AGE, CITY, LIKES)
    given = [
        {"age": 45.5, "city": "oslo", "likes": ["folk", "polka", "jazz", "rock"]},
        {"age": 20, "city": "paris", "likes": ["polka"]},
        {"age": 3, "city": "", "likes": []},
    ]
    requested = RequestEncoder(fields).encode(given)
    stored = encode_table(pa.Table.from_pylist(given), fields)
    assert requested.codes_XS.tolist() == stored.codes_XS.tolist()
    assert requested.values_XM.tolist() == stored.values_XM.tolist()
    silent = RequestEncoder(fields).encode([None, {}, {"age": None, "city": "rome"}])
    assert silent.codes_XS.tolist() == [[NOT_GIVEN] * 4] * 2 + [
        [NOT_GIVEN, 2, NOT_GIVEN, NOT_GIVEN]
    ]


def test_request_values_match_categories_as_strings() -> None:
    field = Field("zone", "category", 1, ("1", "true"))
    codes = (
        RequestEncoder([field])
        .encode([{"zone": 1}, {"zone": 1.0}, {"zone": "1"}, {"zone": True}])
        .codes_XS
    )
    assert codes[:, 0].tolist() == [2, 2, 2, 3]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"height": 3},
            r"request 1: attributes.height: unknown field; the model knows: age, city, likes",
        ),
        ({"age": "old"}, r"request 1: attributes.age: got 'old' \(str\), expected a finite number"),
        ({"age": True}, r"attributes.age: got True \(bool\), expected a finite number"),
        ({"age": math.nan}, r"attributes.age: got nan \(float\), expected a finite number"),
        ({"age": [20]}, r"attributes.age: got \[20\] \(list\), expected a finite number"),
        ({"city": ["rome"]}, r"attributes.city: got \['rome'\] \(list\), expected a text"),
        ({"city": 1.5}, r"attributes.city: got 1.5 \(float\), expected a text"),
        ({"likes": "jazz"}, r"attributes.likes: got 'jazz' \(str\), expected a list of texts"),
        ({"likes": [{}]}, r"attributes.likes: got \{\} \(dict\), expected a text"),
    ],
)
def test_malformed_attributes_name_request_and_field(
    attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        RequestEncoder((AGE, CITY, LIKES)).encode([None, attributes])


def test_whole_numbers_of_any_size_are_numbers() -> None:
    found = as_numbers(pa.chunked_array([[2**60 + 1, None, 3]]))
    np.testing.assert_allclose(found, [2.0**60, math.nan, 3.0])


@pytest.mark.parametrize(("columns", "message"), [
    ({}, "attribute city as a category, but the column is missing"),
    ({"city": [["rome"]]}, r"attribute city as a category, but the column has the type list<"),
])  # fmt: skip
def test_column_that_the_model_cannot_read_is_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_table(pa.table({"age": [3.0], **columns}), (CITY,))


def test_empty_column_of_any_kind_is_missing() -> None:
    table = pa.table({name: pa.nulls(2) for name in ("age", "city", "likes")})
    codes = encode_table(table, (AGE, CITY, LIKES)).codes_XS
    assert codes.tolist() == [[MISSING, MISSING, MISSING, PADDING]] * 2
