"""The section ``chain`` of params.yaml: agents of two pages in simulated sessions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.workflow.plug import check_name
from pipeline.workflow.seeds import Seeds, distinct
from pipeline.workflow.validation import AsTuple, Count, Positive, Rate, Section, Whole

Inclusive = Annotated[float, Field(ge=0, le=1)]
Agent = Literal["deepchain", "deepchain_free", "independent", "single", "messages", "deepchain_knowing"]
Transitions = Annotated[int, Field(ge=100)]  # a fifth of fewer could not judge a behaviour model


class Rewards(Section):
    """What each kind of feedback is worth."""

    skip: float = 0.0
    """of an item that is skipped"""
    click: float = 1.0
    """of an item that is clicked"""
    order: float = 5.0
    """of an item that is ordered"""
    leave: float = 0.0
    """when the user leaves"""

    @property
    def values(self) -> tuple[float, float, float, float]:
        """Of skip, click, order and leave."""
        return self.skip, self.click, self.order, self.leave


class Modelling(Section):
    """The behaviour model, and how it is trained."""

    memory: Count = 32
    """width of the memory of the history"""
    hidden: Count = 128
    """width of the networks of the pages"""
    epochs: Count = 12
    """passes over the transitions; the best one is kept"""
    batch_size: Count = 1024
    """transitions of a batch at most; an epoch has at least 50 batches"""
    lr: Positive = 0.01
    """learning rate of Adam at the first step; it falls linearly to 0"""


class Networks(Section):
    """How agents are built and how they choose."""

    memory: Count = 32
    """width of the memory of the history"""
    hidden: Count = 64
    """width of the critic"""
    skips: Whole = 5
    """so many skips in a row and more are the same"""
    message: Count = 8
    """numbers of a message between actors, where there are messages"""
    choose: Literal["nearest", "best_of"] = "best_of"
    """nearest: the candidate with the largest inner product with the proto-item; best_of: the candidate that the critic
    likes most, of the nearest ones"""
    candidates: Count = 10
    """of best_of: the nearest candidates that the critic scores"""
    exact_items: Whole = 64
    """of best_of: with at most so many items, the critic scores all of them, and the actors are neither asked nor
    trained"""


class Learning(Section):
    """How agents are trained."""

    steps: Count = 3000
    """of the learner"""
    gamma: Inclusive = 0.95
    """discount of a step"""
    lr: Positive = 0.001
    """learning rate of the critic and the memory"""
    actor_lr: Positive = 0.0001
    """learning rate of the actors"""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    """share of the way to the trained networks that the target networks go in a step"""
    batch_size: Count = 256
    """transitions of a step"""
    noise: Rate = 0.1
    """of the exploration in a world: standard deviation in every number of a proto-item"""
    random: Inclusive = 0.1
    """of the exploration in a world: share of items that are drawn at random"""
    every: Count = 1
    """in a world: steps of the learner between two steps of the sessions"""


class Chain(Section):
    """The settings of whole-chain recommendations."""

    worlds: Annotated[tuple[str, ...], AsTuple, AfterValidator(distinct)]
    """where agents learn: files of pipeline/chain/worlds, without their endings"""
    options: dict[str, dict[str, Any] | None] | None = None
    """options by name of the world"""
    users: Literal["planted", "encoded"]
    """of the worlds of users. planted: made up; encoded: those of the data set, which must be one of interactions"""
    agents: Annotated[tuple[Agent, ...], AsTuple, AfterValidator(distinct)]
    """what is trained: deepchain; deepchain_free, without a behaviour model; independent, an agent for each page that
    does not count the other's reward; single, one agent for both pages; messages, two agents with a common critic that
    send each other messages; deepchain_knowing, with the world's own chances in the place of a behaviour model"""
    seeds: Seeds
    """each has a world, a log and agents of its own"""
    rewards: Rewards
    """what each kind of feedback is worth"""
    transitions: Annotated[tuple[Transitions, ...], AsTuple, AfterValidator(distinct)]
    """logged transitions that the agents know; several numbers give a learning curve"""
    epsilon: Inclusive
    """share of random items in the log; the others are shown in proportion to their popularity"""
    longest: Count
    """steps of a session at most"""
    sessions: Annotated[int, Field(ge=100)]
    """that are played to test a policy"""
    modelling: Modelling
    """the behaviour model"""
    networks: Networks
    """the agents"""
    learning: Learning
    """the training of the agents"""
    workers: Annotated[Count, Field(exclude=True)] = 1
    """worlds and seeds at the same time; it identifies no results"""

    @model_validator(mode="after")
    def _worlds(self) -> Chain:
        for name in self.worlds:
            check_name("chain/worlds", name, "worlds")
        for name in self.options or {}:
            check_name("chain/worlds", name, "options")
        return self
