"""What all granularities of friends have in common: the friendships, and whether they can help."""

from __future__ import annotations

from typing import Any

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.granularities.base import Granularity, ModelSizes
from recsys.granularities.social.friend_graph import Friends


class ReadsFriends(Granularity):
    """A granularity whose input are the friendships of a dataset."""

    @classmethod
    def build_input(
        cls, section: Any, sizes: ModelSizes, dataset: PreparedDataset, through: Split
    ) -> Friends:
        """The friendships of the dataset.

        Parameters
        ----------
        section : section of ``model.granularities``
            Not read.
        sizes : ModelSizes
            Not read.
        dataset : PreparedDataset
            The dataset with the friendships.
        through : Split
            Not read, because friendships are not events.
        """
        return Friends.of(dataset)

    @classmethod
    def idle(cls, section: Any, dataset: PreparedDataset, config: Config) -> str:
        """Friends must have training events.

        Parameters
        ----------
        section : section of ``model.granularities``
            Not read.
        dataset : PreparedDataset
            The dataset with the friendships and the training events.
        config : Config
            Not read.

        Returns
        -------
        str
            Why friends do not help; "" if they may.
        """
        src_F, dst_F, _ = dataset.social_edges()
        if not len(src_F):
            return "no friendships between known users"
        is_of_use_F = (src_F != dst_F) & dataset.active_users_V(Split.TRAIN)[src_F]
        return "" if is_of_use_F.any() else "no friend has training events"
