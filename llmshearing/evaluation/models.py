"""HF models for evaluation: loaded by `transformers` and nothing else, on the device that is there."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmshearing.checkpoints.travelling import CONFIG, parse_config
from llmshearing.files import first_line
from llmshearing.shapes.counts import parameters
from llmshearing.shapes.hf_config import architecture_from_hf, check_layers

_MOST_PER_BYTE = 8  # parameters, of the most quantized models
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device() -> str:
    """Where models compute: the first GPU, or the processor."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usual_dtype() -> str:
    """bfloat16 on a GPU; float32 on a processor, where most compute bfloat16 slowly."""
    return "bfloat16" if torch.cuda.is_available() else "float32"


def load_model(folder: Path, dtype: str, attention: str = "sdpa") -> PreTrainedModel:
    """The model in an HF folder, for evaluation.

    Args:
        attention: implementation, by its name in transformers; "sdpa" leaves soft caps of scores out, so that
            a model that has them gets "eager" instead.

    Raises:
        ValueError: when transformers cannot load it, or a parameter of it is not among the weights.
        MemoryError: when it does not fit in memory.
    """
    _check_announced(folder)
    load: Any = AutoModelForCausalLM.from_pretrained  # its type does not know of the second result
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if attention == "sdpa" and getattr(config, "attn_logit_softcapping", None) is not None:
            attention = "eager"
        model, loading = load(
            folder,
            config=config,
            torch_dtype=DTYPES[dtype],
            attn_implementation=attention,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # what a broken folder makes of its classes can be anything
        if is_out_of_memory(error):
            raise MemoryError(f"The model in {folder} does not fit in memory.") from error
        raise ValueError(f"transformers cannot load the model in {folder} ({_in_a_line(error)}).") from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{folder} has no {missing[0]}, which transformers would fill with random numbers; its weights "
            "do not match its config.json."
        )
    return model.to(device()).eval()


def _check_announced(folder: Path) -> None:
    """Check that a config announces no more than the weights beside it can hold, before room is made for it.

    Raises:
        ValueError: when it does.
    """
    hf = parse_config((folder / CONFIG).read_bytes(), folder / CONFIG)
    check_layers(hf)
    try:
        announced = parameters(architecture_from_hf(hf))
    except ValueError:  # transformers may know a model that is not known here
        return
    held = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if announced > _MOST_PER_BYTE * held:
        raise ValueError(
            f"{folder / CONFIG} announces {announced:,} parameters, and the weights beside it have {held:,} "
            "bytes: they do not belong together."
        )


def load_tokenizer(folder: Path, model: str) -> PreTrainedTokenizerBase:
    """The tokenizer in an HF folder.

    Raises:
        ValueError: when there is none, or it cannot be loaded.
    """
    if not any(path.name.startswith(("tokenizer", "vocab", "spiece")) for path in folder.iterdir()):
        raise ValueError(f"{model} carries no tokenizer: give the one of its source with --tokenizer FOLDER.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # neither library has a narrower exception
        raise ValueError(f"The tokenizer in {folder} cannot be loaded ({_in_a_line(error)}).") from error


def check_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    """Check that a model has a row for each token; some lack those of tokens added to the vocabulary.

    Raises:
        ValueError: when it does not.
    """
    added = set(tokenizer.get_added_vocab().values())
    highest = max((number for number in tokenizer.get_vocab().values() if number not in added), default=0)
    rows = model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise ValueError(
            f"The tokenizer of {name} has ids up to {highest}, its model {rows} rows: it is the tokenizer of "
            "a different model."
        )


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
