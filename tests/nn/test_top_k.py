"""The best k of each row are the first k of a stable sort, ties and all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from noise2next.nn.top_k import top_k

FEW_VALUES = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf])


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=FEW_VALUES),
    st.integers(1, 14),
)
def test_it_is_the_head_of_a_stable_descending_sort(scores: np.ndarray, k: int) -> None:
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values, indices = top_k(torch.from_numpy(scores), k)
    assert indices.tolist() == expected.tolist()
    assert values.tolist() == np.take_along_axis(scores, expected, axis=1).tolist()


def test_equal_scores_rank_by_index() -> None:
    assert top_k(torch.zeros(2, 5000), 3)[1].tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.gpu
def test_cpu_and_gpu_agree_on_ties() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    scores = torch.randint(0, 40, (300, 4000), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(top_k(scores, 100)[1], top_k(scores.cuda(), 100)[1].cpu())
