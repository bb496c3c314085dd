"""Which lines of a lesson compute which equations of its problem, derived from the lesson's code alone.

`step` is followed statement by statement, and into the functions of the file that it uses. By these rules:

1. A line that assigns a quantity computes its equation. Where a quantity has several, h[0] and h[t], its assignments
   compute them in their order.
2. A matrix product, or a value that is returned, computes the equation that has just its operands, or what these are
   computed from: `x @ self.wx`.
3. A line that uses a function of the file computes what that function does.
4. `loss.backward()` computes every gradient, an optimiser's `.step()` every update, `self.w1.assign_sub(…)` that of w1.
5. What the equations of a line need, and no line before it has computed, it computes on the way:
   `(x @ self.w1).relu() @ self.w2` also computes h_relu. An assignment that it uses and that computes nothing by these
   rules helps with that.

A value that is only given another name, or taken from an attribute, is not computed there.
"""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.lessons_page.equations import Equation

MOVES = ast.Name | ast.Attribute | ast.Constant


class Span(NamedTuple):
    first: int
    last: int


def equations_by_line(source: str, equations: Sequence[Equation]) -> dict[int, list[int]]:
    """The numbers of the equations that a line computes, by the line's number in the file."""
    reader = _Reader(ast.parse(source), equations)
    reader.follow("step", result=None)
    return {line: sorted(numbers) for line, numbers in sorted(reader.found.items()) if numbers}


def functions_used(source: str, by: str = "step") -> list[Span]:
    """Where a function stands, and what it uses of the file: functions of its class, other functions and classes."""
    functions = _functions(ast.parse(source))
    wanted, ahead = set(), [by]
    while ahead:
        name = ahead.pop()
        if name in functions and name not in wanted:
            wanted.add(name)
            ahead += _used(functions[name])
    nodes = [functions[name] for name in wanted]
    return sorted(Span(node.lineno, node.end_lineno or node.lineno) for node in nodes)


