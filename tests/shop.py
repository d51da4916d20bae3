"""A project that a team would leave alone: two small logs under DVC and git, cheap variants, and a champion."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from noise2next.config import Params, Settings, load_params
from noise2next.data import sample
from noise2next.registry.packaging import check_golden
from noise2next.registry.versions import ModelRegistry, ModelVersion
from noise2next.stages import datasets, pipeline
from noise2next.workspace import Workspace

PARAMS = """
seed: 1
datasets:
  shop:
    path: shop
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
  other:
    path: other/log.csv     # one file, not a folder of them
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
evaluation: {cutoffs: [10, 20], bootstrap_samples: 50}
automation: {every: 1, retrain: {shop: {}}}
variants:
  most_pop: {model: noise2next.models.popularity.MostPop}
  ease: {model: noise2next.models.ease.EASE, options: {l2: 100}}
"""
HEADER = "user_id,item_id,timestamp\n"


def rows() -> list[str]:
    """The lines of the generated log in the order of time."""
    with_header = sample.text(seed=5).splitlines(keepends=True)
    return sorted(with_header[1:], key=lambda line: int(line.rsplit(",", 1)[1]))
