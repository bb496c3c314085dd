"""Random wrong params and damaged files: each is refused with a sentence, or is harmless. FUZZ is the number of params
files; a fifth as many damaged files are tried. SEED seeds the random choices.
"""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, Clone

from pipeline import files
from pipeline.array_files import read_arrays
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.running.machine import available_memory
from pipeline.training import resource_check
from pipeline.training.data import DataSet

FUZZ = int(os.environ.get("FUZZ", "200"))
SEED = int(os.environ.get("SEED", "0"))
NUMPY = "numpy_arrays"
DEFAULT = (REPOSITORY / "params.yaml").read_text()

VALUES: list[Any] = [
    *(None, "", " ", "fast", "x" * 5000, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e-320),
    *(1e308, float("inf"), float("nan"), "1e3", "1e999", "0x10", "1_000", [], [[]], [1, 2], {}, {"a": 1}, {1: 2}),
    *({None: None}, "\0", "\ud7ff", "é", "\n", "../../etc/passwd", "__import__('os')", "!!python/object", "${HOME}"),
    *("2026-13-45", "1:30"),
]
TEXTS = [
    *("[" * 2000, "{a: " * 2000, "- " * 3000, "a: &x [*x]", "a: !!python/object/apply:os.system [touch /tmp/fuzzed]"),
    *("!!binary aaaa", "--- 1\n--- 2", "%YAML 9.9\n---\na: 1", "? [a]\n: b", "a: 'x", 'a: "\\x"', "\t- a"),
    *("a:\n b\n  c: d", "seed: 2026-13-45", "seed: 0x" + "f" * 5000, "seed: " + "9" * 5000, "seed: 1\nseed: 2"),
    *("=: =", "<<: {seed: 1}", "a: *b", "&a a: *a", "# only a comment", "...", "null", "[]", "1", "'text'"),
    *("a: |\n  x\n y", "\0", "a" * 200_000),
]