class _Reader:
    def __init__(self, tree: ast.Module, equations: Sequence[Equation]) -> None:
        self.functions = _functions(tree)
        self.equations = {each.number: each for each in equations}
        self.named: dict[str, list[Equation]] = defaultdict(list)
        for each in equations:
            self.named[each.name].append(each)
        self.assigned = Counter(
            name for node in ast.walk(tree) for name, value in _assignments(node) if not _move(value)
        )
        self.times: Counter[str] = Counter()  # a quantity was assigned so far
        self.found: dict[int, set[int]] = defaultdict(set)
        self.done: set[int] = set()
        self.helping: dict[str, Span] = {}  # assignments that compute nothing by themselves
        self.followed: dict[str, set[int]] = {}

    def follow(self, name: str, result: str | None) -> set[int]:
        """What a function or a class computes; `result` is the quantity that it returns, where that is known."""
        if name not in self.followed:
            self.followed[name] = set()
            node = self.functions[name]
            bodies = (
                [each for each in node.body if isinstance(each, ast.FunctionDef)]
                if isinstance(node, ast.ClassDef)
                else [node]
            )
            for body in bodies:
                given = {argument.arg for argument in body.args.args}
                for statement in body.body:
                    self.followed[name] |= self._statement(statement, result, given)
        return self.followed[name]

    def _statement(self, node: ast.stmt, result: str | None, given: set[str]) -> set[int]:
        found: set[int] = set()
        if isinstance(node, ast.FunctionDef):
            self.functions[node.name] = node
            return found
        head = node.iter if isinstance(node, ast.For) else node
        span = Span(node.lineno, head.end_lineno or node.lineno)
        if pairs := list(_assignments(node)):
            found |= self._compute(span, [name for name, _ in pairs], pairs[0][1], given)
        elif isinstance(node, ast.Return) and node.value is not None:
            found |= self._compute(span, [result] if result else [], node.value, given, returned=not result)
        elif isinstance(node, ast.Expr):
            found |= self._compute(span, [], node.value, given)
        for inner in getattr(node, "body", []) + getattr(node, "orelse", []):
            found |= self._statement(inner, result, given)
        return found

    def _compute(
        self, span: Span, targets: list[str], value: ast.expr, given: set[str], *, returned: bool = False
    ) -> set[int]:
        if _move(value):
            given |= set(targets)
            return set()
        named = {number for name in targets for number in self._assign(name)}
        found = named | set(self._products(value)) | self._called(value)
        if returned and (equation := self._computing(_names(value), product=False)):
            found.add(equation)
        for name in _used(value):
            if name in self.functions:
                itself = isinstance(value, ast.Call) and name in _used(value.func) and len(targets) == 1
                inner = self.follow(name, targets[0] if itself and named else None)
                found |= inner & self._needed(named, given) if named else inner
        on_the_way = self._needed(found, given) - self.done - found
        for line in range(span.first, span.last + 1):
            self.found[line] |= found | on_the_way
        if not found:
            self.helping |= dict.fromkeys(targets, span)
        elif on_the_way:
            for name in _names(value) & self.helping.keys():
                self.found[self.helping[name].first] |= on_the_way
        self.done |= found | on_the_way
        return found | on_the_way

    def _assign(self, name: str) -> Iterator[int]:
        if equations := self.named.get(name):
            index = len(equations) - self.assigned[name] + self.times[name]
            self.times[name] += 1
            yield equations[max(0, min(index, len(equations) - 1))].number

    def _products(self, value: ast.expr) -> Iterator[int]:
        for node in ast.walk(value):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                number = self._computing(_names(node), product=True)
                if number:
                    yield number

    def _computing(self, names: set[str], *, product: bool) -> int | None:
        """The equation that has just these operands."""
        candidates = [each for each in self.equations.values() if not product or "@" in each.right]
        known = names & {name for each in candidates for name in self._leaves(each)}
        exact = [each.number for each in candidates if each.operands == known]
        through = [each.number for each in candidates if each.part == "forward" and known in self._expanded(each)]
        return next(iter(exact + through), None)

    def _leaves(self, equation: Equation) -> set[str]:
        return set().union(*self._expanded(equation))

    def _expanded(self, equation: Equation) -> list[frozenset[str]]:
        """Its operands, and the same with operands replaced by what they are computed from."""
        found = [equation.operands]
        for operands in found:
            for name in operands:
                for each in self.named.get(name, []):
                    replaced = operands - {name} | each.operands
                    if each.part == "forward" and name not in each.operands and replaced not in found:
                        found.append(replaced)
        return found

    def _called(self, value: ast.expr) -> set[int]:
        """What a method computes that is not of the file, by its name."""
        if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)):
            return set()
        method, owner = value.func.attr, value.func.value
        if method == "backward":
            return {each.number for each in self.equations.values() if each.part == "backward"}
        if method == "step" and not (isinstance(owner, ast.Name) and owner.id == "self"):
            return {each.number for each in self.equations.values() if each.part == "update"}
        if method.startswith("assign") and isinstance(owner, ast.Attribute):
            return {each.number for each in self.named.get(owner.attr, [])}
        return set()

    def _needed(self, numbers: set[int], given: set[str]) -> set[int]:
        """These equations, and those of all that they need but for what is given."""
        seen, ahead = set(numbers), list(numbers)
        while ahead:
            for name in self.equations[ahead.pop()].operands - given:
                new = {each.number for each in self.named.get(name, []) if each.part != "update"} - seen
                seen |= new
                ahead += new
        return seen


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Those of the class Implementation, and others of the file, by name."""
    found: dict[str, ast.FunctionDef | ast.ClassDef] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Implementation":
            found |= {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
    return found


def _assignments(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """The names that a statement assigns, of variables or of attributes of self, each with what is assigned."""
    match node:
        case ast.Assign(targets=targets, value=value):
            pairs = [(target, value) for target in targets]
        case ast.AugAssign(target=target, value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
            pairs = [(target, value)]
        case ast.For(target=target, iter=value):
            pairs = [(target, value)]
        case _:
            pairs = []
    for target, value in pairs:
        for each in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(each, ast.Name):
                yield each.id, value
            elif isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "self":
                yield each.attr, value


def _move(value: ast.expr) -> bool:
    return isinstance(value, MOVES)


def _names(node: ast.AST) -> set[str]:
    """Of variables, and of attributes of self."""
    return set(_used(node))


def _used(node: ast.AST) -> list[str]:
    """`self(…)` uses forward, as in a torch.nn.Module."""
    found = []
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "self":
            found.append("forward")
        elif isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "self":
            found.append(each.attr)
        elif isinstance(each, ast.Name) and each.id != "self":
            found.append(each.id)
    return found
