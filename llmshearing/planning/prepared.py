"""A run, prepared: everything that it needs opened once, and every problem that stands in its way.

The command `plan` shows what was found; a run builds its parts from what was opened. The parts check
themselves when they are built; here each is tried on its own, without weights, and what it rejects is
collected.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llmshearing.callbacks.components import REGISTRIES, component_problems
from llmshearing.callbacks.dynamic_loading_callback import build_dynamic_loading
from llmshearing.callbacks.resumable import check_contents
from llmshearing.callbacks.resume import choose_checkpoint, find_checkpoint
from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.describing import completed
from llmshearing.checkpoints.hf_files import read_travelling
from llmshearing.checkpoints.opening import Checkpoint, open_checkpoint, read_checkpoint
from llmshearing.checkpoints.safe_load import load_tensors
from llmshearing.checkpoints.weights import check_weights
from llmshearing.checkpoints.writing import check_masks
from llmshearing.config import Config, ModelConfig
from llmshearing.config.checks import config_problems, domain_problems
from llmshearing.config.durations import parse
from llmshearing.config.reading import leaves
from llmshearing.datasets.ranks import current_ranks
from llmshearing.models.model_registry import model_class
from llmshearing.planning.data import OpenedData, open_data
from llmshearing.planning.findings import Findings
from llmshearing.planning.sizes import planned_steps, settle, steps_in
from llmshearing.planning.teacher import OpenedTeacher, open_teacher
from llmshearing.pruning import Aim, aim_of, method_class, source_problems, without_method
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.model_section import architecture_of


@dataclass(frozen=True)
class Saved:
    """The checkpoint that a run resumes from."""

    path: Path
    """A file, or a folder of shards."""
    contents: Any | None
    """What the file holds, mapped; None for a folder, of which each rank reads its own part later."""


@dataclass(frozen=True)
class Prepared:
    """A run before its first step; what could not be found out is None or empty, with a problem.

    One run uses it up: its mixture moves on with the training.
    """

    config: Config
    """The configuration with its model section completed and its durations settled, as a run records it."""
    devices: int = 1
    """Processes of the run."""
    problems: list[str] = field(default_factory=list)
    """What stops the run, each with what to change."""
    warnings: list[str] = field(default_factory=list)
    """What the run would do, though nobody can want it."""
    checkpoint: Checkpoint | None = None
    """What `model.path` holds, mapped."""
    source: Architecture | None = None
    """The model at the first step."""
    aim: Aim = field(default_factory=Aim)
    """What its pruning method is to do with it; empty without a method."""
    hf_files: dict[str, str | bytes] = field(default_factory=dict)
    """HF files that travel with the model, by name: the source's, else those of `tokenizer_name`."""
    saved: Saved | None = None
    """What the run resumes from."""
    data: OpenedData = field(default_factory=OpenedData)
    """Its folders, opened."""
    teacher: OpenedTeacher | None = None
    """The teacher that it learns from."""

    @property
    def training(self) -> dict[str, int]:
        """Training sequences of each domain; of the split under "" where there are no domains."""
        return {name: len(folder) for name, folder in self.data.folders.items()}

    @property
    def evaluation(self) -> dict[str, int]:
        """Sequences of each domain that one evaluation reads."""
        return self.data.evaluated


