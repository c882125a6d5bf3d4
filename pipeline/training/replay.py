"""Steps of a training as CUDA graphs: a step is recorded once, and replayed from then on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.batches import Batch

EAGER = 3  # steps before one is recorded, in which optimizers and libraries make what they keep


class _Recorded(NamedTuple):
    """A graph, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss: Tensor


class Replay:
    """A step on a GPU that is recorded after `EAGER` ordinary ones, and then replayed.

    Launching the kernels of a small step one by one takes longer than running them. A replayed graph is one launch. The
    numbers that a step draws go on from one replay to the next, as if it had been run.

    All steps run in a stream of their own, in the order of the calls, and the caller's stream waits for them.

    Args:
        step: a batch on the GPU -> a scalar. What it does may depend on the batch's content, and on all else that
            changes from step to step, in tensors only.
    """

    def __init__(self, step: Callable[[Batch], Tensor]) -> None:
        self.step = step
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._ordinary: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recorded] = {}

    def __call__(self, batch: Batch, kind: Hashable = None) -> Tensor:
        """The step's scalar.

        Args:
            batch: of any number of rows; a graph is recorded for each number.
            kind: what else makes another graph necessary.
        """
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            result = self._run(batch, (len(batch.ids), kind))
        caller.wait_stream(self._stream)
        return result

    def _run(self, batch: Batch, key: Hashable) -> Tensor:
        recorded = self._recorded.get(key)
        if recorded is None:
            if self._ordinary[key] < EAGER:
                self._ordinary[key] += 1
                return self.step(batch).detach()
            recorded = self._recorded[key] = self._record(batch)
        recorded.batch.ids.copy_(batch.ids)
        recorded.batch.labels.copy_(batch.labels)
        recorded.graph.replay()
        return recorded.loss.clone()

    def _record(self, batch: Batch) -> _Recorded:
        own = Batch(batch.ids.clone(), batch.labels.clone())
        graph = torch.cuda.CUDAGraph()
        # Only calls of this thread are restricted meanwhile: others read batches, see `pipeline.training.ahead`.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            loss = self.step(own).detach()
        return _Recorded(graph, own, loss)
