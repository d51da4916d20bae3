"""Clusters of items: reproducible labels, nobody alone, and rows that stay with their item."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noise2next.data import item_tables
from noise2next.data.clustering import LEAST, cluster
from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import UserError


def blobs(sizes, seed=0, apart=20.0):
    """Vectors [I, 3] around as many far points as there are sizes, in random order, and the point of each."""
    draw = np.random.default_rng(seed)
    of = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = apart * np.eye(max(3, len(sizes)), 3) + apart * np.arange(len(sizes)).max()
    return (centres[of] + draw.normal(size=(len(of), 3))).astype(np.float32), of


def partition(labels):
    return {frozenset(np.flatnonzero(labels == one).tolist()) for one in np.unique(labels)}


def test_groups_that_lie_apart_are_found():
    vectors, of = blobs([30, 12, 5])
    assert partition(cluster(vectors, 3, seed=1, n_init=10).labels) == partition(of)


@pytest.mark.parametrize("count", range(1, 6))
def test_labels_count_up_by_the_lowest_item_of_each_cluster(count):
    found = cluster(np.random.default_rng(3).normal(size=(60, 4)).astype(np.float32), count, seed=1, n_init=3)
    values, first = np.unique(found.labels, return_index=True)
    assert values.tolist() == list(range(count))
    assert np.all(np.diff(first) > 0)
    assert sum(found.sizes) == 60


def test_equal_seeds_give_equal_labels():
    vectors = np.random.default_rng(4).normal(size=(200, 8)).astype(np.float32)
    assert np.array_equal(*(cluster(vectors, 4, seed=7, n_init=2).labels for _ in range(2)))


def test_the_order_of_the_items_only_renames():
    vectors, _ = blobs([10, 10, 10])
    order = np.random.default_rng(0).permutation(30)
    plain, moved = cluster(vectors, 3, 1, 5).labels, cluster(vectors[order], 3, 1, 5).labels
    assert partition(moved) == {frozenset(np.argsort(order)[list(group)].tolist()) for group in partition(plain)}


def test_an_item_alone_is_joined_by_its_nearest_from_a_cluster_that_can_spare_one():
    points = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [100, 0], [9, 0]], dtype=np.float32)
    found = cluster(points, 2, seed=1, n_init=10)  # k-means leaves item 4 alone
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert found.inertia == pytest.approx(4 * 0.5 + 2 * 45.5**2)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_items_that_are_all_alike_still_fill_every_cluster(count):
    found = cluster(np.ones((2 * 5, 4), dtype=np.float32), count, seed=1, n_init=2)
    assert len(found.sizes) == count
    assert min(found.sizes) >= LEAST
    assert found.inertia == 0


@pytest.mark.parametrize("seed", range(4))
def test_no_cluster_is_below_two_items_when_there_are_just_enough(seed):
    vectors = np.random.default_rng(seed).standard_cauchy(size=(10, 2)).astype(np.float32)  # far outliers
    assert cluster(vectors, 5, seed=seed, n_init=3).sizes == [2] * 5


def test_inertia_is_the_distance_to_the_own_mean_and_falls_with_more_clusters():
    vectors = np.random.default_rng(5).normal(size=(80, 4)).astype(np.float32)
    found = [cluster(vectors, count, seed=1, n_init=5).inertia for count in range(1, 6)]
    assert found[0] == pytest.approx(float(vectors.astype(np.float64).var(axis=0).sum() * 80))
    assert all(later < earlier for earlier, later in pairwise(found))


# --- rows by item -----------------------------------------------------------------------------------------------------

ITEMS = Vocabulary(("a", "b", "c"))


def test_rows_come_back_by_raw_id_whatever_the_order(tmp_path):
    path = tmp_path / "items.parquet"
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    item_tables.write(path, ITEMS, {"vector": vectors, "clusters_2": np.array([0, 1, 0])})
    pq.write_table(pq.read_table(path).take(pa.array([2, 0, 1])), path)
    other = Vocabulary(("c", "b"))
    np.testing.assert_array_equal(item_tables.read(path, "vector", ITEMS, ""), vectors)
    np.testing.assert_array_equal(item_tables.read(path, "vector", other, ""), vectors[[2, 1]])
    np.testing.assert_array_equal(item_tables.read(path, "clusters_2", other, ""), [0, 1])


def test_an_item_without_a_row_is_refused_by_name_with_the_remedy(tmp_path):
    item_tables.write(tmp_path / "items.parquet", ITEMS, {"clusters_2": np.array([0, 1, 0])})
    with pytest.raises(UserError, match=r"items.parquet: it has no row for item 'd'; embed again"):
        item_tables.read(tmp_path / "items.parquet", "clusters_2", Vocabulary(("a", "d")), "embed again")