def prepare(config: Config, devices: int = 1, starts: bool = False) -> Prepared:
    """Open what a run needs, each thing once, and find everything that is wrong with it.

    Args:
        config: stays as it is.
        devices: processes of the run.
        starts: whether the run starts now, on this machine, with every rank calling this. Then checkpoints
            of runs are also compared with their manifests, which reads them whole; a plan reads no weights.
    """
    config = deepcopy(config)
    found = Findings(problems=config_problems(config))
    for section in REGISTRIES:
        found.add(component_problems(config, section))
    checkpoint, config.model, source = _open_model(config, devices, starts, found)
    aim = _find_aim(config, source, found)
    _check_precision(config, aim, starts, found)
    _check_updates(config, found)
    saved = _open_saved(config, starts, found)
    _check_overwritten(config, saved, found)
    _check_compilation(config, found)
    _check_batch(config, devices, found)
    files = _collect_files(config, checkpoint, found)
    ranks = current_ranks()._replace(world_size=devices)
    vocab_size = source.vocab_size if source is not None else None
    data = open_data(config, vocab_size, checkpoint.hf_files if checkpoint is not None else {}, ranks, found)
    teacher = open_teacher(config, checkpoint, source, files, data.manifest, starts, found)
    epoch = sum(map(len, data.folders.values())) or None
    settle(config, epoch)
    found.warnings += _long_warmups(config, aim, epoch)
    return Prepared(
        config, devices, found.problems, found.warnings, checkpoint, source, aim, files, saved, data, teacher
    )


# ----------------------------------------------------------------------- parts


def _open_model(
    config: Config, devices: int, starts: bool, found: Findings
) -> tuple[Checkpoint | None, ModelConfig, Architecture | None]:
    """The checkpoint that the run starts from, the completed section, and the model at the first step."""
    section, checkpoint = config.model, None
    domains = config.data_loading.set_names
    if section.set_names not in (None, domains):
        found.warnings.append(
            f"model.set_names is {section.set_names}, but the run's domains are {domains}, as "
            "callbacks.data_loading.set_names has them: model.set_names is not used."
        )
    section = replace(section, set_names=domains)
    with found.collecting():
        if section.path:
            checkpoint = (read_checkpoint if starts else open_checkpoint)(section.path)
    before = len(found.problems)
    # With weights to come, several processes make no parameters before each knows its part.
    section.init_device = "meta" if checkpoint is not None and devices > 1 else "cpu"
    with found.collecting():
        if checkpoint is not None:
            section = completed(section, checkpoint)
            check_weights(checkpoint.weights, architecture_of(section), checkpoint.path)
            method = method_class(section)
            check_masks(checkpoint, None if method is None else method.section)
            found.add(source_problems(section, checkpoint.weights, str(checkpoint.path)))
    source = None
    if not section.path or (section.d_model is not None and len(found.problems) == before):
        with found.collecting():  # where nothing else tells the sizes, what is wrong is noted
            source = architecture_of(section)
            model_class(section.name)(replace(without_method(section), init_device="meta"))
    return checkpoint, section, source


def _find_aim(config: Config, source: Architecture | None, found: Findings) -> Aim:
    """What the run's pruning method is to do; empty where there is none, or nothing to prune."""
    aim = Aim()
    with found.collecting():
        if source is not None:
            aim = aim_of(config.model, source) or aim
    found.add(aim.problems)
    found.warnings += aim.warnings
    return aim


def _check_precision(config: Config, aim: Aim, starts: bool, found: Findings) -> None:
    if config.precision == "amp_fp16" and aim.reads_gradients:
        found.add(
            [
                "precision is amp_fp16, which scales gradients, and the pruning method computes with them: "
                "set amp_bf16 or fp32."
            ]
        )
    if config.precision == "amp_fp16" and not torch.cuda.is_available():
        text = (
            "precision is amp_fp16, which needs a GPU, and there is none here: set amp_bf16 or fp32 where "
            "the run has none either."
        )
        (found.problems if starts else found.warnings).append(text)


def _check_updates(config: Config, found: Findings) -> None:
    domains = config.data_loading
    if domains.set_names and not domain_problems(domains):  # which are noted, in other words
        with found.collecting():
            build_dynamic_loading(domains)
    evaluates = bool(parse(config.eval_interval).number)
    if domains.updates and not evaluates:
        found.warnings.append("eval_interval is 0ba: without evaluations the domain weights never change.")
    if config.eval_loader is None and (evaluates or config.eval_first):
        found.add(
            ["eval_loader is not set, but eval_interval or eval_first is; set it, or eval_interval=0ba."]
        )


