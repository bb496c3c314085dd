"""Which losses of a training are kept: a rule of its own, since the reference run has to keep the same ones."""

KEPT_LOSSES = 100_000


def kept_steps(steps: int) -> range:
    """The steps of a training whose loss is kept: all of them, or every n-th where that would be over KEPT_LOSSES."""
    return range(0, steps, -(-steps // KEPT_LOSSES))
