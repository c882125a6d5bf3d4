"""Codes of a few bits are read as they were written."""

import numpy as np
import pytest
import torch

from pipeline.embeddings.packed_codes import PackedCodes, bits


@pytest.mark.parametrize(
    ("centroids", "groups"), [([2], 1), ([3], 5), ([5, 2], 3), ([256], 4), ([1000, 17], 7), ([65536, 300, 2], 2)]
)
def test_codes_of_any_number_of_centroids_are_read_as_they_were_written(centroids: list[int], groups: int) -> None:
    rng = np.random.default_rng(0)
    rows = [37, 16, 5][: len(centroids)]
    codes = PackedCodes(rows, groups, centroids)
    wanted = [torch.from_numpy(rng.integers(0, k, (n, groups))) for n, k in zip(rows, centroids, strict=True)]
    for segment, own in enumerate(wanted):
        own[0], own[-1] = 0, centroids[segment] - 1
        for start in range(0, len(own), 8):
            codes.write(segment, start, own[start : start + 8])
    sizes = [-(-n * groups * bits(k) // 8) for n, k in zip(rows, centroids, strict=True)]
    assert codes.data.dtype == torch.uint8 and len(codes.data) == sum(sizes)
    order = torch.from_numpy(rng.permutation(sum(rows)))  # any rows in any order
    segments = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
    assert torch.equal(codes.read(codes.data, order, segments[order]), torch.cat(wanted)[order])


def test_a_code_takes_as_few_bits_as_its_centroids_need() -> None:
    assert [bits(k) for k in (2, 3, 4, 5, 128, 129, 256, 257)] == [1, 2, 2, 3, 7, 8, 8, 9]
    for wrong in (1, 2**16 + 1):
        with pytest.raises(ValueError, match=rf"centroids of a code must be 2 to 65536, got {wrong}"):
            PackedCodes([4], 1, [wrong])
