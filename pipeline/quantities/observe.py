"""Run a lesson's step and record what its lines compute.

The lesson's file is compiled with calls to a `Recorder` in it, which take each value and hand it on: of an operation,
of a variable when it is assigned, of an argument, of what a function returns. The file stays as it is, and the lines
have their numbers. After each line the recorder looks whether it changed a weight, a gradient that the framework keeps
beside a weight, or the batch. Gradients of values that have no name in the lesson come from the framework: from hooks
of PyTorch's tensors, and from TensorFlow's tape, which is asked for more gradients than the lesson asks for.
"""

import ast
import sys
import traceback
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from pipeline.contract import Array
from pipeline.quantities.paper import Paper
from pipeline.runtimes import Runtime

Kind = Literal["operation", "assigned", "argument", "returned", "updated", "gradient"]


@dataclass(eq=False)
class Event:
    """A value, copied to host memory when it was there.

    `name` is that of a variable, an argument, an attribute of self; a weight for `updated`; grad_ and the name of a
    weight for a `gradient` beside it; empty for operations. `of` is the event whose value a `gradient` belongs to.
    """

    kind: Kind
    line: int
    name: str
    value: Array
    object: Any  # the framework's; while it exists no other object has its identity
    call: str  # the method of the lesson that was called: __init__, place, step, predict
    number: int  # of that call, from 1
    of: "Event | None" = None


@dataclass
class Failure:
    """An exception, and the line of the lesson that raised it; 0 where the lesson has none in its traceback."""

    error: BaseException
    line: int
    call: str
    number: int  # of the call
    in_gradients: bool  # while the framework computed gradients


class ContractError(Exception):
    """What the file lacks of pipeline/contract.py, in a sentence without its full stop."""


@dataclass
class Observation:
    """What a lesson computed in two steps on one batch, and then in a prediction for the initial weights."""

    source: list[str]  # the lines of its file
    events: list[Event] = field(default_factory=list)
    placed: list[Any] = field(default_factory=list)  # what `place` returned, as host arrays or lists
    losses: list[Array | None] = field(default_factory=list)  # what each step returned
    weights: list[dict[str, Array]] = field(default_factory=list)  # at the start and after each step
    predictions: Any = None  # what `predict` returned
    failure: Failure | None = None
    replaced: dict[str, int] = field(default_factory=dict)  # weights that PyTorch no longer keeps a gradient of: lines
    changed_batch: int = 0  # the line of `step` after which the batch was another one
    end: int = 0  # the last line of `step`


def observe(source: str, file: Path, runtime: Runtime, paper: Paper) -> Observation:
    """Construct an implementation from its source, take two steps on the batch of `paper`, and predict.

    What the lesson raises ends the observation and is kept in `failure`.
    """
    observation = Observation(source.split("\n"))  # as Python counts lines, which `splitlines` does not
    weights, batch = paper.weights, paper.batch
    recorder = Recorder(observation, tuple(weights))
    module = ModuleType(".".join(file.with_suffix("").parts))
    module.__file__, module.__package__ = str(file), module.__name__.rpartition(".")[0]
    vars(module).update(vars(recorder.calls))
    *inputs, _ = batch.values()
    with runtime.eagerly(), _imported(module), recorder.catching(file):
        tree = ast.parse(source)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        observation.end = max((node.end_lineno or 0 for node in functions if node.name == "step"), default=0)
        exec(compile(instrumented(tree), str(file), "exec"), vars(module))  # noqa: S102
        lesson: Any = vars(module).get("Implementation")
        if not isinstance(lesson, type):
            raise ContractError("The file has no class Implementation")
        if missing := [method for method in ("place", "step", "predict") if not hasattr(lesson, method)]:
            raise ContractError(f"Implementation has no method {missing[0]}")
        create: Callable[[], Any] = lambda: lesson(  # noqa: E731
            {key: array.copy() for key, array in weights.items()},
            learning_rate=paper.given["learning_rate"],
            device=runtime.device,
        )
        recorder.begin("__init__", 1)
        implementation = recorder.implementation = create()
        recorder.begin("place", 1)
        placed = implementation.place({key: array.copy() for key, array in batch.items()})
        if not isinstance(placed, tuple | list):
            raise ContractError(
                f"`place` returns {_a_type(placed)}, and should return a tuple: the arguments of `step`"
            )
        observation.placed = [_on_host(value) for value in placed]
        recorder.batch = list(placed)
        observation.weights.append(recorder.current_weights())
        for number in (1, 2):
            recorder.begin("step", number)
            loss = implementation.step(*recorder.batch)
            if isinstance(loss, Coroutine | Generator):
                loss.close()
                raise ContractError(f"None of the lines of `step` runs, because it returns {_a_type(loss)}")
            observation.losses.append(_on_host(loss))
            recorder.after(0)
            observation.weights.append(recorder.current_weights())
        recorder.implementation = None
        recorder.begin("predict", 1)
        observation.predictions = create().predict(*(array.copy() for array in inputs))
    return observation


