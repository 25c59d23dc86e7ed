"""The one typed configuration: the same dotted path in YAML, on the command line and in a sweep's
search space.

Why: a typo must be an error that lists the valid keys, never a silently ignored setting, and a run
must be repeatable from the single ``config.yaml`` in its folder. Each section has its own file;
:mod:`~recsys.config.root` combines them.
"""

from recsys.config.canonical import CanonicalSource
from recsys.config.data import (
    DataConfig,
    FinetuneConfig,
    ImagesConfig,
    ItemMediaConfig,
    ItemTriplesConfig,
    QuarantineConfig,
    SplitConfig,
    TextConfig,
    UserTextConfig,
)
from recsys.config.evaluate import EvaluateConfig
from recsys.config.granularities import SECTIONS, GranularitiesConfig, section_class
from recsys.config.granularity import GranularityConfig
from recsys.config.load import (
    build_config,
    dump_config,
    load_config,
    read_tree,
    redacted,
    set_path,
)
from recsys.config.mlflow import RegistryConfig, TrackingConfig
from recsys.config.model import FusionConfig, ItemTowerConfig, ModelConfig
from recsys.config.option_values import parse_value
from recsys.config.promote import PromoteConfig, PullConfig
from recsys.config.redaction import redact
from recsys.config.root import Config, RayConfig, RunConfig
from recsys.config.section import Section
from recsys.config.serve import ServeConfig
from recsys.config.sources import (
    HetRecLastFmSource,
    RecBoleSource,
    SequencesSource,
    Source,
    SyntheticSource,
    source_class,
)
from recsys.config.submit import SubmitConfig
from recsys.config.train import LossConfig, TrainConfig
from recsys.config.tune import FusionSearchConfig, TuneConfig
from recsys.config.verbs import RecommendConfig, UpdateConfig
from recsys.config.yaml_reader import parse_yaml

__all__ = [
    "SECTIONS",
    "CanonicalSource",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "FusionConfig",
    "FusionSearchConfig",
    "GranularitiesConfig",
    "GranularityConfig",
    "HetRecLastFmSource",
    "ImagesConfig",
    "ItemTriplesConfig",
    "ItemMediaConfig",
    "ItemTowerConfig",
    "LossConfig",
    "ModelConfig",
    "PromoteConfig",
    "PullConfig",
    "QuarantineConfig",
    "RayConfig",
    "RecBoleSource",
    "RecommendConfig",
    "RegistryConfig",
    "RunConfig",
    "Section",
    "SequencesSource",
    "ServeConfig",
    "Source",
    "SplitConfig",
    "SubmitConfig",
    "SyntheticSource",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "UpdateConfig",
    "UserTextConfig",
    "build_config",
    "dump_config",
    "load_config",
    "parse_value",
    "parse_yaml",
    "read_tree",
    "redact",
    "redacted",
    "section_class",
    "set_path",
    "source_class",
]
