"""A smaller or sparser model in one step, without training: `llmshearing oneshot`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.weights import shape_in_words
from llmshearing.checkpoints.writing import check_output
from llmshearing.commands.oneshot_methods import PATTERNS, SHAPES, Pattern, Row, Shape, Task
from llmshearing.commands.plain_models import check_place, read_model, write_model
from llmshearing.commands.prune import cut_checkpoint, masks_beside, masks_written
from llmshearing.config import TargetConfig
from llmshearing.config.model import SCHEMES
from llmshearing.config.strict import build
from llmshearing.files import check_writable
from llmshearing.pruning import patterns as nm
from llmshearing.pruning.maskllm import misfits
from llmshearing.pruning.score_file import check_file
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.hf_config import architecture_to_hf
from llmshearing.shapes.key_map import to_hf
from llmshearing.shapes.model_section import target_of
from llmshearing.shapes.reachable import export_warnings, pruning_problems
from llmshearing.shapes.units import needed_kinds

logger = logging.getLogger(__name__)


def oneshot(
    checkpoint_path: str | Path,
    out: str | Path,
    *,
    method: str,
    data: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    scores: str | None = None,
    scheme: str | None = None,
    pattern: str | None = None,
    update: bool = False,
    dense_inputs: bool = False,
    sizes: Mapping[str, Any] | None = None,
) -> None:
    """Make a smaller model without training: score all units, keep the best of each kind, cut out the others.

    Methods: magnitude (sum of |weight|), activation (mean |activation|), taylor (|weight x gradient|),
    random, and layerchop, which removes layers alone, by their place.
    Where data is read, the layers that stay are those that turn the residual stream furthest.

    With --pattern 2:4 the shape stays, and of every 4 neighbouring weights of a row 2 become 0, by magnitude
    (|weight|), wanda (|weight| x norm of its input) or sparsegpt (the error of the output). The masks are
    also written beside OUT, as `<name>.masks.npz`.

    Example:

        llmshearing oneshot models/Llama-2-7b-hf models/small --method activation --data text/wiki \\
          --scores activation.safetensors d_model=2048 n_heads=16 n_layers=24 intermediate_size=5504

    Args:
        checkpoint_path: Composer checkpoint, HF folder or GGUF file.
        out: HF folder to write; with the suffix .pt a Composer checkpoint.
        method: how to choose what stays.
        data: calibration data: text (JSON lines, parquet or plain; a file or a folder) or MDS folders.
        samples: sequences of it to read (1024, or all if there are fewer).
        length: tokens of each sequence (2048, or those of prepared data).
        seed: of the samples, and of the method random (0).
        scores: file of scores: read if it exists, else written, so that another shape takes seconds.
        scheme: with layerchop: max_gap (the default), input, output, middle, both, or importance, which is
            read from the file of scores.
        pattern: N:M, such as 2:4: how many of every M neighbouring weights of a row stay.
        update: with sparsegpt and a pattern: let the weights that stay make up for those that go.
        dense_inputs: with a pattern: calibrate every layer on the dense model, not on the pruned layers
            before it, as for a prior of learned masks.
        sizes: the shape to reach, such as d_model=2048, where it differs; and options of the method.

    Raises:
        ValueError: when the shape cannot be reached, or data or scores do not fit the model.
        OSError: when something is missing or cannot be written.
    """
    row = _row(method, pattern)
    given = dict(sizes or {})
    options = {key: given.pop(key) for key in row.options if key in given}
    _check_taken(
        row,
        method,
        given,
        {"data": data, "samples": samples, "length": length, "scores": scores, "scheme": scheme},
    )
    for name, is_set in {"update": update, "dense_inputs": dense_inputs}.items():
        if is_set and not _takes(row, name):
            raise ValueError(f"--{name} is given, but --method {method} does not read it: leave it out.")
    check_place(out, checkpoint_path)
    if pattern is not None:
        check_output(masks_beside(Path(out)), checkpoint_path)
    if scores is not None:
        _check_scores(Path(scores), Path(out))
    checkpoint = read_model(checkpoint_path)
    source, config = describe(checkpoint)
    target = target_of(source, build(TargetConfig, given, "sizes"), where="")
    assert target is not None
    task = Task(
        method,
        checkpoint,
        source,
        target,
        options,
        data,
        samples,
        length,
        seed,
        scores,
        scheme,
        update,
        dense_inputs,
    )
    weights, smaller, masks = _made(row, task, pattern)
    for word, arch in (("before", source), ("after", smaller)):
        cli.say(f"{word:<7} {shape_in_words(arch)}")
    with masks_written(Path(out), masks):
        write_model(out, weights, smaller, architecture_to_hf(smaller, config), checkpoint)


def _made(
    row: Row, task: Task, pattern: str | None
) -> tuple[dict[str, Tensor], Architecture, dict[str, Tensor]]:
    """The weights that a method makes, their architecture, and bits of the masks on them by HF name."""
    if isinstance(row, Pattern):
        parsed = nm.parse(str(pattern), "--pattern")
        if problems := misfits(parsed, task.source):
            raise ValueError("\n".join(problems))
        pruned = row.prune(task, parsed)
        weights = task.checkpoint.weights | {name: weight for name, (weight, _) in pruned.items()}
        family = task.source.family
        masks = {to_hf(name, family): nm.pack(mask) for name, (_, mask) in pruned.items()}
        return weights, task.source, masks
    assert isinstance(row, Shape)
    source, target = task.source, task.target
    if problems := pruning_problems(source, target, needed_kinds(source, target), "oneshot", where=""):
        raise ValueError("\n".join(problems))
    for warning in export_warnings(target):
        logger.warning("%s", warning)
    gates = row.gates(task)
    if target.n_layers < source.n_layers:
        stay = [str(layer) for layer, gate in enumerate(gates["attention"].tolist()) if gate]
        cli.say(f"layers  {', '.join(stay)} stay")
    return *cut_checkpoint(task.checkpoint, gates, source, target), {}


def _row(method: str, pattern: str | None) -> Row:
    rows: Mapping[str, Row] = SHAPES if pattern is None else PATTERNS
    if method not in rows:
        which = "" if pattern is None else " with --pattern"
        known = ", ".join(rows)
        if method in PATTERNS:
            raise ValueError(
                f"--method {method} masks single weights: give --pattern, such as --pattern 2:4."
            )
        if method in SHAPES:
            raise ValueError(
                f"--method {method} removes whole units: leave --pattern out, or give one of {known}."
            )
        if method in SCHEMES:
            raise ValueError(
                f"--method is {method!r}, which is a scheme: give --method layerchop --scheme {method}."
            )
        raise ValueError(
            f"--method is {method!r}{cli.nearest(method, rows) or ';'} expected one of{which}: {known}."
        )
    return rows[method]


def _check_scores(scores: Path, out: Path) -> None:
    """Check that scores can be read from their file or, where there is none, be written beside the output.

    Raises:
        OSError, ValueError: when they cannot.
    """
    if scores.exists():
        check_file(scores)
        return
    one, other = scores.resolve(), out.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ValueError(
            f"--scores is {scores} and OUT is {out}: what is written there needs two places. Name a file of "
            "scores outside of OUT."
        )
    check_writable(scores.parent)


def _takes(row: Row, flag: str) -> bool:
    return isinstance(row, Pattern) and (row.updates if flag == "update" else row.reads_data)


def _check_taken(row: Row, method: str, given: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Reject arguments that the method does not read.

    Raises:
        ValueError: for the first of them.
    """
    if isinstance(row, Pattern) and given:
        raise ValueError(f"--pattern keeps the shape of the model: leave out {', '.join(given)}.")
    ignored = [] if row.reads_data else ["data", "samples", "length"]
    ignored += [] if row.reads_scores else ["scores"]
    ignored += [] if row.reads_scheme else ["scheme"]
    for name in ignored:
        if arguments[name] is not None:
            raise ValueError(f"--{name} is given, but --method {method} does not read it: leave it out.")
