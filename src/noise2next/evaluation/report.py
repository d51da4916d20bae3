"""What an evaluation and a leaderboard say: the documents that are printed, shown and compared."""

from __future__ import annotations

from typing import Any

from noise2next.config import Frozen, Noise, Weighting
from noise2next.evaluation.significance import Interval


class ShareBin(Frozen):
    """The pairs of a user and an item whose share of the draws is above `above` and at most `up_to`."""

    above: float
    up_to: float
    pairs: int
    mean_share: float
    hit_rate: float  # the part of the pairs whose item the user took


class DrawsReport(Frozen):
    """What the draws of a stochastic model are good for, on test. A share: the part of the draws that list an item."""

    draws: int
    users: int  # looked at, chosen by seed among the judged
    cutoff: int  # length of the lists
    bins: list[ShareBin]  # of all pairs that some draw lists; bins without a pair are left out
    auc: float | None  # chance that of a hit and a miss among these pairs the hit has the larger share; one half: none
    calibration_error: float  # mean distance of share and hit rate: 0 if a share were the chance of a hit
    by_share: dict[str, float]  # accuracy of the list by share
    one_draw: dict[str, float]  # accuracy of a single draw's list, mean over the draws
    gain: dict[str, Interval]  # the first less the second, paired by user
    diversity: float  # 1 - the common part of two draws' lists, mean over pairs of draws and users
    distinct: float  # items of a user in all draws together, mean over users
    coverage: dict[str, float]  # of the catalogue by these users' lists: of one draw, by share, of all draws together

    def hits(self, above: float, up_to: float) -> tuple[int, int]:
        """How many of the pairs in the bins from `above` to `up_to` are hits, and how many pairs there are."""
        chosen = [one for one in self.bins if above <= one.above and one.up_to <= up_to]
        return sum(round(one.pairs * one.hit_rate) for one in chosen), sum(one.pairs for one in chosen)


class EvaluationReport(Frozen):
    """One model on one split. `metrics` and `lists` are by part (valid, test), then by name (`recall@20`)."""

    dataset: str
    variant: str
    model: str
    options: dict[str, Any]
    weighting: Weighting
    noise: Noise | None = None  # in the histories that were read
    split: str
    history: str
    mask_seen: bool
    data_version: str
    fingerprint: str
    code_version: str
    seed: int
    parameters: int  # learned numbers: parameters, or what a closed form has solved
    users: dict[str, int]  # judged
    left_out: dict[str, int]  # something to find, but no history to go by
    metrics: dict[str, dict[str, Interval]]
    confidence: float  # of the metrics' intervals, which are over users
    bootstrap_samples: int
    lists: dict[str, dict[str, float]]
    bands: list[float]  # the test lists' places (largest cutoff up to 20) by tenth of the catalogue, popular first
    trained_bands: list[float]  # the training interactions likewise
    draws: DrawsReport | None = None  # of stochastic models
    seconds: float


class CurvePoint(Frozen):
    """One epoch: the summed loss, and the main metric on validation where it was measured."""

    epoch: int
    loss: float
    metric: float | None


class Training(Frozen):
    """What it took to learn a model."""

    seconds: float
    epochs: int
    best_epoch: int
    device: str
    curve: list[CurvePoint]


class LeaderboardRow(Frozen):
    """One variant. `metrics` and `lists` are of the test part, `valid` of the validation part."""

    variant: str
    model: str
    simple: bool  # learned in one pass, without gradient steps
    options: dict[str, Any]
    weighting: Weighting
    noise: Noise | None = None  # in the histories that were read
    metrics: dict[str, Interval]
    valid: dict[str, Interval]
    lists: dict[str, float]
    versus_best: Interval | None  # main metric, this minus the best row, paired by user; None for the best row itself
    bands: list[float]
    draws: DrawsReport | None = None
    parameters: int
    seconds_training: float
    seconds_evaluation: float
    epochs: int
    best_epoch: int
    device: str
    curve: list[CurvePoint]
    seed: int
    data_version: str
    code_version: str
    fingerprint: str


class LeaderboardReport(Frozen):
    """All comparable models of one dataset, best on test first; `chosen` is the best on validation."""

    dataset: str
    split: str
    history: str
    mask_seen: bool
    data_version: str
    users: dict[str, int]
    items: int
    main_metric: str
    confidence: float
    bootstrap_samples: int
    chosen: str
    trained_bands: list[float]
    rows: list[LeaderboardRow]
    left_out: dict[str, str]  # variant: why it is not in the table
    notes: list[str]

    @property
    def protocol(self) -> str:
        """What was judged and how, in a phrase."""
        mask = "seen items left out" if self.mask_seen else "seen items stay in"
        return f"split {self.split}, history {self.history}, {mask}"
