"""A bitmap against a plain array of truths."""

import numpy as np
import torch

from pipeline.embeddings.bitmap import Bitmap


def test_a_bitmap_knows_its_bits_and_how_many_ones_come_before_each() -> None:
    for bits in (1, 63, 64, 65, 511, 512, 513, 2000):
        ones = np.random.default_rng(bits).random(bits) < 0.6
        bitmap, places = Bitmap.of(ones), torch.arange(bits)
        assert bitmap.at(places).tolist() == ones.tolist(), bits
        assert bitmap.rank(places).tolist() == (np.cumsum(ones) - ones).tolist(), bits
        assert Bitmap.of(np.ones(bits, bool)).rank(places).tolist() == list(range(bits)), bits
        form = {"bits": bitmap.words, "before": bitmap.before}
        assert {name: (len(tensor), tensor.dtype) for name, tensor in form.items()} == Bitmap.form(bits)