def paths(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The keys of every value in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from paths(value, (*path, key))


def mutated(draw: random.Random) -> bytes:
    """The default params.yaml with a mistake."""
    kind = draw.randrange(6)
    if kind == 0:
        return draw.choice(TEXTS).encode()
    if kind == 1:
        line = draw.randrange(len(DEFAULT.splitlines()))
        lines = DEFAULT.splitlines()
        lines[line : line + 1] = draw.choice([[], [lines[line]] * 2, [draw.choice(TEXTS)[:500]], [" " + lines[line]]])
        return "\n".join(lines).encode()
    if kind == 2:
        content = bytearray(DEFAULT.encode())
        for _ in range(draw.randrange(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        return bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
    if kind == 3:
        return DEFAULT.encode(draw.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"]))
    tree = yaml.safe_load(DEFAULT)
    for _ in range(draw.randrange(1, 3)):
        section: Any = tree
        *keys, last = draw.choice(list(paths(tree)))
        for key in keys:
            section = section[key]
        if draw.random() < 0.2:
            section[draw.choice(["x", "seed", 7]) if isinstance(section, dict) else last] = draw.choice(VALUES)
        else:
            section[last] = draw.choice(VALUES)
    return yaml.safe_dump(tree, allow_unicode=True).encode(errors="replace")


def test_random_params_are_read_or_refused_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    draw, path, refused = random.Random(SEED), tmp_path / "params.yaml", 0
    for number in range(FUZZ):
        path.write_bytes(mutated(draw))
        try:
            params = load_params(path)
            resource_check.check_memory(params)
        except UserError as error:  # anything else is a traceback
            refused += 1
            for line in str(error).splitlines():
                assert line.startswith((str(path), "params.yaml")), f"seed {SEED}, file {number}"
                assert len(line.replace(str(path), "")) < 500, f"seed {SEED}, file {number}: {line}"
    assert refused > FUZZ / 2
    assert not Path("/tmp/fuzzed").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("seed: 1\n" + DEFAULT, "the key seed is there twice"),
        (DEFAULT.replace("steps: 500", "steps: 500, steps: 600"), "the key steps is there twice"),
        (DEFAULT.replace("seed: 0", "seed: " + "x" * 5000), f"seed is '{'x' * 78}…"),
        (DEFAULT.replace("seed: 0", "seed: &a 0"), "YAML anchors are not supported here; repeat the value (line"),
        (DEFAULT.replace("seed: 0", "seed: *a"), "YAML anchors are not supported here; repeat the value (line"),
        (DEFAULT.replace("seed: 0", "seed: !!int 0"), "the tag tag:yaml.org,2002:int is not supported here"),
        (DEFAULT + "---\nseed: 1\n", "but found another document"),
        (DEFAULT.replace("seed: 0", "seed: " + "[" * 3000), "is nested too deeply"),
        (DEFAULT.encode("utf-16"), "begins with a byte order mark"),
        (DEFAULT.encode("utf-8-sig"), "begins with a byte order mark"),
        (DEFAULT.encode() + b"# \xff", "is not UTF-8 text: byte"),
        (DEFAULT + "\0", "special characters are not allowed"),
        (DEFAULT.replace("seed: 0", "seed: 2026-13-45"), "seed is '2026-13-45'"),
        (DEFAULT.replace("seed: 0", "seed: " + "9" * 5000), "Exceeds the limit"),
        (
            DEFAULT.replace("hidden: 100,", f"hidden: {2**63},"),
            "hidden is 9223372036854775808; it should be less than",
        ),
        (DEFAULT + "# " + "x" * 200_000, "bytes long, and at most"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) and len(value) < 100 else "",
)
def test_wrong_params_file_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, sentence: str
):
    monkeypatch.chdir(REPOSITORY)
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        load_params(path)
    assert sentence in str(error.value)


# Sizes that are checked before work starts.


@pytest.mark.parametrize(
    ("old", "sentence"),
    [
        ("hidden: 100,", "problems.two_layer.data.hidden is 9,000,000,000: the weights, three times in float64, take"),
        ("hidden: 128,", "problems.recurrent.data.hidden is 9,000,000,000: the weights"),
        ("test_examples: 1024}", "problems.two_layer.data.test_examples is 9,000,000,000: the inputs of the test set"),
        ("hidden: 2048,", "problems.two_layer.benchmark.3.hidden is 9,000,000,000: the weights"),
        ("max_length: 32, train", "problems.recurrent.data.max_length is 9,000,000,000: the inputs of the test set"),
    ],
    ids=["w1", "wh", "test set", "benchmark", "lengths"],
)
def test_size_that_does_not_fit_is_refused_and_the_proposed_one_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, sentence: str
):
    monkeypatch.chdir(REPOSITORY)
    path, (number,) = tmp_path / "params.yaml", re.findall(r"\d+(?=\D*$)", old)
    assert old in DEFAULT
    path.write_text(DEFAULT.replace(old, old.replace(number, "9000000000"), 1))
    with pytest.raises(UserError) as error:
        resource_check.check_memory(load_params(path))
    assert sentence in str(error.value)
    at_most = str(error.value).rpartition("about ")[2].rstrip(".").replace(",", "")
    path.write_text(DEFAULT.replace(old, old.replace(number, at_most), 1))  # the size that it proposes fits
    resource_check.check_memory(load_params(path))


def test_few_examples_of_a_huge_size_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`generate` draws 1,024 examples even if fewer are asked for."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(resource_check, "available_memory", lambda: 2**30)
    path, sizes = tmp_path / "params.yaml", "inputs: 64, hidden: 128, outputs: 10, min_length: 1, max_length: 32"
    few = DEFAULT.replace(
        f"{sizes}, train_examples: 5120, test_examples: 1024", f"{sizes}, train_examples: 256, test_examples: 8"
    )
    path.write_text(few.replace("max_length: 32, train", "max_length: 5000, train"))
    with pytest.raises(UserError, match=r"max_length is 5,000: the inputs of the 1,024 examples .* about 4,000\.$"):
        resource_check.check_memory(load_params(path))


def test_default_sizes_fit():
    resource_check.check_memory(load_params(REPOSITORY / "params.yaml"))
    assert 2**28 < available_memory() < 2**44


def test_data_that_do_not_fit_on_the_disk_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(REPOSITORY)
    path = tmp_path / "params.yaml"
    path.write_text(DEFAULT.replace("train_examples: 6400", "train_examples: 9000000000000"))
    with pytest.raises(
        UserError, match=r"problems\.two_layer\.data\.train_examples is .* of disk are free\. Take at most about"
    ):
        resource_check.check_disk(load_params(path), "two_layer")


# Damaged files.


def damaged(content: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    start, changed = draw.randrange(len(content)), bytearray(content)
    changed[start] ^= 1 << draw.randrange(8)
    return draw.choice(
        [
            content[:start],
            bytes(changed),
            draw.choice(others),
            draw.randbytes(draw.randrange(1, 2000)),
            (2 ** draw.choice([20, 40, 62])).to_bytes(8, "little") + content[8:],  # a header with a huge size
            content[:start] + draw.randbytes(4) + content[start + 4 :],
        ]
    )


READERS: dict[str, Callable[[Path], Any]] = {
    "data/two_layer/train_x.npy": lambda _: DataSet("two_layer"),
    "data/two_layer/initial.safetensors": lambda _: DataSet("two_layer"),
    "data/two_layer/manifest.json": lambda _: DataSet("two_layer"),
    f"models/{NUMPY}/weights.safetensors": read_arrays,
    f"models/{NUMPY}/outputs.safetensors": read_arrays,
    "reference/two_layer.safetensors": read_arrays,
    f"results/{NUMPY}/history.csv": lambda _: files.read_history(NUMPY),
    "results/predictions/two_layer.csv": lambda _: files.read_predictions("two_layer"),
    f"results/fits/{NUMPY}.csv": lambda _: files.read_fit(NUMPY),
    f"results/{NUMPY}/timing.json": files.read_json,
    "environment.json": lambda _: files.read_environment(),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, DataSet):
        return same(one.initial, other.initial) and same(one.train, other.train)
    if isinstance(one, dict) and one and isinstance(next(iter(one.values())), np.ndarray):
        return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
    return one == other


def test_damaged_files_are_refused_or_read_unchanged(finished: Clone, monkeypatch: pytest.MonkeyPatch):
    """A damaged file with a checksum is never read. Files without a checksum are text, and DVC has their checksums."""
    monkeypatch.chdir(finished.path)
    draw, refused, longest = random.Random(SEED), 0, 0
    contents = {name: Path(name).read_bytes() for name in READERS}
    right = {name: read(Path(name)) for name, read in READERS.items()}
    for number in range(max(20, FUZZ // 5)):
        name = draw.choice(list(READERS))
        others = [content for other, content in contents.items() if other != name]
        Path(name).unlink()  # a mapped file is not cut under its readers
        Path(name).write_bytes(damaged(contents[name], draw, others))
        try:
            content = READERS[name](Path(name))
            if READERS[name] is read_arrays:  # in the same way as a stage, which knows the expected content
                content = read_arrays(Path(name), {key: array.shape for key, array in right[name].items()})
            text = name.endswith((".csv", "timing.json", "environment.json"))
            assert text or same(content, right[name]), f"seed {SEED}, file {number}: {name}"
        except UserError as error:
            refused += 1
            longest = max(longest, len(str(error)))
        Path(name).unlink()
        Path(name).write_bytes(contents[name])
    assert refused > 10
    assert longest < 600


@pytest.mark.faults
def test_damaged_results_are_restored_by_dvc_repro(finished: Clone):
    draw = random.Random(SEED)
    patterns = ("data/**/*.*", "reference/*", "models/**/*.*", "results/**/*.*", "parity/*")
    before = finished.digests(*patterns)
    for _ in range(max(3, FUZZ // 100)):
        for name in draw.sample(sorted(before), 4):
            (finished.path / name).write_bytes(damaged(before[name], draw, list(before.values())))
        finished.run("dvc", "repro")
        assert finished.digests(*patterns) == before


@pytest.mark.faults
def test_stage_with_a_damaged_input_changes_nothing(finished: Clone):
    """Each stage alone, without DVC's checksums: a sentence, exit status 1, and no change of its outputs."""
    draw = random.Random(SEED)
    data = [f"data/two_layer/{name}" for name in ("train_y.npy", "initial.safetensors", "manifest.json")]
    models = [f"models/{NUMPY}/{name}.safetensors" for name in ("weights", "outputs")]
    inputs = {"train": [*data, "environment.json"], "evaluate": ["reference/two_layer.safetensors", *models]}
    for stage, names in inputs.items():
        for name in names:
            path, good = finished.path / name, (finished.path / name).read_bytes()
            path.write_bytes(good[: draw.randrange(len(good) - 1)])
            before = finished.digests("results/**/*.*", "models/**/*.*", "parity/*")
            done = finished.run(sys.executable, "-m", f"stages.{stage}", NUMPY, succeeds=False)
            assert done.stderr.startswith("ERROR: "), name
            assert Path(name).name in done.stderr
            assert finished.digests("results/**/*.*", "models/**/*.*", "parity/*") == before
            path.write_bytes(good)


def test_evaluating_one_implementation_needs_only_the_data_of_its_problem(finished: Clone):
    """`make reproduce` calls it in the same way, in a clone where nothing else ran."""
    for folder in ("data", "reference", "models"):
        finished.run("bash", "-c", f"rm -r {folder}/*recurrent* {folder}/torch_loop || true")
    assert not (finished.path / "data/recurrent").exists()
    before = (finished.path / f"parity/{NUMPY}.json").read_bytes()
    finished.run("rm", "-r", f"parity/{NUMPY}.json", "results/curves", "results/predictions", "results/fits")
    finished.run(sys.executable, "-m", "stages.evaluate", NUMPY)
    assert (finished.path / f"parity/{NUMPY}.json").read_bytes() == before
    for folder in ("curves", "predictions", "fits"):  # which are of all
        assert not (finished.path / "results" / folder).exists()


def test_header_with_a_huge_size_allocates_no_memory(tmp_path: Path):
    """A safetensors header that promises 2⁶⁰ bytes."""
    header = json.dumps({"w": {"dtype": "F64", "shape": [2**57], "data_offsets": [0, 2**60]}}).encode()
    (tmp_path / "huge.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="damaged"):
        read_arrays(tmp_path / "huge.safetensors")
    program = (
        "import sys, pathlib\n"
        "from pipeline.array_files import read_arrays\n"
        "from pipeline.errors import UserError\n"
        "from pipeline.runtimes import peak_process_bytes\n"
        "try: read_arrays(pathlib.Path(sys.argv[1]))\n"
        "except UserError: print(peak_process_bytes())"
    )
    command = [sys.executable, "-c", program, tmp_path / "huge.safetensors"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300e6


def test_pickle_in_the_data_is_not_loaded(finished: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(finished.path)
    path, manifest, marker = Path("data/two_layer/train_y.npy"), Path("data/two_layer/manifest.json"), Path("executed")

    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(marker), "w"))

    path.unlink()
    np.save(path, np.array([Evil()], dtype=object), allow_pickle=True)
    # With a correct checksum, so that only the loader refuses it.
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {path.name: files.sha256(path)}))
    with pytest.raises(UserError, match="holds an array that cannot be read"):
        DataSet("two_layer")
    assert not marker.exists()
