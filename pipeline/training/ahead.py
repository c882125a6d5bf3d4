"""The next batch of a training, read and copied to a GPU while the GPU computes on the current one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import torch

from pipeline.data.batches import Batch, Batches


class _Copied(NamedTuple):
    """A batch whose copy to the GPU has begun, the event at its end, and the place of the batch that follows."""

    batch: Batch
    done: torch.cuda.Event
    following: dict[str, int]


class Ahead:
    """Batches on a GPU. While a step runs, a thread reads the next batch and copies it.

    With `Batch.to`, the GPU has nothing to do while a batch is read, and the host waits for the GPU: a copy from
    ordinary memory waits for all steps before it. Here, the copy goes from pinned memory and in a stream of its own.
    The stream of the steps waits for it; the host goes on. Lightning reads a batch when its step is due, and the
    loaders of torch read ahead but copy nothing to a GPU.

    A state is the place of the next batch to be taken, whatever has been read. An error in reading a batch is raised
    when this batch is taken.

    Args:
        batches: from their place on; nothing else may take from them.
        device: a GPU.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches, self.device = batches, device
        self._stream = torch.cuda.Stream(device)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: Future[_Copied] | None = None
        self._place = batches.state_dict()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """The batches that are left of the epoch, as of `Batches`."""
        while True:
            batch = self.take()
            last = self._place["position"] == 0
            yield batch
            if last:
                return

    def take(self) -> Batch:
        """The next batch, as of `Batches.take`, for the current stream."""
        reading, self._next = self._next or self._thread.submit(self._copied), None
        batch, done, self._place = reading.result()
        self._next = self._thread.submit(self._copied)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(done)
        for tensor in batch.tensors():
            tensor.record_stream(stream)  # its memory is used again only after the steps that read it
        return batch

    def _copied(self) -> _Copied:
        batch = self.batches.take()
        with torch.cuda.stream(self._stream):
            copy = batch.map(lambda tensor: tensor.pin_memory().to(self.device, non_blocking=True))
            return _Copied(copy, self._stream.record_event(), self.batches.state_dict())

    def state_dict(self) -> dict[str, int]:
        return dict(self._place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self._next is not None:
            wait([self._next])
            self._next = None
        self.batches.load_state_dict(state)
        self._place = self.batches.state_dict()
