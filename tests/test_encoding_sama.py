"""Steps from a checked conversation to tensors."""

import pytest
import torch

from sama.encoding_sama import common_prefix


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([1, 2, 3], [1, 2, 4], 2), ([5, 2], [1, 2], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([], [1], 0)],
)
def test_common_prefix(first, second, expected):
    tensors = (torch.tensor(ids, dtype=torch.long) for ids in (first, second))
    assert common_prefix(*tensors) == expected
