"""Everything that stands between a configuration and its first step, all at once.

The parts of a run check themselves when they are built; here each is tried on its own, without weights,
and what it refuses is collected.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llmshearing.callbacks.components import REGISTRIES, component_problems
from llmshearing.callbacks.dynamic_loading_callback import build_dynamic_loading
from llmshearing.callbacks.resume import check_contents, choose_checkpoint
from llmshearing.checkpoints.describing import completed
from llmshearing.checkpoints.opening import Checkpoint, open_checkpoint
from llmshearing.checkpoints.safe_load import load_tensors
from llmshearing.checkpoints.weights import check_weights
from llmshearing.config import Config
from llmshearing.config.checks import config_problems, domain_problems
from llmshearing.config.durations import parse
from llmshearing.data.tokenizer import check_tokenizer, is_made_with, load_tokenizer
from llmshearing.datasets.load_text_dataloader import build_text_dataloader, dataset_manifest
from llmshearing.models.model_registry import model_class
from llmshearing.planning.sizes import planned_steps, settled, steps_in
from llmshearing.pruning import Method, aim_of, method_class, without_method
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import architecture_of

_NEEDS_GPU = "which needs a GPU, and there is none here: set amp_bf16 or fp32 where the run has none either."


@dataclass
class Findings:
    """What a configuration amounts to; what could not be found out is None or empty, with a problem."""

    problems: list[str] = field(default_factory=list)
    """What stops the run, each with what to change."""
    warnings: list[str] = field(default_factory=list)
    """What the run would do, though nobody can want it."""
    source: Architecture | None = None
    """The model at the first step."""
    target: Architecture | None = None
    """The shape it is pruned to."""
    kinds: list[str] = field(default_factory=list)
    """Kinds of units that the run's pruning method gates."""
    share: float | None = None
    """Part of the prunable parameters to remove, where no shape is named."""
    durations: dict[str, str] = field(default_factory=dict)
    """Keys with a duration that must end before the run does."""
    training: dict[str, int] = field(default_factory=dict)
    """Training sequences of each domain; of the split under "" where there are no domains."""
    evaluation: dict[str, int] = field(default_factory=dict)
    """Sequences of each domain that one evaluation reads."""

    @property
    def epoch_sequences(self) -> int | None:
        """Sequences that the training domains hold together; None when they were not found."""
        return sum(self.training.values()) or None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Note what the block refuses instead of raising it; each problem once."""
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            self.add(str(error).splitlines())

    def add(self, problems: list[str]) -> None:
        """Note problems that are new."""
        self.problems += [problem for problem in problems if problem not in self.problems]


def examine(config: Config, devices: int = 1, checkpoint: Checkpoint | None = None) -> Findings:
    """Find out what `config` would do on so many devices, and all that is wrong with it.

    Args:
        checkpoint: what `config.model.path` holds, where it has been read already.
    """
    found = Findings(problems=config_problems(config))
    for section in REGISTRIES:
        found.add(component_problems(config, section))
    checkpoint = _examine_model(config, checkpoint, found)
    _examine_target(config, found)
    _examine_precision(config, found)
    _examine_updates(config, found)
    _examine_folder(config, found)
    _examine_compilation(config, found)
    _examine_batch(config, devices, found)
    if _data_exists(config, found):
        _examine_tokenizers(config, checkpoint, found)
        _examine_training_data(config, found)
        _examine_evaluation_data(config, devices, found)
    _examine_warmups(settled(config, found.epoch_sequences), found)
    return found


def check(config: Config, devices: int, checkpoint: Checkpoint | None) -> Findings:
    """`examine`, for a run that is about to start.

    Raises:
        ValueError: with every problem, one a line.
    """
    found = examine(config, devices, checkpoint)
    found.add([warning for warning in found.warnings if warning.endswith(_NEEDS_GPU)])
    if found.problems:
        raise ValueError("\n".join(found.problems))
    return found


# ----------------------------------------------------------------------- parts


def _examine_model(config: Config, checkpoint: Checkpoint | None, found: Findings) -> Checkpoint | None:
    """Returns the checkpoint that the run starts from."""
    section = config.model
    with found.collecting():
        if checkpoint is None and section.path:
            checkpoint = open_checkpoint(section.path)
    before = len(found.problems)
    with found.collecting():
        if checkpoint is not None:
            section = completed(section, checkpoint)
            check_weights(checkpoint.weights, architecture_of(section), checkpoint.path)
    if section.path and (section.d_model is None or len(found.problems) > before):
        return checkpoint  # nothing else could tell the sizes, and what is wrong with it is noted
    with found.collecting():
        found.source = architecture_of(section)
        model_class(section.name)(replace(without_method(section), init_device="meta"))
    return checkpoint


def _examine_target(config: Config, found: Findings) -> None:
    if found.source is None:
        return
    with found.collecting():
        aim = aim_of(config.model, found.source)
        if aim is not None:
            found.kinds, found.target, found.share = aim.kinds, aim.target, aim.share
            found.durations |= aim.durations
            found.add(aim.problems)
            found.warnings += aim.warnings
            method = method_class(config.model)
            learns = method is not None and method.parameter_groups is not Method.parameter_groups
            if learns and config.optimizer.lag_lr == 0:
                found.add(["optimizer.lag_lr is 0: the masks would never move; set a learning rate above 0."])


def _examine_precision(config: Config, found: Findings) -> None:
    if config.precision == "amp_fp16" and not torch.cuda.is_available():
        found.warnings.append(f"precision is amp_fp16, {_NEEDS_GPU}")


def _examine_updates(config: Config, found: Findings) -> None:
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


def _examine_warmups(config: Config, found: Findings) -> None:
    durations = {"scheduler.t_warmup": config.scheduler.t_warmup}
    for key, duration in (durations | found.durations).items():
        if steps_in(duration, config) >= planned_steps(config) > 0:
            found.warnings.append(
                f"{key} is {duration}, but the run ends after {planned_steps(config):,} steps: what it leads "
                "to is never reached."
            )


def _examine_folder(config: Config, found: Findings) -> None:
    """The run's folder, and what is in it or elsewhere that the run is to go on from."""
    folder = Path(config.save_folder) if config.save_folder else None
    if folder is not None and folder.exists() and not folder.is_dir():
        found.add([f"save_folder is {folder}, which is a file: give a folder, which may be new."])
        return
    with found.collecting():
        begin = choose_checkpoint(folder, config.load_path, config.autoresume, config.save_overwrite)
        if begin is not None and begin.is_file():
            check_contents(load_tensors(begin), begin, "AdamW", config.load_weights_only)


