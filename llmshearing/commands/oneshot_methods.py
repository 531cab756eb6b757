"""What `llmshearing oneshot --method` can do: for each method a row, with what it reads.

Methods of `SHAPES` make gates that close what a smaller shape does not have, those of `PATTERNS` masks on
single weights.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmshearing import cli
from llmshearing.checkpoints.opening import Checkpoint, in_pieces
from llmshearing.config import LayerChopConfig, ModelConfig
from llmshearing.config.model import SCHEMES
from llmshearing.data.samples import read_samples
from llmshearing.models.block_walk import sparse_weights
from llmshearing.models.calibration import activation_scores, taylor_scores
from llmshearing.models.decoder import Decoder
from llmshearing.pruning import nm_scores
from llmshearing.pruning import patterns as nm
from llmshearing.pruning import scores as by_score
from llmshearing.pruning.layerchop import layers_to_remove
from llmshearing.pruning.maskllm import masked_shapes
from llmshearing.pruning.score_file import (
    Origin,
    Scores,
    check_weights_of,
    fingerprint,
    read_importance,
    read_scores,
    shape_of,
    write_scores,
)
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.model_section import complete
from llmshearing.shapes.units import KINDS, Gates, drive, needed_kinds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a method works on: a source, a target and, on demand, a model and calibration samples.

    Attributes:
        method: its name.
        target: the shape to reach; that of the source where no sizes are given.
        options: `key=value` words that are not sizes, which the method's row names.
        data, samples, length, seed: of the calibration samples, as given.
        scores: file of scores to read or write.
        scheme: where whole layers are removed.
        update: change the weights that stay under masks on single weights.
        dense_inputs: calibrate these masks on the dense model.
    """

    method: str
    checkpoint: Checkpoint
    source: Architecture
    target: Architecture
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    samples: int | None = None
    length: int | None = None
    seed: int = 0
    scores: str | None = None
    scheme: str | None = None
    update: bool = False
    dense_inputs: bool = False

    @cached_property
    def calibration(self) -> Tensor:
        """Token ids [N, S] of the calibration samples.

        Raises:
            FileNotFoundError, ValueError: without data, and where it does not fit the model.
        """
        if self.data is None:
            raise ValueError(
                f"--method {self.method} reads calibration data: give --data, text or prepared data."
            )
        return read_samples(
            self.data,
            self.checkpoint.hf_files,
            self.checkpoint.path,
            self.source.vocab_size,
            self.source.max_seq_len,
            self.samples,
            self.length,
            self.seed,
        )

    def decoder(self) -> Decoder:
        """The source in evaluation mode: on a GPU in bf16 where there is one, else in fp32."""
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        path, weights = str(self.checkpoint.path), self.checkpoint.weights
        decoder = Decoder(complete(ModelConfig(init_device="meta"), self.source, path))
        moved = {name.removeprefix("model."): weight.to(device, dtype) for name, weight in weights.items()}
        decoder.load_state_dict(moved, assign=True)
        return decoder.eval()


# ------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Row:
    """A method: what it does, and what it takes on the command line.

    Attributes:
        options: `key=value` words that it takes beside sizes.
        reads_data: whether it reads calibration data.
        reads_scores: whether it takes a file of scores.
        reads_scheme: whether it takes a scheme of layers.
    """

    options: tuple[str, ...] = field(default=(), kw_only=True)
    reads_data: bool = field(default=False, kw_only=True)
    reads_scores: bool = field(default=False, kw_only=True)
    reads_scheme: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Shape(Row):
    """A way to a smaller shape: `gates` closes what the target does not have."""

    gates: Callable[[Task], Gates]


@dataclass(frozen=True)
class Pattern(Row):
    """A way to a sparse model of the same shape: `prune` gives weights under masks, and masks, by our names.

    Attributes:
        updates: whether it can change the weights that stay.
    """

    prune: Callable[[Task, nm.Pattern], dict[str, tuple[Tensor, Tensor]]]
    updates: bool = field(default=False, kw_only=True)


def _by(compute: Callable[[Task], dict[str, Tensor]]) -> Callable[[Task], Gates]:
    """Gates that keep the highest scores, those of the task's file or else computed."""

    def gates(task: Task) -> Gates:
        scores = scores_of(task, compute)
        return drive(by_score.kept_units(scores.by_kind, task.source, task.target))

    return gates


