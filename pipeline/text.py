"""Tables as text."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[object]], between: str = "  ") -> str:
    """A line for each row, with aligned columns. With `between=" | "` and a row of `---` it is Markdown."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*texts, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in texts)
    return "\n".join(between.join(cells).rstrip() for cells in padded)
