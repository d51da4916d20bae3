"""Write the measured parts of README.md from what the other programs left, so that no number there is typed by hand.

    python benchmarks/readme.py [--sample artifacts/sample/leaderboard/leaderboard.json]

With --sample the leaderboard of the sample log is taken over into docs/results/sample.json first. The rest comes from
docs/results/*.json and benchmarks/*.json. A test holds the README to these files.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from noise2next.evaluation.charts import two_digits
from noise2next.evaluation.report import DrawsReport
from noise2next.stages.results import of_pairs
from noise2next.workspace import read_json, write_atomically, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
BENCHMARKS = ROOT / "benchmarks"
CODE = "authors' code"
LATE = 20  # ms, of serving.py's goals
PARTS = ("0%", "25%", "50%", "100%")  # of the lists in the gate's trials
NEXT_ITEM = {"next-item-beauty": "Beauty", "next-item-toys": "Toys", "next-item-ml1m": "ML-1M"}


def main() -> None:
    """Take the sample's leaderboard over if one is named, then fill README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path)
    arguments = parser.parse_args()
    if arguments.sample is not None:
        write_json(RESULTS / "sample.json", _shown(json.loads(arguments.sample.read_text())))
    readme = ROOT / "README.md"
    write_atomically(readme, filled(readme.read_text(encoding="utf-8")).encode())


def filled(readme: str) -> str:
    """The README with each marked block written anew."""
    blocks = {
        "sample": _sample, "ml1m": _ml1m, "noisy": _noisy, "next": _next_item, "speed": _speed, "gate": _gate,
        "serving": _serving,
    }  # fmt: skip
    for name, text in ((name, write()) for name, write in blocks.items()):
        parts = re.split(rf"(<!-- {name}: [^>]*-->\n)(?:.*?)(<!-- end -->)", readme, flags=re.DOTALL)
        if len(parts) != 4:
            raise SystemExit(f"README.md: the block <!-- {name}: ... --> is not there exactly once")
        readme = f"{parts[0]}{parts[1]}{text}\n{parts[2]}{parts[3]}"
    return readme


def _shown(board: dict[str, Any]) -> dict[str, Any]:
    columns = ("recall@20", "ndcg@20", "mrr@20")
    rows = [
        {
            "variant": row["variant"],
            "metrics": {column: row["metrics"][column] for column in columns},
            "coverage@20": row["lists"]["coverage@20"],
        }
        for row in board["rows"]
    ]
    return {**{key: board[key] for key in ("split", "history", "mask_seen", "users", "chosen")}, "rows": rows}


def _sample() -> str:
    board = read_json(RESULTS / "sample.json")
    lines = ["| | variant | recall@20 | ndcg@20 | mrr@20 | coverage@20 |", "|---|---|---|---|---|---|"]
    for place, row in enumerate(board["rows"], 1):
        of = row["metrics"]
        main = of["recall@20"]
        name = f"**{row['variant']}**" if row["variant"] == board["chosen"] else row["variant"]
        lines.append(
            f"| {place} | {name} | {main['mean']:.4f} ({main['low']:.3f} to {main['high']:.3f}) "
            f"| {of['ndcg@20']['mean']:.4f} | {of['mrr@20']['mean']:.4f} | {row['coverage@20']:.3f} |"
        )
    told = (
        f"Sample log, seed 1, split {board['split']}, history {board['history']}, "
        f"{'seen items left out' if board['mask_seen'] else 'seen items stay in'}, {board['users']['test']:,} users; "
        "the interval is a 95 % bootstrap over users; validation chose the row in bold."
    )
    return "\n".join([*lines, "", told])


