"""Fine-tuning by trl's SFT trainer on rows that are already tokens. Needs the extra `tune`."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from datasets import Dataset
from llmshearing.progress import bar
from llmshearing.tuning.settings import TuneConfig
from llmshearing.tuning.templates import IGNORED, Example

_RATIO = "warmup_ratio"  # until transformers 5, whose warmup_steps below 1 are a ratio
_WARMUP = _RATIO if _RATIO in SFTConfig.__dataclass_fields__ else "warmup_steps"


class _Bar(TrainerCallback):
    """Progress and loss of the training, in this package's bars."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = bar("tuning", total=state.max_steps, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.4f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def is_first() -> bool:
    """Whether this is the process that speaks and writes."""
    return PartialState().is_main_process


def dtype_of(folder: Path) -> torch.dtype:
    """The type in which a model's weights were stored."""
    found = getattr(AutoConfig.from_pretrained(folder), "torch_dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def attention() -> str:
    """FlashAttention where there is a GPU and it is installed, else PyTorch's; both keep parts apart."""
    return "flash_attention_2" if torch.cuda.is_available() and find_spec("flash_attn") else "sdpa"


def trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    cfg: TuneConfig,
    scratch: Path,
) -> SFTTrainer:
    """trl's trainer for these rows; nothing is written but what `scratch` takes.

    Raises:
        ValueError: when `batch_size` is not a multiple of what the devices compute at once.
    """
    at_once = cfg.device_batch_size * _processes()
    if cfg.batch_size % at_once:
        raise ValueError(
            f"batch_size is {cfg.batch_size}, which is no multiple of {at_once}: device_batch_size "
            f"{cfg.device_batch_size} on {_processes()} processes."
        )
    logging.getLogger("trl").setLevel(logging.ERROR)  # it warns of sdpa, under which rows' parts stay apart
    on_gpu = torch.cuda.is_available()
    warmup: Any = {_WARMUP: cfg.warmup}
    args = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=cfg.epochs,
        max_steps=cfg.max_steps,
        learning_rate=cfg.learning_rate,
        **warmup,
        lr_scheduler_type=cfg.scheduler,
        weight_decay=cfg.weight_decay,
        per_device_train_batch_size=cfg.device_batch_size,
        gradient_accumulation_steps=cfg.batch_size // at_once,
        gradient_checkpointing=cfg.checkpointing,
        max_length=None,
        padding_free=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        bf16=on_gpu,
        use_cpu=not on_gpu,
        seed=cfg.seed,
        data_seed=cfg.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
    )
    made = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        callbacks=[_Bar()],
    )
    made.remove_callback(PrinterCallback)
    return made


def _processes() -> int:
    return PartialState().num_processes


@torch.no_grad()
def assistant_loss(model: PreTrainedModel, examples: Sequence[Example]) -> float:
    """Mean loss in nats over the tokens that the assistant says."""
    total, count = 0.0, 0
    model.eval()
    for example in bar("held-out loss", examples, unit="conversation"):
        ids = torch.tensor([example.input_ids], device=model.device)
        labels = torch.tensor(example.labels[1:], device=model.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    return total / count


@torch.no_grad()
def answer(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: list[int], end: int, tokens: int) -> str:
    """What the model says after a prompt, greedily, up to `end` or `tokens` tokens."""
    model.eval()
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    return str(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)).strip()
