"""Agents, their rivals and references in one world: what they earn per session, in this and in other worlds.

All that learn know the same logged transitions. The behaviour model is fitted to four fifths of them; the others choose
its epoch and its temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.chain.agents import Agents
from pipeline.chain.behaviour import Behaviour, Quality, fit, measure
from pipeline.chain.logs import Log, collect, exploring
from pipeline.chain.optimum import Exact
from pipeline.chain.policies import anything, greedy, most_popular
from pipeline.chain.sessions import Played, Policy, checked_rewards, play
from pipeline.chain.train import Learner, logged
from pipeline.chain.world import CLICK, DETAIL, LEAVE, ORDER, World
from pipeline.chain.worlds.tabular import Tabular
from pipeline.training.weights import Diverged, Record
from pipeline.workflow.chain import Chain
from pipeline.workflow.outputs import whole
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options, keywords

SAME = "same"  # the test in the world that was logged
GREEDY, POPULAR, ANYTHING = "greedy", "popular", "random"
KNOWING = "deepchain_knowing"  # whose targets have the world's own chances in the place of a behaviour model
UNTRAINED = (GREEDY, POPULAR, ANYTHING)
STATES = 100_000  # transitions that are logged at least; fewer known ones are drawn from them
HELD_OUT = 5  # one transition of so many judges the behaviour model
TEST_SEED = 10_000  # is added to the seed for the sessions of a test

Row = dict[str, Any]


class Pass(NamedTuple):
    """What is learned from some transitions.

    Args:
        transitions: that are known.
        policy: one of `pipeline.chain.agents.VARIANTS`, `KNOWING`, or one of `UNTRAINED`.
    """

    transitions: int
    policy: str


def passes(settings: Chain) -> list[Pass]:
    """All passes in a world, in their order."""
    return [Pass(number, name) for number in settings.transitions for name in (*settings.agents, *UNTRAINED)]


def worlds(settings: Chain, name: str, seed: int, folder: str | None) -> dict[str, World]:
    """The world that is logged, as `SAME`, and those of further tests.

    Args:
        settings: with the options of the world.
        name: of the world's file. Its ``TESTS``, if it has any, name further worlds with their options: these are added
            to the options of the world, as far as the other world has them.
        seed: of the worlds.
        folder: encoded interactions, for worlds of users; None for users that are made up.

    Raises:
        ValueError: naming a wrong option.
    """
    place = f"params.yaml: chain.options.{name}"
    module = plug("chain/worlds", name)
    options = checked_options([module.make], (settings.options or {}).get(name) or {}, place)
    if "folder" in keywords(module.make):
        options = {"folder": folder, **options}
    made = {SAME: module.make(seed, **options)}
    for test, (other, changes) in getattr(module, "TESTS", {}).items():
        make = plug("chain/worlds", other).make
        own = {key: value for key, value in {**options, **changes}.items() if key in keywords(make)}
        made[test] = make(seed, **checked_options([make], own, place))
    return made


@dataclass(frozen=True)
class Scene:
    """One world with one seed.

    Args:
        settings: of the comparison.
        name: of the world.
        seed: of the world, the log, the agents and the tests.
        folder: see `worlds`.
        work: folder of what is kept between calls: behaviour models, and checkpoints of learners.
        vectors: (I, D) of the items as agents see them, in the place of those of the worlds; None for those.
    """

    settings: Chain
    name: str
    seed: int
    folder: str | None
    work: Path
    vectors: Tensor | None = None

    @cached_property
    def worlds(self) -> dict[str, World]:
        made = worlds(self.settings, self.name, self.seed, self.folder)
        for world in made.values():
            if self.vectors is not None:
                if len(self.vectors) != world.items:
                    raise ValueError(f"{self.name} has {world.items} items, and there are {len(self.vectors)} vectors")
                world.vectors = self.vectors
        return made

    @property
    def world(self) -> World:
        """The one that is logged."""
        return self.worlds[SAME]

    @cached_property
    def log(self) -> Log:
        """All transitions, in random order: a larger number of known ones has those of a smaller number."""
        settings = self.settings
        number = max(*settings.transitions, STATES)
        policy = exploring(self.world, settings.epsilon, self.seed)
        made = collect(self.world, policy, number, self.seed, settings.longest)
        return made[torch.randperm(number, generator=torch.Generator().manual_seed(self.seed))]

    def known(self, transitions: int) -> Log:
        """The transitions that agents know."""
        return self.log[torch.arange(transitions)]

    def behaviour(self, transitions: int, send: Record) -> tuple[Behaviour, Quality]:
        """The behaviour model of some known transitions and its quality on those that are held out. It is trained once.

        Raises:
            Diverged: if its training diverges.
        """
        settings, known = self.settings.modelling, self.known(transitions)
        rest = transitions // HELD_OUT
        held_out, training = known[torch.arange(rest)], known[torch.arange(rest, transitions)]
        torch.manual_seed(self.seed)
        skips = self.settings.networks.skips
        model = Behaviour(self.world.vectors, memory=settings.memory, hidden=settings.hidden, skips=skips)
        file = self.work / f"behaviour-{transitions}.pt"
        if not file.exists():
            fit(model, training, held_out, seed=self.seed, settings=settings, record=send)
            with whole(file) as draft:
                torch.save(model.state_dict(), draft)
        model.load_state_dict(torch.load(file, weights_only=True))
        model.requires_grad_(False)
        return model, measure(model, held_out)

    def policy(self, one: Pass, send: Record) -> Policy:
        """A policy that has learned from the transitions that it knows."""
        settings = self.settings
        rewards, known = checked_rewards(settings.rewards.values), self.known(one.transitions)
        items, repeats = self.world.items, self.world.repeats
        if one.policy == POPULAR:
            return most_popular(known, items, repeats)
        if one.policy == ANYTHING:
            return anything(items, self.seed, repeats)
        if one.policy == GREEDY:
            return greedy(self.behaviour(one.transitions, send)[0], rewards, repeats)
        torch.manual_seed(self.seed)
        name = "deepchain" if one.policy == KNOWING else one.policy
        agents = Agents(self.world.vectors, name, settings.networks, repeats)
        if one.policy == KNOWING:
            chances = known.chances
        elif agents.variant.expected:
            chances = self.behaviour(one.transitions, send)[0].chances(known.state, known.actions)
        else:
            chances = None
        learner = Learner(agents, logged(known, chances), rewards, settings.learning, self.seed, record=send)
        learner.learn(settings.learning.steps, self.checkpoint(one))
        return learner.agents

    def checkpoint(self, one: Pass) -> Path:
        """Folder of the checkpoint of a learner."""
        return self.work / f"{one.policy}-{one.transitions}"

    def run(self, one: Pass, send: Record) -> list[Row]:
        """Learn and play: a row for each test.

        Args:
            one: what to learn.
            send: receives (step, names, values) of losses.

        Raises:
            Diverged: naming the pass, if a training diverges.
        """
        settings = self.settings
        try:
            policy = self.policy(one, send)
        except Diverged as error:
            raise Diverged(f"{self.name}, {one.policy}, seed {self.seed}: {error}") from error
        rows = []
        for test, world in self.worlds.items():
            by = (settings.sessions, TEST_SEED + self.seed, settings.longest, settings.rewards.values)
            rows.append({**self._place(one), "test": test, **_figures(play(world, policy, *by))})
        return rows

    def _place(self, one: Pass) -> Row:
        return {"world": self.name, "seed": self.seed, "transitions": one.transitions, "policy": one.policy}

    def quality(self, transitions: int, send: Record) -> Row:
        """How well the behaviour model of some known transitions tells the feedback."""
        found = self.behaviour(transitions, send)[1]
        place = {"world": self.name, "seed": self.seed, "transitions": transitions}
        return {**place, "logloss": found.logloss, "calibration_error": found.calibration_error}

    def bounds(self) -> dict[str, float]:
        """The exact reward per session of the best policy and of the best that do not look at the whole session; empty
        for a world whose optimum is not known."""
        if not isinstance(self.world, Tabular):
            return {}
        exact = Exact(self.world, self.settings.rewards.values)
        found = {"optimum": exact.optimal(), "best of its own page": exact.independent(), "best next": exact.myopic()}
        return {name: exact.value(policy) for name, policy in found.items()}


def _figures(played: Played) -> Mapping[str, float]:
    """Of the sessions of a test: means per session, and shares of the steps."""
    counts = played.counts.double()
    steps = float(counts.sum())
    number = len(played.reward)
    return {
        "reward": float(played.reward.mean()),
        "steps": steps / number,
        "clicks": float(counts[:, CLICK].sum()) / number,
        "orders": float(counts[:, ORDER].sum()) / number,
        "on_detail": float(counts[DETAIL].sum()) / steps,
        "leaves": float(counts[:, LEAVE].sum()) / steps,
    }


def scenes(settings: Chain, folder: str | None, work: Path) -> Iterator[Scene]:
    """Every world with every seed. Options are checked when a world is made."""
    for name in settings.worlds:
        for seed in settings.seeds:
            yield Scene(settings, name, seed, folder, work / name / f"seed-{seed}")
