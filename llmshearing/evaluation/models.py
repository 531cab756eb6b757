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
        ValueError: when a parameter of it is not among the weights.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if attention == "sdpa" and getattr(config, "attn_logit_softcapping", None) is not None:
        attention = "eager"
    load: Any = AutoModelForCausalLM.from_pretrained  # its type does not know of the second result
    model, loading = load(
        folder,
        config=config,
        torch_dtype=DTYPES[dtype],
        attn_implementation=attention,
        output_loading_info=True,
        trust_remote_code=False,
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{folder} has no {missing[0]}, which transformers would fill with random numbers; its weights "
            "do not match its config.json."
        )
    return model.to(device()).eval()


def load_tokenizer(folder: Path, model: str) -> PreTrainedTokenizerBase:
    """The tokenizer in an HF folder.

    Raises:
        ValueError: when there is none.
    """
    if not any(path.name.startswith(("tokenizer", "vocab", "spiece")) for path in folder.iterdir()):
        raise ValueError(f"{model} carries no tokenizer: give the one of its source with --tokenizer FOLDER.")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
