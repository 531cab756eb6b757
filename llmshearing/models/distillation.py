"""Distillation: a frozen teacher, and the divergence of the student's distribution from the teacher's.

N tokens, V vocabulary, S the teacher's hidden size. The teacher's logits exist for one chunk of tokens at a
time, beside the student's (`llmshearing.models.loss`).
"""

from functools import partial

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from llmshearing.config import DistillationConfig
from llmshearing.models.attention import soft_capped
from llmshearing.models.decoder import Decoder
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.units import Gates

_PIECE_BYTES = {"cpu": 2**20}  # of logits, which stay in the cache of a core
_PIECE_BYTES_OF_GPU = 2**24
_PIECES = 4  # of a chunk at least, so that temporary tensors take less than one more chunk


def forward_kl(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL(p || q) of p = softmax(teacher / T) and q = softmax(student / T), and its gradient.

    The factor T^2 keeps the size of the gradient to the student's logits, T (q - p), about the same for every
    temperature (Hinton et al., arXiv 1503.02531). With z = log of the sum of exponentials,
    log(p / q) = (teacher - student) / T - (z_teacher - z_student).

    Args:
        student: logits [n, V] in fp32.
        teacher: logits [n, V] in fp32.
        temperature: T, above 0.

    Returns:
        [n], in nats, and the gradient to `student`, [n, V].
    """
    p, q = (_softmax(logits, temperature) for logits in (teacher, student))
    z_difference = _z_difference(student, teacher, p, q, temperature)
    divergence = (teacher - student).mul_(p).sum(-1) / temperature - z_difference
    gradient = q.sub_(p)
    return divergence * temperature**2, gradient if temperature == 1 else gradient.mul_(temperature)


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL(q || p) of p and q as in `forward_kl`, and its gradient to the student's logits.

    The gradient is T q (log(q / p) - KL(q || p)), in which neither T nor z is left.

    Args:
        student: logits [n, V] in fp32.
        teacher: logits [n, V] in fp32.
        temperature: T, above 0.

    Returns:
        [n], in nats, and the gradient to `student`, [n, V].
    """
    p, q = (_softmax(logits, temperature) for logits in (teacher, student))
    z_difference = _z_difference(student, teacher, p, q, temperature)
    del p  # memory that the next line takes
    difference = student - teacher
    mean = (difference * q).sum(-1)
    divergence = z_difference + mean / temperature
    return divergence * temperature**2, difference.sub_(mean[:, None]).mul_(q)


def _softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1 else logits / temperature).softmax(-1)


def _z_difference(student: Tensor, teacher: Tensor, p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """z_teacher - z_student, [n]: the largest probability is exp(largest logit / T - z).

    The two z nearly cancel each other, so neither is computed.
    """
    return (teacher.amax(-1) - student.amax(-1)) / temperature + (q.amax(-1) / p.amax(-1)).log()


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


class Divergence:
    """A divergence between teacher's and student's distributions of the next token, as a term of the loss.

    Args:
        hidden_NS: the input of the teacher's head, for the tokens of the batch.
        head_VS: the teacher's output projection.
        settings: which divergence, its weight and the temperature.
        softcap: the soft cap of the teacher's logits; None: no cap.
    """

    name = "kl_loss"
    in_place = False

    def __init__(
        self,
        hidden_NS: Tensor,
        head_VS: Tensor,
        settings: DistillationConfig,
        softcap: float | None = None,
    ) -> None:
        self.weight = settings.kl_weight
        self._divergence = partial(DIVERGENCES[settings.loss], temperature=settings.temperature)
        self._hidden = hidden_NS
        self._head = head_VS
        self._softcap = softcap

    def chunk(self, logits: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        taught = soft_capped((self._hidden[rows] @ self._head.T).float(), self._softcap)
        rows_of_a_piece = _rows_of_a_piece(logits)
        pieces = zip(logits.split(rows_of_a_piece), taught.split(rows_of_a_piece), strict=True)
        losses = torch.cat([self._piece(*piece) for piece in pieces])
        return losses, taught if wants_grad else None

    def _piece(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Losses of some tokens; their gradient takes the place of the teacher's logits."""
        losses, gradient = self._divergence(student, teacher)
        teacher.copy_(gradient)
        return losses


def _rows_of_a_piece(logits: Tensor) -> int:
    """Tokens whose divergence is computed at once."""
    fitting = _PIECE_BYTES.get(logits.device.type, _PIECE_BYTES_OF_GPU) // (4 * logits.shape[1])
    return max(1, min(fitting, -(-len(logits) // _PIECES)))


_HELD_IN = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}


def held_in(precision: str, device: str) -> torch.dtype:
    """The type of a teacher's weights and of its computation: what autocast makes of a run's `precision`."""
    return _HELD_IN.get(precision, torch.float32) if device == "cuda" else torch.float32


class Teacher:
    """A frozen model whose distribution the student is to follow.

    It is not a module, so that it is no part of the student: no optimizer, checkpoint, gradient norm or
    wrapper sees it.

    Args:
        decoder: with its weights, on the device where it runs and in the type it computes in. On several
            processes it is sharded, its head as a unit of its own (`llmshearing.sharding`).
        settings: the weight of the term and the temperature.
    """

    def __init__(self, decoder: Decoder, settings: DistillationConfig) -> None:
        self._decoder = decoder.eval().requires_grad_(False)
        self.settings = settings

    @property
    def arch(self) -> Architecture:
        """The teacher's architecture."""
        return self._decoder.arch

    @torch.no_grad()
    def term(self, input_ids: Tensor) -> Divergence:
        """The term of a microbatch [B, S]: one forward pass, of which the input of the head is kept."""
        decoder = self._decoder
        with torch.autocast(input_ids.device.type, enabled=False):
            hidden = decoder.hidden_states(input_ids, Gates())
        if isinstance(decoder, FSDPModule):
            decoder.reshard()  # the embedding, which the root keeps for a backward pass that never comes
        head = decoder.head.weight
        whole = head.full_tensor() if isinstance(head, DTensor) else head
        return Divergence(hidden.flatten(0, 1), whole, self.settings, decoder.arch.logits_softcap)
