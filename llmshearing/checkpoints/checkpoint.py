"""Checkpoints: what a file or folder holds, and what model its weights are."""

import json
import logging
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.serialization import config as serialization

from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.hf_files import CONFIG, from_hf, is_hf, read_hf
from llmshearing.checkpoints.safe_load import load_omegaconf, load_tensors
from llmshearing.checkpoints.special_tokens import special_token_ids
from llmshearing.checkpoints.weights import L0_PREFIX, check_weights, sizes_of, total_bytes
from llmshearing.config.keys import ModelConfig, as_model_config
from llmshearing.files import replacing
from llmshearing.progress import writing
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import (
    architecture_from_hf,
    architecture_of,
    architecture_to_hf,
    complete,
    family_of_class,
    nearest,
    size_keys,
)
from llmshearing.shapes.key_map import PREFIX

logger = logging.getLogger(__name__)

RECORD_KEY = "llmshearing"
_LLAMA_2 = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_NO_SHAPE = ("model_class", "_name_or_path")


@dataclass(frozen=True)
class Checkpoint:
    """Weights and their record.

    Attributes:
        path: where they were read.
        weights: by our names, masks and multipliers included; mapped from the file where possible.
        record: `hf_files` (name -> text or bytes of the HF config and tokenizer files) and `config` (YAML
            of the run, or None); None when the checkpoint carries none.
    """

    path: Path
    weights: dict[str, Tensor]
    record: dict[str, Any] | None

    @property
    def hf_files(self) -> dict[str, str | bytes]:
        """HF files that travel with the weights, by name."""
        return dict((self.record or {}).get("hf_files") or {})

    @property
    def hf_config(self) -> dict[str, Any] | None:
        """The HF config that travels with the weights."""
        text = self.hf_files.get(CONFIG)
        return None if text is None else json.loads(text)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Tensors of the L0 module, by their names inside it."""
        return {n.removeprefix(L0_PREFIX): w for n, w in self.weights.items() if n.startswith(L0_PREFIX)}

    def architecture(self, overrides: Mapping[str, Any] | None = None) -> Architecture:
        """See `describe`."""
        return describe(self, overrides or {})[0]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """`open_checkpoint`, which must be as it was written where a run's manifest tells how that was.

    Raises:
        FileNotFoundError: when there is nothing at `path`.
        ValueError: when it is no checkpoint, damaged, holds more than data, or has no model weights.
    """
    place = run_folder.follow(path)
    manifest = run_folder.read_manifest(place)
    if manifest is not None:
        run_folder.refuse(place, run_folder.damage(place, manifest["files"]))
    return open_checkpoint(place)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Map a Composer checkpoint (whole or sharded), a bare state dict or an HF model: weights alone.

    Raises:
        FileNotFoundError: when there is nothing at `path`.
        ValueError: when it is no checkpoint, truncated, holds more than data, or has no model weights.
    """
    path = run_folder.follow(path)
    if is_hf(path):
        model = read_hf(path)
        return Checkpoint(path, from_hf(model)[0], {"hf_files": model.files, "config": None})
    loaded = _load_sharded(path) if path.is_dir() else load_tensors(path)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected a checkpoint or a state dict.")
    state = loaded.get("state")
    state = state if isinstance(state, Mapping) else {}
    weights = state.get("model", loaded)
    weights = weights if isinstance(weights, Mapping) else {}
    strange = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if strange or f"{PREFIX}wte.weight" not in weights:
        found = ", ".join(map(str, list(weights or loaded)[:4])) or "nothing"
        raise ValueError(
            f"{path} has no weights of a model under state.model or at its top, where {PREFIX}wte.weight is "
            f"expected; found {found}."
        )
    record = loaded.get(RECORD_KEY) or (state.get("callbacks") or {}).get("RunRecord")
    return Checkpoint(path, dict(weights), record)


def in_pieces(checkpoint: Checkpoint, size: int = 2**28) -> Iterator[dict[str, Tensor]]:
    """The weights of a checkpoint in pieces of about `size` bytes.

    Each piece of a file is mapped anew, so that memory holds the pages of one piece, not of all that were
    read before it.
    """
    pieces: list[list[str]] = [[]]
    held = 0
    for name, weight in checkpoint.weights.items():
        if held >= size:
            pieces.append([])
            held = 0
        pieces[-1].append(name)
        held += weight.nbytes
    for names in pieces:
        is_file = checkpoint.path.is_file()
        weights = open_checkpoint(checkpoint.path).weights if is_file else checkpoint.weights
        yield {name: weights[name] for name in names}


