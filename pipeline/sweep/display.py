"""How a sweep shows that it gets on: a line for each experiment, and a bar with the time that is left."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.clock import now


class Display:
    """On a terminal a row for each experiment under way, rewritten as it gets on, above a bar of all; elsewhere a line
    for each thing that is said."""

    def __init__(self, total: int) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        self.all = self.bar.add_task("experiments", total=total)
        self.rows: dict[str, tuple[str, str]] = {}
        self.total, self.done, self.began = total, 0, now()
        self.live = Live(console=self.console, get_renderable=self._drawn, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def say(self, name: str, node: str, stage: str) -> None:
        """Where an experiment is."""
        self.rows[name] = (node, stage)
        if not self.console.is_terminal:
            self.console.print(f"{name}, {node}: {stage}")

    def again(self, name: str, sentence: str) -> None:
        """An experiment has to be run again."""
        self.rows.pop(name, None)
        self.console.print(f"{name}: {sentence}")

    def end(self, name: str, sentence: str) -> None:
        """An experiment is done, or has failed."""
        self.again(name, sentence)
        self.done += 1
        self.bar.advance(self.all)
        if not self.console.is_terminal:
            left = (now() - self.began) / self.done * (self.total - self.done)
            self.console.print(f"{self.done} of {self.total} done, about {left:.0f} s left")

    def _drawn(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, (node, stage) in self.rows.items():
            table.add_row(name, node, stage)
        return Group(table, self.bar)
