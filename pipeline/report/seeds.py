"""What many seeds say: the certificate over all of them, means with their intervals, and whether one value of a swept
parameter is better than another. A table in, statements out; nothing is run here."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline import files
from pipeline.benchmark.intervals import Estimate, mean
from pipeline.params import Params
from pipeline.parity.report import breaches, limits

LEAST = 3  # seeds of a setting, for its interval to say something


class Seed(NamedTuple):
    """An implementation's training from one seed: `setting` has the swept params by name."""

    seed: int
    setting: tuple[tuple[str, str], ...]
    implementation: str
    problem: str
    measures: Mapping[str, float]
    breaches: list[str]


class Row(NamedTuple):
    """An implementation over the seeds of a setting."""

    setting: str
    implementation: str
    passed: int
    seeds: int
    loss: Estimate
    r2: Estimate
    worst: Mapping[str, float]  # of each parity measure


class Seeds(NamedTuple):
    each: list[Seed]
    limits: Mapping[str, float]

    @property
    def parameters(self) -> list[str]:
        """Those that were swept."""
        return [key for key, _ in self.each[0].setting]

    def rows(self) -> list[Row]:
        groups: dict[tuple[str, str], list[Seed]] = {}
        for one in self.each:
            groups.setdefault((_words(one.setting), one.implementation), []).append(one)
        return [
            Row(
                setting,
                name,
                sum(not one.breaches for one in group),
                len(group),
                mean([one.measures["test_loss"] for one in group]),
                mean([one.measures["test_r2"] for one in group]),
                {key: max(one.measures[key] for one in group) for key in self.limits},
            )
            for (setting, name), group in groups.items()
        ]

    def passed(self) -> tuple[int, int]:
        """How many experiments have every implementation within tolerance, and how many there are."""
        verdicts: dict[tuple, bool] = {}
        for one in self.each:
            key = (one.seed, one.setting)
            verdicts[key] = verdicts.get(key, True) and not one.breaches
        return sum(verdicts.values()), len(verdicts)


def read(params: Params) -> Seeds:
    """The table that `make seeds` wrote, judged by the tolerances of `params`."""
    tolerances = params.tolerances
    found = []
    for row in files.read_rows(files.SEEDS):
        names = list(row)
        swept = names[names.index("seed") + 1 : names.index("implementation")]
        measures = {key: float(row[key]) for key in names[names.index("problem") + 1 :]}
        setting = tuple((key, row[key]) for key in swept)
        where = int(row["seed"]), setting, row["implementation"], row["problem"]
        found.append(Seed(*where, measures, breaches(measures, tolerances)))
    order = {name: number for number, name in enumerate(params.implementations)}
    found = [one for one in found if one.implementation in order]
    found.sort(key=lambda one: ([_sortable(value) for _, value in one.setting], order[one.implementation], one.seed))
    return Seeds(found, limits(tolerances.model_dump()))


def better(seeds: Seeds) -> list[str]:
    """For each swept parameter and problem: which value has the lowest held-out loss, where that can be said.

    It can where, for every other value, the 95 % confidence interval of the paired difference (same seed, same
    implementation, all other params the same) excludes 0.
    """
    return [
        sentence
        for parameter in seeds.parameters
        for problem in dict.fromkeys(one.problem for one in seeds.each)
        if (sentence := _better(seeds, parameter, problem))
    ]


def losses(seeds: Seeds, parameter: str, name: str) -> dict[str, list[float]]:
    """An implementation's held-out losses by the value of a swept parameter, the other swept ones all the same: as they
    are in most of the experiments."""
    groups: dict[tuple, dict[str, list[float]]] = {}
    for one in seeds.each:
        if one.implementation == name:
            others = tuple(item for item in one.setting if item[0] != parameter)
            by_value = groups.setdefault(others, {})
            by_value.setdefault(dict(one.setting)[parameter], []).append(one.measures["test_loss"])
    most = max(groups.values(), key=lambda by_value: sum(map(len, by_value.values())))
    return dict(sorted(most.items(), key=lambda item: _sortable(item[0])))


def table(seeds: Seeds) -> str:
    """The rows as text."""
    rows = [("", "", "passed", "held-out loss", "R²", *(key.partition("_rel")[0] for key in seeds.limits))]
    for row in seeds.rows():
        worst = (f"≤ {value:.1e}" for value in row.worst.values())
        passed = f"{row.passed} of {row.seeds}"
        rows.append((row.setting, row.implementation, passed, interval(row.loss), interval(row.r2), *worst))
    rows.append(("", "tolerance", "", "", "", *(f"  {limit:.1e}" for limit in seeds.limits.values())))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *better(seeds)])


def interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ({estimate.low:.4f} … {estimate.high:.4f})"


def _better(seeds: Seeds, parameter: str, problem: str) -> str:
    names = dict.fromkeys(one.implementation for one in seeds.each if one.problem == problem)
    name = next(iter(names))  # they agree within parity, so one of them is enough
    by_value: dict[str, dict[tuple, float]] = {}
    for one in seeds.each:
        if one.implementation == name:
            pair = (one.seed, *(item for item in one.setting if item[0] != parameter))
            by_value.setdefault(dict(one.setting)[parameter], {})[pair] = one.measures["test_loss"]
    few = [value for value, found in by_value.items() if len(found) < LEAST]
    by_value = {value: found for value, found in by_value.items() if value not in few}
    if len(by_value) < 2:
        return ""
    best = min(by_value, key=lambda value: sum(by_value[value].values()) / len(by_value[value]))
    intervals = {value: _paired(by_value[value], by_value[best]) for value in by_value if value != best}
    doubtful = [value for value, (estimate, number) in intervals.items() if estimate.low <= 0 or number < LEAST]
    without = f", {', '.join(few)} left out for want of seeds" if few else ""
    start = f"{problem} ({name}), {parameter}{without}: "
    if doubtful:
        others = ", ".join(doubtful)
        return f"{start}no value can be said to be the best. {best} has the lowest loss, but not surely: {others}."
    nearest, number = min(intervals.values(), key=lambda item: item[0].value)
    return (
        f"{start}{best} is the best of {len(by_value)}; the next loses {nearest.value:.2g} "
        f"({nearest.low:.2g} … {nearest.high:.2g}) more, paired over {number} seeds."
    )


def _paired(one: dict[tuple, float], other: dict[tuple, float]) -> tuple[Estimate, int]:
    common = one.keys() & other.keys()
    return (mean([one[key] - other[key] for key in common]) if common else Estimate(0, 0, 0)), len(common)


def _words(setting: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{key.removeprefix('train.')}={value}" for key, value in setting)


def _sortable(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value