def _load_sharded(path: Path) -> Any:
    # Imported here: torch.distributed.checkpoint takes seconds, and a single file has no use for it.
    from llmshearing.checkpoints.sharded import INDEX, is_sharded, load_sharded

    if not is_sharded(path):
        latest = path / run_folder.LATEST
        advice = f"take the run's {latest}" if latest.exists() else "expected a checkpoint or a folder of one"
        raise FileNotFoundError(
            f"{path} is the folder of no model, it has neither {CONFIG} nor {INDEX}: {advice}."
        )
    return load_sharded(path)


def check_output(out: str | Path, source: str | Path) -> None:
    """Refuse to write a checkpoint over what it is made from, over a run's, or over anything else.

    Raises:
        FileExistsError: when `out` is neither new nor a checkpoint that a command wrote.
    """
    path, origin = Path(out), Path(source)
    if not (path.exists() or path.is_symlink()):
        return
    if origin.exists() and path.resolve().is_relative_to(origin.resolve()):
        what = f"a part of {origin}, which is read"
    elif path.is_symlink() or run_folder.read_manifest(path):
        what = "a checkpoint of a run" if path.exists() else "a link to nothing"
    elif not (path.is_file() and zipfile.is_zipfile(path)):
        what = "no checkpoint"
    else:
        logger.warning("%s exists and is replaced", path)
        return
    raise FileExistsError(f"{path} exists and is {what}: choose another name, or remove it first.")


def write_checkpoint(path: str | Path, weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write weights and their record as a checkpoint that `read_checkpoint` and Composer read, or nothing.

    Without checksums, which no reader of mapped files looks at; they would take a quarter of the time.

    Raises:
        OSError: when it cannot be written.
    """
    with (
        replacing(Path(path)) as temporary,
        writing(temporary, total_bytes(weights), Path(path).name),
        serialization.patch("save.compute_crc32", False),  # type: ignore[attr-defined]
    ):
        torch.save({"state": {"model": dict(weights)}, RECORD_KEY: dict(record)}, temporary)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's weights into a `ComposerMosaicLlama`, strictly.

    Masks that the checkpoint lacks keep their initial values.

    Raises:
        ValueError: when weights and model differ, or the checkpoint has masks and the model none.
    """
    decoder = model.model
    if decoder.l0_module is None and checkpoint.masks:  # type: ignore[union-attr]
        raise ValueError(
            f"{checkpoint.path} is the checkpoint of a pruning run, whose masks are not applied yet, and "
            "this run has no model.l0_module. Run `python -m llmshearing.utils.post_pruning_processing "
            f"prune_and_save_model {checkpoint.path}` and start from the file that it writes."
        )
    check_weights(checkpoint.weights, decoder.arch, checkpoint.path)  # type: ignore[union-attr,arg-type]
    # Imported here: it takes seconds, and conversion has no use for it.
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, strict=bool(checkpoint.masks))
    try:  # unlike model.load_state_dict, this also fills a sharded model, each process its part
        missing, _ = set_model_state_dict(model, dict(checkpoint.weights), options=options)
    except RuntimeError as error:
        raise ValueError(f"The masks of {checkpoint.path} do not fit model.l0_module: {error}") from error
    assert all(name.startswith(L0_PREFIX) for name in missing)


# ------------------------------------------------------------- what model it is


