"""A search is its algorithm written out, and one that is killed goes on as if nothing had happened."""

import copy
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.backbones.deepfm import Backbone
from pipeline.data.batches import Batches
from pipeline.embeddings.selection import ANNEALED
from pipeline.embeddings.table import Table
from pipeline.methods import autodim
from pipeline.models.model import Model
from pipeline.training.loop import fit
from pipeline.training.search import LitSearch, margins
from pipeline.training.weights import Diverged
from pipeline.workflow.params import Architecture
from tests.contracts import problem
from tests.training.clicks import CTR, SCHEMA, Fatal, Killed, clicks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
CANDIDATES = ((1, 2, 4),) * 3
EPOCHS, STEPS = 3, 10  # of an epoch
WARM_UP = 6  # a fifth of all steps


def prepared(candidates: Sequence[Sequence[int]] = CANDIDATES, **architecture: Any) -> LitSearch:
    """A fresh supernet that takes a step of its architecture after every step of its weights."""
    torch.manual_seed(0)
    asked = problem("autodim", SCHEMA, 4, candidates)
    embedding = autodim.find(asked, warm_up=0.2, temperature=ANNEALED)
    return LitSearch(
        Model(SCHEMA, embedding, Backbone, {"hidden": (8,), "dropout": 0.5}),
        CTR,
        clicks(200, 2),
        EPOCHS * STEPS,
        Batches(clicks(120, 3), 50, seed=1),
        Architecture(**{"lr": 0.05, "every": 1, "stable_steps": None, **architecture}),
        SCHEMA.names,
        candidates,
        asked.prices,
        lr=0.01,
    )


