import hashlib

import numpy as np
import pytest

from noise2next.data import sample

SEED_1 = "c2716bf391e69a79fafe387c8396aa7a69d97caa2cc79d6345f2192c8ce7fee1"


@pytest.fixture(scope="module")
def drawn():
    return sample.events(1)


def test_seed_1_gives_these_bytes_on_every_machine(tmp_path):
    sample.write(tmp_path / "deep" / "log.csv", 1)
    assert hashlib.sha256((tmp_path / "deep" / "log.csv").read_bytes()).hexdigest() == SEED_1


def test_another_seed_gives_another_log(tmp_path):
    sample.write(tmp_path / "one.csv", 1)
    sample.write(tmp_path / "two.csv", 2)
    assert (tmp_path / "one.csv").read_bytes() != (tmp_path / "two.csv").read_bytes()


def test_the_file_says_what_was_drawn(tmp_path, drawn):
    sample.write(tmp_path / "log.csv", 1)
    header, *rows = (tmp_path / "log.csv").read_bytes().decode("ascii").splitlines()
    users, items, times = drawn
    assert header == "user_id,item_id,timestamp"
    assert len(rows) == sample.ROWS
    assert rows[0] == f"u{users[0] + 1:04d},i{items[0] + 1:04d},{times[0]}"


def test_no_one_meets_an_item_twice_and_everyone_leaves_at_least_fifteen_rows(drawn):
    users, items, _ = drawn
    assert len(np.unique(users * sample.ITEMS + items)) == sample.ROWS
    assert np.bincount(users, minlength=sample.USERS).min() >= 15
    assert np.bincount(items, minlength=sample.ITEMS).min() >= 5


def test_rows_are_in_order_of_time_within_two_years(drawn):
    times = drawn[2]
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= sample.START
    assert times[-1] < sample.START + sample.WEEKS * sample.WEEK


def test_popularity_and_activity_are_long_tailed(drawn):
    users, items, _ = drawn
    assert gini(np.bincount(items)) > 0.4
    assert gini(np.bincount(users)) > 0.35


def test_popularity_drifts(drawn):
    """Two neighbouring months look alike, two months a year apart do not."""
    _, items, times = drawn
    month = (times - sample.START) // (4 * sample.WEEK)
    counts = np.stack([np.bincount(items[month == m], minlength=sample.ITEMS) for m in range(26)])
    near = np.mean([np.corrcoef(counts[m], counts[m + 1])[0, 1] for m in range(25)])
    far = np.mean([np.corrcoef(counts[m], counts[m + 13])[0, 1] for m in range(13)])
    assert near > far + 0.3


def test_newest_history_tells_more_than_oldest_and_persons_more_than_popularity(drawn):
    """EASE beats popularity on the last tenth of time, and EASE with linear time weights beats EASE."""
    users, items, _ = drawn
    cut = sample.ROWS * 9 // 10
    past, future = slice(None, cut), slice(cut, None)
    seen = history(users[past], items[past], low=1.0)
    truth = history(users[future], items[future], low=1.0)
    weighted = history(users[past], items[past], low=0.1)
    popular = hits(np.tile(seen.sum(0), (sample.USERS, 1)), seen, truth)
    plain, timed = hits(seen @ ease(seen), seen, truth), hits(weighted @ ease(weighted), seen, truth)
    assert plain > 1.25 * popular
    assert timed > 1.1 * plain


def gini(counts):
    share = np.sort(counts).cumsum() / counts.sum()
    return 1 - 2 * share.mean() + 1 / len(counts)


def history(users, items, low):
    """[U, I], weights from `low` (oldest) to 1 (newest)."""
    lengths = np.bincount(users, minlength=sample.USERS)
    order = np.argsort(users, kind="stable")
    place = np.empty(len(users), dtype=np.int64)
    place[order] = np.arange(len(users)) - np.repeat(lengths.cumsum() - lengths, lengths)
    matrix = np.zeros((sample.USERS, sample.ITEMS))
    matrix[users, items] = low + (1 - low) * place / np.maximum(lengths[users] - 1, 1)
    return matrix


def ease(matrix):
    inverse = np.linalg.inv(matrix.T @ matrix + 300 * np.eye(sample.ITEMS))
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0)
    return weights


def hits(scores, seen, truth):
    """Mean Recall@20 over the users with a past and a future."""
    judged = (truth.sum(1) > 0) & (seen.sum(1) > 0)
    top = np.argsort(-np.where(seen > 0, -np.inf, scores), axis=1)[:, :20]
    return (np.take_along_axis(truth, top, axis=1).sum(1)[judged] / truth.sum(1)[judged]).mean()
