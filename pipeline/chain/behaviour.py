"""The behaviour model: how likely skip, click, order and leave are, learned from logged transitions.

DeepChain's targets need these chances. NOTE[DIFF]: the paper's users skip, click or leave; an order is an outcome here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.chain.encoder import Encoder, Pairs
from pipeline.chain.logs import Log
from pipeline.chain.world import DETAIL, ENTRANCE, LEAVE, State
from pipeline.metrics import choice
from pipeline.training.weights import Diverged, Record, nowhere
from pipeline.workflow.chain import Modelling

ROWS = 8_192  # that are scored at a time
LEAST_BATCHES = 50  # of an epoch


class Behaviour(nn.Module):
    """P(f | s, a) = softmax(logits / temperature), where each page has a network of the state and the item.

    Args:
        vectors: (I, D) of the items, frozen.
        memory: width of the memory of the history.
        hidden: width of the networks.
        skips: so many skips and more are the same.
    """

    temperature: Tensor

    def __init__(self, vectors: Tensor, *, memory: int = 32, hidden: int = 64, skips: int = 5) -> None:
        super().__init__()
        self.encoder = Encoder(vectors, memory, skips)
        features = memory + self.encoder.context_width
        self.pages = nn.ModuleList(Pairs(features, vectors.shape[1], hidden, LEAVE + 1) for _ in (ENTRANCE, DETAIL))
        self.register_buffer("temperature", torch.ones(()))

    def features(self, state: State) -> Tensor:
        """(B, F)."""
        return torch.cat([self.encoder.remember(state).flatten(1), self.encoder.context(state)], 1)

    def logits(self, state: State, actions: Tensor) -> Tensor:
        """(B, 4), before the temperature, when items (B,) are recommended."""
        features, vectors = self.features(state), self.encoder.table[actions]
        entrance, detail = (page(features, vectors) for page in self.pages)
        return torch.where((state.page == DETAIL)[:, None], detail, entrance)

    @torch.no_grad()
    def chances(self, state: State, actions: Tensor) -> Tensor:
        """(B, 4): the probability of skip, click, order and leave when items (B,) are recommended."""
        rows = torch.arange(len(state)).split(ROWS)
        logits = [self.logits(state[some], actions[some]) for some in rows]
        return (torch.cat(logits) / self.temperature).softmax(1)

    @torch.no_grad()
    def immediate(self, state: State, rewards: Tensor) -> Tensor:
        """(B, I): the expected reward of the next step for every item, with rewards (4,)."""
        features = self.features(state)
        expected = features.new_empty(len(state), len(self.encoder.vectors))
        for number, page in enumerate(self.pages):
            here = (state.page == number).nonzero().squeeze(1)
            logits = page.grid(features[here], self.encoder.vectors)  # type: ignore[operator]
            expected[here] = (logits / self.temperature).softmax(2) @ rewards
        return expected


@dataclass(frozen=True)
class Quality:
    """How well a behaviour model tells what users do.

    Args:
        logloss: mean of -log(probability of what the user did), in nats.
        calibration_error: expected calibration error, the mean over the four kinds of feedback.
    """

    logloss: float
    calibration_error: float


def measure(model: Behaviour, log: Log) -> Quality:
    """How well the model tells the feedback of these transitions."""
    logits = model.chances(log.state, log.actions).double().clamp(min=1e-12).log().numpy()
    did = log.feedback.numpy()
    return Quality(float(choice.losses(did, logits).mean()), choice.calibration_error(did, logits))


def fit(
    model: Behaviour,
    training: Log,
    held_out: Log,
    *,
    seed: int,
    settings: Modelling | None = None,
    record: Record = nowhere,
) -> Quality:
    """Train a behaviour model by cross-entropy, keep its best epoch, and calibrate it by a temperature.

    The learning rate falls linearly to 0. With 10^5 transitions of the tabular world, the best policy for such a model
    earns 0.90 to 0.94 of the optimum, and with a constant rate 0.73 to 0.94.

    Args:
        model: fresh; it is trained.
        training: transitions.
        held_out: other transitions, better of other users. They choose the epoch and the temperature.
        seed: of the order of the rows.
        settings: of the training.
        record: receives (epoch, names, values).

    Returns:
        The quality on ``held_out`` after the calibration.

    Raises:
        ValueError: if there are no transitions.
        Diverged: if a log-loss is not finite.
    """
    settings = settings or Modelling()
    for what, log in (("train on", training), ("hold out", held_out)):
        if not len(log):
            raise ValueError(f"a behaviour model needs transitions to {what}, got 0; collect more of them")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    size = min(settings.batch_size, math.ceil(len(training) / LEAST_BATCHES))
    steps = settings.epochs * math.ceil(len(training) / size)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    best, found = math.inf, {}
    for epoch in range(1, settings.epochs + 1):
        for rows in torch.randperm(len(training), generator=generator).split(size):
            batch = training[rows]
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model.logits(batch.state, batch.actions), batch.feedback).backward()
            optimizer.step()
            rate.step()
        loss = float(cross_entropy(_logits(model, held_out), held_out.feedback))
        if not math.isfinite(loss):
            raise Diverged(f"the log-loss is {loss:g} in epoch {epoch}; lower the learning rate: lr is {settings.lr:g}")
        record(epoch, ("behaviour/logloss",), (loss,))
        if loss < best:
            best, found = loss, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(found)
    model.temperature.copy_(temperature(_logits(model, held_out), held_out.feedback))
    model.requires_grad_(False)
    return measure(model, held_out)


def temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """The scalar T at which softmax(logits / T) has the least cross-entropy. Guo et al. 2017, ICML, section 4.2.

    Args:
        logits: (n, K).
        labels: (n,), below K.
    """
    logits = logits.double()
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)  # the loss is convex in 1/T
    solver = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = cross_entropy(logits * inverse, labels)
        value.backward()
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return inverse.detach().clamp(min=1e-3).reciprocal().float()


@torch.no_grad()
def _logits(model: Behaviour, log: Log) -> Tensor:
    rows = torch.arange(len(log)).split(ROWS)
    return torch.cat([model.logits(log.state[some], log.actions[some]) for some in rows])
