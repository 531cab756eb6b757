"""The section `distillation`: a teacher beside the model in training."""

from dataclasses import dataclass

from llmshearing.config.key import FREE, key


@dataclass
class DistillationConfig:
    """A frozen teacher whose distribution of the next token the model learns beside the text itself."""

    teacher: str | None = key(
        None,
        "The teacher: anything that `model.path` accepts; default in a pruning run: `model.path` itself.",
        resume=FREE,
    )
    kl_weight: float = key(
        1.0, "Weight of the divergence from the teacher; 0: no teacher is loaded.", least=0
    )
    ce_weight: float = key(1.0, "Weight of the cross entropy with the text.", least=0)
    temperature: float = key(
        1.0, "By which the logits of both are divided; the term has its square.", above=0, most=100
    )
    loss: str = key(
        "forward_kl",
        "`forward_kl`: the mean of log(teacher / model) under the teacher's distribution; `reverse_kl`: that "
        "of log(model / teacher) under the model's.",
        choices=("forward_kl", "reverse_kl"),
    )
