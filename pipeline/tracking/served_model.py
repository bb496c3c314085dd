"""The model of a tracked run: weights as safetensors, and the problem's equations to predict with. MLflow stores this
file unchanged and runs it when the model is loaded, so nothing is pickled. The file needs only NumPy, and serves the
weights of every implementation in the same way. The problem's file is in a package whose name has the digest of its
code, so models of any versions load in one process, also in a checkout.

Input: a dict of the arrays of a batch without y; output: y_pred.
"""

from importlib import import_module
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel  # pyright: ignore[reportPrivateImportUsage]
from safetensors.numpy import load_file


class ServedModel(PythonModel):
    def load_context(self, context: Any) -> None:
        self.problem = import_module(context.model_config["problem"])
        self.weights = load_file(context.artifacts["weights"])

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        arrays: Any = model_input  # a dict of them; ndarray is the hint that MLflow does not take for a schema
        return self.problem.predict(self.weights, *arrays.values())


set_model(ServedModel())