@contextmanager
def _imported(module: ModuleType) -> Iterator[None]:
    """The module is one of Python's modules: dataclasses, pickle and inspect look there for it."""
    before = {name: sys.modules[name] for name in (module.__name__,) if name in sys.modules}
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]
        sys.modules.update(before)


class Recorder:
    def __init__(self, observation: Observation, weights: tuple[str, ...]) -> None:
        self.observation, self.weights = observation, weights
        self.implementation: Any = None
        self.batch: list[Any] = []
        self.call, self.number = "", 0
        self._last: dict[str, Array | None] = {}
        self._batch_before: list[Any] = []
        self._kept: set[str] = set()  # the weights that have a gradient beside them
        self._hooked: set[int] = set()
        self._pending: list[Event] = []  # gradients that the line under way has computed
        self.calls = ModuleType("calls")
        vars(self.calls).clear()
        vars(self.calls).update(__see__=self.see, __after__=self.after, __gradient__=self.gradient)

    def begin(self, call: str, number: int) -> None:
        self.call, self.number = call, number
        self._kept = set(filter(self._has_gradient, self.weights))
        self._last = {**self.current_weights(), **self._gradients_beside()}
        self._batch_before = [_on_host(value) for value in self.batch]

    @contextmanager
    def catching(self, file: Path) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # a lesson may raise anything, SystemExit too; Ctrl-C ends a loop without end
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(file)]
            lines += [error.lineno] if isinstance(error, SyntaxError) else []
            self.observation.failure = Failure(
                error, (lines or [0])[-1] or 0, self.call, self.number, bool(self._pending)
            )

    def see(self, value: Any, kind: Kind, line: int, name: str = "") -> Any:
        parts: tuple[Any, ...] = value if isinstance(value, tuple) and not name else (value,)
        for part in parts:
            array = _on_host(part)
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                event = self._add(kind, line, name, array, part)
                if (
                    getattr(part, "requires_grad", False)
                    and hasattr(part, "register_hook")
                    and id(part) not in self._hooked
                ):
                    self._hooked.add(id(part))
                    if not part.is_leaf:
                        part.register_hook(lambda gradient, event=event: self._arrived(gradient, event))
        return value

    def after(self, line: int, function: str = "step") -> None:
        """Called after a line. Within a `backward` or a `forward` that the framework calls, the line is not done."""
        if self.call != "step" or self.implementation is None or function in ("forward", "backward"):
            return
        for event in self._pending:
            event.line = line or event.line
        self._pending.clear()
        values = {**self.current_weights(), **self._gradients_beside()}
        for name, array in values.items():
            before = self._last.get(name)
            if array is not None and (before is None or not _same(array, before)):
                kept: Any = getattr(self.implementation, name.removeprefix("grad_"))
                if name in self._kept and not self._has_gradient(name):
                    self.observation.replaced[name] = line
                self._add(
                    "gradient" if name.startswith("grad_") else "updated",
                    line,
                    name,
                    array,
                    getattr(kept, "grad", None),
                )
        self._last |= values
        batch = [_on_host(value) for value in self.batch]
        pairs = zip(batch, self._batch_before, strict=True)
        if not self.observation.changed_batch and not all(now is None or _same(now, before) for now, before in pairs):
            self.observation.changed_batch = line

    def gradient(self, tape: Any) -> Callable[..., Any]:
        """`tape.gradient`, which also computes the gradients of the values that were recorded so far in this step."""

        def gradient(target: Any, sources: Any, *arguments: Any, **keywords: Any) -> Any:
            if not isinstance(sources, list | tuple):
                return tape.gradient(target, sources, *arguments, **keywords)
            seen = {
                id(event.object): event
                for event in reversed(self.observation.events)
                if (event.call, event.number) == (self.call, self.number) and hasattr(event.object, "_id")
            }
            gradients = tape.gradient(
                target, [*sources, *(event.object for event in seen.values())], *arguments, **keywords
            )
            for event, value in zip(seen.values(), gradients[len(sources) :], strict=True):
                if value is not None:
                    self._arrived(value, event)
            return type(sources)(gradients[: len(sources)])

        return gradient

    def _has_gradient(self, name: str) -> bool:
        """Whether the weight is a tensor that `backward` computes a gradient of."""
        weight = getattr(self.implementation, name, None)
        return getattr(weight, "requires_grad", False) and getattr(weight, "is_leaf", False)

    def current_weights(self) -> dict[str, Array]:
        kept = ((key, _on_host(getattr(self.implementation, key, None))) for key in self.weights)
        return {key: value for key, value in kept if isinstance(value, np.ndarray)}

    def _gradients_beside(self) -> dict[str, Array | None]:
        weights = ((key, getattr(self.implementation, key, None)) for key in self.weights)
        return {f"grad_{key}": _on_host(getattr(weight, "grad", None)) for key, weight in weights}

    def _arrived(self, gradient: Any, of: Event) -> None:
        array = _on_host(gradient)
        if isinstance(array, np.ndarray):
            event = self._add("gradient", of.line, "", array, gradient)
            event.of = of
            self._pending.append(event)

    def _add(self, kind: Kind, line: int, name: str, array: Array, value: Any) -> Event:
        event = Event(kind, line, name, array, value, self.call, self.number)
        self.observation.events.append(event)
        return event


