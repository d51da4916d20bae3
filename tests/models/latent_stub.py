"""The smallest model that is built from item clusters: popularity inside the clusters of a history."""

from typing import ClassVar

import torch
from pydantic import PositiveInt

from noise2next.models.base import ClosedForm, ModelConfig


class LatentStub(ClosedForm):
    class Config(ModelConfig):
        clusters: PositiveInt = 2

    inputs: ClassVar = ("item_clusters",)

    def __init__(self, config, n_items, item_clusters):
        super().__init__()
        assert int(item_clusters.max()) == config.clusters - 1
        self.clusters = config.clusters
        self.register_buffer("item_clusters", item_clusters)
        self.register_buffer("popularity", torch.zeros(n_items))

    def solve(self, train):
        self.popularity.copy_(train.multi_hot().sum(dim=0))

    def score(self, queries):
        inside = torch.nn.functional.one_hot(self.item_clusters, self.clusters).float()
        return queries.multi_hot() @ inside @ inside.t() * self.popularity
