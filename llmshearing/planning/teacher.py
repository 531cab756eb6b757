"""The teacher of a run, opened and compared with the model that it is to teach."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.describing import completed
from llmshearing.checkpoints.opening import Checkpoint, open_checkpoint, read_checkpoint
from llmshearing.checkpoints.weights import check_finite, check_weights
from llmshearing.config import Config, ModelConfig
from llmshearing.data.text_tokenizer import vocabulary_sha256
from llmshearing.datasets.manifest import Manifest
from llmshearing.planning.findings import Findings
from llmshearing.pruning import method_class, without_method
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import parameters
from llmshearing.shapes.model_section import architecture_of

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class OpenedTeacher:
    """A teacher before it is built."""

    path: str
    """As the configuration names it."""
    checkpoint: Checkpoint
    """Its weights, mapped: the run's own source where that is the teacher."""
    section: ModelConfig
    """Its sizes."""

    @property
    def arch(self) -> Architecture:
        """Its architecture."""
        return architecture_of(self.section)


def open_teacher(
    config: Config,
    own: Checkpoint | None,
    source: Architecture | None,
    files: Mapping[str, str | bytes],
    manifest: Manifest | None,
    starts: bool,
    found: Findings,
) -> OpenedTeacher | None:
    """Open the teacher that the section `distillation` asks for, and note what is wrong with it.

    Args:
        config: with its model section completed.
        own: what `model.path` holds, which is not opened again.
        source: the model at the first step, None where it is not known.
        files: HF files that travel with the model.
        manifest: that of the training data.
        starts: whether the run starts now (`prepare`).

    Returns:
        None where no teacher is needed, or it cannot be used.
    """
    settings = config.distillation
    if settings is None or not settings.kl_weight:
        return None
    path = settings.teacher or (config.model.path if method_class(config.model) else None)
    if path is None:
        found.add([_no_teacher(config)])
        return None
    teacher = None
    with found.collecting():
        teacher = _opened(path, config, own, starts)
    if teacher is None:
        return None
    if source is not None:
        found.add(_vocabulary_problems(teacher, source))
        found.warnings += _doubts(teacher, source, config.max_seq_len)
    with found.collecting():
        found.add(_tokenizer_problems(teacher, files, manifest))
    return teacher


def _no_teacher(config: Config) -> str:
    if method_class(config.model):
        return (
            "distillation.teacher is not set, and model.path, which a pruning run has for its teacher by "
            "default, is not set either: give a teacher, or remove the section distillation."
        )
    return (
        "distillation.teacher is not set; only a pruning run has a teacher by default, its own model.path: "
        "give one, such as the source of this model, or remove the section distillation."
    )


def _opened(path: str, config: Config, own: Checkpoint | None, starts: bool) -> OpenedTeacher | None:
    """The teacher; None where it is the run's own source and that could not be opened."""
    if config.model.path and _place(path) == _place(config.model.path):
        if own is None or config.model.d_model is None:
            return None  # what is wrong with it is noted
        checkpoint, section = own, without_method(config.model)
    else:
        try:
            checkpoint = (read_checkpoint if starts else open_checkpoint)(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"distillation.teacher is {path}: {error}") from error
        section = ModelConfig(path=path, attn_impl=config.model.attn_impl)
    if checkpoint.section is not None:
        raise ValueError(
            f"The teacher {path} is the checkpoint of a pruning run, whose masks are not applied yet: run "
            f"`llmshearing prune {path}` and set distillation.teacher to the file that it writes, or to the "
            "source of that run."
        )
    if checkpoint is not own:
        section = completed(section, checkpoint)
        check_weights(checkpoint.weights, architecture_of(section), checkpoint.path)
        if starts:
            check_finite(checkpoint.weights, f"The teacher {path}")
    return OpenedTeacher(path, checkpoint, section)


def _place(path: str) -> Path:
    return run_folder.follow(path).resolve()


def _vocabulary_problems(teacher: OpenedTeacher, source: Architecture) -> list[str]:
    if teacher.arch.vocab_size == source.vocab_size:
        return []
    return [
        f"The teacher {teacher.path} has a vocabulary of {teacher.arch.vocab_size:,} tokens, the model one "
        f"of {source.vocab_size:,}; expected the same, since their distributions are compared: choose a "
        "teacher with the model's tokenizer, such as the model that this one comes from."
    ]


def _tokenizer_problems(
    teacher: OpenedTeacher, files: Mapping[str, str | bytes], manifest: Manifest | None
) -> list[str]:
    """The tokenizer that the teacher carries, if any, must be the data's, or the model's."""
    taught, own = teacher.checkpoint.hf_files.get(_TOKENIZER), files.get(_TOKENIZER)
    if not isinstance(taught, str) or taught == own:
        return []  # that of the model is compared with the data elsewhere
    if manifest is not None:
        expected, whose = manifest.tokenizer["vocabulary_sha256"], "the data was made with"
    elif isinstance(own, str):
        expected, whose = vocabulary_sha256(own, "the model"), "the model has"
    else:
        return []
    if vocabulary_sha256(taught, teacher.path) == expected:
        return []
    return [
        f"The teacher {teacher.path} carries a tokenizer with another vocabulary than the one {whose}: it "
        "would read other words than the model does. Choose a teacher with the same tokenizer."
    ]


def _doubts(teacher: OpenedTeacher, source: Architecture, length: int) -> list[str]:
    warnings = []
    own, its = parameters(source), parameters(teacher.arch)
    if its < own:
        warnings.append(
            f"The teacher {teacher.path} has {its:,} parameters, fewer than the {own:,} of the model that it "
            "is to teach."
        )
    if teacher.arch.max_seq_len < length:
        warnings.append(
            f"The teacher {teacher.path} was trained on {teacher.arch.max_seq_len:,} positions; max_seq_len "
            f"is {length:,}: beyond them it may teach nonsense."
        )
    return warnings
