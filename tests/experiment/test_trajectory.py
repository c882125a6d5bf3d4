"""The table of a search's trajectory, and what of it is plotted."""

import itertools
import math

import pandas as pd
import pytest
import torch

from pipeline.experiment.found import Found
from pipeline.experiment.trajectory import PLOTTED_STEPS, long_form, thinned

COLUMNS = ["step", "feature", "candidate_dim", "probability", "tau"]


def found(steps: int, tau: float = 0.5) -> Found:
    """Probabilities of two fields with two and one candidates, which move with the step."""
    points = [
        (3 * step, tau, torch.tensor([[1 - step / 1000, step / 1000], [1.0, 0.0]], dtype=torch.float64))
        for step in range(1, steps + 1)
    ]
    return Found("autodim", 0, 4, ("user", "item"), ((2, 4), (1,)), trajectory=points)


def test_every_step_field_and_candidate_has_a_row_and_what_a_field_lacks_has_none() -> None:
    table = long_form(found(2))
    assert list(table.columns) == COLUMNS
    assert [tuple(row) for row in table.itertuples(index=False)] == [
        *((3, "user", 2, 0.999, 0.5), (3, "user", 4, 0.001, 0.5), (3, "item", 1, 1.0, 0.5)),
        *((6, "user", 2, 0.998, 0.5), (6, "user", 4, 0.002, 0.5), (6, "item", 1, 1.0, 0.5)),
    ]
    assert long_form(found(1, math.nan)).tau.isna().all()


def test_a_search_without_scores_has_a_table_without_rows_of_the_same_columns() -> None:
    empty = long_form(found(0))
    assert list(empty.columns) == COLUMNS and not len(empty)
    plotted = thinned(empty)
    assert list(plotted.columns) == ["step", "feature", "dimension", "probability"] and not len(plotted)


@pytest.mark.parametrize("steps", [1, 50, 100, 199, 200, 550])
def test_of_a_long_trajectory_every_kth_step_is_plotted_counted_from_the_last(steps: int) -> None:
    table = long_form(found(steps))
    plotted = thinned(table)
    shown = plotted.step.unique().tolist()
    assert shown[-1] == 3 * steps and len({after - before for before, after in itertools.pairwise(shown)}) <= 1
    assert min(steps, PLOTTED_STEPS) <= len(shown) < 2 * PLOTTED_STEPS
    expected = table[table.step.isin(shown)].drop(columns="tau").rename(columns={"candidate_dim": "dimension"})
    pd.testing.assert_frame_equal(plotted, expected.round(4))
