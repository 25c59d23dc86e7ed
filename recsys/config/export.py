"""``export``: a model for programs without this package."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from recsys.config.section import Place, Section

Format = Literal["onnx", "faiss", "parquet"]


class ExportConfig(Section):
    """A model for programs without this package: ``recsys export MODEL --to onnx,faiss --out FOLDER``."""

    model: Place = Field("", description="a run's or bundle's folder, or models:/NAME@ALIAS; default: RUN/bundle")
    to: list[Format] = Field([], description=f"formats, one or several of {', '.join(get_args(Format))} (--to)")
    out: Place = Field("", description="the folder; one with an export is replaced, any other is refused (--out)")
    users: bool = Field(False, description="vectors and ids of the known users too (parquet); they are personal data")
    without: list[str] = Field([], description="fitted members that are left out of onnx; answers then differ")

    @field_validator("to", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("to")
    @classmethod
    def _each_once(cls, value: list[Format]) -> list[Format]:
        return list(dict.fromkeys(value))
