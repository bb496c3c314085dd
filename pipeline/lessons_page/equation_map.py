"""Which lines of a lesson compute which equations of its problem. The names decide: a line that assigns a quantity
computes its equation. A quantity with several equations, such as h[0] and h[t], is assigned in their order. A quantity
that no line assigns is computed by the line that assigns the next quantity of the same part: `y_pred = (x @
self.w1).relu() @ self.w2` also computes h and h_relu. A line that only gives a value another name, or takes it from an
attribute, does not compute it. Two tables have the cases that names cannot decide.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence

from pipeline.lessons_page.source_view import functions_used, lines_of, name_of
from pipeline.quantities.equations import Equation

CALLS = {"backward": "backward", "step": "update"}  # loss.backward(), optimizer.step(): all equations of a part
LINES = {  # by lesson: the left sides of further equations that a line computes
    "torch_function": {"return h.clamp(min=0)": ["h_relu"], "return grad_h_relu * (h > 0)": ["grad_h"]},
    "torch_loop": {
        "y_pred = self._forward(x, batch_sizes)": ["h[0]", "z[t]", "h[t]"],
        "return torch.cat([h, *reversed(ended)]) @ self.wo": ["y_pred"],
    },
    "tensorflow_scan": {
        "return tf.nn.relu(z + h @ self.wh)": ["h[t]"],
        "start = tf.zeros([tf.shape(x)[1], self.wh.shape[0]], x.dtype)": ["h[0]"],
        "states = tf.scan(next_state, x @ self.wx, start)": ["h[0]", "z[t]", "h[t]"],
        "return tf.gather_nd(states, ends) @ self.wo": ["y_pred"],
    },
}


def equations_by_line(name: str, source: str, equations: Sequence[Equation]) -> dict[int, list[int]]:
    """The numbers of the equations that a line computes, by the line's number in the file."""
    numbers: dict[int, set[int]] = defaultdict(set)
    assigned: dict[str, list[range]] = defaultdict(list)
    used = functions_used(source)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt) or not any(node.lineno in function for function in used):
            continue
        for quantity in _assigned(node):
            assigned[quantity].append(lines_of(node))
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Attribute)
        ):
            part = CALLS.get(node.value.func.attr)
            for line in lines_of(node):
                numbers[line] |= {equation.number for equation in equations if equation.part == part}
    for line, text in enumerate(source.splitlines(), 1):
        for start, lefts in LINES.get(name, {}).items():
            if text.strip().startswith(start):
                numbers[line] |= {equation.number for equation in equations if equation.left in lefts}
    following: dict[str, range] = {}  # by part: the lines of the next quantity that the lesson assigns
    for equation in reversed(equations):
        same = [other for other in equations if other.name == equation.name]
        places = sorted(assigned[equation.name], key=lambda lines: lines.start)
        place = len(places) - len(same) + same.index(equation)
        key = equation.name if equation.part == "update" else equation.part
        if place >= 0 and places:
            following[key] = places[place]
        for line in following.get(key, ()):
            numbers[line].add(equation.number)
    return {line: sorted(computed) for line, computed in sorted(numbers.items()) if computed}


def _assigned(node: ast.stmt) -> Iterator[str]:
    """The variables, and the attributes of self, that a statement computes."""
    match node:
        case ast.Assign(value=value) if isinstance(value, ast.Name | ast.Attribute | ast.Constant):
            return
        case ast.Assign(targets=targets):
            pass
        case ast.AugAssign(target=target) | ast.For(target=target):
            targets = [target]
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=target, attr=method))) if method.startswith("assign"):
            targets = [target]
        case _:
            return
    for target in targets:
        yield from filter(None, map(name_of, target.elts if isinstance(target, ast.Tuple) else [target]))
