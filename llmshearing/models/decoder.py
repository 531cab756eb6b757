"""The decoder that all families share, under the gates that the table of units places.

B batch, S sequence, D hidden, L layers, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmshearing.config import ModelConfig
from llmshearing.models.attention import attention_function, soft_capped
from llmshearing.models.layers import (
    MLP,
    Attention,
    FusedAttention,
    LayerNorm,
    RMSNorm,
    executed_columns,
    idle,
    make_norm,
    normed,
)
from llmshearing.models.loss import CrossEntropy, Term, linear_loss, shift_labels
from llmshearing.models.rope import rope_tables
from llmshearing.pruning import Method, build_method
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import training_flops
from llmshearing.shapes.executed import EVERYTHING, Executed, executed_units
from llmshearing.shapes.layer_gates import LayerGates
from llmshearing.shapes.model_section import architecture_of
from llmshearing.shapes.units import Gates, weight_table


class Block(nn.Module):
    """One decoder layer: attention and MLP, one after the other or (Pythia) side by side."""

    def __init__(self, arch: Architecture, attn_impl: str, layer: int = 0, device=None) -> None:
        super().__init__()
        self.parallel = arch.parallel_residual
        self.multiplier = arch.residual_multiplier
        self.ln_1 = make_norm(arch, arch.d_model, device) if arch.pre_norms else None
        attention = FusedAttention if arch.fused_qkv else Attention
        self.attn = attention(arch, attention_function(attn_impl), layer, device)
        self.ln_2 = make_norm(arch, arch.d_model, device) if arch.pre_norms else None
        self.mlp = MLP(arch, device)

    def forward(self, x_BSD: Tensor, rope: tuple[Tensor, Tensor] | None, gates: LayerGates) -> Tensor:
        if "attn" in gates.skipped:
            attended = idle(x_BSD, self.ln_1, self.attn)
        else:
            attended = self._add(x_BSD, self.attn(normed(x_BSD, self.ln_1, gates, "ln_1"), rope, gates))
        if "mlp" in gates.skipped:
            return idle(attended, self.ln_2, self.mlp)
        mlp_input = x_BSD if self.parallel else attended
        return self._add(attended, self.mlp(normed(mlp_input, self.ln_2, gates, "ln_2"), gates))

    def _add(self, x_BSD: Tensor, contribution: Tensor) -> Tensor:
        return x_BSD + (contribution if self.multiplier == 1 else contribution * self.multiplier)


class Counted(NamedTuple):
    """What the microbatches of a training step have executed so far."""

    step: int
    sequences: int = 0
    flops: int = 0


class Decoder(nn.Module):
    """Token ids in, losses or logits out.

    Attributes:
        transformer: `wte`, `blocks`, `ln_f` and, unless embeddings are tied, `output`.
        method: the pruning method, a child module named after its section; None: nothing is pruned.
        head_name: the name of the weight that makes logits.
        table: the table of units, which places the gates.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.arch = architecture_of(cfg)
        self.table = weight_table(self.arch)
        device = "meta" if cfg.init_device == "meta" else "cpu"
        arch = self.arch
        parts: dict[str, nn.Module] = {
            "wte": nn.Embedding(arch.vocab_size, arch.d_model, device=device),
            "blocks": nn.ModuleList(Block(arch, cfg.attn_impl, i, device) for i in range(arch.n_layers)),
            "ln_f": make_norm(arch, arch.d_model, device),
        }
        if not arch.tie_embeddings:
            parts["output"] = nn.Linear(arch.d_model, arch.vocab_size, bias=False, device=device)
        self.transformer = nn.ModuleDict(parts)
        self.head_name = "wte" if arch.tie_embeddings else "output"
        method = build_method(cfg)
        self._section = None if method is None else method.section
        if method is not None:
            self.add_module(method.section, method)
            method.attach(self)
        self._rope: dict[bool, tuple[Tensor, Tensor]] = {}
        self._counted = Counted(0)
        if device != "meta":
            self.transformer.apply(self.param_init_fn)

    @property
    def method(self) -> Method | None:
        return None if self._section is None else self.get_submodule(self._section)  # type: ignore[return-value]

    @property
    def head(self) -> nn.Embedding | nn.Linear:
        """The module whose weight [V, D] makes logits: the embedding where embeddings are tied."""
        head = self.transformer[self.head_name]
        assert isinstance(head, nn.Embedding | nn.Linear)
        return head

    def param_init_fn(self, module: nn.Module) -> None:
        """Random values for the parameters a module holds itself: N(0, init_std), norms 1, biases 0."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.cfg.init_std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, RMSNorm):
            nn.init.constant_(module.weight, 1 - module.offset)
        elif isinstance(module, LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]

    def fsdp_wrap_fn(self, module: nn.Module) -> bool:
        """Shard block by block (Composer's hook)."""
        return isinstance(module, Block)

    def activation_checkpointing_fn(self, module: nn.Module) -> bool:
        """Recompute block by block (Composer's hook)."""
        return isinstance(module, Block)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        given: Gates | None = None,
        with_term: bool = True,
        step: int | None = None,
        logits: bool = True,
        terms: Sequence[Term] = (),
        ce_weight: float = 1.0,
    ) -> dict[str, Any]:
        """One pass over a batch.

        Args:
            input_ids: [B, S].
            labels: [B, S], not shifted; `IGNORE_INDEX` where there is nothing to predict.
            attention_mask: [B, S]; padding must be on the right, where it needs no mask.
            given: gates to use; default: the method's.
            with_term: compute the method's part of the loss.
            step: the training step at which to compute it; default: the step last begun.
            logits: return them, [B, S, V] in the type of the computation.
            terms: further terms of the loss on logits, beside the cross entropy.
            ce_weight: weight of the cross entropy among them.

        Returns:
            `gates` in force; `term`, the method's part of the loss and what it logs, or None; `logits`; with
            labels also `head_loss`, the weighted sum of cross entropy and further terms, a scalar to learn
            from; `ce_loss`, the cross entropy (`head_loss` itself where it stands alone); `term_losses`, the
            mean of each further term by its name; `token_loss` [B, S], the cross entropy of every token, and
            `predicted` [B, S], where there is one.
        """
        _check_padding(attention_mask)
        term, gates = None, given
        if self.method is not None:
            gates = self.method.gates() if given is None else given
        gates = Gates() if gates is None else gates
        executed = self._executed(gates, given)
        if self.training and self.method is not None:
            self._count(executed, *input_ids.shape)
        hidden = self.hidden_states(input_ids, gates, executed)
        if self.method is not None and with_term:
            term = self.method.term(step)
        outputs: dict[str, Any] = {"gates": gates, "term": term}
        outside = executed.layer_gates(self.table, gates, None)
        head = executed_columns(self.head.weight, outside.executed_columns(self.head_name))
        if labels is not None:
            targets = shift_labels(labels)
            cross_entropy = CrossEntropy(targets.flatten(), ce_weight)
            predicted, every = cross_entropy.predicted, [*terms, cross_entropy]
            total, token_losses = linear_loss(
                hidden.flatten(0, 1),
                head,
                every,
                predicted,
                self.cfg.loss_chunk_tokens,
                self.arch.logits_softcap,
            )
            count = predicted.sum().clamp(min=1)
            alone = not terms and ce_weight == 1
            outputs |= {
                "head_loss": total,
                "ce_loss": total if alone else token_losses[-1].sum() / count,
                "term_losses": {term.name: token_losses[i].sum() / count for i, term in enumerate(terms)},
                "token_loss": token_losses[-1].view_as(targets),
                "predicted": predicted.view_as(targets),
            }
        if logits:
            outputs["logits"] = soft_capped(nn.functional.linear(hidden, head), self.arch.logits_softcap)
        return outputs

    def hidden_states(self, input_ids: Tensor, gates: Gates, executed: Executed = EVERYTHING) -> Tensor:
        """The input of the head: the residual stream after the last norm, of the executed hidden dimensions.

        Returns:
            [B, S, D]; 0 where closed.
        """
        gates = executed.shared(gates)
        outside, arch = executed.layer_gates(self.table, gates, None), self.arch
        embedded = executed_columns(self.transformer["wte"](input_ids), outside.executed_columns("wte"))
        x_BSD = _scaled(embedded, outside.columns("wte"))
        x_BSD = x_BSD if arch.embedding_scale == 1 else x_BSD * arch.embedding_scale
        for layer, block in enumerate(self.transformer["blocks"]):  # type: ignore[arg-type]
            rope = self._rope_tables(layer, input_ids.shape[1], x_BSD) if arch.rotates(layer) else None
            x_BSD = block(x_BSD, rope, executed.layer_gates(self.table, gates, layer))
        x_BSD = normed(x_BSD, self.transformer["ln_f"], outside, "ln_f")
        x_BSD = _scaled(x_BSD, outside.columns(self.head_name))
        return x_BSD if arch.logits_scaling == 1 else x_BSD / arch.logits_scaling

    def _executed(self, gates: Gates, given: Gates | None) -> Executed:
        """What to execute: the units that are open, unless `model.execute` is `all`.

        Everything, too, while torch.compile traces, which would compile anew for every draw of sizes, and
        under given gates that want gradients, which a closed gate may have.
        """
        if self.cfg.execute == "all" or torch.compiler.is_compiling():
            return EVERYTHING
        if given is not None and torch.is_grad_enabled() and any(g.requires_grad for g in given.values()):
            return EVERYTHING
        return executed_units(gates, self.arch)

    def training_flops(self, sequences: int, length: int) -> float:
        """Floating point operations of a training step over `sequences` of `length` tokens.

        While pruning, of the units that the microbatches of the step last begun really executed.
        """
        counted = self._counted
        if self.method is None or not counted.sequences:
            return training_flops(self.arch, sequences, length)
        return counted.flops * sequences / counted.sequences

    def _count(self, executed: Executed, sequences: int, length: int) -> None:
        assert self.method is not None
        before = self._counted if self._counted.step == self.method.step else Counted(self.method.step)
        flops = training_flops(self.arch, sequences, length, executed)
        self._counted = Counted(before.step, before.sequences + sequences, before.flops + flops)

    def _rope_tables(self, layer: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for this layer and length, kept until the length, device or type changes."""
        local = self.arch.rotates_locally(layer)
        kept = self._rope.get(local)
        if kept is None or (kept[0].shape[0], kept[0].device, kept[0].dtype) != (
            length,
            like.device,
            like.dtype,
        ):
            cos, sin = rope_tables(self.arch, length, like.device, local)
            self._rope[local] = kept = (cos.to(like.dtype), sin.to(like.dtype))
        return kept


def _scaled(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor.to(x.dtype)


def _check_padding(attention_mask: Tensor | None) -> None:
    if attention_mask is not None and not bool(attention_mask[:, 0].all()):
        raise ValueError(
            "attention_mask has padding on the left; pad on the right: positions count from the first token."
        )
