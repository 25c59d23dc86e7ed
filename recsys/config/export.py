"""``export``: a model for programs without this package."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from recsys.config.section import PathOrUri, Section

Format = Literal["onnx", "faiss", "parquet"]


class ExportConfig(Section):
    """A model for programs without this package: ``recsys export MODEL --to onnx,faiss --out
    FOLDER``.
    """

    model: PathOrUri = Field(
        "", description="a run's or bundle's folder, or models:/NAME@ALIAS; default: RUN/bundle"
    )
    to: list[Format] = Field(
        [], description=f"formats: one or several of {', '.join(get_args(Format))} (--to)"
    )
    out: PathOrUri = Field(
        "",
        description=(
            "output folder (--out); an earlier export is replaced, any other existing folder is"
            " refused"
        ),
    )
    users: bool = Field(
        False,
        description=(
            "also export vectors and ids of the known users (parquet); they are personal data"
        ),
    )
    without: list[str] = Field(
        [],
        description="closed-form members that are left out of onnx; the answers then differ",
    )

    @field_validator("to", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        return (
            [word.strip() for word in value.split(",") if word.strip()]
            if isinstance(value, str)
            else value
        )

    @field_validator("to")
    @classmethod
    def _each_once(cls, value: list[Format]) -> list[Format]:
        return list(dict.fromkeys(value))
