"""Installs the package `llmshearing`; the versions that were tested stand in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def requirements() -> list[str]:
    lines = (HERE / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


setup(
    name="llmshearing",
    version="0.1.0",
    description="Prune a large language model to a smaller shape, then continue pre-training it.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["llmshearing", "llmshearing.*"]),
    package_data={"llmshearing": ["py.typed", "**/*.css"]},
    entry_points={"console_scripts": ["llmshearing=llmshearing.__main__:main"]},
    python_requires=">=3.10,<3.14",
    install_requires=requirements(),
    extras_require={
        "flash": ["flash-attn>=2.5,<3"],
        "liger": ["liger-kernel>=0.8.5"],
        "eval": ["lm-eval>=0.4.13"],
        "tune": ["trl>=0.24", "accelerate>=1.4"],
        "track": ["wandb>=0.17,<0.25", "tensorboard", "mlflow"],
        "gguf": ["gguf>=0.10", "accelerate>=1.0"],
        "ray": ["datatrove[ray]>=0.9"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.6",
            "pyright[nodejs]>=1.1.400",
            "gguf>=0.10",
            "accelerate>=1.0",
            "datatrove[ray]>=0.9",
            "lm-eval>=0.4.13",
            "trl>=0.24",
            "tensorboard",
            "zstandard",
        ],
    },
)
