"""A killed training continues from its checkpoint and gives the same result as an unbroken one."""

from pathlib import Path

import numpy as np
import pytest
from conftest import HOST, LESSONS, dataset

from pipeline.clock import Stopwatch
from pipeline.runtimes import open_implementation
from pipeline.training import checkpoint as checkpoints
from pipeline.training import data, history
from pipeline.training import train as training
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.reference import reference_run

STEPS = 47  # of batches of 16 of 96 examples: seven epochs and five batches
DIGEST = bytes(range(32))


class KilledError(Exception):
    """An exception that ends a training like a signal."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "CALLS", 16)  # calls of two steps


def train(name: str, drawn: data.DataSet, checkpoint: Checkpoint, killed_at: int = STEPS + 1) -> training.Training:
    def on_progress(done: int, _: float) -> None:
        if done >= killed_at:
            raise KilledError

    opened = open_implementation(name, LESSONS[name], HOST)
    return training.train(
        name,
        open_implementation(name, LESSONS[name], HOST).create,
        drawn,
        learning_rate=0.05,
        steps=STEPS,
        batch_size=16,
        stopwatch=Stopwatch(opened.runtime.synchronize),
        on_progress=on_progress,
        checkpoint=checkpoint,
    )


def always(name: str) -> Checkpoint:
    return Checkpoint(name, DIGEST, 1e-9)


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
@pytest.mark.parametrize("name", LESSONS)
def test_killed_training_continues_to_the_result_of_an_unbroken_one(
    name: str, streamed: bool, monkeypatch: pytest.MonkeyPatch
):
    opened = dataset(LESSONS[name])
    if streamed:
        batch_bytes = 16 * sum(array[:1].nbytes for array in opened.train.values())
        monkeypatch.setattr(data, "CHUNK_BYTES", 4 * batch_bytes)
        assert len(opened.chunks(16)) == 2
    monkeypatch.setattr(history, "KEPT_LOSSES", 20)  # every third loss is kept
    unbroken = train(name, opened, checkpoints.NONE)
    for killed_at in (10, 33):
        with pytest.raises(KilledError):
            train(name, opened, always(name), killed_at)
    broken = train(name, opened, always(name))
    assert len(broken.continued_at) == 2
    assert 0 < broken.continued_at[0] < 10 <= broken.continued_at[1] < 33
    np.testing.assert_array_equal(broken.losses, unbroken.losses)
    for key, weight in unbroken.weights.items():
        np.testing.assert_array_equal(broken.weights[key], weight)


def test_killed_reference_run_continues_to_the_same_result(monkeypatch: pytest.MonkeyPatch):
    opened, sizes = dataset("two_layer"), {"steps": STEPS, "batch_size": 16, "learning_rate": 0.05}
    unbroken = reference_run("two_layer", opened, **sizes)
    batches = iter(range(20))

    class Dying(Checkpoint):
        def write(self, state: checkpoints.State) -> None:
            super().write(state)
            if next(batches) == 19:
                raise KilledError

    with pytest.raises(KilledError):
        reference_run("two_layer", opened, **sizes, checkpoint=Dying("reference", DIGEST, 1e-9))
    assert len(list(checkpoints.FOLDER.iterdir())) == 1
    broken = reference_run("two_layer", opened, **sizes, checkpoint=always("reference"))
    assert broken.keys() == unbroken.keys()
    for key, array in unbroken.items():
        np.testing.assert_array_equal(broken[key], array)


def killed(name: str, opened: data.DataSet, digest: bytes = DIGEST) -> Path:
    """The checkpoint of a killed training."""
    checkpoint = Checkpoint(name, digest, 1e-9)
    with pytest.raises(KilledError):
        train(name, opened, checkpoint, 10)
    return checkpoint.path


def test_checkpoint_of_other_code_data_or_params_is_not_used(capsys: pytest.CaptureFixture):
    opened = dataset("two_layer")
    path = killed("numpy_arrays", opened)
    assert train("numpy_arrays", opened, Checkpoint("numpy_arrays", bytes(32), 0)).continued_at == ()
    other = Checkpoint("torch_tensors", DIGEST, 0)
    assert train("torch_tensors", opened, other).continued_at == ()
    assert not capsys.readouterr().err
    Checkpoint("numpy_arrays", bytes(32), 0).path.write_bytes(path.read_bytes())  # in the place of another checkpoint
    assert train("numpy_arrays", opened, Checkpoint("numpy_arrays", bytes(32), 0)).continued_at == ()
    assert "starts from step 0" in capsys.readouterr().err


def test_damaged_checkpoint_restarts_the_training_from_step_0(capsys: pytest.CaptureFixture):
    opened = dataset("two_layer")
    path = killed("numpy_arrays", opened)
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-9], b"", whole[:-4] + b"\0\1\2\3"):
        path.write_bytes(damaged)
        done = train("numpy_arrays", opened, Checkpoint("numpy_arrays", DIGEST, 0))
        assert done.continued_at == ()
        assert "starts from step 0" in capsys.readouterr().err


def test_only_the_newest_checkpoints_of_an_implementation_are_kept():
    opened = dataset("two_layer")
    paths = [killed("numpy_arrays", opened, bytes([number] * 32)) for number in range(checkpoints.KEPT + 2)]
    assert [path.exists() for path in paths] == [False, False] + checkpoints.KEPT * [True]
    assert not list(checkpoints.FOLDER.glob(".*")), "a temporary file is left"


def test_no_checkpoint_is_written_before_its_interval():
    train("numpy_arrays", dataset("two_layer"), Checkpoint("numpy_arrays", DIGEST, 3600))
    train("numpy_arrays", dataset("two_layer"), Checkpoint("numpy_arrays", DIGEST, 0))
    assert not checkpoints.FOLDER.exists()


def test_digest_changes_with_params_and_dependencies(tmp_path: Path):
    (tmp_path / "dvc.yaml").write_text(
        "stages: {train: {foreach: [a], do: {cmd: x, deps: [code, 'data/${item}']}}}"  # as in dvc.yaml
    )
    (tmp_path / "code").mkdir()
    (tmp_path / "code/lesson.py").write_text("1")
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "data/a/manifest.json").write_text("{}")

    def digest(**params: object) -> bytes:
        return checkpoints.depends_on("train@a", "a", dict(params))

    first = digest(steps=1)
    assert digest(steps=1) == first
    assert digest(steps=2) != first
    for file, content in (("code/lesson.py", "2"), ("data/a/manifest.json", "{ }"), ("code/more.py", "")):
        before = digest(steps=1)
        (tmp_path / file).write_text(content)
        assert digest(steps=1) != before, file
