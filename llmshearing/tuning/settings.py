"""The settings of instruction tuning. `conversations` and `turns` default to those of Sheared-LLaMA."""

from dataclasses import dataclass

from llmshearing.config.key import key


@dataclass
class TuneConfig:
    """Every key of `llmshearing tune`, given as key=value."""

    conversations: int = key(
        10_000, "Conversations to train on, drawn by `seed` (the paper's number).", least=1
    )
    turns: int = key(
        1, "Rounds of user and assistant of each, from its first (the paper takes one); 0: all.", least=0
    )
    template: str | None = key(
        None, "Chat template: sheared, chatml, vicuna, or a file of Jinja; null: the tokenizer's own."
    )
    max_length: int = key(
        2048, "Tokens of a conversation, and of a packed row; what is longer is cut.", least=8
    )
    packing: bool = key(True, "Put several conversations in a row; none sees another.")
    epochs: float = key(3.0, "Passes over the conversations.", above=0)
    max_steps: int = key(-1, "Steps after which to stop; -1: after `epochs`.", least=1, also=(-1,))
    learning_rate: float = key(5e-5, "Peak learning rate.", above=0)
    warmup: float = key(0.03, "Share of the steps in which the learning rate rises.", least=0, most=1)
    scheduler: str = key("cosine", "How it falls.", choices=("cosine", "linear", "constant_with_warmup"))
    weight_decay: float = key(0.0, "Weight decay of AdamW.", least=0)
    batch_size: int = key(128, "Rows of a step, over all devices.", least=1)
    device_batch_size: int = key(1, "Rows that a device computes at once.", least=1)
    held_out: int = key(
        64, "Conversations that are not trained on, whose loss is shown before and after.", least=1
    )
    checkpointing: bool = key(False, "Compute activations again in the backward pass, which saves memory.")
    max_bad: float = key(
        0.05,
        "Share of the conversations that may be bad; where more are, nothing is trained.",
        least=0,
        most=1,
    )
    answers: int = key(3, "Questions that are answered before and after.", least=0)
    answer_tokens: int = key(64, "Tokens of an answer at most.", least=1)
    seed: int = key(42, "Of the draw, the order and the trainer.", least=0)
