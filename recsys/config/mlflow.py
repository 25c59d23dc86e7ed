"""``tracking`` and ``registry``: where MLflow is, and the name of the registered model."""

from __future__ import annotations

from pydantic import Field

from recsys.config.section import PathOrUri, Section


class TrackingConfig(Section):
    """Logging of runs to MLflow."""

    uri: str = Field("", description="MLflow tracking URI; default: sqlite in RUN_DIR/..")
    experiment: str = Field("multigrain", description="name of the MLflow experiment")
    artifacts: PathOrUri = Field(
        "",
        description=(
            "where a new experiment keeps artefacts, e.g. s3://BUCKET/…; default: the "
            "setting of the tracking server"
        ),
    )
    enabled: bool = Field(True, description="whether runs are logged to MLflow")
    system_metrics: bool = Field(
        False,
        description=(
            "log CPU, memory, disk, network and GPU of the driver's machine every 10 s (needs"
            " psutil)"
        ),
    )


class RegistryConfig(Section):
    """Registration of models in MLflow."""

    name: str = Field(
        "multigrain", min_length=1, pattern=r"^[^/:]+$", description="name of the registered model"
    )
    alias: str = Field(
        "challenger",
        description=(
            "alias that a new version gets, unless the version is significantly worse than the best"
            " baseline or has too few events (min_data)"
        ),
    )
    min_data: float = Field(
        0.9,
        ge=0,
        description=(
            "events that a new version needs for the alias, as a share of those of the present"
            " version; 0: any"
        ),
    )
    data_license: str = Field("", description="licence and terms of the data, for the model card")
    intended_use: str = Field(
        "",
        description=(
            "intended use of the model, for the model card; default: a general text about"
            " recommenders"
        ),
    )
