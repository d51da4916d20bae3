"""The Markov chain: it counts what follows what, and gives the measured figures of the official next-item files."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse
from tests.models.laws import RecommenderLaws, scores
from tests.models.official import diffurec, percent

from noise2next.data.interactions import Interactions
from noise2next.data.queries import Queries
from noise2next.models.markov_chain import MarkovChain

ITEMS = 9
History = list[int]


def as_queries(histories: list[History], n_items: int = ITEMS) -> Queries:
    users = np.repeat(np.arange(len(histories)), [len(one) for one in histories])
    items = np.array([item for one in histories for item in one], dtype=np.int64)
    return Queries.of(Interactions.of(users, items, None, len(histories)), n_items, np.arange(len(histories)))


def random_histories(seed: int, users: int = 30) -> list[History]:
    """Of 0 to 11 items, with repeats."""
    draw = np.random.default_rng(seed)
    return [draw.integers(0, ITEMS, draw.integers(0, 12)).tolist() for _ in range(users)]


def solved(histories: list[History], n_items: int = ITEMS, **options: float) -> MarkovChain:
    model = MarkovChain(MarkovChain.Config(**options), n_items)
    model.solve(as_queries(histories, n_items))
    return model


def moves(model: MarkovChain) -> NDArray[np.float64]:
    """M [I, I], dense."""
    values, columns, indptr = (part.numpy() for part in (model.strengths.double(), model.followers, model.indptr))
    return sparse.csr_array((values, columns, indptr), shape=(ITEMS, ITEMS)).toarray()


def by_loops(
    train: list[History], asked: list[History], window: int, last: int, decay: float, power: float
) -> NDArray[np.float64]:
    """The same, as one would say it."""
    table, popularity = np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS)
    for history in train:
        for place, item in enumerate(history):
            popularity[item] += 1
            for gap in range(1, window + 1):
                if place + gap < len(history):
                    table[item, history[place + gap]] += 1 / gap
    found = np.tile(1e-6 * popularity / max(popularity.max(), 1), (len(asked), 1))
    for user, history in enumerate(asked):
        for age, item in enumerate(history[::-1][:last]):
            if table[item].any():
                found[user] += decay**age * table[item] / table[item].sum() ** power
    return found


class TestMarkovChain(RecommenderLaws):
    model = "noise2next.models.markov_chain.MarkovChain"
    options: ClassVar = {"last": 9}

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(
        ("window", "last", "decay", "power"),
        [(10, 5, 0.7, 0.5), (1, 1, 0.7, 1.0), (3, 50, 1.0, 0.3), (50, 2, 0.5, 0.0)],
    )
    def test_it_is_the_double_loop(self, seed: int, window: int, last: int, decay: float, power: float) -> None:
        train, asked = random_histories(seed), random_histories(seed + 100)
        model = solved(train, window=window, last=last, decay=decay, row_power=power)
        expected = by_loops(train, asked, window, last, decay, power)
        np.testing.assert_allclose(scores(model, as_queries(asked)).numpy(), expected, rtol=1e-6, atol=1e-12)

    def test_a_planted_chain_is_found_among_noise(self) -> None:
        draw = np.random.default_rng(0)
        histories = [[*draw.integers(3, ITEMS, 4), 0, 1, 2, *draw.integers(3, ITEMS, 4)] for _ in range(40)]
        found = scores(solved(histories, window=1, last=1), as_queries([[7, 0], [0, 1]])).argmax(dim=1)
        assert found.tolist() == [1, 2]

    def test_deleting_the_future_takes_nothing_from_what_was_before_it(self) -> None:
        histories = [[0, 1, 2, 3], [3, 1, 0, 4], [5, 0]]
        whole, cut = (moves(solved(each, row_power=0)) for each in (histories, [[0, 1, 2], *histories[1:]]))
        assert whole[2, 3] - cut[2, 3] == 1
        whole[:, 3] = cut[:, 3]
        np.testing.assert_array_equal(whole, cut)

    def test_only_what_comes_later_is_counted(self) -> None:
        found = moves(solved([[0, 1, 2]], row_power=0))
        assert found[:3, :3].tolist() == [[0, 1, 0.5], [0, 0, 1], [0, 0, 0]]

    def test_a_return_to_an_item_counts_for_the_item_itself(self) -> None:
        found = moves(solved([[4, 4], [4, 5, 4]], row_power=0))
        assert (found[4, 4], found[4, 5], found[5, 4]) == (1.5, 1, 1)

    def test_no_history_and_unknown_ways_leave_the_order_of_popularity(self) -> None:
        model = solved([[0, 1], [2, 1], [2, 1, 3]])
        found = scores(model, as_queries([[], [8], [3]]))
        assert torch.equal(found, found[:1].expand_as(found))
        assert found[0].sort(descending=True, stable=True).indices[:4].tolist() == [1, 2, 0, 3]

    def test_popularity_orders_what_no_transition_tells_apart(self) -> None:
        """Also where its share is too small for float32."""
        model = solved([[0, 1]] * 50 + [[0, 2]] * 50 + [[3]] * 10_000 + [[2]], last=1, window=1)
        found = scores(model, as_queries([[0]]))[0]
        assert found[1].float() == found[2].float()
        assert found[2] > found[1]


# percent: hit rate at 5, 10, 20, then NDCG; with everything ranked, and without what a user has seen
MEASURED = {
    "amazon_beauty": (
        [5.7014, 7.9596, 10.6962, 4.0706, 4.8010, 5.4950],
        [6.2112, 8.5677, 11.0763, 4.5288, 5.2831, 5.9167],
    ),
    "toys": (
        [7.0317, 9.2675, 11.7659, 5.0808, 5.8036, 6.4319],
        [7.5005, 9.6229, 12.0956, 5.5947, 6.2811, 6.9028],
    ),
    "ml-1m": (
        [13.5927, 19.8179, 29.0397, 9.4616, 11.4665, 13.7982],
        [17.2517, 24.8013, 34.6026, 12.0818, 14.5163, 16.9982],
    ),
}


@pytest.mark.real
@pytest.mark.parametrize(("name", "expected"), MEASURED.items(), ids=list(MEASURED))
def test_the_measured_figures_come_out_to_the_last_digit(
    shared: Path, tmp_path: Path, name: str, expected: tuple[list[float], list[float]]
) -> None:
    split = diffurec(shared, name, tmp_path)
    model = MarkovChain(MarkovChain.Config(window=10, last=5, decay=0.7, row_power=0.5), split.n_items)
    model.solve(Queries.of(split.train, split.n_items, split.users.keys))
    assert (percent(model, split, mask_seen=False), percent(model, split, mask_seen=True)) == expected
