"""Training of weights is the plain loop of its definition, stops early, and goes on after a kill."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import LambdaLR, LinearLR

from pipeline.allocation.allocation import Allocation
from pipeline.backbones.deepfm import Backbone
from pipeline.data.batches import Batches
from pipeline.embeddings.table import Table
from pipeline.experiment.method import build
from pipeline.methods import robe
from pipeline.models.model import Model, assemble, outputs
from pipeline.training.loop import fit
from pipeline.training.weights import LOSS_STEPS, Diverged, LitWeights
from pipeline.workflow.params import Schedule
from tests.contracts import evidence
from tests.training.clicks import CTR, SCHEMA, Fatal, Killed, clicks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
OPTIONS = {"hidden": (8,), "dropout": 0.5}


def fresh(dims: tuple[int, ...] = (4, 4, 4)) -> Model:
    torch.manual_seed(0)
    allocation = Allocation("autodim", dict(zip(SCHEMA.names, dims, strict=True)))
    return assemble(SCHEMA, 4, allocation, build, Backbone, OPTIONS)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_training_is_the_plain_loop_of_its_definition(tmp_path: Path, schedule: Schedule) -> None:
    """Batches of 300 rows have every value, and then Adam row by row is dense Adam.

    The model is of double precision. A bias before BatchNorm has a gradient of zero but for rounding, which Adam would
    otherwise enlarge.
    """
    recorded: dict[str, list[tuple[int, float]]] = {}

    def record(step: int, names: tuple[str, ...], values: object) -> None:
        for name, value in zip(names, values, strict=True):
            recorded.setdefault(name, []).append((step, value))

    validation = clicks(200, 2)
    options = {"lr": 0.02, "weight_decay": 0.01, "schedule": schedule, "record": record}
    module = LitWeights(fresh((4, 2, 1)).double(), CTR, validation, 50, **options)
    fit(module, Batches(clicks(1500, 1), 300, seed=0), 10, "retrain", tmp_path / "last.ckpt")

    plain = fresh((4, 2, 1)).double()
    tables = [m.weight for m in plain.modules() if isinstance(m, Table)]
    rest = [p for p in plain.parameters() if not any(p is table for table in tables)]
    adam = torch.optim.Adam([{"params": rest}, {"params": tables, "weight_decay": 0.01}], lr=0.02)
    # PyTorch's factor falls by 1/50 with every step, from 1 at the first: to 1/50 at the last, and to 0 after it
    scheduler = LinearLR(adam, 1.0, 0.0, 50) if schedule == "linear" else LambdaLR(adam, lambda _: 1.0)
    batches = Batches(clicks(1500, 1), 300, seed=0)
    losses, aucs, states = [], [], []
    for _ in range(10):
        for ids, labels, _ in batches:
            plain.train()
            loss = binary_cross_entropy_with_logits(plain(ids), labels)
            adam.zero_grad()
            loss.backward()
            for table in tables:
                assert len(table.grad._indices()[0]) == len(table)
                table.grad = table.grad.to_dense()
            adam.step()
            scheduler.step()
            losses.append(float(loss.detach()))
        aucs.append(CTR.measure(outputs(plain, validation), validation)["auc"])
        states.append({name: value.clone() for name, value in plain.state_dict().items()})
    best = aucs.index(max(aucs))
    assert 0 < best < 9  # both ways of taking the wrong epoch would be seen
    assert [entry["step"] for entry in module.history] == list(range(5, 51, 5))
    assert [entry["auc"] for entry in module.history] == pytest.approx(aucs, abs=1e-12)
    assert recorded["val/auc"] == [(entry["step"], entry["auc"]) for entry in module.history]
    means = [sum(losses[i : i + LOSS_STEPS]) / LOSS_STEPS for i in (0, LOSS_STEPS)]
    assert [step for step, _ in recorded["train/loss"]] == [LOSS_STEPS, 2 * LOSS_STEPS]
    assert [loss for _, loss in recorded["train/loss"]] == pytest.approx(means, rel=1e-6)
    for name, value in states[best].items():
        torch.testing.assert_close(module.best[name], value, rtol=1e-5, atol=1e-6)


def test_a_retraining_stops_early_and_keeps_the_best_weights(tmp_path: Path) -> None:
    model = fresh()
    batches = Batches(clicks(300, 1), 50, seed=0)
    module = LitWeights(model, CTR, clicks(200, 2), 50 * len(batches), lr=0.02, patience=2)
    fit(module, batches, 50, "retrain", tmp_path / "last.ckpt")
    aucs = [entry["auc"] for entry in module.history]
    assert len(aucs) < 50 and len(aucs) - 1 - aucs.index(max(aucs)) == 2
    model.load_state_dict(module.best)
    again = LitWeights(model, CTR, clicks(200, 2), 1)
    again.on_train_epoch_end()
    assert again.history[0]["auc"] == max(aucs)


def test_the_learning_rate_falls_over_the_planned_steps_also_if_patience_ends_the_training(tmp_path: Path) -> None:
    def trained(patience: int | None) -> LitWeights:
        batches = Batches(clicks(300, 1), 50, seed=0)
        module = LitWeights(
            fresh(), CTR, clicks(200, 2), 20 * len(batches), lr=0.02, patience=patience, schedule="linear"
        )
        fit(module, batches, 20, "retrain", tmp_path / "last.ckpt")
        return module

    whole, stopped = trained(None), trained(2)
    assert 2 < len(stopped.history) < 20 == len(whole.history)
    assert stopped.history == whole.history[: len(stopped.history)]
    for module in (whole, stopped):
        rates = [group["lr"] for optimizer in module.trainer.optimizers for group in optimizer.param_groups]
        assert rates == pytest.approx([0.02 * (1 - (module.steps - 1) / 120)] * 2)


@pytest.mark.parametrize(("schedule", "lr"), [("constant", 0.1), ("linear", 0.5)])
def test_a_retraining_that_was_killed_ends_as_an_uninterrupted_one(
    tmp_path: Path, schedule: Schedule, lr: float
) -> None:
    def trained(batches: Batches, file: Path, seconds: float) -> LitWeights:
        module = LitWeights(fresh(), CTR, clicks(200, 2), 24, lr=lr, schedule=schedule)
        fit(module, batches, 4, "retrain", file, seconds)
        return module

    straight = trained(Batches(clicks(300, 1), 50, seed=0), tmp_path / "whole.ckpt", 60)
    fatal = Fatal(clicks(300, 1), 50, seed=0)
    fatal.steps = 21
    with pytest.raises(Killed):
        trained(fatal, tmp_path / "broken.ckpt", 0)
    resumed = trained(Batches(clicks(300, 1), 50, seed=0), tmp_path / "broken.ckpt", 60)
    assert resumed.history == straight.history and resumed.steps == 24
    assert straight.best_epoch() < 3  # the weights of the best epoch come from the checkpoint
    assert all(torch.equal(value, resumed.best[name]) for name, value in straight.best.items())


def test_a_damaged_checkpoint_is_named_and_the_training_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "last.ckpt"

    def trained() -> LitWeights:
        module = LitWeights(fresh(), CTR, clicks(200, 2), 8, lr=0.1)
        fit(module, Batches(clicks(300, 1), 50, seed=0), 2, None, file, seconds=0)
        return module

    straight = trained()
    content = file.read_bytes()
    half = len(content) // 2
    noise = bytes(byte ^ 4 for byte in content[half : half + 200])  # longer than the padding between tensors
    for damaged in (content[:half] + noise + content[half + 200 :], content[:half], b"", bytes(99)):
        file.write_bytes(damaged)
        caplog.clear()
        assert trained().history == straight.history
        assert f"{file}: is damaged (" in caplog.text and "it is removed, and the training begins anew" in caplog.text


@pytest.mark.parametrize(("batch_size", "steps"), [(10, LOSS_STEPS), (50, 6)])
def test_a_loss_that_is_not_finite_ends_the_training_and_says_where(
    tmp_path: Path, batch_size: int, steps: int
) -> None:
    """The first step, at a huge learning rate, makes weights whose products overflow: the loss of step 2 is NaN. It is
    seen when losses are next read: after LOSS_STEPS steps, or at the end of an epoch that is shorter."""
    module = LitWeights(fresh(), CTR, clicks(200, 2), 60, lr=1e30, lr_key="retrain.lr")
    told = r"the loss is nan in epoch 1, step 2, .* diverged; lower the learning rate: retrain.lr is 1e\+30"
    with pytest.raises(Diverged, match=told):
        fit(module, Batches(clicks(300, 1), batch_size, seed=0), 2, None, tmp_path / "last.ckpt")
    assert module.steps == steps and not module.history and not module.best


def test_predictions_that_are_not_finite_end_the_training(tmp_path: Path) -> None:
    """The only step of an epoch has a finite loss, and leaves weights that predict NaN."""
    module = LitWeights(fresh(), CTR, clicks(200, 2), 2, lr=1e30)
    with pytest.raises(Diverged, match=r"a prediction on val is not finite in epoch 1, step 1, .* lr is 1e\+30"):
        fit(module, Batches(clicks(300, 1), 300, seed=0), 2, None, tmp_path / "last.ckpt")
    assert not module.history


def test_a_training_that_has_diverged_says_so_again_when_it_resumes(tmp_path: Path) -> None:
    for _ in range(2):
        module = LitWeights(fresh(), CTR, clicks(200, 2), 60, lr=1e30)
        with pytest.raises(Diverged, match="the loss is nan in epoch 1, step 2"):
            fit(module, Batches(clicks(300, 1), 10, seed=0), 2, None, tmp_path / "last.ckpt", seconds=0)
    assert module.steps == LOSS_STEPS


def test_only_tables_and_memories_have_weight_decay() -> None:
    allocation = robe.derive(evidence("robe", SCHEMA, 4, budget=400))
    model = Model(SCHEMA, robe.build(SCHEMA, 4, allocation), Backbone)
    module = LitWeights(model, CTR, clicks(20, 1), 1, weight_decay=0.1)
    decay = {
        id(p): group["weight_decay"]
        for optimizer in module.configure_optimizers()
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(decay) == len(list(model.parameters()))
    tables = {id(module.weight) for module in model.modules() if isinstance(module, Table)}
    for name, parameter in model.named_parameters():
        decayed = name == "embedding.memory.weight" or id(parameter) in tables
        assert decay[id(parameter)] == (0.1 if decayed else 0), name
