"""Whether params.yaml is valid: asked by `make repro` before DVC reads it, whose own messages name no remedy."""

from pipeline.params import load_params
from stages import run


def main() -> None:
    load_params()


if __name__ == "__main__":
    run(main, alone=False)
