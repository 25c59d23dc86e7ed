"""``tracking`` and ``registry``: where MLflow is and what it calls the model."""

from __future__ import annotations

from pydantic import Field

from recsys.config.section import Place, Section


class TrackingConfig(Section):
    uri: str = Field("", description="MLflow tracking URI; default: sqlite in RUN_DIR/..")
    experiment: str = "multigrain"
    artifacts: Place = Field(
        "",
        description="where a new experiment keeps artefacts, e.g. s3://BUCKET/…; default: what the store says",
    )
    enabled: bool = True
    system_metrics: bool = Field(
        False, description="log CPU, memory, disk, network and GPU of the driver's machine every 10 s (needs psutil)"
    )


class RegistryConfig(Section):
    name: str = Field("multigrain", min_length=1, pattern=r"^[^/:]+$")
    alias: str = Field(
        "challenger",
        description="given to a version that is not below the best baseline beyond chance, nor of less than min_data",
    )
    min_data: float = Field(
        0.9, ge=0, description="events that a new version needs for the alias, as a share of its holder's; 0: any"
    )
    data_license: str = Field(
        "", description="of the data, for the model card: licence, terms, who may use it for what"
    )
    intended_use: str = Field("", description="of the model, for the model card; default: what any recommender is for")