def _rows(found: dict[str, Any]) -> list[str]:
    """Recall and ndcg at 20 of a table of DiffRec's files."""
    lines = ["| entry | R@20 | N@20 | R@20 over seeds | published R@20 | authors' code |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        known = row["references"] or {}
        lines.append(
            f"| {row['variant']} | {row['mean']['recall@20']:.4f} | {row['mean']['ndcg@20']:.4f} | "
            f"{_over_seeds(row, 'recall@20', 1)} | {known.get('published', {}).get('recall@20', '')} "
            f"| {known.get(CODE, '')} |"
        )
    return lines


def _over_seeds(row: dict[str, Any], metric: str, scale: float) -> str:
    if row["simple"]:
        return "deterministic"
    if not row["deviation"]:
        return "1 seed"
    return f"± {row['deviation'][metric] * scale:.{4 if scale == 1 else 2}f} ({len(row['seeds'])} seeds)"


def _noisy() -> str:
    told = (
        "`ml-1m_noisy`: training and validation hold ratings below 4 as false positives, test does not. Full ranking, "
        "seen items left out. All rows and settings: "
        "[docs/results/diffrec-ml1m-noisy.md](docs/results/diffrec-ml1m-noisy.md)."
    )
    return "\n".join([*_rows(read_json(RESULTS / "diffrec-ml1m-noisy.json")), "", told])


def _next_item() -> str:
    """Hits and ndcg at 10, in percent, of the tables of DiffuRec's files that have been made."""
    lines: list[str] = []
    for name, title in NEXT_ITEM.items():
        place = RESULTS / f"{name}.json"
        if not place.is_file():
            continue
        lines += [
            f"| {title} | HR@10 | NDCG@10 | HR@10, seen left out | NDCG@10, seen left out | epochs | seeds "
            "| published HR@10 / NDCG@10 |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in read_json(place)["rows"]:
            mean, known = row["mean"], (row["references"] or {}).get("published", {})
            figures = [mean[f"{metric}@10{form}"] for form in (" unmasked", "") for metric in ("hit_rate", "ndcg")]
            epochs = (
                "" if row["simple"] else two_digits(row["epochs"]) + (", stopped by the budget" * bool(row["stopped"]))
            )
            published = [known.get(f"{metric}@10 unmasked") for metric in ("hit_rate", "ndcg")]
            lines.append(
                f"| {row['variant']} | {' | '.join(f'{100 * one:.2f}' for one in figures)} | {epochs} "
                f"| {'deterministic' if row['simple'] else len(row['seeds'])} "
                f"| {' / '.join(f'{100 * one:.2f}' for one in published) if all(published) else ''} |"
            )
        lines.append("")
    told = (
        "Next item, DiffuRec's own files, full ranking, in percent; the paper ranks with seen items, so its figures "
        "stand beside the first pair of columns. `noise2next reproduce TABLE` makes each page: "
        + ", ".join(f"[{name}](docs/results/{name}.md)" for name in NEXT_ITEM if (RESULTS / f"{name}.json").is_file())
        + "."
    )
    return "\n".join([*lines, told, "", _draws()])


def _draws() -> str:
    """What the draws of DNR are good for on DiffuRec's files, by the first seed of each."""
    lines = [
        "| draws of `dnr` | users | taken, of the items in over 90% of the draws | of those in at most half | NDCG by "
        "share, less a single draw's | two draws differ in |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in NEXT_ITEM.items():
        rows = {row["variant"]: row for row in read_json(RESULTS / f"{name}.json")["rows"]}
        drawn = DrawsReport.model_validate(rows["dnr"]["runs"][0]["draws"])
        gain = drawn.gain[f"ndcg@{drawn.cutoff}"]
        lines.append(
            f"| {title}, {drawn.draws} draws | {drawn.users:,} | {of_pairs(drawn.hits(0.9, 1))} "
            f"| {of_pairs(drawn.hits(0, 0.5))} "
            f"| {100 * gain.mean:+.2f} ({100 * gain.low:+.2f} to {100 * gain.high:+.2f}) | {drawn.diversity:.1%} |"
        )
    told = (
        "The share of the draws that list an item says how far to trust it; here by DNR, seen items left out, in "
        "percent. The pages have the other rows, and the coverage."
    )
    return "\n".join([*lines, "", told])


def _ml1m() -> str:
    found = read_json(RESULTS / "diffrec-ml1m-clean.json")
    lines = _rows(found)
    by_name = {row["variant"]: row["mean"]["recall@20"] for row in found["rows"]}
    verdict = (
        f"EASE, which takes seconds, reaches {by_name['ease']:.4f} here and DiffRec {by_name['diffrec']:.4f}; with the "
        f"same time weights EASE reaches {by_name['t_ease']:.4f} and T-DiffRec {by_name['t_diffrec']:.4f}. "
    )
    told = (
        "`ml-1m_clean` as DiffRec's authors ship it, official split, input train, full ranking, seen items "
        f"left out, best epoch by validation where an entry does not fix their number. {verdict}In these files each "
        "user's `test` rows are *older* than the `valid` rows, so feeding `valid` at test time would be a leak, and no "
        "row here does. "
        "Settings, intervals, seeds and versions: "
        "[docs/results/diffrec-ml1m-clean.md](docs/results/diffrec-ml1m-clean.md)."
    )
    return "\n".join([*lines, "", told])


def _gate() -> str:
    found = read_json(BENCHMARKS / "gate.json")
    worst = max((one["gate"] for one in found["equal"] if "gate" in one), key=lambda one: one["share"])
    power = {one["label"]: one for one in found["power"]}
    decides = found["policy"]["metric"]
    alike, quarter, half, other = (power[f"{decides}, {part} of the lists another seed's"] for part in PARTS)
    deep = power[f"ndcg@100, {PARTS[-1]} of the lists another seed's"]
    blocked = found["collapse"]["blocked"]
    level = 1 - found["policy"]["bootstrap"]["level"]
    first, again, command = (wall for _, wall, _ in found["rollback"]["seconds"])
    return (
        f"Of challengers that equal their champion in truth it promotes at most {worst['share']:.1%} "
        f"({worst['low']:.1%} to {worst['high']:.1%}, the worst of five kinds of {worst['trials']:,} trials; its level "
        f"is {level:.0%}); of {blocked['trials']} planted collapses of coverage it blocks {blocked['passed']}. With "
        f"{decides} deciding, as it stands, a gain of 2% in ndcg@20 planted among {alike['users']:,} users is promoted "
        f"{_share(alike)} of the time where nothing else has changed, {_share(quarter)} and {_share(half)} where a "
        f"quarter or half of the lists are another seed's, and {_share(other)} where all are: the gain is then "
        f"{other['errors']:.1f} standard errors, and no test of this level finds more than {other['ideal']:.0%}. With "
        f"ndcg@100 deciding it is {_share(deep)} of such gains in ndcg@100. "
        f"A rollback takes a process {first:.1f} s at its first call and {again:.1f} s at the next; the command takes "
        f"{command:.0f} s, for the most part to load its libraries ([gate.md](benchmarks/gate.md))."
    )


def _share(power: dict[str, Any]) -> str:
    return f"{power['gate']['share']:.0%}"


def _goal(latency: dict[str, Any]) -> str:
    return f"the goal of {LATE} ms is {'reached' if latency['p99'] < LATE else 'missed'}"


def _serving() -> str:
    found = read_json(BENCHMARKS / "serving.json")
    known, new, swaps, fuzz = (found[name] for name in ("known", "new", "swaps", "fuzz"))
    errors = sum(count for status, count in fuzz["statuses"].items() if status >= "500")
    return (
        f"Two cores that carry the service and the load, DiffRec at ML-1M's size, {found['rate']} single requests a "
        f"second: half of the known users are answered within {known['p50']:.0f} ms and 99 in 100 within "
        f"{known['p99']:.0f} ms ({_goal(known)}); histories that nobody has, which are scored when they come, within "
        f"{new['p50']:.0f} and {new['p99']:.0f} ms ({_goal(new)}). In batch "
        f"{found['batch_known']['per_second']:,.0f} known users a second, or {found['batch_new']['per_second']:,.0f} "
        f"new histories. {swaps['swaps']} changes of the champion in {swaps['requests']:,} requests: {swaps['failed']} "
        f"failed, {swaps['mixed']} mixed two versions. Of {fuzz['requests']:,} malformed requests {errors} met a "
        "server error ([serving.md](benchmarks/serving.md))."
    )


def _speed() -> str:
    seconds = {name: one["median"] for name, one in read_json(BENCHMARKS / "speed.json")["cpu_seconds"].items()}
    epoch = seconds["epoch, plain"] / seconds["epoch, ours float32"]
    plain = seconds["evaluation of valid, plain"] * 2
    judged = plain / seconds["evaluation of valid and test, ours"]
    scale = read_json(BENCHMARKS / "scale.json")
    large = "; ".join(
        f"{int(rows):,} rows are ingested and prepared in {one['seconds']:.0f} s with {one['peak_gb']:.1f} GB"
        for rows, one in sorted(scale.items(), key=lambda pair: int(pair[0]))
    )
    rows = {
        row["key"]: row
        for name in ("speed_sequences", "speed_rows")
        for row in read_json(BENCHMARKS / f"{name}.json")["rows"]
    }
    faster = {key: f"{row['faster']:.1f}" for key, row in rows.items()}
    took = {key: f"{row['cpu_seconds']['ours']['median']:.1f} s" for key, row in rows.items()}
    all_steps, *_, one_step = read_json(BENCHMARKS / "inference_steps.json")["found"]
    kept = read_json(BENCHMARKS / "kept_memory.json")
    long_histories = next(row for row in kept["rows"] if row["key"] == "diffurec_long")
    latency = read_json(BENCHMARKS / "latency.json")["milliseconds"]["ml-1m, T = 40, hidden 200-600"]
    return (
        "Measured on two cores without a GPU, beside a plain form of the same mathematics in the same run (on torch's "
        "default products; the pages in benchmarks/ give it on oneDNN's as well, which ours takes): a DiffRec "
        f"epoch takes {epoch:.1f} times less CPU time, judging validation and test {judged:.1f} times less, because "
        "the whole reverse chain runs in hidden space, exactly. On Beauty a DiffuRec epoch takes "
        f"{faster['diffurec']} times less as published and {faster['diffurec_mask_keys']} times less with the padding "
        f"left out, a reverse step {faster['reverse']} times less. With `steps_at_inference: 1` a trained DiffuRec "
        f"takes {all_steps['seconds'] / one_step['seconds']:.0f} times less than with {all_steps['steps']} and lists "
        f"the same: {one_step['common']:.1%} of the top 10 ([inference_steps.md](benchmarks/inference_steps.md)). With "
        f"histories of up to {kept['longest']} items its training takes {long_histories['faster']:.1f} "
        "times less because it keeps the memory it frees ([kept_memory.md](benchmarks/kept_memory.md)). A "
        f"SASRec epoch takes {faster['bce']} times less in its "
        f"published loss and {faster['ce']} times less with cross-entropy. On ml-1m_clean L-DiffRec takes "
        f"{took['l_diffrec']} an epoch ({faster['l_diffrec']} times less) and {took['judge']} to judge both parts "
        f"({faster['judge']} times less), LightGCN {took['lightgcn']} an epoch ({faster['lightgcn']} times less). "
        f"{large}. A history that nobody in training had is "
        f"answered by a loaded DiffRec in {latency['p50']:.0f} ms (median)."
    )


if __name__ == "__main__":
    main()
