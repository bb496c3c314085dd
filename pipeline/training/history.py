"""The rule for which losses of a training are kept. The reference and all implementations use the same rule."""

KEPT_LOSSES = 100_000


def kept_steps(steps: int) -> range:
    """The steps of a training whose loss is kept: all, or every n-th if all would be more than KEPT_LOSSES."""
    return range(0, steps, -(-steps // KEPT_LOSSES))
