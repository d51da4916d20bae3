"""LightGCN: the graph's worked example and identities, what is drawn, and scores that need no graph."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from tests.models.laws import RecommenderLaws, scores

from noise2next.config import TrainerConfig, Variant
from noise2next.data.interactions import Interactions
from noise2next.data.queries import Queries
from noise2next.errors import UserError
from noise2next.models.base import Clock, build
from noise2next.models.light_gcn import LightGCN
from noise2next.nn.graph import BipartiteGraph
from noise2next.training import checkpoint
from noise2next.training.fit import fit
from noise2next.training.seeding import epoch_order

MODEL = "noise2next.models.light_gcn.LightGCN"


def histories(rows: list[list[int]], n_items: int, keys: list[int] | None = None) -> Queries:
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    items = np.array([item for row in rows for item in row], dtype=np.int64)
    names = np.arange(len(rows)) if keys is None else np.array(keys)
    return Queries.of(Interactions.of(users, items, None, len(rows)), n_items, names)


def random_histories(users: int = 30, items: int = 12, seed: int = 0) -> Queries:
    draw = np.random.default_rng(seed)
    rows = [draw.permutation(items)[: draw.integers(1, items)].tolist() for _ in range(users)]
    return histories(rows, items, draw.permutation(1000)[:users].tolist())


def graph_of(train: Queries) -> BipartiteGraph:
    once = train.folded()
    return BipartiteGraph(once.indptr, once.items, train.n_items)


def model(train: Queries, **options) -> LightGCN:
    torch.manual_seed(2)
    made = build(Variant(model=MODEL, options=options), train.n_items, {"user_keys": train.keys})
    assert isinstance(made, LightGCN)
    return made


def with_graph(train: Queries, **options) -> LightGCN:
    """As it is once training has begun."""
    made = model(train, **options)
    made.begin_training(train)
    return made


def dense_mean(train: Queries, users: torch.Tensor, items: torch.Tensor, layers: int) -> torch.Tensor:
    """The mean of (D^-1/2 A D^-1/2)^k E over k = 0 to `layers`, from the square matrix with every entry."""
    rows = (train.multi_hot() > 0).to(users.dtype)
    square = torch.zeros(sum(rows.shape), sum(rows.shape), dtype=users.dtype)
    square[: len(rows), len(rows) :] = rows
    square += square.T.clone()
    scale = square.sum(dim=1).rsqrt().nan_to_num(posinf=0)
    square = scale[:, None] * square * scale
    found = [torch.cat([users, items])]
    for _ in range(layers):
        found.append(square @ found[-1])
    return torch.stack(found).mean(dim=0)


# --- the graph --------------------------------------------------------------------------------------------------------


def test_the_worked_example():
    users = torch.tensor([[1, 0], [0, 1]], dtype=torch.float64)
    items = torch.tensor([[1, 1], [2, 0]], dtype=torch.float64)
    of_users, of_items = graph_of(histories([[0, 1], [1]], 2)).spread(users, items, 2)
    expected = [[1.1523689271, 0.3535533906], [0.589255651, 0.5], [0.9714045208, 0.5], [1.4511844635, 0.3535533906]]
    np.testing.assert_allclose(torch.cat([of_users, of_items]), expected, atol=1e-9)


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
def test_spreading_is_the_mean_of_the_powers_of_the_normalised_adjacency(layers):
    train = histories([[0, 3], [1], [], [0, 1, 3, 4], [4]], 6)  # user 2, items 2 and 5 are isolated
    users, items = torch.randn(5, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    found = torch.cat(graph_of(train).spread(users, items, layers))
    np.testing.assert_allclose(found, dense_mean(train, users, items, layers), atol=1e-12)


def test_gradients_are_those_of_the_dense_form():
    train = random_histories()
    users, items = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (len(train), 12))
    weights = torch.randn(len(train) + 12, 4, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((weights * found.sin()).sum(), [users, items])
        for found in (torch.cat(graph_of(train).spread(users, items, 3)), dense_mean(train, users, items, 3))
    ]
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_linked_knows_every_pair():
    train = random_histories()
    users = torch.arange(len(train)).repeat_interleave(12)
    items = torch.arange(12).repeat(len(train))
    assert torch.equal(graph_of(train).linked(users, items).view(-1, 12), train.multi_hot() > 0)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_an_epoch_draws_as_many_preferences_as_there_are_interactions():
    train = random_histories()
    made = with_graph(train)
    batches = list(made.batches(train, 50, epoch_order(1, 0)))
    assert made.samples(train) == len(train.items) == sum(len(one) for one in batches)
    assert {len(one) for one in batches[:-1]} == {50}


def test_each_row_is_an_item_that_the_user_has_taken_and_one_that_he_has_not():
    train = random_histories()
    taken = {
        int(key): set(row.nonzero().flatten().tolist()) for key, row in zip(train.keys, train.multi_hot(), strict=True)
    }
    for batch in with_graph(train).batches(train, 50, epoch_order(1, 0)):
        for key, (yes, no) in zip(batch.keys.tolist(), batch.items.view(-1, 2).tolist(), strict=True):
            assert yes in taken[key]
            assert no not in taken[key]


def test_users_and_each_side_of_a_preference_are_drawn_alike():
    train = histories([[0], [0, 1, 2, 3, 4, 5], [2, 3]], 8)
    users, taken, others = graph_of(train).preferences(60_000, torch.Generator().manual_seed(0))
    share = torch.bincount(users) / len(users)
    np.testing.assert_allclose(share, np.full(3, 1 / 3), atol=0.01)  # not by the length of their histories
    of_long = taken[users == 1]
    np.testing.assert_allclose(torch.bincount(of_long) / len(of_long), np.full(6, 1 / 6), atol=0.015)
    against = others[users == 0]
    np.testing.assert_allclose(torch.bincount(against)[1:] / len(against), np.full(7, 1 / 7), atol=0.015)


def test_who_has_taken_everything_is_not_drawn():
    train = histories([[0, 1, 2], [1]], 3, keys=[5, 6])
    assert all((batch.keys == 6).all() for batch in with_graph(train).batches(train, 2, epoch_order(1, 0)))
    nothing_left = histories([[0, 1, 2], [0, 1, 2]], 3)
    with pytest.raises(UserError, match="no preference"):
        model(nothing_left).begin_training(nothing_left)


def test_batches_draw_from_their_own_generator_alone():
    """Resuming passes over the finished batches of an epoch."""
    train, drawn = random_histories(), []
    made = with_graph(train)
    for _ in range(2):
        before = torch.get_rng_state()
        drawn.append(torch.cat([one.items for one in made.batches(train, 50, epoch_order(1, 4))]))
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
    assert torch.equal(*drawn)


class Stop(Exception):
    """A stand-in for the end of the process."""


@pytest.mark.parametrize("last", [2, 5, 6])
def test_a_run_stopped_after_any_batch_resumes_to_the_same_bytes(tmp_path, monkeypatch, last):
    train = random_histories()
    config = TrainerConfig(epochs=2, batch_size=50, checkpoint_seconds=0)

    def learn(folder):
        made = model(train, embedding_size=4)
        validate = lambda one: {"recall@20": float(scores(one, train).std())}  # noqa: E731
        fit(made, train, config, validate, folder, 1, torch.device("cpu"), lambda *_: None, False)
        return made.state_dict()

    whole, count, save = learn(tmp_path / "whole"), iter(range(1, 100)), checkpoint.save

    def save_and_stop(*state):
        save(*state)
        if next(count) == last:
            raise Stop

    monkeypatch.setattr(checkpoint, "save", save_and_stop)
    with pytest.raises(Stop):
        learn(tmp_path / "stopped")
    monkeypatch.setattr(checkpoint, "save", save)
    again = learn(tmp_path / "stopped")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_bpr_with_the_norms_of_the_vectors_before_they_spread():
    train = random_histories()
    made = with_graph(train, decay=0.3, layers=2, embedding_size=8)
    batch = next(made.batches(train, 20, epoch_order(1, 0)))
    terms = made.loss(batch, "train", Clock())
    mean = dense_mean(train, made.users.double(), made.items.double(), 2)
    keys = train.keys.tolist()
    u = torch.tensor([keys.index(key) for key in batch.keys.tolist()])
    i, j = batch.items.view(-1, 2).unbind(dim=1)
    difference = (mean.detach()[u] * (mean[len(train) + j] - mean[len(train) + i]).detach()).sum(dim=1)
    norms = sum(float(one.detach().square().sum()) for one in (made.users[u], made.items[i], made.items[j]))
    assert float(terms["bpr"].detach()) == pytest.approx(float(torch.log1p(difference.exp()).mean()), rel=1e-5)
    assert float(terms["decay"].detach()) == pytest.approx(0.3 * 0.5 * norms / 20, rel=1e-5)


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_training_history_scores_as_the_spread_over_the_graph(layers):
    train = random_histories()
    made = with_graph(train, layers=layers)
    mean = dense_mean(train, made.users.double(), made.items.double(), layers).detach()
    expected = mean[: len(train)] @ mean[len(train) :].T
    np.testing.assert_allclose(scores(made, train), expected, atol=1e-5)
    np.testing.assert_allclose(made.item_embeddings(), mean[len(train) :], atol=1e-6)


def test_a_new_user_is_a_node_of_the_graph_without_a_vector_of_his_own():
    """Joined to the graph with a zero vector, while the items' sides stay as training left them."""
    train = random_histories()
    made = with_graph(train, layers=1)
    new = histories([[2, 5, 7]], 12, keys=[-1])
    degrees = torch.bincount(train.items, minlength=12)
    received = (made.items[[2, 5, 7]] / (3 * degrees[[2, 5, 7], None]).sqrt()).sum(dim=0) / 2
    np.testing.assert_allclose(scores(made, new)[0], (made.item_vectors @ received).detach(), atol=1e-6)


def test_weights_and_repeats_are_read_by_structure():
    train = random_histories()
    made = with_graph(train)
    plain = histories([[1, 4, 6]], 12, keys=[-1])
    again = histories([[6, 1, 4, 1, 1]], 12, keys=[-1])
    heavy = Queries(again.indptr, again.items, 0.3 * again.weights, None, again.keys, 12)
    assert torch.equal(scores(made, plain), scores(made, heavy))


class TestLightGCN(RecommenderLaws):
    model = MODEL
    options: ClassVar = {"embedding_size": 16, "layers": 2}
    trainer = TrainerConfig(
        epochs=15, batch_size=256, patience=15, evaluate_every=5, metric="recall@10", learning_rate=0.02
    )
