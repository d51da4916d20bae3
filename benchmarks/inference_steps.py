"""What DiffuRec's `steps_at_inference` costs in lists and saves in time.

    python benchmarks/inference_steps.py [--users 5000]    writes benchmarks/inference_steps.json and .md

Takes the model of the row `diffurec_mask_keys` that `noise2next reproduce next-item-beauty` trained, and judges it on
validation alone: which number of steps to take is a choice, and a choice is no business of the test part.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from machine import processor

from noise2next.config import Settings
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.evaluation.evaluator import Asked, Evaluator
from noise2next.evaluation.metrics import accuracy, hits
from noise2next.evaluation.ranking import rank
from noise2next.models.artifact import Artifact
from noise2next.models.diffurec import DiffuRec
from noise2next.stages.tables import load_table
from noise2next.training.device import choose_device
from noise2next.workspace import Reproduction, write_json

HERE = Path(__file__).parent
TABLE, ROW, SEED = "next-item-beauty", "diffurec_mask_keys", 1
STEPS = (32, 16, 8, 4, 2, 1)
CUTOFF = 10


def trained(settings: Settings, users: int) -> tuple[DiffuRec, Asked, int]:
    """The row's model, so many of the validation users, drawn evenly, and the epoch that the model is of."""
    table = load_table(TABLE)
    space = Reproduction(settings.root, TABLE).space(SEED, table.dataset_name)
    params = table.params(SEED)
    dataset = params.dataset(table.dataset_name)
    if not space.model(ROW).is_dir():
        raise UserError(f"{space.model(ROW)}: not there; `noise2next reproduce {TABLE} --variants {ROW}` trains it")
    artifact = Artifact.load(space.model(ROW), choose_device("cpu"))
    assert isinstance(artifact.model, DiffuRec)
    split = Split.load(space.prepared, dataset.split, dataset.has_clock, with_test=False)
    weighting = artifact.card.variant.weighting
    asked = Evaluator(split, weighting, ["valid"], params.evaluation, "cpu").asked("valid")
    some = np.random.default_rng(SEED).permutation(len(asked.users))[:users]
    return artifact.model, asked.select(np.sort(some)), artifact.model.config.steps


def main() -> None:
    """Judge with every number of steps, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=5_000)
    users = parser.parse_args().users
    torch.set_num_threads(1)
    model, asked, of_all = trained(Settings(), users)
    lists, found = {}, []
    for steps in STEPS:
        model.config = model.config.model_copy(update={"steps_at_inference": steps})
        began = time.process_time()
        (ranked,) = rank(model, asked.queries, [asked.seen], CUTOFF, 512)
        spent = time.process_time() - began
        lists[steps] = ranked.items.numpy()
        metrics = accuracy(hits(lists[steps], asked.users, asked.truth), asked.truth.sizes[asked.users], [CUTOFF])
        common = [len(np.intersect1d(one, other)) for one, other in zip(lists[STEPS[0]], lists[steps], strict=True)]
        found.append(
            {
                "steps": steps,
                "seconds": spent,
                "hit_rate@10": float(metrics["hit_rate@10"].mean()),
                "ndcg@10": float(metrics["ndcg@10"].mean()),
                "common": float(np.mean(common)) / CUTOFF,
            }
        )
    first, share = found[0], model.config.uncertainty
    write_json(HERE / "inference_steps.json", {"processor": processor(), "users": len(asked.users), "found": found})
    rows = [
        f"| {one['steps']} | {one['seconds']:.2f} | {first['seconds'] / one['seconds']:.1f} | "
        f"{100 * one['hit_rate@10']:.2f} | {100 * one['ndcg@10']:.2f} | {100 * one['common']:.1f} % |"
        for one in found
    ]
    text = "\n".join(
        [
            "# Fewer steps at inference",
            "",
            f"DiffuRec with the padding left out, trained on Beauty with {of_all} steps, judged on "
            f"{len(asked.users):,} users of validation, what they had seen left out. One thread of {processor()}, CPU "
            "seconds. `python benchmarks/inference_steps.py`",
            "",
            "| steps_at_inference | seconds | times faster | HR@10, % | NDCG@10, % | of the top 10 as with all steps |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "The steps that are taken are spread evenly over the chain; the last column compares lists of equal draws.",
            f"The noised vector enters each token times lambda ~ N({share}, {share}), beside a layer-normalised item "
            "vector:",
            "what is restored hardly depends on it, nor on how often it is restored.",
            "",
        ]
    )
    (HERE / "inference_steps.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