def _examine_compilation(config: Config, found: Findings) -> None:
    if config.compile_config is None:
        return
    try:
        torch.compile(torch.nn.Identity(), **config.compile_config)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        found.add([f"compile_config: torch.compile refuses it: {reason}"])


def _examine_batch(config: Config, devices: int, found: Findings) -> None:
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


def _data_exists(config: Config, found: Findings) -> bool:
    """Whether there is a folder to look into, so that its absence is one problem and not one a domain."""
    dataset = config.train_loader.dataset
    if dataset.remote or Path(dataset.local).is_dir():
        return True
    found.add(
        [
            f"There is no data folder {dataset.local}; set data_local to the folder that "
            "`llmshearing prepare` wrote."
        ]
    )
    return False


def _examine_tokenizers(config: Config, checkpoint: Checkpoint | None, found: Findings) -> None:
    """The tokenizer that is to travel with the model must be the data's.

    One that the source carries is warned about only: it may differ in tokens that the data does not have.
    """
    name = config.tokenizer_name
    if name and not Path(name).is_dir():
        found.warnings.append(
            f"tokenizer_name is {name}, which is no folder here: it is not compared with the data's, and "
            "does not travel with the model."
        )
    with found.collecting():
        manifest = dataset_manifest(config.train_loader.dataset)
        if manifest is None:
            return
        if name and Path(name).is_dir():
            check_tokenizer(manifest, load_tokenizer(name))
        carried = checkpoint.hf_files.get("tokenizer.json") if checkpoint is not None else None
        if isinstance(carried, str) and not is_made_with(manifest, carried):
            found.warnings.append(
                f"The data was made with tokenizer {manifest.tokenizer['name']}; {config.model.path} carries "
                "one with another vocabulary: where they differ, the model reads nonsense."
            )


def _examine_training_data(config: Config, found: Findings) -> None:
    names = config.data_loading.set_names
    for name in names or [""]:
        with found.collecting():
            loader = _open(
                config,
                found,
                config.train_loader,
                dynamic=True,
                set_names=[name] if name else None,
                weights_change=config.data_loading.dynamic,
            )
            found.training[name] = len(loader.dataset.folders[0])


def _examine_evaluation_data(config: Config, devices: int, found: Findings) -> None:
    if config.eval_loader is None:
        return
    names = config.data_loading.set_names
    with found.collecting():
        dataset = _open(config, found, config.eval_loader, set_names=names).dataset
        found.add(_dropped(config, len(dataset), devices))
        batches = config.eval_subset_num_batches
        first = batches * config.device_eval_batch_size * devices if batches > 0 else len(dataset)
        if names is None:
            found.evaluation = {"": min(first, len(dataset))}
            return
        found.evaluation = dataset.samples_per_domain(first)
        found.add(_missing_domains(config, found.evaluation))


def _dropped(config: Config, sequences: int, devices: int) -> list[str]:
    """Whether `drop_last` leaves nothing to evaluate on."""
    size, share = config.device_eval_batch_size, sequences // devices
    if config.eval_loader is None or not config.eval_loader.drop_last or share >= size:
        return []
    return [
        f"eval_loader.drop_last leaves no batch to evaluate on: of {sequences} sequences each of {devices} "
        f"devices has {share}, and device_eval_batch_size is {size}. Set drop_last=false or a smaller batch."
    ]


def _missing_domains(config: Config, counts: dict[str, int]) -> list[str]:
    domains = config.data_loading
    missing = [name for name, count in counts.items() if not count]
    if not missing or not domains.updates:
        return []
    return [
        f"The evaluation data has no sequences of {', '.join(missing)}, which the update of domain weights "
        "needs: prepare eval_merge with every domain, raise eval_subset_num_batches, or set "
        "callbacks.data_loading.update_type=constant."
    ]


def _open(config: Config, found: Findings, loader: Any, **settings: Any) -> Any:
    """The loader of one domain or of the evaluation, with all checks that a run makes of its data."""
    vocabulary = found.source.vocab_size if found.source else None
    return build_text_dataloader(loader, 1, proportion=[1.0], vocab_size=vocabulary, **settings)