def _long_warmups(config: Config, aim: Aim, epoch_sequences: int | None) -> list[str]:
    durations = {"scheduler.t_warmup": [config.scheduler.t_warmup]} | aim.durations
    steps = planned_steps(config)
    return [
        f"{key} is {_added(each)}, but the run ends after {steps:,} steps: what it leads to is never reached."
        for key, each in durations.items()
        if sum(steps_in(duration, config, epoch_sequences) for duration in each) >= steps > 0
    ]


def _added(durations: list[str]) -> str:
    """Durations that follow one another, such as 500ba + 3 x 100000tok."""
    counted = Counter(durations)
    return " + ".join(each if n == 1 else f"{n} x {each}" for each, n in counted.items())


def _open_saved(config: Config, starts: bool, found: Findings) -> Saved | None:
    """What is in the run's folder, or elsewhere, that the run is to resume from."""
    folder = Path(config.save_folder) if config.save_folder else None
    if folder is not None and folder.exists() and not folder.is_dir():
        found.add([f"save_folder is {folder}, which is a file: give a folder, which may be new."])
        folder = None  # every rank runs the next line, where ranks may wait for each other
    with found.collecting():
        find = find_checkpoint if starts else choose_checkpoint
        path = find(folder, config.load_path, config.autoresume, config.save_overwrite)
        if path is None or not path.is_file():
            return None if path is None else Saved(path, None)
        contents = load_tensors(path)
        check_contents(contents, path, "AdamW", config.load_weights_only)
        return Saved(path, contents)
    return None


def _check_overwritten(config: Config, saved: Saved | None, found: Findings) -> None:
    """Check that nothing which this run, or its next launch, reads is what `save_overwrite` deletes."""
    if not (config.save_folder and config.save_overwrite):
        return
    folder = Path(config.save_folder)
    if saved is not None and saved.path.parent == folder.resolve():
        return  # resumed: nothing is deleted
    deleted = {folder.resolve() / run_folder.LATEST}
    deleted |= {path.resolve() for path in (run_folder.files_of_a_run(folder) if folder.is_dir() else ())}
    for place, value in leaves(asdict(config)):
        if place != ("load_path",) and isinstance(value, str) and "\0" not in value:
            path = Path(value).resolve()
            if not deleted.isdisjoint((path, *path.parents)):
                found.add(
                    [
                        f"{'.'.join(map(str, place))} is {value}, which save_overwrite=true would delete: "
                        "set another save_folder."
                    ]
                )


def _check_compilation(config: Config, found: Findings) -> None:
    if config.compile_config is None:
        return
    try:
        torch.compile(torch.nn.Identity(), **config.compile_config)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        found.add([f"compile_config: torch.compile rejects it: {reason}"])


def _check_batch(config: Config, devices: int, found: Findings) -> None:
    batch, micro = config.global_train_batch_size, config.device_train_microbatch_size
    if batch % devices:
        found.add(
            [
                f"global_train_batch_size is {batch} for {devices} devices; expected a multiple of "
                f"{devices}: set it to {devices * max(1, batch // devices)}, or use another number."
            ]
        )
    elif isinstance(micro, int) and micro < batch // devices and (batch // devices) % micro:
        found.add(
            [
                f"device_train_microbatch_size is {micro}, which does not divide the {batch // devices} "
                "sequences of a device; the last microbatch of each step would be smaller: set a divisor."
            ]
        )


def _collect_files(config: Config, checkpoint: Checkpoint | None, found: Findings) -> dict[str, str | bytes]:
    files = checkpoint.hf_files if checkpoint is not None else {}
    with found.collecting():
        if config.tokenizer_name and Path(config.tokenizer_name).is_dir():
            return {**read_travelling(Path(config.tokenizer_name)), **files}
    return files
