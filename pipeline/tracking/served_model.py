"""The model that a tracked run carries: weights as safetensors, and the problem's own equations to predict with.

MLflow stores this file as it is and runs it again when the model is loaded: nothing is pickled. It needs NumPy alone:
every implementation's weights are served alike. The problem's file is in a package whose name has the digest of its
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
