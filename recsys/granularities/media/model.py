"""Media: what the items of a user's history look or sound like (S3), by vectors of images, audio
and video.

A medium m gives an item the frozen vector x_im. Each medium is centred and whitened on the
catalogue, like item text, and projected to the model's width; the projections are summed over the
media of the item,

    g_i = Σ_{m at i} w_m P_m white_m(x_im)

with a learned weight w_m per medium. The user vector is an attention over the g_i of the history,
with queries as in ``behaviour``; events on items without media are left out. ``refine`` also adds
g_i to the item vectors (as VBPR, He & McAuley 2016, does), so that an item without events is found
by its media.

The axes of the whitening are fitted once, at the start of a training, and saved with the weights: a
warm start reads the media of new items with the axes of the training before. Media belong to the
catalogue; no split cuts them.

Legend: N items, M width of a medium, W whitened width, D model width, K media.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.data.whitening import Whitening, whitened_width
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.behaviour.model import Behaviour
from recsys.granularities.media.section import MediaConfig


@dataclass(frozen=True)
class MediaVectors:
    """Media vectors of items: [N, M] float16 for each medium of the sizes, zero rows for items
    without it.
    """

    vectors: tuple[Tensor, ...]

    def to(self, device: torch.device) -> MediaVectors:
        """Move all tensors to a device."""
        return MediaVectors(tuple(vectors_NM.to(device) for vectors_NM in self.vectors))


class Media(Granularity):
    """Attention over the media of the history's items.

    Raises
    ------
    ConfigError
        The dataset has no media.
    """

    reads_events = False

    @classmethod
    def size(
        cls, section: MediaConfig, dataset: PreparedDataset, through: Split
    ) -> list[list[Any]]:
        """Return name and width of every medium, sorted by name.

        Parameters
        ----------
        section : MediaConfig
            Not read.
        dataset : PreparedDataset
            The dataset; its manifest has the media.
        through : Split
            Not read, because no split cuts media.

        Returns
        -------
        list of [str, int]
            Empty without media.
        """
        media = dataset.manifest.media
        return [[name, int(media[name]["dimension"])] for name in sorted(dataset.media_names)]

    @classmethod
    def described(cls, size: list[list[Any]]) -> str:
        """Names and widths of the media."""
        return ", ".join(f"{name} ({width})" for name, width in size)

    @classmethod
    def build_input(
        cls, section: MediaConfig, sizes: ModelSizes, dataset: PreparedDataset, through: Split
    ) -> MediaVectors:
        """Return the media in the order of the sizes; they belong to the catalogue, which no split
        cuts.

        Parameters
        ----------
        section : MediaConfig
            Not read.
        sizes : ModelSizes
            ``sizes.inputs`` has the names of the media.
        dataset : PreparedDataset
            The dataset with the vectors.
        through : Split
            Not read.

        Returns
        -------
        MediaVectors
            One tensor [N, M] float16 per medium.

        Raises
        ------
        ConfigError
            The dataset lacks one of the media.
        """
        names = [name for name, _ in sizes.inputs["media"]]
        return MediaVectors(
            tuple(torch.from_numpy(dataset.media_vectors(name).copy()) for name in names)
        )

    def __init__(self, config: MediaConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.pool = Behaviour.over("media", config.heads, config.dropout, sizes)
        config.check(sizes)
        self.config, self.scale = config, math.sqrt(sizes.width)
        self.looks: Looks | None = Looks(config, sizes)
        self._looks_ND: Tensor | None = None

    @classmethod
    def for_serving(cls, config: MediaConfig, sizes: ModelSizes) -> Media:
        """Leave out whitening and projections; the state has their result."""
        made = cls(config, sizes)
        made.looks = None
        return made

    @property
    def needs_all_items(self) -> bool:
        """True: the media of all items are projected."""
        return True

    def refit_due(self, epoch: int) -> bool:
        """Before the first epoch, unless the whitening is already fitted."""
        return epoch == 0 and self.looks is not None and not self.looks.is_fitted

    def refit(self, graphs: Graphs, items: ItemView, seed: int) -> None:
        """Fit the whitening on the items that have a medium.

        Parameters
        ----------
        graphs : Graphs
            Has the vectors of the media.
        items : ItemView
            Not read.
        seed : int
            Not read; the fit draws no random numbers.
        """
        assert self.looks is not None, "a module for serving reads the result from its state"
        self.looks.whiten(graphs["media"])

    def refine_items(self, base_ND: Tensor, graphs: Graphs) -> Tensor:
        """Add the projected media to the items, if ``refine`` is set."""
        self._looks_ND = self._see(graphs)
        return base_ND + self._looks_ND if self.config.refine else base_ND

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Projected media of the items."""
        looks_ND = self._see(graphs) if self._looks_ND is None else self._looks_ND
        self._looks_ND = None
        return {"looks_ND": looks_ND * self.scale}

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Attention over the media of the history, and where it has any.

        Parameters
        ----------
        batch : Batch
            Histories, and the queries on them.
        items : ItemView
            Passed on; only the vectors in ``state`` are pooled.
        state : dict of str to Tensor
            ``looks_ND`` [N, D]; zero rows for items without media.

        Returns
        -------
        z_BD : Tensor, [B, D] float
            User vector of each query.
        present_B : Tensor, [B] bool
            Whether the query sees an event on an item with a medium.
        """
        z_BD, present_B = self.pool(batch, ItemView(items.vectors_SD, state["looks_ND"]), {})
        return z_BD, present_B

    def _see(self, graphs: Graphs) -> Tensor:
        assert self.looks is not None, "a module for serving reads the result from its state"
        looks_ND: Tensor = self.looks(graphs["media"])
        return looks_ND


class Looks(nn.Module):
    """Media vectors → g [N, D], zero rows for items without media."""

    def __init__(self, config: MediaConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.directions = config.whiten
        self.projections = nn.ModuleList()
        for number, (_, dimension) in enumerate(sizes.inputs["media"]):
            width = whitened_width(config.whiten, dimension)
            self.register_buffer(f"mean_{number}_M", torch.zeros(dimension))
            self.register_buffer(f"axes_{number}_MW", torch.zeros(dimension, width))
            self.projections.append(nn.Linear(width, sizes.width, bias=False))
        self.weight_K = nn.Parameter(torch.ones(len(sizes.inputs["media"])))
        self._white: tuple[MediaVectors, list[Tensor]] | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module.forget())  # type: ignore[no-untyped-call]

    @property
    def is_fitted(self) -> bool:
        """Whether the whitening is fitted."""
        return any(
            bool(axes.any()) for name, axes in self.named_buffers() if name.startswith("axes")
        )

    @torch.no_grad()
    def whiten(self, media: MediaVectors) -> None:
        """Fit the axes of every medium."""
        for number, vectors_NM in enumerate(media.vectors):
            fitted = Whitening.of(vectors_NM, self.directions)
            self.get_buffer(f"mean_{number}_M").copy_(fitted.mean_T)
            self.get_buffer(f"axes_{number}_MW").copy_(fitted.axes_TW)
        self.forget()

    def forget(self) -> None:
        """Clear the whitened vectors after the axes have changed."""
        self._white = None

    def forward(self, media: MediaVectors) -> Tensor:
        """Sum of the projected media of every item: [N, D]."""
        white = self.white(media)
        seen = [self.weight_K[k] * project(white[k]) for k, project in enumerate(self.projections)]
        return torch.stack(seen).sum(0)

    def white(self, media: MediaVectors) -> list[Tensor]:
        """The whitened vectors [N, W] of every medium, computed once."""
        if self._white is None or self._white[0] is not media:
            axes = [
                Whitening(self.get_buffer(f"mean_{number}_M"), self.get_buffer(f"axes_{number}_MW"))
                for number in range(len(media.vectors))
            ]
            white = [axis(vectors_NM) for axis, vectors_NM in zip(axes, media.vectors, strict=True)]
            self._white = (media, white)
        return self._white[1]
