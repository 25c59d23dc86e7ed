"""A model trained separately, as one member of another: it has its own item tower, granularities
and fusion.

Why: granularities that are trained jointly explain the events together, so that none learns what
another already explains. Models that are trained separately make different errors, so their sum is
better than each of them (Hansen and Salamon 1990). The simplest case is a model of ids and a model
of texts.

The frozen model is the member's state, as tensors only, so that a bundle stores it like any other
member. Its score is z · a with its own item vectors; z is the sum over its granularities with the
weights of its own fusion.

Legend: B queries, D width of the separate model, N items.
"""

from __future__ import annotations

from torch import Tensor

from recsys.data.batches import Batch
from recsys.granularities.apart.section import ApartConfig
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.model import FrozenModel, load_sizes

_VECTORS = "items.vectors"


class Apart(Granularity):
    """A closed-form member; present where any granularity of the separate model is."""

    closed_form = True
    reads_events = False
    keeps_size = True

    def __init__(self, config: ApartConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config, self._sizes = config, sizes.inputs.get(config.signal)
        # built from the state with these item vectors
        self._made: tuple[Tensor, FrozenModel] | None = None

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Tensors of the frozen separate model."""
        model: FrozenModel = graphs[self.config.signal]
        return {
            name: tensor.to(items.vectors_SD.device) for name, tensor in model.tensors().items()
        }

    def own_items(self, state: State) -> Tensor:
        """Item vectors of the separate model."""
        return state[_VECTORS]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """User vectors of the separate model, and where any of its granularities is present.

        Parameters
        ----------
        batch : Batch
            Its queries with uncut histories (``whole``) are read.
        items : ItemView
            Not read: the member has its own item vectors.
        state : State
            The separate model, as tensors.

        Returns
        -------
        Tensor, [B, D] float
            User vectors in the width of the separate model.
        Tensor, [B] bool
            Whether any of its granularities has an input.
        """
        assert batch.whole is not None, "evaluation and serving pass uncut histories"
        contributions = self.model(state).contributions(batch.whole, batch.inputs)
        return contributions.users_BD, contributions.weights_BK.any(1)

    def model(self, state: State) -> FrozenModel:
        """The frozen model of a state, built once."""
        if self._made is None or self._made[0] is not state[_VECTORS]:
            assert self._sizes is not None, "the sizes of separate models must be set before"
            frozen = FrozenModel.from_tensors(
                self.config.own_model(), load_sizes(self._sizes), state
            )
            self._made = state[_VECTORS], frozen
        return self._made[1]
