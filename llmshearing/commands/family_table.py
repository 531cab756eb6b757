"""The table of `docs/models.md`: every family measured on a tiny model with random weights.

    llmshearing family_table [FILE]

Measured in fp32 are the largest differences of a logit between transformers' model and ours, and between
ours under soft masks of every kind and the model that pruning exports, reloaded by transformers; and
whether HF -> Composer -> HF returns every weight bit for bit. With FILE, the table there is replaced.

Example:

    llmshearing family_table docs/models.md
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.convert import export
from llmshearing.commands.equality import differences, load_ours, load_theirs
from llmshearing.pruning.cut import cut
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import FAMILIES
from llmshearing.shapes.hf_config import architecture_to_hf
from llmshearing.shapes.units import GATES, Gates

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
_LENGTHS = (8, 33, 64)
_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LINEAR = {"rope_type": "linear", "factor": 2.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
_NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}  # beyond the vocabulary
_LONG = {
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [1.0, 2.0, 5.0]},
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
    "num_key_value_heads": 4,  # as many heads as fit the hidden size when a quarter of both is closed
}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.4,
    "logits_scaling": 0.5,
}
_GRANITE_4 = {
    "num_local_experts": 0,
    "shared_intermediate_size": 56,
    "layer_types": ["attention"] * 3,
    "position_embedding_type": "rope",
    "mamba_n_heads": 4,
    "num_key_value_heads": 4,  # as many heads as fit the hidden size when a quarter of both is closed
}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 12}
# What the table shows: name, family and options of the HF config.
ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("Llama 1, 2", "llama", {"num_key_value_heads": 4}),
    ("Llama 3", "llama", {"rope_theta": 500000.0}),
    ("Llama 3.1", "llama", {"rope_theta": 500000.0, "rope_scaling": _LLAMA3}),
    ("Llama, linear", "llama", {"rope_scaling": _LINEAR}),
    ("Llama, dynamic", "llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    ("Llama, yarn", "llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("Llama, biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    ("SmolLM2, Llama 3.2", "llama", {"tie_word_embeddings": True, "rope_theta": 100000.0}),
    ("Mistral", "mistral", {"sliding_window": None}),
    ("Mistral, window", "mistral", {"sliding_window": 8}),
    ("Qwen2, Qwen2.5", "qwen2", {}),
    ("Qwen3", "qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    ("Qwen2, Qwen3, windows by layer", "qwen3", {**_MIXED, "head_dim": 8, "use_sliding_window": True}),
    ("SmolLM3", "smollm3", {**_NO_TOKENS, "no_rope_layer_interval": 2}),
    ("OLMo 2", "olmo2", _NO_TOKENS),
    ("OLMo 3", "olmo3", {**_NO_TOKENS, **_MIXED, "rope_theta": 500000.0, "rope_scaling": _YARN}),
    ("Phi-3, Phi-4", "phi3", {**_NO_TOKENS, "sliding_window": 8}),
    ("Phi-3 long, Phi-4-mini", "phi3", {**_NO_TOKENS, **_LONG}),
    ("Granite 3", "granite", {**_MULTIPLIERS, "tie_word_embeddings": True}),
    ("Granite 4, dense", "granitemoehybrid", {**_MULTIPLIERS, **_GRANITE_4}),
    (
        "Gemma 2",
        "gemma2",
        {**_MIXED, **_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    ("Gemma 3, text", "gemma3_text", {**_MIXED, **_GEMMA, "rope_scaling": _LINEAR}),
    ("Pythia, GPT-NeoX", "gpt_neox", {}),
    ("GPT-NeoX, serial", "gpt_neox", {"use_parallel_residual": False}),
]


@dataclass(frozen=True)
class Measured:
    """One row: largest differences of logits, and whether the round trip is exact."""

    parity: float
    masked: float
    exact: bool


def measure(family: str, options: dict[str, Any]) -> Measured:
    """Build a tiny random model of `family` and take its row's measurements."""
    torch.manual_seed(0)
    theirs = _random(CONFIG_MAPPING[family](**{**_SIZES, **options}))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs.save_pretrained(folder / "hf")
        source = read_checkpoint(folder / "hf")
        write_checkpoint(folder / "c.pt", source.weights, source.record or {})
        checkpoint = read_checkpoint(folder / "c.pt")
        arch = describe(checkpoint)[0]
        export(checkpoint.weights, arch, checkpoint.hf_config or {}, {}, folder / "back")
        ours = load_ours(checkpoint)
        gates = soft_gates(arch)
        weights, smaller = cut(checkpoint.weights, gates, arch)
        export(weights, smaller, architecture_to_hf(smaller, checkpoint.hf_config), {}, folder / "pruned")
        pruned, back = load_theirs(folder / "pruned"), load_theirs(folder / "back")
        return Measured(
            parity=max(row.largest for row in differences(ours, theirs, _LENGTHS)),
            masked=max(row.largest for row in differences(ours, pruned, _LENGTHS, gates)),
            exact=all(torch.equal(a, b) for a, b in zip(theirs.parameters(), back.parameters(), strict=True)),
        )


def soft_gates(arch: Architecture) -> Gates:
    """Gates of every kind that `arch` can have, a quarter of the units closed and the others in (0, 1)."""
    gates = Gates()
    for name, gate in GATES.items():
        if name == ("kv_head" if arch.group_size == 1 else "head"):
            continue
        values = 0.2 + 0.8 * torch.rand(gate.shape(arch))
        if gate.size is not None:
            values[..., : values.shape[-1] // 4] = 0
        else:
            values[0] = 0
        gates[name] = values
    return gates


def table() -> str:
    """The rows, in Markdown."""
    lines = [
        "| model | family | HF equality | masked equals pruned | HF -> Composer -> HF |",
        "|---|---|---|---|---|",
    ]
    for name, family, options in ROWS:
        row = measure(family, options)
        exact = "bit for bit" if row.exact else "DIFFERS"
        lines.append(f"| {name} | `{family}` | {row.parity:.1e} | {row.masked:.1e} | {exact} |")
    return "\n".join(lines)


def replace_table(text: str, new: str) -> str:
    """`text` with what stands between the marks replaced.

    Raises:
        ValueError: when the marks are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The file has no lines {BEGIN} and {END} to put the table between.")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def _random(config: Any) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    one = 0.0 if config.model_type.startswith("gemma") else 1.0  # norms of Gemma add 1 to their weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(one if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    return model


def main() -> None:
    parser = cli.parser("llmshearing.utils.family_table", __doc__)
    parser.add_argument("file", nargs="?", type=Path, help="Markdown file whose table is replaced")
    args = parser.parse_args()
    assert {family for _, family, _ in ROWS} == set(FAMILIES)
    rows = table()
    if args.file:
        args.file.write_text(replace_table(args.file.read_text("utf-8"), rows), encoding="utf-8")
    cli.say(rows)
