"""The first mistake of an observed lesson, as a sentence with its line."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten

import numpy as np

from pipeline.contract import Array, load_problem
from pipeline.quantities.equations import Equation
from pipeline.quantities.match import TOLERANCE, Match, Matcher, line_after, relative_error
from pipeline.quantities.observe import ContractError, Event, Observation
from pipeline.quantities.paper import Paper
from pipeline.quantities.variants import ROUNDED, attempt, cause_of, where_wrong


@dataclass(frozen=True)
class Wrong:
    """`lines` are the lines that the sentence names, the likeliest first."""

    sentence: str
    quantity: str
    lines: list[int] = field(default_factory=list)


class Finder:
    """Compares an observation with the equations. `matches` are those of the first step."""

    def __init__(self, paper: Paper, observation: Observation, matches: Sequence[Match]) -> None:
        self.paper, self.observation = paper, observation
        self.unfinished = unfinished_methods(observation.source)
        losses, kinds = observation.losses, {event.kind for event in observation.events}
        if losses and losses[0] is None and "updated" not in kinds:
            self.unfinished.add("step")
        # Where the step ends early, a weight is not wrong because no line has updated it yet.
        early = "step" in self.unfinished or observation.failure
        self.matches = [
            replace(match, value=None) if early and match.equation.part == "update" and not match.line else match
            for match in matches
        ]

    def wrong(self) -> Iterator[Wrong]:
        """All mistakes, the first one first. Empty for a correct lesson."""
        yield from self._next_method()
        if not self.observation.weights:
            yield from self._failure("", "__init__", "place")
            return
        yield from self._step(self.paper, self.matches, 1)
        yield from self._failure("step")
        if "step" in self.unfinished:
            yield from self._next_quantity()
        yield from self._failure("predict")
        yield from self._returned_loss()
        yield from self._second_step()
        yield from self._predictions()

    # What the lesson starts from.

    def _given(self) -> Iterator[Wrong]:
        """Weights, learning rate and batch, before anything is computed from them."""
        events = [event for event in self._events("__init__") if event.kind == "assigned"]
        for name, array in self.paper.weights.items():
            value = self.observation.weights[0].get(name)
            lines = [event.line for event in events if event.name == name][-1:]
            if value is None:
                yield Wrong(f"`__init__` has to keep the weight {name} as self.{name}.", name, lines)
            elif relative_error(value, array) > TOLERANCE:
                others = [key for key, other in self.paper.weights.items() if relative_error(value, other) <= TOLERANCE]
                text = f"{name} does not start as the weight that it is given{self._at(*lines)}"
                text += ", which is rounded to float32, or less" * (relative_error(value, array) < ROUNDED)
                yield Wrong(f"{text}{''.join(f', takes {key}' for key in others[:1])}.", name, lines)
        for event in events:
            if event.name == "learning_rate" and np.any(event.value != self.paper.given["learning_rate"]):
                text = f"learning_rate is not the one that is given: {self._line(event.line)}."
                yield Wrong(text, event.name, [event.line])
        for name, line in Matcher(self.paper, self.observation).wrong_data():
            yield Wrong(f"The {name} that `step` gets is not that of the batch: {self._line(line)}.", name, [line])

    # The quantities of a step.

    def _step(self, paper: Paper, matches: Sequence[Match], number: int) -> Iterator[Wrong]:
        """The quantities that differ. Empty if the results of the step are right: then the lesson only uses a name
        differently."""
        if self._results_are_right(paper, number):
            return
        if number == 1:
            yield from self._given()
        for match in matches:
            if not match.is_wrong:
                continue
            missing = self._missing_operand(match, matches)
            if missing:
                text = f"No line computes {_label(missing)}, which should be `{missing.equation.right}`"
                yield Wrong(f"{text}: {self._line(match.line)}, needs it.", missing.key[0], [match.line])
            yield self._of(self._wrong_operand(match, matches, number), number)

    def _results_are_right(self, paper: Paper, number: int) -> bool:
        weights, losses = self.observation.weights, self.observation.losses
        if len(weights) <= number:
            return False
        results = [*((key, weights[number].get(key)) for key in paper.weights), ("loss", losses[number - 1])]
        return all(relative_error(value, paper.values[key, None]) <= TOLERANCE for key, value in results)

    def _missing_operand(self, match: Match, matches: Sequence[Match]) -> Match | None:
        """An operand that the lesson names elsewhere, such as h at another time step, and does not compute here."""
        named = {other.equation.name for other in matches if other.line and not other.by_value}
        for operand in matches:
            if operand is match or operand.equation.part == "backward":
                return None
            if (
                operand.value is None
                and not operand.detached
                and operand.equation.name in named & match.equation.operands
            ):
                return operand
        return None

    def _wrong_operand(self, match: Match, matches: Sequence[Match], number: int) -> Match:
        """The operand that makes a value wrong, if the lesson computes it without a name; otherwise the value
        itself."""
        if self.paper.lengths is not None or match.value is None:
            return match
        for operand in matches:
            name = operand.equation.name
            if name not in match.equation.operands or not (operand.by_value or operand.value is None):
                continue
            for event in self._events("step", number):
                if relative_error(event.value, operand.expected) <= TOLERANCE:
                    continue
                changed = attempt(self.paper, match, match.equation.right, {name: event.value})
                if changed is not None and relative_error(match.value, changed) <= TOLERANCE:
                    return replace(operand, value=event.value, line=event.line, by_value=False)
        return match

    def _of(self, match: Match, number: int) -> Wrong:
        name, label, equation = match.key[0], _label(match), match.equation
        lines = [line for line in dict.fromkeys((match.line, match.recorded_line)) if line]
        if match.detached:
            return self._detached(match)
        if number > 1 and self._adds_up(match):
            text = (
                f"In the second step {label} has the gradient of the first step added to it: {self._line(match.line)}, "
            )
            return Wrong(f"{text}adds to `.grad`, which no line clears before.", name, lines)
        if not match.line:
            sources = [other.line for other in self.matches if other.key[0] == f"grad_{name}" and other.line]
            text = f"{label} is not updated: no line computes `{equation.left} = {equation.right}`"
            for event in self._events("step", number):
                if relative_error(event.value, match.expected) <= TOLERANCE:
                    text = f"{label} is not updated: {self._line(event.line)}, computes it, but does not keep it"
                    text, sources = f"{text} as self.{name}", [event.line]
            return Wrong(f"{text}.", name, sources)
        text = f"{label} is the first quantity that differs: {self._line(match.line)}"
        text = f"In the second step {text}" if number > 1 else text
        if match.recorded_line not in (0, match.line):
            text += f", from what {self._line(match.recorded_line)}, recorded"
        parts = [f"{text}, should compute `{equation.right}`", cause_of(match, self.paper), where_wrong(match)]
        return Wrong(f"{'; '.join(filter(None, parts))}.", name, lines)

    def _detached(self, match: Match) -> Wrong:
        """No gradient arrives at a quantity: the line that uses it leaves the graph."""
        name = match.equation.name.removeprefix("grad_")
        times = (None, match.time, match.key[1])
        uses = (
            other for other in self.matches if name in other.equation.operands and other.time in times and other.line
        )
        line = next(uses, match).line
        text = f"No gradient arrives at {_label(match).removeprefix('grad_')}, which {self._line(match.line)}, computes"
        text += f"; {self._line(line)}, uses it" * (line != match.line)
        return Wrong(f"{text}, outside the graph that leads back from the loss.", match.key[0], [line, match.line])

    def _adds_up(self, match: Match) -> bool:
        first = self.paper.values.get(match.key)
        return first is not None and relative_error(match.value, match.expected + first) <= TOLERANCE

    def _second_step(self) -> Iterator[Wrong]:
        weights = {key: self.paper.values[key, None] for key in self.paper.weights}
        paper = Paper(self.paper.problem, weights, self.paper.batch, self.paper.given["learning_rate"])
        yield from self._step(paper, list(Matcher(paper, self.observation, 2).matches()), 2)
        if not self._results_are_right(paper, 2):
            yield Wrong("In the second step `step` returns another loss.", "loss")

    # What comes after the quantities.

    def _failure(self, *calls: str) -> Iterator[Wrong]:
        failure = self.observation.failure
        if not failure or failure.call not in calls:
            return
        error = getattr(failure.error, "msg", "") or str(failure.error)  # of a SyntaxError, without its line
        if isinstance(failure.error, ContractError):
            yield Wrong(f"{error}.", failure.call)
        error = " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error).split()).rstrip(".")  # TensorFlow's names for it
        raised = f"{type(failure.error).__name__}{': ' * bool(error)}{shorten(error, 300, placeholder=' …')}"
        place = f"`{failure.call}`" if failure.call else "The file"
        text = f"{place} fails: {f'{self._line(failure.line)}, raises ' if failure.line else ''}{raised}."
        name = getattr(failure.error, "name", None) or ""
        if isinstance(failure.error, UnboundLocalError):
            name = error.split("'")[1]
        missing = [match.equation for match in self.matches if match.value is None]
        equation = next((equation for equation in missing if equation.name == name or not name), None)
        if failure.number > 1:
            text = f"In the second step {text}"
        if isinstance(failure.error, AttributeError) and name in {*self.paper.weights, "learning_rate"}:
            text += f" `__init__` has to keep it as self.{name}."
        elif equation and failure.call == "step":
            before = "No line before computes" if name else "The next quantity is"
            name = equation.name
            text += f" {before} {equation.left}, which should be `{equation.right}`."
        for key, line in self.observation.replaced.items():
            text += f" Since line {line}, self.{key} is a tensor that gets no gradient. Change self.{key} in place."
        yield Wrong(text, name, [failure.line])

    def _returned_loss(self) -> Iterator[Wrong]:
        """What `step` returns, and whether it changes the batch."""
        loss, expected = self.observation.losses[0], self.paper.values["loss", None]
        returned = [event for event in self._events("step", 1) if event.kind == "returned"][-1:]
        same = [event.line for event in self._events("step", 1) if returned and event.object is returned[0].object]
        line = (same or [self.observation.end])[0]
        if loss is None:
            yield Wrong(f"`step` returns no number, and should return the loss: {self._line(line)}.", "loss", [line])
        elif relative_error(loss, expected) > TOLERANCE:
            cause = cause_of(Match(self._equation("loss"), ("loss", None), None, expected, loss, line), self.paper)
            text = f"`step` returns another loss: {self._line(line)}"
            yield Wrong(f"{text}{f'; {cause}' if cause else ''}.", "loss", [line])
        if line := self.observation.changed_batch:
            yield Wrong(f"`step` changes its batch: {self._line(line)}.", "x", [line])

    def _predictions(self) -> Iterator[Wrong]:
        if "predict" in self.unfinished:
            yield Wrong("next: predict, which returns the predictions of the forward pass as a NumPy array.", "predict")
        *inputs, _ = self.paper.batch.values()
        expected = load_problem(self.paper.problem).predict(self.paper.weights, *inputs)
        predictions, events = self.observation.predictions, self._events("predict")
        if not isinstance(predictions, np.ndarray):
            lines = [event.line for event in events[-1:]]
            text = f"`predict` returns a {type(predictions).__name__}, and should return a NumPy array"
            yield Wrong(f"{text}: {self._line(*lines)}.", "predict", lines)
        elif relative_error(predictions, expected) > TOLERANCE:
            shapes = (expected.shape, predictions.shape)
            events = [event for event in events if event.kind != "argument" and event.value.shape in shapes]
            line = line_after(events, [self._is_prediction(event.value, expected) for event in events])
            equation = self._equation("loss")
            forward = [
                other for other in self.paper.equations if other.part == "forward" and other.number < equation.number
            ]
            match = Match(forward[-1], (forward[-1].name, None), None, expected, predictions, line)
            cause = cause_of(match, self.paper)
            text = f"`predict` does not predict what the forward pass does: {self._line(line)}"
            yield Wrong(f"{text}{f'; {cause}' if cause else ''}.", "predict", [line])

    def _is_prediction(self, value: Array, expected: Array) -> bool:
        """In the order of the batch, or the longest first."""
        lengths = self.paper.lengths
        orders = [expected] if lengths is None else [expected, expected[np.argsort(-lengths, kind="stable")]]
        return any(relative_error(value, rows) <= TOLERANCE for rows in orders)

    # What comes next in a lesson that is not finished.

    def _next_method(self) -> Iterator[Wrong]:
        if "__init__" in self.unfinished:
            kept = " and ".join(f"self.{key}" for key in self.paper.weights)
            yield Wrong(f"next: __init__, which keeps the weights as {kept}, and self.learning_rate.", "__init__")
        if "place" in self.unfinished:
            yield Wrong(f"next: place, which returns {', '.join(self.paper.batch)} as `step` takes them.", "place")

    def _next_quantity(self) -> Iterator[Wrong]:
        for match in self.matches:
            if match.value is None:
                equation = match.equation
                shape = f", shape ({equation.shape})" if equation.shape else ", a number"
                text = (
                    f"next: {equation.left} = {equation.right}{shape}{', ' if equation.times else ''}{equation.times}"
                )
                yield Wrong(text, equation.name)
        yield Wrong("next: return the loss.", "loss")

    def _events(self, call: str, number: int = 0) -> list[Event]:
        """What was recorded in a method, in all of its calls or in one of them."""
        return [
            event
            for event in self.observation.events
            if event.call == call and event.number in (number or event.number,)
        ]

    def _equation(self, name: str) -> Equation:
        return next(equation for equation in self.paper.equations if equation.name == name)

    def _at(self, number: int = 0) -> str:
        return f": {self._line(number)}" if number else ""

    def _line(self, number: int = 0) -> str:
        source = self.observation.source
        return (
            f"line {number}, `{source[number - 1].strip()}`" if 0 < number <= len(source) else "a line of the framework"
        )


def _label(match: Match) -> str:
    name, index = match.key
    return name if index is None else f"{name}[{index}]"


def unfinished_methods(source: Sequence[str]) -> set[str]:
    """The methods in which a line is still `...`."""
    try:
        tree = ast.parse("\n".join(source))
    except (SyntaxError, ValueError):  # of bytes that are 0
        return set()
    return {
        method.name
        for method in ast.walk(tree)
        if isinstance(method, ast.FunctionDef)
        and any(isinstance(node, ast.Expr) and getattr(node.value, "value", None) is ... for node in ast.walk(method))
    }
