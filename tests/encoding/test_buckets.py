"""The rule that turns numbers into categories."""

import math

import numpy as np

from pipeline.encoding.buckets import log_square


def test_log_square_agrees_with_hand_worked_numbers() -> None:
    numbers = [-3, -0.5, 0, 1, 2, 2.5, 3, 4, 5, 10, 1000]
    #        ln(2.5)^2 = .84, ln(3)^2 = 1.21, ln(4)^2 = 1.92, ln(5)^2 = 2.59, ln(10)^2 = 5.30, ln(1000)^2 = 47.7
    assert log_square(np.array(numbers)).tolist() == [-3, -1, 0, 1, 2, 0, 1, 1, 2, 5, 47]
    assert [math.floor(math.log(v) ** 2) for v in (3, 10, 1000)] == [1, 5, 47]