def completed(section: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """`section` with every size it leaves out read from a checkpoint.

    A checkpoint that tells nothing of itself, such as a bare state dict of the original, is taken to be of
    the model that `section` describes.

    Raises:
        ValueError: when `section` contradicts the checkpoint.
    """
    tells = checkpoint.hf_config is not None or run_config(checkpoint) is not None
    if tells or not section.n_heads:
        return complete(section, checkpoint.architecture(), str(checkpoint.path))
    head_dim = section.head_dim or (section.d_model or 0) // section.n_heads
    sizes = sizes_of(checkpoint.weights, head_dim, checkpoint.path)
    return complete(section, architecture_of(replace(section, **sizes)), str(checkpoint.path))


def describe(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> tuple[Architecture, dict[str, Any]]:
    """The architecture of a checkpoint and its HF config.

    Sizes come from the tensors; the rest from the HF config in the record, else from the configuration of
    the run, else from `overrides` over the values of Llama 2.

    Args:
        overrides: keys of the HF config with values, `model_class` and `_name_or_path`, as given on the
            command line.

    Raises:
        ValueError: when overrides contradict the tensors, or the tensors are not those of such a model.
    """
    base = _described_by(checkpoint, overrides)
    arch = base.resized(**sizes_of(checkpoint.weights, base.head_dim, checkpoint.path))
    hf = architecture_to_hf(arch, checkpoint.hf_config)
    files = checkpoint.hf_files
    if checkpoint.hf_config is None and "tokenizer.json" in files:  # a model trained from scratch
        tokenizer = Tokenizer.from_str(str(files["tokenizer.json"]))
        hf |= special_token_ids(tokenizer, json.loads(files.get("tokenizer_config.json", "{}")))
    _check_overrides(hf, overrides, arch.family, checkpoint.path)
    hf |= {key: value for key, value in overrides.items() if key != "model_class"}
    arch = architecture_from_hf(hf)
    check_weights(checkpoint.weights, arch, checkpoint.path)
    return arch, hf


def run_config(checkpoint: Checkpoint) -> ModelConfig | None:
    """The `model` section of the run that wrote a checkpoint: from its record, else from a `config.yaml` or
    an original `config.pt` beside it; None without any.

    Raises:
        ValueError: when there is one that cannot be read.
    """
    beside = checkpoint.path.parent
    text = (checkpoint.record or {}).get("config")
    if text:
        loaded = OmegaConf.create(text)
    elif (beside / "config.yaml").is_file():
        loaded = OmegaConf.load(beside / "config.yaml")
    elif (beside / "config.pt").is_file():
        loaded = load_omegaconf(beside / "config.pt")
    else:
        return None
    assert isinstance(loaded, DictConfig)
    OmegaConf.resolve(loaded)
    return as_model_config(loaded.model)


def _described_by(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Architecture:
    """An architecture of which all but the sizes hold, and the size of a head."""
    hf = checkpoint.hf_config
    if hf is not None:
        return architecture_from_hf(hf)
    cfg = run_config(checkpoint)
    if cfg is not None:
        head_dim = (
            cfg.head_dim or ((cfg.d_model or 0) // (cfg.n_heads or 1)) or _head_dim(checkpoint, overrides)
        )
        return architecture_of(replace(cfg, **sizes_of(checkpoint.weights, head_dim, checkpoint.path)))
    return _guessed(checkpoint, overrides)


def _guessed(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Architecture:
    """What weights and command line tell about a model that nothing describes; the rest is Llama 2's."""
    names = checkpoint.weights
    block = f"{PREFIX}blocks.0."
    family = "llama"
    if f"{block}attn.query_key_value.weight" in names:
        family = "gpt_neox"
    elif f"{block}attn.q_norm.weight" in names:
        family = "qwen3"
    elif f"{block}attn.wq.bias" in names and f"{block}attn.out_proj.bias" not in names:
        family = "qwen2"
    if "model_class" in overrides:
        family = family_of_class(overrides["model_class"])
    head_dim = _head_dim(checkpoint, overrides)
    config = _LLAMA_2 if family == "llama" else {"model_type": family}
    sizes = sizes_of(names, head_dim, checkpoint.path)
    return architecture_from_hf(config).resized(
        **sizes,
        tie_embeddings=f"{PREFIX}output.weight" not in names,
        qkv_bias=f"{block}attn.wq.bias" in names or family == "gpt_neox",
        out_bias=f"{block}attn.out_proj.bias" in names,
        mlp_bias=f"{block}mlp.up_proj.bias" in names,
    )


def _head_dim(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> int:
    for key in ("head_dim", "num_attention_heads"):
        if key in overrides and (not isinstance(overrides[key], int) or overrides[key] < 1):
            raise ValueError(f"{key}={overrides[key]} was given; expected a whole number of at least 1.")
    if "head_dim" in overrides:
        return overrides["head_dim"]
    if "num_attention_heads" not in overrides:
        raise ValueError(
            f"{checkpoint.path} does not tell its model's number of heads: it carries no HF config, and "
            "there is no config.yaml or config.pt beside it. Give num_attention_heads=... (in a run: "
            "model.n_heads) and whatever else differs from Llama 2, such as rope_theta=... ."
        )
    weights = checkpoint.weights
    fused = weights.get(f"{PREFIX}blocks.0.attn.query_key_value.weight")
    rows = weights[f"{PREFIX}blocks.0.attn.wq.weight"].shape[0] if fused is None else fused.shape[0] // 3
    return rows // overrides["num_attention_heads"]


def _check_overrides(
    hf: Mapping[str, Any], overrides: Mapping[str, Any], family: str, source: str | Path
) -> None:
    """Refuse overrides that no config of the family has, or that the weights contradict."""
    if "model_class" in overrides and family_of_class(overrides["model_class"]) != family:
        raise ValueError(
            f"model_class={overrides['model_class']} was given, but {source} is of family {family}."
        )
    known = [*architecture_to_hf(architecture_from_hf(hf)), *hf, *_NO_SHAPE]
    for key, value in overrides.items():
        if key not in known:
            raise ValueError(f"{key} is not a key of the HF config{nearest(key, known)}.")
        if key in size_keys(family) and value != hf.get(key):
            raise ValueError(
                f"{key}={value} was given, but the weights of {source} have {hf.get(key)}; leave {key} out: "
                "sizes are read from the weights."
            )
