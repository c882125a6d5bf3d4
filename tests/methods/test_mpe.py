"""MPE: from the searched probabilities to widths within a budget."""

from itertools import product

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import cost, spent
from pipeline.methods import mpe
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 40), Field("age", 3), Field("item", 21)))
DIM = 4
IDS = np.stack([np.arange(2000) ** 2 % n for n in (40, 3, 21)], 1).astype(np.int32)


def found(groups: int = 2, **options) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    search = mpe.find(
        problem("mpe", SCHEMA, DIM, [[DIM]] * 3, training_ids=lambda: IDS), groups=groups, temperature=1.0, **options
    )
    with torch.no_grad():
        search.logits.normal_()
    return search.findings().arrays()


def derived(budget: int | None, arrays: dict[str, np.ndarray], **options) -> Allocation:
    return mpe.derive(evidence("mpe", SCHEMA, DIM, arrays=arrays, budget=budget), **options)


@pytest.mark.parametrize("value", ["probability", "weighted", "frequency"])
def test_the_widths_are_the_best_of_all_within_the_budget(value: str) -> None:
    arrays = found()
    sizes = np.bincount(arrays["of"], weights=arrays["rows"])
    assert sizes.tolist() == [20, 20, 2, 1, 11, 10]
    first = (IDS[:, 0] < 20).sum()
    assert arrays["occurrences"].tolist()[:2] == [first, 2000 - first]
    often = np.maximum(arrays["occurrences"].astype(float), 1)  # one value does not occur
    worth = {
        "probability": arrays["scores"].astype(float),
        "weighted": arrays["scores"].astype(float) * often[:, None],
        "frequency": np.stack([-often / 4.0**b for b in range(7)], 1),
    }[value]
    assert derived(None, arrays, value=value).arrays["bits"].tolist() == worth.argmax(1).tolist()
    few = derived(150, arrays, value=value)
    fixed = spent(mpe.build, SCHEMA, DIM, few).bytes - -(-int(sizes @ few.arrays["bits"]) * DIM // 8)
    room = 8 * (150 - fixed - 4 * (6 - len(set(few.arrays["bits"][few.arrays["bits"] > 0].tolist()))))
    fitting = [
        widths
        for widths in product(range(7), repeat=6)
        if DIM * sum(size * b for size, b in zip(sizes.tolist(), widths, strict=True)) <= room
    ]
    most = max(sum(worth[g, b] for g, b in enumerate(widths)) for widths in fitting)
    bits = few.arrays["bits"].tolist()
    assert tuple(bits) in fitting
    assert sum(worth[g, b] for g, b in enumerate(bits)) == pytest.approx(most, abs=1e-6 * abs(most))


@pytest.mark.parametrize("groups_of", ["field", "all"])
def test_every_budget_is_kept_down_to_the_least_and_what_is_stored_of_the_groups_is_counted(groups_of: str) -> None:
    arrays = found(groups_of=groups_of)
    with pytest.raises(TooFewBytes, match="mpe: 3 bytes are too few, the least is ") as refused:
        derived(3, arrays, groups_of=groups_of)
    least = int(str(refused.value).split("least is ")[1].split(";")[0])
    for budget in range(least, 200):
        allocation = derived(budget, arrays, groups_of=groups_of)
        made = mpe.build(SCHEMA, DIM, allocation)
        assert cost(made.packed()).bytes == spent(mpe.build, SCHEMA, DIM, allocation).bytes <= budget
        assert ("plan.rows" in made.packed()) == (groups_of == "all")


def test_the_search_needs_training_rows_and_passes_steps_and_offset_on() -> None:
    with pytest.raises(ValueError, match="mpe needs the ids of the training rows"):
        mpe.find(problem("mpe", SCHEMA, DIM, [[DIM]] * 3))
    arrays = found()
    arrays["steps"], arrays["offset"] = np.arange(1, 7, dtype=np.float32), np.full(DIM, 0.5, np.float32)
    made = mpe.build(SCHEMA, DIM, derived(None, arrays))
    widths = sorted({b for b in arrays["scores"].argmax(1).tolist() if b})
    torch.testing.assert_close(made.log_steps.detach().exp(), torch.tensor(widths, dtype=torch.float32))
    assert made.offset.tolist() == [0.5] * DIM
