"""The progress of a sweep: a line for each experiment, and a bar with the time left."""

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.clock import now


class Display(Progress):
    """On a terminal a row for each running experiment above a bar of all; elsewhere a line for each change."""

    def __init__(self, total: int) -> None:
        self.stages: dict[str, tuple[str, str]] = {}  # the node and the stage, by experiment
        console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left:")
        disable = not console.is_terminal
        super().__init__(*columns, TimeRemainingColumn(), console=console, transient=True, disable=disable)
        self.bar, self.total, self.done, self.began = self.add_task("experiments", total=total), total, 0, now()

    def get_renderables(self) -> Iterator[RenderableType]:
        grid = Table.grid(padding=(0, 2))
        for name, where in self.stages.items():
            grid.add_row(name, *where)
        yield grid
        yield from super().get_renderables()

    def show(self, name: str, node: str, stage: str) -> None:
        """Show the node and the stage of an experiment."""
        self.stages[name] = (node, stage)
        if self.disable:
            self.console.print(f"{name}, {node}: {stage}")

    def requeue(self, name: str, sentence: str) -> None:
        """Show that an experiment has to be run again."""
        self.stages.pop(name, None)
        self.console.print(f"{name}: {sentence}")

    def end(self, name: str, sentence: str) -> None:
        """Show that an experiment is done or has failed."""
        self.requeue(name, sentence)
        self.done += 1
        self.advance(self.bar)
        if self.disable:
            left = (now() - self.began) / self.done * (self.total - self.done)
            self.console.print(f"{self.done} of {self.total} done, about {left:.0f} s left")
