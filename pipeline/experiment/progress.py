"""How a training shows that it gets on: a bar where a person watches, now and then a line where nobody does."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINES = 5


class Progress:
    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps, self.lines = name, steps, 0
        console = Console()
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            "loss",
            TextColumn("{task.fields[loss]}"),
        )
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal, auto_refresh=False)
        self.task = self.bar.add_task(name, total=steps, loss="")

    def show(self, step: int, loss: float) -> None:
        """Show the steps done and the last loss. Drawn here alone: no thread of its own disturbs the timing."""
        self.bar.update(self.task, completed=step, loss=f"{loss:.6g}", refresh=True)
        if self.bar.disable and step * LINES >= (self.lines + 1) * self.steps:
            self.lines = step * LINES // self.steps
            print(f"{self.name}: step {step} of {self.steps}, loss {loss:.6g}", flush=True)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
