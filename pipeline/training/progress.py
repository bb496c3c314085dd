"""The progress of a training: a bar on a terminal, a line from time to time elsewhere."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipeline.clock import now

BAR_SECONDS = 0.1  # between two drawings of the bar, at least
LINE_SECONDS = 5.0  # between two lines, at least; later a tenth of the time that has passed, so that a log stays short


class Progress:
    """Drawn only by `show`, so that no thread disturbs the timing."""

    def __init__(self, name: str, steps: int, live: Callable[[int, float], None] | None = None) -> None:
        self.name, self.steps, self.live = name, steps, live
        self.begun = self.shown = now()
        self.first: int | None = None  # the steps done at the first call
        console = Console()
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]} steps/s"),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}"),
        )
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal, auto_refresh=False)
        self.task = self.bar.add_task(name, total=steps, loss="", pace="")

    def show(self, step: int, loss: float) -> None:
        """Show the steps done and the last loss, if it is time to."""
        at = now()
        if self.live:
            self.live(step, loss)
        if self.first is None:
            self.first, self.begun = step, at
        between = max(LINE_SECONDS, (at - self.begun) / 10) if self.bar.disable else BAR_SECONDS
        if at - self.shown < between and step < self.steps:
            return
        self.shown = at
        pace = (step - self.first) / (at - self.begun) if at > self.begun else 0.0
        self.bar.update(self.task, completed=step, loss=f"{loss:.6g}", pace=f"{pace:,.0f}", refresh=True)
        if self.bar.disable:
            left = f", {_duration((self.steps - step) / pace)} left" if pace and step < self.steps else ""
            paced = f", {pace:,.0f} steps/s" if pace else ""
            print(f"{self.name}: step {step:,} of {self.steps:,}, loss {loss:.6g}{paced}{left}", flush=True)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()


def _duration(seconds: float) -> str:
    """A duration in a suitable unit: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