def _whole_layers(task: Task) -> Gates:
    """Gates that close the layers of a scheme; `importance` is read from the task's file."""
    if other := [kind for kind in needed_kinds(task.source, task.target) if kind != "layer"]:
        keys = ", ".join(KINDS[kind].target_key for kind in other)
        raise ValueError(f"--method layerchop removes layers alone: leave out {keys}.")
    if task.scheme not in (None, *SCHEMES):
        near = cli.nearest(task.scheme, SCHEMES) or ";"
        raise ValueError(f"--scheme is {task.scheme!r}{near} expected one of {', '.join(SCHEMES)}.")
    settings = LayerChopConfig(task.target.n_layers, task.scheme, scores=task.scores)
    if task.scores is not None:
        scores = read_importance(task.scores, task.source)
        check_weights_of(scores, task.checkpoint.weights, task.scores, task.checkpoint.path)
    gates = torch.ones(task.source.n_layers)
    gates[layers_to_remove(settings, task.source, "")] = 0
    return drive({"layer": gates})


SHAPES: dict[str, Shape] = {
    "magnitude": Shape(
        _by(lambda task: by_score.magnitude(in_pieces(task.checkpoint), task.source)), reads_scores=True
    ),
    "activation": Shape(
        _by(lambda task: activation_scores(task.decoder(), task.calibration)),
        reads_data=True,
        reads_scores=True,
    ),
    "taylor": Shape(
        _by(lambda task: taylor_scores(task.decoder(), task.calibration)), reads_data=True, reads_scores=True
    ),
    "random": Shape(_by(lambda task: by_score.random(task.source, task.seed)), reads_scores=True),
    "layerchop": Shape(_whole_layers, reads_scores=True, reads_scheme=True),
}
"""The methods of `--method`; a new one is a row."""


def _by_weight(task: Task, pattern: nm.Pattern) -> dict[str, tuple[Tensor, Tensor]]:
    """Masks by the weights alone."""
    shapes = masked_shapes(task.source)
    names = {f"{PREFIX}{name}.weight" for name in shapes}
    return {
        name: nm_scores.prune(weight, task.method, pattern, None)
        for piece in in_pieces(task.checkpoint)
        for name, weight in piece.items()
        if name in names
    }


def _by_inputs(task: Task, pattern: nm.Pattern) -> dict[str, tuple[Tensor, Tensor]]:
    """Masks by the weights and their inputs."""
    return sparse_weights(
        task.decoder(),
        task.checkpoint.weights,
        task.calibration,
        task.method,
        pattern,
        task.update,
        task.dense_inputs,
    )


PATTERNS: dict[str, Pattern] = {
    "magnitude": Pattern(_by_weight),
    "wanda": Pattern(_by_inputs, reads_data=True),
    "sparsegpt": Pattern(_by_inputs, reads_data=True, updates=True),
}
"""The methods of `--method` with `--pattern`; a new one is a row."""


def scores_of(task: Task, compute: Callable[[Task], dict[str, Tensor]]) -> Scores:
    """The scores in the task's file, if there is one; else scores computed, and written to the file if named.

    Raises:
        ValueError: when the file holds scores of another model, or made in another way than the task says.
    """
    if task.scores is not None and Path(task.scores).exists():
        scores = read_scores(task.scores, task.source)
        check_weights_of(scores, task.checkpoint.weights, task.scores, task.checkpoint.path)
        _check_made_so(scores.origin, task)
        logger.info("scores read from %s; no data is read", task.scores)
        return scores
    by_kind = compute(task)
    settings: dict[str, Any] = {"seed": task.seed}
    if SHAPES[task.method].reads_data:
        samples, length = task.calibration.shape
        settings |= {"data": str(task.data), "samples": samples, "length": length}
    origin = Origin(task.method, shape_of(task.source), fingerprint(task.checkpoint.weights), settings)
    scores = Scores(by_kind, origin)
    if task.scores is not None:
        write_scores(Path(task.scores), scores)
        cli.say(f"{task.scores}: scores of {', '.join(by_kind)}")
    return scores


def _check_made_so(origin: Origin, task: Task) -> None:
    """Reject scores that were made in another way than the command line says."""
    asked = {"method": task.method, "data": task.data, "samples": task.samples, "length": task.length}
    asked["seed"] = task.seed or None
    made = {"method": origin.method, **origin.settings}
    off = {key: value for key, value in asked.items() if value not in (None, made.get(key))}
    if off:
        found = ", ".join(
            f"{key} is {made.get(key)} in the file and {value} on the command line"
            for key, value in off.items()
        )
        change = [f"give --method {origin.method}"] if "method" in off else []
        change += [f"leave out --{key}" for key in off if key != "method"]
        raise ValueError(
            f"The scores in {task.scores} were not made as the command line says: {found}. To use them, "
            f"{' and '.join(change)}; to compute others, name a new file."
        )
