"""A two-layer lesson with one CUDA graph for all batches, each copied into the graph's own inputs before a replay.

The runtime captures a graph for each batch instead. That costs a capture for each and saves two copies a step: which is
faster is for `make bench-gpu` to say. `option` is the lesson.
"""

import torch

from pipeline.contract import Chunk, Weights, load_implementation
from pipeline.runtimes import batches_of
from pipeline.runtimes.torch import CudaGraphs


class Loop(CudaGraphs):
    def __init__(self, weights: Weights, *, learning_rate: float, device: str, option: str) -> None:
        lesson = load_implementation("two_layer", option)
        super().__init__(lesson(weights, learning_rate=learning_rate, device=device), weights, device)

    def place(self, chunk: Chunk) -> None:
        super().place({key: array[:1].copy() for key, array in chunk.items()})
        self.placed = [self.implementation.place(batch) for batch in batches_of(chunk)]

    def compile(self) -> None:
        if self.warm >= self.first_steps:
            self._capture(0)

    def take_step(self, index: int) -> torch.Tensor:
        for slot, new in zip(self.slots[0], self.placed[index], strict=True):
            slot.copy_(new)
        return super().take_step(0).clone()  # the next replay overwrites it
