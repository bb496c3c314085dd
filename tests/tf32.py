"""The difference of a TF32 training from the float64 reference, with the rounding of TF32 emulated on a CPU.

    PYTHONPATH=. python tests/tf32.py        in a checkout whose data and reference were made

A tensor core multiplies float32 numbers with 10 bits of mantissa and adds the products in float32. The bits that it
does not use are cut off, or rounded away before; both are tried. Prints, for a lesson and a rounding each, the measures
of parity as JSON.
"""

import json

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import files
from pipeline.array_files import read_arrays
from pipeline.clock import Stopwatch
from pipeline.environment import resolve
from pipeline.params import load_params
from pipeline.parity.evaluation import evaluate
from pipeline.runtimes import open_implementation
from pipeline.training.data import DataSet
from pipeline.training.outputs import outputs
from pipeline.training.train import train

UNUSED_BITS = 13
ROUNDINGS = {"nearest": 1 << (UNUSED_BITS - 1), "cut": 0}  # what is added before the unused bits become 0


class TF32(TorchDispatchMode):
    def __init__(self, rounding: int) -> None:
        super().__init__()
        self.rounding = rounding

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            args = tuple(self._rounded(value) for value in args)
        return func(*args, **(kwargs or {}))

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int32) + self.rounding
        return (bits & -(1 << UNUSED_BITS)).view(torch.float32)


def main() -> None:
    params = load_params()
    environment = resolve(params.model_copy(update={"device": "cpu", "threads": 1}))
    for name in ("torch_autograd", "torch_loop"):
        problem = params.problem_of(name)
        data, schedule = DataSet(problem), params.problems[problem].train
        keys = {"train_loss": None, "predictions": None, **{f"gradient.{key}": None for key in data.initial}}
        reference = read_arrays(files.reference_file(problem), keys)
        for rounding, added in ROUNDINGS.items():
            opened = open_implementation(name, problem, environment)
            with TF32(added):
                training = train(
                    name,
                    opened.create,
                    data,
                    learning_rate=params.train.learning_rate,
                    steps=schedule.steps,
                    batch_size=schedule.batch_size,
                    stopwatch=Stopwatch(lambda: None),
                    on_progress=lambda *_: None,
                )
                trained = outputs(opened.create, training.loop, data, schedule.batch_size) | {
                    "train_loss": training.losses
                }
            evaluation = evaluate(problem, data, weights=training.weights, outputs=trained, reference=reference)
            print(json.dumps({"seed": params.seed, "name": name, "rounding": rounding, **dict(evaluation.parity)}))


if __name__ == "__main__":
    main()