def _on_host(value: Any) -> Any:
    """A copy as a NumPy array, floating-point numbers in float64; None for what is no array."""
    if not any((hasattr(value, "dtype"), isinstance(value, list | float))):  # a file has a `detach` as well
        return None
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
        if hasattr(value, "numpy"):
            value = value.numpy()
    except Exception:  # some tensors have no numbers: in a transformation of torch.func, in a graph of TensorFlow
        return None
    if isinstance(value, list) and all(isinstance(number, int) for number in value):
        value = np.array(value)
    if not isinstance(value, np.ndarray | np.generic | float):
        return None
    array = np.array(value)
    return array.astype(np.float64) if array.dtype.kind in "fb" else array


def _a_type(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _same(one: Any, other: Any) -> bool:
    return one is other or (
        one is not None and other is not None and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    )


def instrumented(tree: ast.Module) -> ast.Module:
    return ast.fix_missing_locations(_Instrument().visit(tree))


class _Instrument(ast.NodeTransformer):
    """Puts the recorder's calls into a lesson's code."""

    function = ""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        outer, self.function = self.function, node.name
        result, node.returns = node.returns, None  # annotations stay as they are: dataclasses read them as text
        self.generic_visit(node)
        self.function, node.returns = outer, result
        node.body = [*(_see_name(name, "argument", node) for name in names), *node.body]
        return node

    def visit_Return(self, node: ast.Return) -> ast.Return:
        self.generic_visit(node)
        node.value = _see(node.value or ast.Constant(None), "returned", node)
        return node

    def visit_Expr(self, node: ast.Expr) -> list[ast.stmt]:
        match node.value:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"), args=[value]):
                node.value.args = [_see(value, "assigned", node, name)]
        return [node] if isinstance(node.value, ast.Constant) else self._followed(node)

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt]:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.List(elts=[value]) as values):
                values.elts = [_see(value, "assigned", node, name)]
        return self._followed(node, *node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> list[ast.stmt]:
        return self._followed(node, node.target)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> list[ast.stmt]:
        annotation, node.annotation = node.annotation, ast.Constant(None)
        followed: list[ast.stmt] = self._followed(node, node.target) if node.value else [node]
        node.annotation = annotation
        return followed

    def visit_For(self, node: ast.For) -> ast.For:
        self.generic_visit(node)
        node.body = [*_see_targets(node.target, node), *node.body]
        return node

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.AST:
        self.generic_visit(node)
        return _see(node, "assigned", node, node.target.id)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node.func:
            case ast.Name(id="super"):
                return node
            case ast.Attribute(value=tape, attr="gradient"):
                node.func = ast.copy_location(_call("__gradient__", tape), node)
        return _see(node, "operation", node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        return _see(self.generic_visit(node), "operation", node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        return _see(self.generic_visit(node), "operation", node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return _see(self.generic_visit(node), "operation", node)

    def _followed(self, node: ast.stmt, *targets: ast.expr) -> list[ast.stmt]:
        """The statement, what it assigns, and a look at what else it changed."""
        self.generic_visit(node)
        after = ast.Expr(_call("__after__", ast.Constant(node.lineno), ast.Constant(self.function)))
        return [
            node,
            *(see for target in targets for see in _see_targets(target, node)),
            ast.copy_location(after, node),
        ]


def _see_targets(target: ast.expr, at: ast.stmt) -> list[ast.stmt]:
    if isinstance(target, ast.Tuple | ast.List):
        return [see for element in target.elts for see in _see_targets(element, at)]
    while isinstance(target, ast.Subscript | ast.Starred):  # h[t] = … changes h
        target = target.value
    match target:
        case ast.Name(id=name):
            return [_see_name(name, "assigned", at)]
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            value = ast.Attribute(ast.Name("self", ast.Load()), name, ast.Load())
            return [ast.copy_location(ast.Expr(_see(value, "assigned", at, name)), at)]
    return []


def _see_name(name: str, kind: Kind, at: ast.stmt) -> ast.stmt:
    return ast.copy_location(ast.Expr(_see(ast.Name(name, ast.Load()), kind, at, name)), at)


def _see(value: Any, kind: Kind, at: ast.expr | ast.stmt, name: str = "") -> ast.expr:
    """The value, by way of the recorder. Only what is read is recorded: a target stays one."""
    if not isinstance(getattr(value, "ctx", ast.Load()), ast.Load):
        return value
    call = _call("__see__", value, ast.Constant(kind), ast.Constant(at.lineno), ast.Constant(name))
    return ast.copy_location(call, at)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])
