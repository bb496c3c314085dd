"""CUDA graphs without CUDA: only capture, replay and destruction are replaced; the rest of the runtime is real. A
replay makes the captured call. So tests see the order of the steps, their losses, and which objects stay alive.
tests/test_gpu.py tests whether a real graph computes the same.
"""

import gc
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakSet

import pytest

from pipeline.environment import Environment
from pipeline.runtimes import load_runtime

GPU = Environment(
    device="cuda:0",
    device_name="the GPU",
    cpu_name="the CPU",
    driver="580.1",
    threads=2,
    precision="highest",
    deterministic=True,
    python="3.11",
    versions={},
)


class Stream:
    """PyTorch assigns 32 streams of a device in turn."""

    made = 0

    def __init__(self, _: Any) -> None:
        self.cuda_stream = Stream.made % 32
        Stream.made += 1


class Recorded:
    """A capture without CUDA: a replay makes the call. As in PyTorch, destroying it frees the workspace of its
    stream."""

    freed: ClassVar[set[tuple[int, int]]] = set()
    alive: ClassVar[WeakSet["Recorded"]] = WeakSet()

    def __init__(self, call: Any, graphs: Any, **_: Any) -> None:
        self.call, self.workspace = call, (id(graphs), graphs.stream.cuda_stream)
        self.alive.add(self)

    def replay(self) -> None:
        assert self.workspace not in self.freed, "replayed with a workspace that was freed"
        self.call()

    def raw_cuda_graph(self) -> "Recorded":
        return self

    def __del__(self) -> None:
        self.freed.add(self.workspace)


def clear_workspaces() -> None:
    assert not Recorded.alive, "a graph that can still be replayed uses its workspace"


NODES = 18


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of PyTorch's runtime, whose class takes the CPU for `cuda:0`."""
    module: Any = sys.modules[load_runtime("torch").__module__]

    class Runtime(module.Runtime):
        def apply(self) -> None:
            environment, self.environment = self.environment, replace(self.environment, device="cpu")
            super().apply()
            self.environment = environment

        def synchronize(self) -> None:
            """There is no device to wait for."""

    package: Any = ModuleType("cuda")
    package.__spec__ = ModuleSpec("cuda", None)
    success, counted = SimpleNamespace(cudaSuccess=0), lambda _, **__: (0, None, NODES)
    bindings = SimpleNamespace(runtime=SimpleNamespace(cudaError_t=success, cudaGraphGetNodes=counted))
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    gc.collect()
    monkeypatch.setattr(module, "Runtime", Runtime)
    monkeypatch.setattr(module.torch.cuda, "_sleep", lambda _: None)
    monkeypatch.setattr(module.torch.cuda, "Stream", Stream)
    monkeypatch.setattr(module.torch._C, "_cuda_clearCublasWorkspaces", clear_workspaces, raising=False)
    monkeypatch.setattr(module.torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(module.Graphs, "beside", lambda _: nullcontext())
    monkeypatch.setattr(module, "_recorded", Recorded)
    monkeypatch.setattr(Recorded, "freed", set())
    return module
