"""Models of several runs in one Python process, outside a checkout and inside one."""

import sys
from pathlib import Path

import pytest
from conftest import Clone
from stores import FILTERS, Send, database

pytestmark = [pytest.mark.environments, FILTERS]
LOAD = """
import sys
import mlflow, numpy as np
folder = sys.argv[1]
inputs = {
    problem: {key: np.load(f"{folder}/data/{problem}/test_{key}.npy") for key in keys}
    for problem, keys in (("two_layer", ("x",)), ("recurrent", ("x", "lengths")))
}
def predict(model, problem):
    return mlflow.pyfunc.load_model(f"models:/{model}").predict(inputs[problem])
first = predict("numpy_arrays/1", "two_layer")
assert predict("torch_loop/1", "recurrent").shape[0] == len(inputs["recurrent"]["x"])
np.testing.assert_array_equal(predict("numpy_arrays/1", "two_layer"), first)
np.testing.assert_array_equal(predict("numpy_arrays/2", "two_layer"), first + 1)  # of another version of the code
np.testing.assert_array_equal(predict("numpy_arrays/1", "two_layer"), first)
print("pipeline" in sys.modules)
"""


def test_models_of_several_problems_and_versions_load_in_one_process(send: Send, project: Clone, tmp_path: Path):
    assert send(database(project)) == ""
    file = project.path / "pipeline/problems/two_layer.py"
    file.write_text(file.read_text() + "\nbefore = predict\n\ndef predict(*arrays):\n    return before(*arrays) + 1\n")
    project.set("seed", 5)
    assert send(database(project)) == ""
    environment = {"MLFLOW_TRACKING_URI": database(project)}
    command = [sys.executable, "-c", LOAD, str(project.path)]
    outside = Clone(tmp_path / "outside")
    outside.path.mkdir()
    assert outside.run(*command, env=environment).stdout == "False\n"
    command[2] = f"from pipeline.problems import two_layer, recurrent\n{LOAD}"
    done = project.run(*command, env=environment)
    assert (done.stdout, done.stderr) == ("True\n", "")