def trained(module: LitSearch, folder: Path, batches: Batches | None = None, seconds: float = 60) -> LitSearch:
    batches = batches or Batches(clicks(500, 1), 50, seed=0)
    assert len(batches) == STEPS
    fit(module, batches, EPOCHS, "search", folder / "last.ckpt", seconds)
    return module


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A search that was not interrupted, by level: do not train it on."""
    return functools.cache(lambda level: trained(prepared(level=level), tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("steps", [7, STEPS, 24])
@pytest.mark.parametrize("level", ["bilevel", "single"])
def test_a_search_that_was_killed_ends_as_an_uninterrupted_one(
    tmp_path: Path, whole: Any, steps: int, level: str
) -> None:
    fatal = Fatal(clicks(500, 1), 50, seed=0)
    fatal.steps = steps
    with pytest.raises(Killed):
        trained(prepared(level=level), tmp_path, fatal, seconds=0)
    assert (tmp_path / "last.ckpt").exists()
    resumed, straight = trained(prepared(level=level), tmp_path), whole(level)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed.steps == straight.steps == EPOCHS * STEPS
    assert (resumed.arch_steps, resumed.stable, resumed.choice) == (
        straight.arch_steps,
        straight.stable,
        straight.choice,
    )
    for (step, tau, p), (its_step, its_tau, its_p) in zip(resumed.trajectory, straight.trajectory, strict=True):
        assert (step, tau) == (its_step, its_tau) and torch.equal(p, its_p)
    assert resumed.history == straight.history


def test_a_search_is_algorithm_1_of_autodim_written_out(whole: Any) -> None:
    """In the first order. Adam moves the rows of a batch and no others."""
    searched = whole("bilevel")
    plain = prepared().model
    embedding = plain.embedding
    (alpha,) = embedding.arch_parameters()
    weights = [p for p in plain.parameters() if p is not alpha]
    tables = {id(module.weight) for module in plain.modules() if isinstance(module, Table)}
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in weights]
    adam = torch.optim.Adam([alpha], lr=0.05)
    training, arch = Batches(clicks(500, 1), 50, seed=0), Batches(clicks(120, 3), 50, seed=1)
    found = []
    for step in range(EPOCHS * STEPS):
        plain.train()
        embedding.before_step(step, EPOCHS * STEPS)
        ids, labels, _ = training.take()
        loss = binary_cross_entropy_with_logits(plain(ids), labels)
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for p, gradient, (first, second) in zip(weights, gradients, moments, strict=True):
                g = gradient.to_dense() if gradient.is_sparse else gradient
                there = g.ne(0).any(1) if id(p) in tables else torch.ones_like(p).bool()
                first[there] = 0.9 * first[there] + 0.1 * g[there]
                second[there] = 0.999 * second[there] + 0.001 * g[there] ** 2
                hats = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
                p[there] -= 0.01 * hats[0][there] / (hats[1][there].sqrt() + 1e-8)
        if step + 1 > WARM_UP:
            statistics = copy.deepcopy(dict(plain.named_buffers()))
            ids, labels, _ = arch.take()
            (alpha.grad,) = torch.autograd.grad(binary_cross_entropy_with_logits(plain(ids), labels), [alpha])
            adam.step()
            for name, buffer in plain.named_buffers():
                buffer.copy_(statistics[name])
            found.append(embedding.findings().scores.detach().exp())
    assert [step for step, _, _ in searched.trajectory] == list(range(WARM_UP + 1, EPOCHS * STEPS + 1))
    for (_, _, p), expected in zip(searched.trajectory, found, strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)
    ours = searched.model.state_dict()
    for name, value in plain.state_dict().items():
        # A bias before BatchNorm has a gradient of rounding alone, which Adam enlarges; its mean follows it.
        if name not in ("backbone.mlp.0.bias", "backbone.mlp.1.running_mean", "backbone.mlp.1.num_batches_tracked"):
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_second_order_search_runs_and_differs_from_the_first(tmp_path: Path, whole: Any) -> None:
    second = trained(prepared(order=2), tmp_path)
    assert not torch.equal(whole("bilevel").trajectory[-1][2], second.trajectory[-1][2])


def test_fields_may_differ_in_their_candidates(tmp_path: Path) -> None:
    candidates = ((1, 2, 4), (0, 2), (4,))
    recorded: list[dict[str, float]] = []
    module = prepared(candidates)

    def record(step: int, names: Sequence[str], values: Sequence[float]) -> None:
        if "entropy" in names:
            recorded.append(dict(zip(names, values, strict=True)))

    module.record = record
    trained(module, tmp_path)
    last = recorded[-1]
    assert [name for name in last if name.startswith("p/")] == [
        *("p/user/1", "p/user/2", "p/user/4"),
        *("p/item/0", "p/item/2", "p/tags/4"),
    ]
    assert last["p/tags/4"] == 1
    assert last["p/item/0"] + last["p/item/2"] == pytest.approx(1)
    assert last["expected_dim/item"] == pytest.approx(2 * last["p/item/2"])
    p = module.trajectory[-1][2].numpy()
    priced = problem("autodim", SCHEMA, 4, candidates).prices
    expected = (p[0] * priced[0]).sum() + p[1, 1] * priced[1, 1] + priced[2, 0]
    assert last["expected_bytes"] == pytest.approx(expected)


def test_the_architecture_waits_for_the_warm_up(whole: Any) -> None:
    assert whole("bilevel").trajectory[0][0] == WARM_UP + 1
    assert whole("bilevel").arch_steps == EPOCHS * STEPS - WARM_UP


def test_a_search_ends_once_all_choices_have_been_decided_and_stable_for_long_enough(tmp_path: Path) -> None:
    module = trained(prepared(stable_steps=0.3, margin=0.0), tmp_path)
    choices = [p.argmax(1).tolist() for _, _, p in module.trajectory]
    stable = [0]
    for before, after in itertools.pairwise(choices):
        stable.append(stable[-1] + 1 if after == before else 0)
    assert module.stable == stable[-1] == max(stable) == 9 and module.steps < EPOCHS * STEPS
    undecided = trained(prepared(stable_steps=0.3, margin=0.99), tmp_path)
    assert undecided.steps == EPOCHS * STEPS and undecided.stable == 0


def test_a_search_that_diverges_names_both_learning_rates(tmp_path: Path) -> None:
    module = prepared()
    module.lr = 1e30
    with pytest.raises(Diverged, match=r"epoch 1, step \d+, .* lr is 1e\+30, search\.architecture\.lr is 0\.05"):
        trained(module, tmp_path)


def test_margins() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(margins(p), torch.tensor([0.2, 1.0]))
    assert margins(torch.ones(2, 1)).tolist() == [1, 1]


def test_the_judge_says_what_the_task_says_of_the_rows_of_arch() -> None:
    module = prepared()
    judge = module.judge(module.validation)
    split = clicks(120, 3)
    ids, labels = (torch.from_numpy(np.asarray(array)) for array in split.slice(0, 120))
    module.model.eval()
    with torch.no_grad():
        parts = [slice(0, 40), slice(40, 80), slice(80, 120)]
        losses = [binary_cross_entropy_with_logits(module.model(ids[p]), labels[p].float()) for p in parts]
        logits = module.model(ids).numpy()
    module.model.train()
    assert [float(loss.detach()) for loss in judge.losses()] == pytest.approx([float(loss) for loss in losses])
    assert judge.objective() == pytest.approx(CTR.measure(logits, split)["auc"])
    assert judge.objective(2) == pytest.approx(CTR.measure(logits[:80], split.head(80))["auc"])
