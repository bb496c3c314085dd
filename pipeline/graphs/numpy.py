"""NumPy: the arrays of a step in the order in which they are computed.

In place of each array the step is given an object that behaves like it and notes what is done with it: operators and
universal functions, NumPy's other functions, and methods. A view, such as a transpose or a slice, computes nothing:
what uses it is shown to use the array itself, in the view's shape. An array that the step makes of nothing, such as
zeros, is watched from when a variable is given it. Where an array is handed to something other than NumPy, that is
shown (asarray), and what came of it there is new data.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.contract import Implementation
from pipeline.graphs import Graph, Names, Record, is_number, local_values, weights_of


class Storage:
    """The memory that an array and its views share."""


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    def __init__(self, record: Record, array: Any, storage: Storage | None = None) -> None:
        self.record, self.array, self.storage = record, array, storage or Storage()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        label = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        return self._run(label, f"numpy.{label}", getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        return self._run(function.__name__, f"{function.__module__}.{function.__name__}", function, inputs, options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__array_"):  # other ways to get at the memory than __array__, which notes it
            raise AttributeError(name)
        found = getattr(self.array, name)
        if not callable(found):
            return self._result(found, name, f"numpy.ndarray.{name}", [self])
        return lambda *inputs, **options: self._run(name, f"numpy.ndarray.{name}", found, inputs, options, self)

    def __getitem__(self, index: Any) -> Any:
        return self._run("getitem", "numpy.ndarray.__getitem__", self.array.__getitem__, (index,), {}, self)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._run(
            "setitem", "numpy.ndarray.__setitem__", self.array.__setitem__, (index, value), {}, self, writes=[self]
        )

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        self.record.operation("asarray", "numpy.asarray", [self.operand()], [])
        return np.array(self.array, *arguments, **options)

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.array)

    def __int__(self) -> int:
        return int(self.array)

    def __float__(self) -> float:
        return float(self.array)

    def operand(self) -> tuple[Storage, tuple[int, ...]]:
        return self.storage, self.array.shape

    def _run(
        self,
        label: str,
        detail: str,
        function: Callable[..., Any],
        inputs: tuple[Any, ...],
        options: dict[str, Any],
        *owner: "Traced",
        writes: Iterable["Traced"] = (),
    ) -> Any:
        out = options.get("out")
        writes = [*writes, *(out if isinstance(out, tuple) else [out] if out is not None else [])]
        plain = {key: _plain(value) for key, value in options.items()}
        result = function(*_plain(inputs), **plain)
        used = [*owner, *inputs, *(value for key, value in options.items() if key != "out")]
        if writes:
            storages = [operand[0] for operand in self._operands(writes)]
            self.record.operation(label, detail, self._operands(used), storages)
            return writes[0] if result is not None else None
        return self._result(result, label, detail, used)

    def _result(self, result: Any, label: str, detail: str, used: list[Any]) -> Any:
        """What stands for a result: an array, several of them, or something else, which is handed on as it is."""
        if isinstance(result, list | tuple) and any(isinstance(each, np.ndarray) for each in result):
            return type(result)(self._result(each, label, detail, used) for each in result)
        if not isinstance(result, np.ndarray | np.generic):
            return result
        for each in _traced(used):
            if isinstance(result, np.ndarray) and np.shares_memory(result, each.array):
                return Traced(self.record, result, each.storage)
        made = Traced(self.record, result)
        self.record.operation(label, detail, self._operands(used), [made.storage])
        return made

    def _operands(self, used: Iterable[Any]) -> list[Any]:
        found: list[Any] = []
        for each in used:
            if isinstance(each, Traced):
                found.append(each.operand())
            elif isinstance(each, np.ndarray):
                self.record.kept.append(each)
                found.append((id(each), each.shape))
            elif isinstance(each, np.generic) or is_number(each):
                found.append(float(each))
            elif isinstance(each, list | tuple):
                found += self._operands(each)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Traced):
        return value.array
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _traced(values: Iterable[Any]) -> Iterator[Traced]:
    for value in values:
        if isinstance(value, Traced):
            yield value
        elif isinstance(value, list | tuple):
            yield from _traced(value)


def trace(implementation: Implementation, batches: Iterable[tuple[Any, Names]]) -> list[Graph]:
    return [_trace(implementation, placed, names) for placed, names in batches]


def _trace(implementation: Implementation, placed: tuple[Any, ...], names: Names) -> Graph:
    record = Record("what one step computes", names)

    def bound(name: str, value: Any) -> Traced | None:
        if isinstance(value, Traced):
            record.name(value.storage, name)
        if not isinstance(value, np.ndarray):
            return None
        made = Traced(record, value)
        record.name(made.storage, name)
        return made

    inputs = [Traced(record, each) if isinstance(each, np.ndarray) else each for each in placed]
    weights = {name: Traced(record, weight) for name, weight in weights_of(implementation, names, np.ndarray).items()}
    for name, weight in weights.items():
        record.weight(name, weight.storage)
        setattr(implementation, name, weight)
    with local_values(implementation, bound):
        loss = implementation.step(*inputs)
    if isinstance(loss, Traced):
        record.graph.loss = record.source(loss.storage)
    for name in weights:
        setattr(implementation, name, _plain(getattr(implementation, name)))
    return record.graph
