"""Which recorded value of a lesson is which quantity of the equations, and how far it is from what they give.

A quantity is looked for by its name, then as the gradient of a quantity that was found, then by its value: a line such
as `y_pred = (x @ self.w1).relu() @ self.w2` computes h and h_relu without naming them. What is found by value alone
cannot be wrong; a quantity that is not found is not judged.

A lesson may hold the examples of a batch with lengths in the order of the batch, or the longest first; with all of them
at each time step, or only those that are running. Each such arrangement is tried.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.contract import Array
from pipeline.quantities.equations import Equation
from pipeline.quantities.observe import Event, Observation
from pipeline.quantities.paper import Key, Paper

TOLERANCE = 1e-9  # relative; float64 and another order of operations make about 1e-15 here


@dataclass(frozen=True)
class Match:
    """A quantity as a lesson computes it. Without a `value` the lesson does not show it."""

    equation: Equation
    key: Key
    time: int | None
    expected: Array
    value: Array | None = None  # arranged as `expected` is, or as it was where its shape fits no arrangement
    line: int = 0
    recorded_line: int = 0  # of a gradient: the line that computed what it is the gradient of
    detached: bool = False  # of a gradient: no gradient arrived where the quantity was computed
    by_value: bool = False  # found by its value alone

    @property
    def error(self) -> float:
        """The largest difference, relative to the largest number that is expected; infinite for another shape."""
        return relative_error(self.value, self.expected)

    @property
    def is_right(self) -> bool:
        return self.value is not None and self.error <= TOLERANCE

    @property
    def is_wrong(self) -> bool:
        return self.detached or (self.value is not None and not self.is_right)


def relative_error(value: Array | None, expected: Array) -> float:
    if value is None or value.shape != expected.shape:
        return np.inf
    running = ~np.isnan(expected)
    with np.errstate(all="ignore"):  # a lesson may have infinity
        difference = np.max(np.abs(value[running] - expected[running]), initial=0)
        error = float(difference / (np.max(np.abs(expected[running]), initial=0) or 1))
    return np.inf if np.isnan(error) else error


def _holds(whole: Array, part: Array) -> bool:
    if whole.ndim == part.ndim + 1:
        return any(map(_holds, whole, [part] * len(whole)))
    return whole.shape == part.shape and np.array_equal(whole, part, equal_nan=True)


def line_after(events: Sequence[Event], right: Sequence[bool]) -> int:
    """The line that made a value wrong: that of the first event after the last right one; 0 without events."""
    place = max((index + 1 for index, is_right in enumerate(right) if is_right), default=0)
    return events[min(place, len(events) - 1)].line if events else 0


class Matcher:
    """The quantities of one step of an observation."""

    def __init__(self, paper: Paper, observation: Observation, number: int = 1) -> None:
        self.paper, self.observation, self.number = paper, observation, number
        self.events = [event for event in observation.events if (event.call, event.number) == ("step", number)]
        self.named: dict[str, list[Event]] = defaultdict(list)
        self.gradients: dict[int, list[Event]] = defaultdict(list)  # by identity of what they are the gradient of
        for event in self.events:
            if event.kind in ("assigned", "argument") and event.name not in paper.weights:
                self.named[event.name].append(event)
            elif event.kind == "gradient" and event.of:
                self.gradients[id(event.of.object)].append(event)
            elif event.kind == "gradient":
                self.named[event.name].append(event)
        self.of_weights = {id(paper.values[key]) for line, key, _ in paper.order if line.shape[:2] not in ("", "1,")}
        self.has_columns = False
        self.objects: dict[Key, list[Event]] = {}  # the events whose value a quantity is
        lengths = paper.lengths
        self.orders = [] if lengths is None else [np.arange(len(lengths)), np.argsort(-lengths, kind="stable")]
        self.orders = [order for order in self.orders if self._x_is_in(order)] or self.orders
        # Whether the examples are columns: then a quantity may be transposed.
        x = [event.value for event in self.named["x"] if event.kind == "argument"]
        self.has_columns = bool(x) and np.array_equal(x[0].T, paper.given["x"])

    def matches(self) -> Iterator[Match]:
        """Each quantity, in the order of the equations. The equations that no line computes are there too."""
        for equation, key, time in self.paper.order:
            expected = self.paper.values[key]
            if equation.part == "update":
                yield self._update(equation, key, expected)
                continue
            match = self._best(equation, key, time, expected)
            if match.value is None or not match.is_right:
                # What a line computes on the way to a wrong value of this name is not what the lesson uses.
                same = [event for event in self.events if self._is(event, key)]
                lines = {line for event in same for line in (event.line, self.line_of(event))}
                if same and (match.line not in lines or self._is_next(match)):
                    match = Match(equation, key, time, expected, expected, self.line_of(same[0]), by_value=True)
            if match.is_right:
                known_by = [event for event in self.events if self._is(event, key)]
                if not np.nan_to_num(expected).any():  # many a value is 0 without being this one
                    known_by = [event for event in known_by if event.name == key[0]]
                self.objects[key] = known_by
            yield match

    def _is_next(self, match: Match) -> bool:
        """Whether a value of this name is another quantity that follows from it, as where h is relu(x @ w1)."""
        return any(
            match.equation.name in equation.operands
            and equation.part == match.equation.part
            and relative_error(match.value, self.paper.values[key]) <= TOLERANCE
            for equation, key, _ in self.paper.order
        )

    def line_of(self, event: Event) -> int:
        """The line that computed a value, which may have got its name elsewhere."""
        before = self.events[: self.events.index(event)] if event in self.events else []
        same = [other for other in before if other.object is event.object]
        lines = [other.line for other in same if other.kind in ("operation", "returned")]
        if event.kind == "gradient":  # a backward function of the lesson may have computed it, or handed it on
            return (lines or [event.line])[-1]
        if event.kind == "assigned":  # the result of a function of the lesson, or else of this line
            return lines[0] if event.line in lines else event.line
        if event.kind == "argument":
            known = [other.line for other in same if other.kind != "argument"]
            # A framework hands on the value of a line, or one of its rows, as an object of its own.
            return next(
                iter([*known, *(other.line for other in before if _holds(other.value, event.value))]), event.line
            )
        return event.line

    def _update(self, equation: Equation, key: Key, expected: Array) -> Match:
        value = (self.observation.weights[self.number : self.number + 1] or [{}])[0].get(key[0])
        lines = [event.line for event in self.events if event.kind == "updated" and event.name == key[0]]
        return Match(equation, key, None, expected, value, (lines or [0])[-1])

    def _best(self, equation: Equation, key: Key, time: int | None, expected: Array) -> Match:
        """The value by name or as a gradient that is right, or else the last one that is not."""
        nothing = Match(equation, key, time, expected)
        gradients, detached = self._gradients_of(key)
        possible = [*self._by_name(key), *gradients]
        matches = []
        for event, value in possible:
            recorded = event.of.line if event.of else 0
            matches.append(Match(equation, key, time, expected, value, self.line_of(event), recorded))
        if not matches and detached:
            return Match(equation, key, time, expected, line=detached.line, detached=True)
        right = [match for match in matches if match.is_right]
        return (right[:1] or matches[-1:] or [nothing])[0]

    def _by_name(self, key: Key) -> Iterator[tuple[Event, Array]]:
        name, index = key
        if index is None:
            expected = self.paper.values[key]
            for event in self.named[name]:
                if not self._is_of_one_example(event, expected):
                    yield event, self._arranged(event.value, expected)
            return
        if index == "length":
            return
        indices = [other for _, (quantity, other), _ in self.paper.order if quantity == name and other != "length"]
        single = [
            event
            for event in self.named[name]
            if not self._pieces(event, name) and not self._is_of_one_example(event, self.paper.values[key])
        ]
        single = [
            event
            for before, event in zip([None, *single], single, strict=False)
            if before is None or event.object is not before.object
        ]
        for event in self.named[name]:
            pieces = self._pieces(event, name)
            if index in pieces:
                yield event, pieces[index]
        if not single:
            return
        # A name that is assigned again and again: one value for each time step, with or without one for the start.
        if len(single) > len(indices):
            first = max((1, 0), key=lambda first: self._agreement(name, indices, single[first:]))
            single = single[first:]
        starts = range(max(1, len(indices) - len(single) + 1))
        start = max(starts, key=lambda start: self._agreement(name, indices[start:], single))
        place = indices.index(index) - start
        if 0 <= place < len(single):
            value = self._arranged(single[place].value, self.paper.values[key])
            # Fewer values than time steps may be of any of them, or of other examples: such a value is not wrong.
            if len(single) >= len(indices) - 1 or relative_error(value, self.paper.values[key]) <= TOLERANCE:
                yield single[place], value

    def _is_of_one_example(self, event: Event, expected: Array) -> bool:
        """Whether a lesson that loops over the examples has the values of one of them at a time in this name."""
        examples, size = len(self.paper.given["y"]), event.value.size
        same = [other for other in self.named[event.name] if (other.line, other.value.size) == (event.line, size)]
        return len(same) >= examples and expected.ndim == 2 and size * examples == expected.size

    def _agreement(self, name: str, indices: Sequence[int | str | None], events: Sequence[Event]) -> int:
        """How many of these have the values of these time steps; the shapes count, too, where no value is right."""
        score = 0
        for index, event in zip(indices, events, strict=False):
            expected = self.paper.values[name, index]
            value = self._arranged(event.value, expected)
            score += (value.shape == expected.shape) + 100 * (relative_error(value, expected) <= TOLERANCE)
        return score

    def _gradients_of(self, key: Key) -> tuple[list[tuple[Event, Array]], Event | None]:
        """Gradients of the values that the quantity behind grad_… is, and the event of one that is detached."""
        name, index = key
        if not name.startswith("grad_"):
            return [], None
        quantity, expected = name.removeprefix("grad_"), self.paper.values[key]
        if index == "length":
            return self._gradients_at_ends(quantity, expected), None
        events = self.objects.get((quantity, index), [])
        arrived = [gradient for event in events for gradient in self.gradients.get(id(event.object), [])]
        others = [event for other, same in self.objects.items() if other != (quantity, index) for event in same]
        if {id(event.object) for event in others} & {id(event.object) for event in events}:
            return [], None  # a tensor was changed in place: its gradient may be that of either quantity
        failure = self.observation.failure
        complete = self.gradients and not (failure and failure.in_gradients)
        if events and not arrived and complete and self._depends_on_weights(quantity, index):
            detached = [event for event in events if not getattr(event.object, "requires_grad", True)]
            return [], (detached or events)[0]
        # A value that was computed last is what others use: a slice of it has a part of the gradient.
        arrived.sort(key=lambda event: event.of is not None and event.of.kind == "assigned")
        return [(event, self._arranged(event.value, expected)) for event in arrived], None

    def _depends_on_weights(self, name: str, index: int | str | None) -> bool:
        """Not so is h[0], which is zero: no gradient leads further back from it."""
        equation = next(line for line, key, _ in self.paper.order if key == (name, index))
        return bool(equation.operands & {*self.paper.weights, *(line.name for line in self.paper.equations)})

    def _gradients_at_ends(self, quantity: str, expected: Array) -> list[tuple[Event, Array]]:
        value, last = np.full_like(expected, np.nan), None
        for row, length in enumerate(() if self.paper.lengths is None else self.paper.lengths):
            for event in self.objects.get((quantity, int(length)), []):
                for gradient in self.gradients.get(id(event.object), []):
                    rows = self._arranged(gradient.value, self.paper.values[quantity, int(length)])
                    if rows.shape == expected.shape and (
                        last is None or not relative_error(value[row], expected[row]) <= TOLERANCE
                    ):
                        value[row], last = rows[row], gradient
        return [(last, value)] if last is not None and not np.isnan(value).any() else []

    def _is(self, event: Event, key: Key) -> bool:
        """Whether an event has the value that a quantity should have."""
        name, index = key
        if event.kind == "gradient" and not name.startswith("grad_"):
            return False
        expected = self.paper.values[key]
        if relative_error(self._arranged(event.value, expected), expected) <= TOLERANCE:
            return True
        return isinstance(index, int) and relative_error(self._pieces(event, name).get(index), expected) <= TOLERANCE

    def wrong_data(self) -> Iterator[tuple[str, int]]:
        """x and y, where the argument of the step that has this name is not that of the batch, and the line."""
        for name in ("x", "y"):
            argument = next((event for event in self.events if event.kind == "argument" and event.name == name), None)
            if argument and not self._is_data(argument, name):
                before = [
                    event for event in self.observation.events if event.call == "place" and event.kind != "argument"
                ]
                before = [event for event in before if event.value.size == argument.value.size]
                yield name, line_after(before, [self._is_data(event, name) for event in before]) or argument.line

    # The arrangements of a batch.

    def _is_data(self, event: Event, name: str = "x") -> bool:
        expected = self.paper.given[name]
        if self.paper.lengths is None or name != "x":
            return relative_error(self._arranged(event.value, expected), expected) == 0
        pieces = self._pieces(event, "x")
        right = (relative_error(rows, self._rows_at(time)) == 0 for time, rows in pieces.items())
        return bool(pieces) and all(right)

    def _x_is_in(self, order: Array) -> bool:
        """Whether the lesson has x in this order of the examples."""
        before, self.orders = self.orders, [order]
        right = any(self._is_data(event) for event in self.events if event.name == "x")
        self.orders = before
        return right

    def _arranged(self, value: Array, expected: Array) -> Array:
        """The value with a row for each example, NaN where one is not running; the value itself if it does not fit."""
        if self.has_columns and value.ndim == 2:
            return min(value, value.T, key=lambda arranged: relative_error(arranged, expected))
        if (
            self.paper.lengths is None
            or id(expected) in self.of_weights
            or expected.ndim != 2
            or value.ndim != 2
            or len(expected) != len(self.paper.lengths)
        ):
            return value
        running = ~np.any(np.isnan(expected), axis=1)
        candidates = []
        for order in self.orders:
            arranged = np.full((len(expected), value.shape[1]), np.nan)
            if len(value) == len(expected):
                arranged[order] = value
            elif len(value) == running.sum():
                arranged[order[running[order]]] = value
            else:
                continue
            arranged[~running] = np.nan
            candidates.append(arranged)
        return min(candidates, key=lambda arranged: relative_error(arranged, expected), default=value)

    def _pieces(self, event: Event, name: str) -> dict[int, Array]:
        """The values at the time steps of an array that holds them all: time first, examples first, or packed."""
        lengths, value = self.paper.lengths, event.value
        if lengths is None or value.ndim not in (2, 3):
            return {}
        examples, longest = len(lengths), int(lengths.max())
        steps = range(1, longest + 1)
        if name != "x" and (name, longest) not in self.paper.values:
            return {}
        expected = {time: self._rows_at(time) if name == "x" else self.paper.values[name, time] for time in steps}
        if value.ndim == 2 and len(value) == lengths.sum():
            ends = np.cumsum([np.count_nonzero(lengths >= time) for time in steps])
            parts = dict(zip(steps, np.split(value, ends[:-1]), strict=True))
        elif value.ndim == 3 and examples in value.shape[:2]:
            by_time = value if value.shape[1] == examples else value.swapaxes(0, 1)
            first = longest - len(by_time) + 1
            if first not in (0, 1):  # with a place for the start, or without
                return {}
            parts = dict(enumerate(by_time, first))
        else:
            return {}
        return {time: self._arranged(part, expected[time]) for time, part in parts.items() if time in expected}

    def _rows_at(self, time: int) -> Array:
        """x at a time step, with a row for each example."""
        rows = self.paper.given["x"][:, time - 1].copy()
        rows[(time if self.paper.lengths is None else self.paper.lengths) < time] = np.nan
        return rows
