"""A model trained apart as a granularity of another: its own item tower, granularities and fusion, one member together.

Why apart: granularities that are trained jointly explain the events together, and what one of them tells the others
need not learn. Models that are trained apart err apart, so that their sum is better than any of them (Hansen and
Salamon 1990); an id model and a text model of which neither knows the other are the plainest case.

The frozen model is the member's state: tensors alone, so that a bundle holds it like any other member. Its score is
z · a with item vectors of its own, z the sum over its granularities as its own fusion weighs them.

Legend: B queries, D width of the model apart, N items.
"""

from __future__ import annotations

from torch import Tensor

from recsys.data.batches import Batch
from recsys.granularities.apart.section import ApartConfig
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.model import FrozenModel, load_sizes

_VECTORS = "items.vectors"


class Apart(Granularity):
    """A fitted member; present where any granularity of the model apart is."""

    fitted = True
    reads_events = False
    keeps_size = True

    def __init__(self, config: ApartConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config, self._sizes = config, sizes.inputs.get(config.signal)
        self._made: tuple[Tensor, FrozenModel] | None = None  # of the state with these item vectors

    def state(self, items: ItemView, graphs: Graphs) -> State:
        model: FrozenModel = graphs[self.config.signal]
        return {name: tensor.to(items.vectors_SD.device) for name, tensor in model.tensors().items()}

    def own_items(self, state: State) -> Tensor:
        return state[_VECTORS]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        assert batch.whole is not None, "evaluation and serving ask with uncut histories"
        parts = self.model(state).parts(batch.whole, batch.inputs)
        return parts.users_BD, parts.weights_BK.any(1)

    def model(self, state: State) -> FrozenModel:
        """The frozen model of a state, made once."""
        if self._made is None or self._made[0] is not state[_VECTORS]:
            assert self._sizes is not None, "a model is assembled with the sizes of its models apart"
            frozen = FrozenModel.from_tensors(self.config.own_model(), load_sizes(self._sizes), state)
            self._made = state[_VECTORS], frozen
        return self._made[1]
