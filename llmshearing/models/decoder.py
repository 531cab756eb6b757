"""The decoder that all families share, with masks on every place that writes the residual stream.

B batch, S sequence, D hidden, H heads, L layers, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from llmshearing.config.keys import ModelConfig
from llmshearing.models.attention import attention_function
from llmshearing.models.layers import (
    MLP,
    Attention,
    FusedAttention,
    LayerMasks,
    LayerNorm,
    RMSNorm,
    layer_masks,
    make_norm,
)
from llmshearing.models.loss import linear_cross_entropy, shift_labels
from llmshearing.models.rope import rope_tables
from llmshearing.pruning.l0 import L0Module
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import architecture_of
from llmshearing.shapes.units import Z_NAMES


class Block(nn.Module):
    """One decoder layer: attention and MLP, one after the other or (Pythia) side by side."""

    def __init__(self, arch: Architecture, attn_impl: str, device=None) -> None:
        super().__init__()
        self.parallel = arch.parallel_residual
        self.ln_1 = make_norm(arch, arch.d_model, device)
        attention = FusedAttention if arch.fused_qkv else Attention
        self.attn = attention(arch, attention_function(attn_impl), device)
        self.ln_2 = make_norm(arch, arch.d_model, device)
        self.mlp = MLP(arch, device)

    def forward(self, x_BSD: Tensor, rope: tuple[Tensor, Tensor], masks: LayerMasks) -> Tensor:
        after = x_BSD + self.attn(self.ln_1(x_BSD, masks.hidden), rope, masks)
        mlp_input = x_BSD if self.parallel else after
        return after + self.mlp(self.ln_2(mlp_input, masks.hidden), masks)


class Decoder(nn.Module):
    """Token ids in, losses or logits out.

    Attributes:
        transformer: `wte`, `blocks`, `ln_f` and, unless embeddings are tied, `output`.
        l0_module: the masks, or None.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.arch = architecture_of(cfg)
        device = "meta" if cfg.init_device == "meta" else "cpu"
        arch = self.arch
        parts: dict[str, nn.Module] = {
            "wte": nn.Embedding(arch.vocab_size, arch.d_model, device=device),
            "blocks": nn.ModuleList(Block(arch, cfg.attn_impl, device) for _ in range(arch.n_layers)),
            "ln_f": make_norm(arch, arch.d_model, device),
        }
        if not arch.tie_embeddings:
            parts["output"] = nn.Linear(arch.d_model, arch.vocab_size, bias=False, device=device)
        self.transformer = nn.ModuleDict(parts)
        self.l0_module = L0Module(cfg) if cfg.l0_module is not None else None
        self._rope: tuple[Tensor, Tensor] | None = None
        if device != "meta":
            self.transformer.apply(self.param_init_fn)

    def param_init_fn(self, module: nn.Module) -> None:
        """Random values for the parameters a module holds itself: N(0, init_std), norms 1, biases 0."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.cfg.init_std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, RMSNorm | LayerNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, LayerNorm):
                nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]

    def fsdp_wrap_fn(self, module: nn.Module) -> bool:
        """Shard block by block (Composer's hook)."""
        return isinstance(module, Block)

    def activation_checkpointing_fn(self, module: nn.Module) -> bool:
        """Recompute block by block (Composer's hook)."""
        return isinstance(module, Block)

    def forward(self, batch: Mapping[str, Any], logits: bool = True) -> dict[str, Any]:
        """One pass over a batch.

        Args:
            batch: `input_ids` [B, S]; optionally `labels` [B, S], masks by name (see `masks.py`),
                `pruned_steps`, and `attention_mask` [B, S] for padding on the right, which causal
                attention needs no mask for.
            logits: return them, [B, S, V] in the type of the computation.

        Returns:
            `logits`, `l0_output` (Lagrangian loss and values, or None), `zs` (masks, or an empty dict);
            with labels also `ce_loss`, a scalar, and `token_loss` [B, S].
        """
        zs, l0_output = self.masks(batch)
        hidden = self.hidden_states(batch, zs)
        outputs: dict[str, Any] = {"l0_output": l0_output, "zs": zs}
        head = self.transformer["wte"] if self.arch.tie_embeddings else self.transformer["output"]
        assert isinstance(head, nn.Embedding | nn.Linear)
        if batch.get("labels") is not None:
            targets = shift_labels(batch["labels"])
            mean, token_loss = linear_cross_entropy(
                hidden.flatten(0, 1), head.weight, targets.flatten(), self.cfg.loss_chunk_tokens
            )
            outputs |= {"ce_loss": mean, "token_loss": token_loss.view_as(targets)}
        if logits:
            outputs["logits"] = nn.functional.linear(hidden, head.weight)
        return outputs

    def masks(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """The masks in force and the Lagrangian: those of the batch if it carries any, else the module's."""
        given = {name: batch[name] for name in Z_NAMES if batch.get(name) is not None}
        if self.l0_module is None:
            return given, None
        steps = batch.get("pruned_steps")
        l0_output = self.l0_module(calculate_lagrangian=True, pruned_steps=steps)
        return given or self.l0_module(), l0_output

    def hidden_states(self, batch: Mapping[str, Any], zs: Mapping[str, Tensor]) -> Tensor:
        """The residual stream after the last norm, [B, S, D]; zero where hidden_z is."""
        input_ids = batch["input_ids"]
        _check_padding(batch.get("attention_mask"))
        hidden_z = zs.get("hidden_z")
        x_BSD = self.transformer["wte"](input_ids)
        if hidden_z is not None:
            x_BSD = x_BSD * hidden_z.to(x_BSD.dtype)
        rope = self._rope_tables(input_ids.shape[1], x_BSD)
        for layer, block in enumerate(self.transformer["blocks"]):  # type: ignore[arg-type]
            x_BSD = block(x_BSD, rope, layer_masks(zs, layer, self.arch.head_dim))
        return self.transformer["ln_f"](x_BSD, hidden_z)

    def _rope_tables(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for this length, kept until the length, device or type changes."""
        kept = self._rope
        if kept is None or (kept[0].shape[0], kept[0].device, kept[0].dtype) != (
            length,
            like.device,
            like.dtype,
        ):
            cos, sin = rope_tables(self.arch, length, like.device)
            self._rope = (cos.to(like.dtype), sin.to(like.dtype))
        assert self._rope is not None
        return self._rope


def _check_padding(attention_mask: Tensor | None) -> None:
    if attention_mask is not None and not bool(attention_mask[:, 0].all()):
        raise ValueError(
            "attention_mask has padding on the left; pad on the right: positions count from the first token."
        )
