"""The whole configuration of a pipeline run."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from recsys.config.compare import CompareConfig
from recsys.config.data import DataConfig
from recsys.config.evaluate import EvaluateConfig
from recsys.config.export import ExportConfig
from recsys.config.mlflow import RegistryConfig, TrackingConfig
from recsys.config.model import ModelConfig
from recsys.config.privacy import ForgetConfig
from recsys.config.promote import PromoteConfig, PullConfig
from recsys.config.referee import RefereeConfig
from recsys.config.section import PathOrUri, Section
from recsys.config.serve import ServeConfig
from recsys.config.submit import SubmitConfig
from recsys.config.train import TrainConfig
from recsys.config.tune import TuneConfig
from recsys.config.ui import UiConfig
from recsys.config.values import Duration
from recsys.config.verbs import RecommendConfig, SimilarConfig, UpdateConfig
from recsys.storage.uris import within


class RunConfig(Section):
    """The folder and the time of a run."""

    dir: PathOrUri = Field(
        "runs/latest",
        min_length=1,
        description="run folder: a local folder, s3://BUCKET/… or gs://BUCKET/…",
    )
    name: str = Field("", description="name of the run in MLflow; default: the name of the folder")
    budget: Duration = Field(
        "",
        description=(
            "time limit of `recsys run`, e.g. 20m or 1h30m; without a section model, a part of it"
            " is used to search for settings; empty: no limit"
        ),
    )
    resume: bool = Field(
        False,
        exclude=True,
        description=(
            "continue an interrupted run where it stopped (--resume); this key is not saved"
        ),
    )

    @property
    def shown_name(self) -> str:
        """``name``, or the name of the folder."""
        return self.name or self.dir.rstrip("/").rpartition("/")[2]


class RayConfig(Section):
    """The Ray cluster."""

    address: str = Field(
        "local",
        description=(
            "local: a cluster on this machine; auto: the running cluster; or ray://HOST:PORT"
        ),
    )
    num_cpus: int = Field(0, ge=0, description="CPUs of a local cluster; 0: all of the machine")
    wait_s: float = Field(
        0,
        ge=0,
        description="seconds that training waits for machines that the cluster is still starting",
    )


class Config(Section):
    """The whole configuration of a pipeline run."""

    seed: int = Field(42, ge=0, le=2**63 - 1, description="seed of everything that is random")
    run: RunConfig = Field(default_factory=RunConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(
        default_factory=ModelConfig.model_construct,
        description="needed by each verb that trains or evaluates; auto: the product chooses",
    )
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    recommend: RecommendConfig = Field(default_factory=RecommendConfig)
    similar: SimilarConfig = Field(default_factory=SimilarConfig)
    update: UpdateConfig = Field(default_factory=UpdateConfig)
    tune: TuneConfig = Field(default_factory=TuneConfig)
    serve: ServeConfig = Field(default_factory=ServeConfig)
    promote: PromoteConfig = Field(default_factory=PromoteConfig)
    compare: CompareConfig = Field(default_factory=CompareConfig)
    pull: PullConfig = Field(default_factory=PullConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    referee: RefereeConfig = Field(default_factory=RefereeConfig)
    forget: ForgetConfig = Field(default_factory=ForgetConfig)
    ui: UiConfig = Field(default_factory=UiConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    registry: RegistryConfig = Field(default_factory=RegistryConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    submit: SubmitConfig = Field(default_factory=SubmitConfig)

    @property
    def has_model(self) -> bool:
        """Whether the section ``model`` was given. If not, its values are placeholders and are not
        dumped.
        """
        return "model" in self.model_fields_set

    @model_serializer(mode="wrap")
    def _without_placeholder(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        if not self.has_model:
            tree.pop("model", None)
        return tree

    @property
    def dataset_dir(self) -> str:
        """The folder or URI of the prepared dataset."""
        return self.data.dir or within(self.run.dir, "dataset")
