"""The statistics over many seeds, from the table of `make seeds`: parity for each seed, means with their intervals, and
whether one value of a swept parameter is better than another."""

import sys
from collections.abc import Mapping
from math import nan
from typing import Any, NamedTuple

from pipeline import files
from pipeline.benchmark.intervals import Estimate, mean
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.text import columns

LEAST = 3  # seeds of a value, to compare it with others


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
    """`table` has a row for each training: its seed, the swept parameters as text, `setting` (all of them together),
    implementation, problem, measures, and `failed`: whether it fails the parity check."""

    table: Any  # a pandas.DataFrame
    parameters: list[str]  # the swept parameters
    limits: Mapping[str, float]

    def rows(self) -> list[Row]:
        return [
            Row(
                setting=setting,
                implementation=name,
                passed=int((~group.failed).sum()),
                seeds=len(group),
                loss=_mean(group.test_loss),
                r2=_mean(group.test_r2),
                worst=group[list(self.limits)].max(skipna=False).to_dict(),
            )
            for (setting, name), group in self.table.groupby(["setting", "implementation"], sort=False)
        ]

    def passed(self) -> tuple[int, int]:
        """How many experiments have every implementation within tolerance, and how many there are."""
        failed = self.table.groupby(["seed", "setting"]).failed.any()
        return int((~failed).sum()), len(failed)


def read(params: Params) -> Seeds:
    """The table that `make seeds` wrote, judged by the tolerances of `params`.

    Raises UserError when it is damaged, or holds no result of an implementation of `params`.
    """
    try:
        seeds = _read(params)
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"{files.SEEDS} is damaged ({error}). make seeds N=… writes it again.") from None
    if seeds.table.test_loss.notna().any():
        return seeds
    raise UserError(f"{files.SEEDS} has no result of params.yaml's implementations. make seeds N=… writes it again.")


def read_if_usable(params: Params) -> Seeds | None:
    """The table, if it exists. A warning is printed if it cannot be used."""
    try:
        return read(params) if files.SEEDS.exists() else None
    except UserError as error:
        print(f"WARNING: the report leaves the seeds out: {error}", file=sys.stderr)
        return None


def _read(params: Params) -> Seeds:
    import pandas as pd  # a third of a second

    table: Any = pd.read_csv(files.SEEDS, dtype=str, keep_default_na=False)
    names, order = list(table), {name: number for number, name in enumerate(params.implementations)}
    parameters = names[names.index("seed") + 1 : names.index("implementation")]
    table = table.replace({measure: {"": "nan"} for measure in names[names.index("problem") + 1 :]})
    table = table.astype({"seed": int} | dict.fromkeys(names[names.index("problem") + 1 :], float))
    table = table.assign(order=table.implementation.map(order)).dropna(subset="order")
    table = table.sort_values([*parameters, "order", "seed"], key=lambda column: pd.to_numeric(column, errors="coerce"))
    tolerances = dict(params.tolerances)
    # `~ <=` rather than `>`: a measure that is not a number fails any tolerance.
    failed = ~(table[list(tolerances)] <= pd.Series(tolerances)).all(axis=1)
    return Seeds(table.assign(setting=_settings(table, parameters), failed=failed), parameters, tolerances)


def better(seeds: Seeds) -> list[str]:
    """For each swept parameter and problem a sentence: which value has the lowest held-out loss, if the data decide.
    They decide if, for every other value, the 95 % confidence interval of the paired difference (same seed, same
    implementation, all other params the same) excludes 0.
    """
    problems = seeds.table.problem.unique()
    sentences = (_better(seeds, parameter, problem) for parameter in seeds.parameters for problem in problems)
    return [sentence for sentence in sentences if sentence]


def losses(seeds: Seeds, parameter: str, name: str) -> dict[str, list[float]]:
    """An implementation's held-out losses by the value of a swept parameter. The other swept parameters have the values
    that most of the experiments have."""
    table = seeds.table[seeds.table.implementation == name]
    others = _settings(table, [other for other in seeds.parameters if other != parameter])
    table = table[others == others.mode()[0]]
    trained = table[table.test_loss.notna()]
    return {str(value): list(group.test_loss) for value, group in trained.groupby(parameter, sort=False)}


def table(seeds: Seeds) -> str:
    """The rows as text."""
    measures = [measure.replace("_", " ") for measure in seeds.limits]
    rows = [("", "", "passed", "held-out loss", "R²", *measures)]
    for row in seeds.rows():
        worst = (f"≤ {value:.1e}" for value in row.worst.values())
        passed = f"{row.passed} of {row.seeds}"
        rows.append((row.setting, row.implementation, passed, interval(row.loss), interval(row.r2), *worst))
    rows.append(("", "tolerance", "", "", "", *(f"  {limit:.1e}" for limit in seeds.limits.values())))
    return "\n".join([columns(rows), *failures(seeds), *better(seeds)])


def failures(seeds: Seeds) -> list[str]:
    """A sentence on the seeds whose experiment failed, for example because the loss diverged; none if all have
    results."""
    failed = sorted(set(seeds.table[seeds.table.test_loss.isna()].seed))
    numbers = ", ".join(map(str, failed))
    return [f"No result, and so not passed: seed {numbers}, whose experiment failed."] if failed else []


def _mean(values: Any) -> Estimate:
    """The statistics of the seeds that have results."""
    values = list(values.dropna())
    return mean(values) if values else Estimate(nan, nan, nan)


def interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ({estimate.low:.4f} … {estimate.high:.4f})"


def _better(seeds: Seeds, parameter: str, problem: str) -> str:
    table = seeds.table[seeds.table.problem == problem]
    name = table.implementation.iloc[0]  # the implementations agree within the tolerances, so one is enough
    table = table[table.implementation == name]
    others = _settings(table, [other for other in seeds.parameters if other != parameter])
    # A row for each seed and setting of the other parameters, a column for each value of this one.
    paired = table.assign(others=others).pivot_table("test_loss", ["seed", "others"], parameter, "last", sort=False)
    few = [str(value) for value, count in paired.count().items() if count < LEAST]
    paired = paired.drop(columns=few)
    if paired.shape[1] < 2:
        return ""
    best = str(paired.mean().idxmin())
    differences = {str(value): (losses - paired[best]).dropna() for value, losses in paired.items() if value != best}
    intervals = {value: mean(list(pairs)) for value, pairs in differences.items() if len(pairs) >= LEAST}
    doubtful = [value for value in differences if value not in intervals or intervals[value].low <= 0]
    without = f", {', '.join(few)} left out: too few seeds" if few else ""
    start = f"{problem} ({name}), {parameter}{without}: "
    if doubtful:
        others = ", ".join(doubtful)
        return (
            f"{start}the seeds do not decide which value is best. {best} has the lowest loss, but the interval of a "
            f"difference contains 0: {others}."
        )
    value, nearest = min(intervals.items(), key=lambda item: item[1].value)
    return (
        f"{start}{best} is the best of {paired.shape[1]}; the next loses {nearest.value:.2g} "
        f"({nearest.low:.2g} … {nearest.high:.2g}) more, paired over {len(differences[value])} seeds."
    )


def _settings(table: Any, parameters: list[str]) -> Any:
    """The values of these parameters, in words."""
    return table.apply(lambda row: ", ".join(f"{key.removeprefix('train.')}={row[key]}" for key in parameters), axis=1)
