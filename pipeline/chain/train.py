"""Training of agents: from logged transitions or in a world, with a replay, target networks and checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from pipeline.chain.agents import Agents, Brain
from pipeline.chain.logs import Log
from pipeline.chain.replay import Replay
from pipeline.chain.sessions import Sessions
from pipeline.chain.targets import BOTH, expected_target, observed_target
from pipeline.chain.world import DETAIL, ENTRANCE, State
from pipeline.training.weights import Diverged, Record, nowhere
from pipeline.workflow.chain import Learning
from pipeline.workflow.outputs import whole

FILE = "learner.pt"  # of the folder of a checkpoint
NAMES = {ENTRANCE: "/entrance", DETAIL: "/detail"}  # of pages, in records
LOSS_STEPS = 100  # a recorded loss is the mean over this many steps
Chances = Callable[[State, Tensor], Tensor]  # states and items (B,) -> (B, 4), as `Behaviour.chances`


@dataclass(frozen=True)
class Trained:
    """A brain, its target network and its optimizers."""

    brain: Brain
    target: Brain
    critic: torch.optim.Optimizer
    actors: torch.optim.Optimizer | None  # None where the critic chooses alone
    weights: tuple[list[Tensor], list[Tensor]]  # of the target network and of the brain

    @staticmethod
    def of(brain: Brain, training: Learning) -> Trained:
        """A fresh brain to train."""
        critic = torch.optim.Adam(brain.critic_parameters(), lr=training.lr, fused=True)
        actors = None if brain.exact else torch.optim.Adam(brain.actor_parameters(), lr=training.actor_lr, fused=True)
        target = copy.deepcopy(brain).requires_grad_(False)
        return Trained(brain, target, critic, actors, (list(target.parameters()), list(brain.parameters())))

    def parts(self) -> dict[str, Any]:
        """What has a state."""
        parts = {"brain": self.brain, "target": self.target, "critic": self.critic}
        return parts if self.actors is None else {**parts, "actors": self.actors}


class Learner:
    """Trains agents by DDPG with the targets of their variant.

    NOTE[DIFF]: Lillicrap et al. 2016 (arXiv 1509.02971) explore with correlated noise; here it is independent, and a
    share of the items is random.

    Args:
        agents: fresh; they are trained.
        replay: the log to learn from, or an empty replay, which ``sessions`` fill. See `logged`.
        rewards: (4,) of skip, click, order and leave.
        training: settings.
        seed: of the batches and of the exploration. The weights of ``agents`` are drawn where these are made.
        chances: the behaviour model; needed for what ``sessions`` bring if the variant takes expectations.
        sessions: to learn from; None: the replay stays as it is.
        record: receives (step, names, values).

    Raises:
        ValueError: if there is nothing to learn from, or no behaviour model.
    """

    def __init__(
        self,
        agents: Agents,
        replay: Replay,
        rewards: Tensor,
        training: Learning,
        seed: int,
        *,
        chances: Chances | None = None,
        sessions: Sessions | None = None,
        record: Record = nowhere,
    ) -> None:
        if sessions is None and not len(replay):
            raise ValueError("the replay is empty and there are no sessions: nothing to learn from; give a log")
        if agents.variant.expected and (not replay.knows_chances() or (sessions is not None and chances is None)):
            raise ValueError("these agents take expectations over the feedback; give the behaviour model as chances")
        self.agents, self.replay, self.rewards, self.training = agents, replay, rewards, training
        self.record, self.steps = record, 0
        self._chances, self._sessions = chances, sessions
        self._generator = torch.Generator().manual_seed(seed)
        self._trained = [Trained.of(brain, training) for brain in agents.brains]  # type: ignore[arg-type]
        self._sums = torch.zeros(len(self._trained), 2)  # of the losses and the values since they were recorded

    def learn(self, steps: int, checkpoint: Path | None = None, seconds: float = 60) -> None:
        """Train until ``steps`` steps are done, including those of earlier calls and of the checkpoint.

        Args:
            steps: number of steps.
            checkpoint: folder to resume from, if it exists, and to write; it is not removed here.
            seconds: between two checkpoints.

        Raises:
            Diverged: if a loss is not finite.
        """
        if checkpoint is not None and checkpoint.exists():
            self.load(checkpoint)
        saved = time.monotonic()
        while self.steps < steps:
            if self._sessions is not None and self.steps % self.training.every == 0:
                self._explore(self._sessions)
            self._step()
            if self.steps % LOSS_STEPS == 0:
                self._report()
            if checkpoint is not None and time.monotonic() - saved >= seconds:
                self.save(checkpoint)
                saved = time.monotonic()

    def _explore(self, sessions: Sessions) -> None:
        state = sessions.state
        actions = self.agents.explore(state, self._generator, self.training.noise, self.training.random)
        feedback, _, _ = sessions.step(actions)
        chances = None if self._chances is None else self._chances(state, actions)
        self.replay.add(Log(state, actions, feedback), chances)

    def _step(self) -> None:
        batch, chances = self.replay.sample(self.training.batch_size, self._generator)
        for number, trained in enumerate(self._trained):
            pages = trained.brain.pages
            if len(pages) == len(BOTH):
                self._sums[number] += self._brain_step(trained, batch, chances)
            elif len(here := (batch.state.page == pages[0]).nonzero().squeeze(1)):
                self._sums[number] += self._brain_step(trained, batch[here], chances[here])
        self.steps += 1

    def _brain_step(self, trained: Trained, batch: Log, chances: Tensor) -> Tensor:
        """A step of the critic, the actors and the target networks -> (2,): the loss and the mean Q."""
        brain, state = trained.brain, batch.state
        with torch.no_grad():
            y = self._target(trained, batch, chances)
        memories, features = brain.read(state)
        q = brain.score(features, brain.encoder.table[batch.actions])
        loss = mse_loss(q, y)
        trained.critic.zero_grad(set_to_none=True)
        loss.backward()
        trained.critic.step()
        if trained.actors is not None:
            parameters = brain.actor_parameters()
            liked = brain.score(features.detach(), brain.proto(state, memories.detach())).mean()
            for parameter, gradient in zip(parameters, torch.autograd.grad(-liked, parameters), strict=True):
                parameter.grad = gradient
            trained.actors.step()
        with torch.no_grad():
            torch._foreach_lerp_(*trained.weights, self.training.tau)
        return torch.stack([loss.detach(), q.detach().mean()])

    def _target(self, trained: Trained, batch: Log, chances: Tensor) -> Tensor:
        by = (self.rewards, self.training.gamma, trained.target.value, trained.brain.pages)
        if self.agents.variant.expected:
            return expected_target(batch.state, batch.actions, chances, *by)
        return observed_target(batch.state, batch.actions, batch.feedback, *by)

    def _report(self) -> None:
        means = (self._sums / LOSS_STEPS).tolist()
        self._sums = torch.zeros_like(self._sums)
        for trained, (loss, value) in zip(self._trained, means, strict=True):
            page = "" if len(trained.brain.pages) > 1 else NAMES[trained.brain.pages[0]]
            if not math.isfinite(loss):
                raise Diverged(
                    f"a loss of the critic is not finite in the {LOSS_STEPS} steps before {self.steps:,}, so the "
                    f"training has diverged; lower the learning rate: lr is {self.training.lr:g}"
                )
            self.record(self.steps, (f"critic{page}/loss", f"critic{page}/value"), (loss, value))

    def save(self, folder: Path) -> None:
        """Write all that the training goes on from, whole or not at all. A log is not part of it."""
        saved = {
            "steps": self.steps,
            "sums": self._sums,
            "generator": self._generator.get_state(),
            "trained": [{k: part.state_dict() for k, part in trained.parts().items()} for trained in self._trained],
        }
        if self._sessions is not None:
            saved |= {"sessions": self._sessions.state_dict(), "replay": self.replay.state_dict()}
        with whole(folder) as draft:
            draft.mkdir()
            torch.save(saved, draft / FILE)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote for a learner that was made with the same arguments."""
        saved = torch.load(folder / FILE, weights_only=True)
        self.steps, self._sums = saved["steps"], saved["sums"]
        self._generator.set_state(saved["generator"])
        for trained, states in zip(self._trained, saved["trained"], strict=True):
            for name, part in trained.parts().items():
                part.load_state_dict(states[name])
        if self._sessions is not None:
            self._sessions.load_state_dict(saved["sessions"])
            self.replay.load_state_dict(saved["replay"])


def logged(log: Log, chances: Tensor | None = None) -> Replay:
    """A replay of all of a log.

    Args:
        log: n transitions.
        chances: (n, 4) of the feedback, by the behaviour model; None for agents that learn from the observed branch.
    """
    replay = Replay(len(log), log.state.history.shape[1])
    replay.add(log, chances)
    return replay
