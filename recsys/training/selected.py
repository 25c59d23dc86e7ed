"""The model as it was chosen on validation, before a refit gave it the validation events as well.

Why: whatever is chosen or measured on validation needs a model that has not been trained on it. The refit's weights
have been; those that ``train`` keeps beside them (``selected.safetensors``) have not.
"""

from __future__ import annotations

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError
from recsys.model import FrozenModel
from recsys.training.build import build_graphs, build_model
from recsys.training.checkpoint import SELECTED, TrainResult
from recsys.training.constants import with_constants
from recsys.training.kept import KEPT, scale, silenced, transplant
from recsys.training.strata import STRATA


def selected_model(config: Config, dataset: PreparedDataset, trained: TrainResult) -> FrozenModel:
    """The model of training events alone, with the shares of λ that its training kept: what that silenced is untrained.

    It is the trained model itself where ``train.refit`` was false. Fitted granularities are fitted again, to training
    events.

    Raises:
        ArtifactError: the training left no such weights.
    """
    if not trained.refit:
        return trained.frozen
    if trained.selected is None:
        raise ArtifactError(
            f"the model was trained again on validation events (train.refit), and the weights of before ({SELECTED}) "
            "are not there: an earlier release trained it; run `recsys train` again"
        )
    config = with_constants(config, trained.choices)
    num_strata = int(trained.choices.get(STRATA, {}).get("chosen", 0))
    model = build_model(config, dataset, Split.TRAIN, num_strata)
    model.silent = silenced(trained.choices)
    names = [name for name, _ in model.encoders.each()]
    own = {f"model.{key}": value for key, value in model.state_dict().items()}
    found = transplant(trained.selected, [name for name in names if name not in model.silent], own, names)
    model.load_state_dict({key.removeprefix("model."): value for key, value in found.items()})
    sizes = model.sizes
    with_facts = config.model.granularities.knowledge.enabled
    with_media = bool(sizes.media)
    graphs = build_graphs(dataset, Split.TRAIN, sizes.profile, with_facts, with_media=with_media, model=model)
    frozen = model.freeze(graphs)
    scale(frozen.encoders.fusion, frozen.trained_names, trained.choices.get(KEPT, {}))
    return frozen
