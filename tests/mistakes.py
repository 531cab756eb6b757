"""Mistakes and faults: inputs to the commands, and the message that each must get.

`test_errors.py` makes every one of them; `docs/errors.md` is what the commands answered.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from spoiling import (
    Touch,
    change,
    converted,
    cut_off,
    cut_short,
    flip_a_bit,
    hf_folder,
    integer_weights,
    lose_a_shard,
    malicious_hf,
    manifest,
    masked_nowhere,
    remove_domain,
    shard,
    sharded_hf,
    small_disk,
    text,
    trained,
    weights,
    wrong_index,
)

TRAIN, PREPARE = "train", "llmshearing.data.prepare"
INSPECT = "llmshearing.data.inspect"
CONVERT, PRUNE = "llmshearing.utils.composer_to_hf", "llmshearing.utils.post_pruning_processing"


@dataclass(frozen=True)
class Case:
    """A mistake or fault: a command, its arguments, what the message must hold, and what to do before."""

    name: str
    module: str
    words: str
    message: tuple[str, ...]
    before: Callable[[SimpleNamespace], Any] | None = None
    leaves: str = "nothing"
    """Folder that may hold more afterwards: that of a run which began, or what preparing goes on from."""


START, GO_ON = (TRAIN, "{y}"), (TRAIN, "{y} autoresume=true")
FROM_WEIGHTS = (TRAIN, "{y} model.path={f}/model.pt")
TO_COMPOSER = (CONVERT, "save_hf_to_composer {f}/hf {f}/o.pt")
SETTINGS = "--tokenizer {t} --seq_length 32 --eval_tokens 64 --workers 1"
PREPARED = (PREPARE, f"--input {{f}}/text --output {{f}}/out {SETTINGS}")
FEW_BROKEN = (PREPARE, f"{PREPARED[1]} --max_broken 3")
BROKEN = b'{"text": "w1"}\n' + b"{broken\n" * 5

CASES: dict[str, list[Case]] = {
    "Configuration": [
        Case("no configuration", TRAIN, "{f}/none.yaml", ("none.yaml does not exist",)),
        Case("no YAML", *START, ("run.yaml is not plain YAML",), lambda p: p.yaml.write_text("a: [1")),
        Case("a list", *START, ("expected keys and values",), lambda p: p.yaml.write_text("- 1")),
        Case("override without =", TRAIN, "{y} seed", ("'seed' is not of the form key=value",)),
        Case("unknown key", TRAIN, "{y} optimizer.lrr=1", ("optimizer.lrr", "did you mean optimizer.lr?")),
        Case(
            "two unknown keys", TRAIN, "{y} sed=1 modle.path=x", ("did you mean seed?", "did you mean model?")
        ),
        Case("wrong type", TRAIN, "{y} seed=many", ("seed", "many", "Integer")),
        Case("missing key", *START, ("max_duration is missing",), change(max_duration=...)),
        Case("duration without unit", TRAIN, "{y} max_duration=12", ("max_duration is '12'", "3200ba")),
        Case("epochs", TRAIN, "{y} max_duration=1ep", ("max_duration is '1ep'", "ba, tok, sp")),
        Case(
            "autoresume without a folder",
            TRAIN,
            "{y} save_folder=null autoresume=true",
            ("without save_folder",),
        ),
        Case(
            "weights that do not sum to 1",
            TRAIN,
            "{y} {d}.proportion=[0.5,0.25,0.5]",
            ("sums to 1.25; expected 1",),
        ),
        Case(
            "weights that do not match domains",
            TRAIN,
            "{y} {d}.proportion=[0.5,0.5]",
            ("has 2 numbers for 3 domains",),
        ),
        Case(
            "references that do not match domains",
            TRAIN,
            "{y} {d}.target_loss=[2.0]",
            ("has 1 numbers for 3 domains",),
        ),
        Case("unknown update", TRAIN, "{y} {d}.update_type=magic", ("'magic'; expected doremi, bandit or",)),
        Case(
            "unknown logger", TRAIN, "{y} loggers.paper={{}}", ("loggers.paper is not known", "tensorboard")
        ),
        Case(
            "unknown callback", TRAIN, "{y} callbacks.tea={{}}", ("callbacks.tea is not known", "lr_monitor")
        ),
        Case(
            "unknown optimizer",
            TRAIN,
            "{y} optimizer.name=sgd",
            ("'sgd'; expected decoupled_adamw or adamw",),
        ),
        Case("unknown schedule", TRAIN, "{y} scheduler.name=step", ("'step'; expected cosine_with_warmup",)),
    ],
    "Model and target": [
        Case(
            "unknown model",
            TRAIN,
            "{y} model.name=bert",
            ("'bert'; expected a name that begins with mosaic_",),
        ),
        Case("dropout", TRAIN, "{y} model.attn_pdrop=0.1", ("model.attn_pdrop is 0.1; expected 0",)),
        Case(
            "unknown attention",
            TRAIN,
            "{y} model.attn_impl=fast",
            ("'fast'; expected one of sdpa, flash, eager",),
        ),
        Case(
            "hidden size no multiple of heads",
            TRAIN,
            "{y} model.n_heads=5",
            ("d_model is 32 and model.n_heads is 5", "model.head_dim"),
        ),
        Case("no sizes", *START, ("model.d_model is not set", "model.path"), change(model__d_model=...)),
        Case(
            "target larger", TRAIN, "{y} {l}.target_model.d_model=64", ("is 64, more than the source's 32",)
        ),
        Case(
            "a size without its mask",
            TRAIN,
            "{y} {l}.pruning_modules=[head]",
            ("add hidden to model.l0_module.pruning_modules",),
        ),
        Case("unknown mask", TRAIN, "{y} {l}.pruning_modules=[haed]", ("'haed' (did you mean head?)",)),
        Case(
            "masks inside a head",
            TRAIN,
            "{y} {l}.pruning_modules=[qk_head_dim]",
            ("qk_head_dim, which is not supported",),
        ),
        Case(
            "smaller vocabulary", TRAIN, "{y} {l}.target_model.vocab_size=32", ("vocabulary is not pruned",)
        ),
        Case(
            "KV heads that do not divide",
            TRAIN,
            "{y} model.n_kv_heads=2 {l}.target_model.n_heads=3",
            ("n_heads is 3, which 2 KV heads do not divide",),
        ),
    ],
    "Data": [
        Case(
            "no data folder",
            *START,
            ("no data folder", "data.prepare"),
            change(train_loader__dataset__local="x"),
        ),
        Case(
            "missing split",
            TRAIN,
            "{y} train_loader.dataset.split=for_ft",
            ("for_ft/code/index.json not found",),
        ),
        Case(
            "unknown domain", TRAIN, "{y} {d}.set_names=[code,books,poems]", ("for_prune/poems", "set_names")
        ),
        Case(
            "tokenizer too large",
            TRAIN,
            "{y} model.vocab_size=32",
            ("made with tokenizer words of 64 tokens", "model's vocab_size is 32"),
            manifest,
        ),
        Case(
            "other sequence length", TRAIN, "{y} train_loader.dataset.max_seq_len=7", ("expected 7 tokens",)
        ),
        Case(
            "truncated shard",
            *START,
            ("shard.00000.mds has 100 bytes", "copy this folder again"),
            shard(cut_off),
        ),
        Case("eval lacks a domain", *START, ("no sequences of wiki", "eval_merge"), remove_domain),
        Case(
            "missing shard of data",
            *START,
            ("shard.00000.mds not found, though index.json",),
            shard(Path.unlink),
        ),
        Case(
            "index with a wrong count",
            *START,
            ("and 8 sequences, index.json says", "and 9:"),
            shard(wrong_index),
        ),
        Case(
            "other tokenizer",
            INSPECT,
            "{f}/data --tokenizer {t}",
            ("(502 ids) has another vocabulary", "words (64 ids)"),
            manifest,
        ),
    ],
    "Checkpoints": [
        Case("no checkpoint", TRAIN, "{y} model.path={f}/none.pt", ("none.pt",)),
        Case(
            "a checkpoint that is none",
            TRAIN,
            "{y} model.path={y}",
            ("run.yaml", "cannot be read as a checkpoint"),
        ),
        Case(
            "missing weight",
            *FROM_WEIGHTS,
            ("1 missing", "blocks.0.ln_2.weight"),
            weights(lambda w: w.pop("model.transformer.blocks.0.ln_2.weight")),
        ),
        Case(
            "unexpected weight",
            *FROM_WEIGHTS,
            ("1 unexpected", "blocks.0.extra.weight"),
            weights(lambda w: w.update({"model.transformer.blocks.0.extra.weight": torch.zeros(1)})),
        ),
        Case(
            "wrong shape",
            *FROM_WEIGHTS,
            ("of another shape", "expected (32,), found (31,)"),
            weights(lambda w: w.update({"model.transformer.ln_f.weight": torch.zeros(31)})),
        ),
        Case(
            "sizes that contradict the checkpoint",
            TRAIN,
            "{y} model.path={f}/model.pt model.intermediate_size=40",
            ("model.intermediate_size is 40", "has 48", "set model.intermediate_size=48 or leave it out"),
            weights(lambda w: None),
        ),
        Case(
            "checkpoint with code",
            TRAIN,
            "{y} model.path={f}/evil.pt",
            ("evil.pt holds", "nothing of it was run"),
            lambda p: torch.save({"x": Touch(str(p.folder / "touched"))}, p.folder / "evil.pt"),
        ),
        Case("nothing to prune", PRUNE, "prune_and_save_model {f}/none.pt", ("none.pt",)),
        Case("no masks", PRUNE, "prune_and_save_model {f}/model.pt", ("model.pt", "masks"), masked_nowhere),
        Case(
            "masks in a run without",
            TRAIN,
            "{y} model.path={f}/run/latest-rank0.pt model.l0_module=null save_folder={f}/new",
            ("whose masks are not applied yet", "prune_and_save_model"),
            trained(),
        ),
        Case(
            "masks in an export",
            CONVERT,
            "save_composer_to_hf {f}/run/latest-rank0.pt {f}/out",
            ("whose masks are not applied yet", "prune_and_save_model"),
            trained(),
        ),
        Case(
            "folder of an earlier run",
            *START,
            (
                "holds checkpoints of an earlier run, the last of step 4",
                "autoresume=true",
                "save_overwrite=true",
            ),
            trained(),
        ),
        Case(
            "resuming from a truncated checkpoint",
            *GO_ON,
            ("is damaged", "bytes; ", "were written", "The one before it is", "ep0-ba2-rank0.pt"),
            trained(cut_short),
        ),
        Case(
            "resuming from a flipped bit",
            *GO_ON,
            ("is damaged", "its SHA-256 differs", "The one before it is", "ep0-ba2-rank0.pt"),
            trained(flip_a_bit),
        ),
        Case(
            "resuming with another configuration",
            TRAIN,
            "{y} autoresume=true model.l0_module.noise=shared",
            ("model.l0_module.noise was 'per_rank', is 'shared'", "load_weights_only=true"),
            trained(),
        ),
    ],
    "Hugging Face models": [
        Case("no model", CONVERT, "save_hf_to_composer {f}/none {f}/o.pt", ("none",)),
        Case(
            "override that is not key=value",
            CONVERT,
            "save_composer_to_hf {f}/model.pt {f}/o hidden",
            ("hidden_size=2048",),
        ),
        Case(
            "mixture of experts",
            *TO_COMPOSER,
            ("'mixtral', which is not supported", "llama, mistral", "Mixture-of-experts"),
            hf_folder(model_type="mixtral"),
        ),
        Case(
            "quantized weights",
            *TO_COMPOSER,
            ("quantized", "fp32, bf16 or fp16"),
            hf_folder(quantization_config={"quant_method": "gptq", "bits": 4}),
        ),
        Case(
            "unknown rotary scaling",
            *TO_COMPOSER,
            ("rope_scaling has type 'spiral'; supported: default",),
            hf_folder(rope_scaling={"rope_type": "spiral", "factor": 2.0}),
        ),
        Case(
            "encoder-decoder",
            *TO_COMPOSER,
            ("'t5', which is not supported", "llama, mistral"),
            hf_folder(model_type="t5"),
        ),
        Case(
            "missing shard of a model",
            *TO_COMPOSER,
            ("model.safetensors.index.json names", "model-00002-of-", "are missing; copy them again"),
            sharded_hf(lose_a_shard),
        ),
        Case(
            "a tensor of whole numbers",
            *TO_COMPOSER,
            ("of a type other than fp32, bf16 and fp16", "torch.int8"),
            sharded_hf(integer_weights),
        ),
        Case(
            "weights with code",
            *TO_COMPOSER,
            ("pytorch_model.bin holds", "nothing of it was run"),
            sharded_hf(malicious_hf),
        ),
    ],
    "Preparing data": [
        Case("no text folder", *PREPARED, ("text",)),
        Case("no documents", *PREPARED, ("book", "no documents"), text("0.jsonl", b'{"text": ""}\n')),
        Case("broken lines", *FEW_BROKEN, ("0.jsonl", "broken"), text("0.jsonl", BROKEN)),
        Case(
            "text file cut off", *PREPARED, ("cut off",), text("0.jsonl.gz", gzip.compress(BROKEN * 99)[:-9])
        ),
        Case(
            "no tokenizer",
            PREPARE,
            PREPARED[1].replace("{t}", "{f}/none"),
            ("none",),
            text("0.jsonl", BROKEN[:15]),
        ),
        Case(
            "text that is no UTF-8",
            *FEW_BROKEN,
            ("0.jsonl", "more than 3 broken records"),
            text("0.jsonl", b'{"text": "\xff"}\n' * 5),
        ),
        Case(
            "domain of one document",
            *PREPARED,
            ("domain book", "in 1 different documents", "too few for a sequence of 32"),
            text("0.jsonl", b'{"text": "' + b"w1 " * 999 + b'"}\n'),
        ),
    ],
    "Plan and report": [
        Case("plan of nothing", "llmshearing.utils.plan", "{f}/none.yaml", ("none.yaml does not exist",)),
        Case("plan for no device", "llmshearing.utils.plan", "{y} --devices 0", ("--devices is 0",)),
        Case(
            "report of no run", "llmshearing.report.__main__", "{f}", ("expected the save_folder of a run",)
        ),
    ],
    "While it runs": [
        Case(
            "a weight that is no number",
            *FROM_WEIGHTS,
            ("Step 0 is not finite: loss nan", "Its samples:", "max_skipped_steps=1"),
            weights(lambda w: w["model.transformer.ln_f.weight"].fill_(float("nan"))),
            "run",
        ),
        Case(
            "full disk, training",
            TRAIN,
            "{y} save_interval=1ba",
            ("The checkpoint of step", "could not be saved", "bytes left: make room"),
            small_disk("run", size="800k"),
            "run",
        ),
        Case(
            "full disk, pruning",
            PRUNE,
            "prune_and_save_model {f}/run/latest-rank0.pt {f}/disk/o.pt",
            ("Writing", "disk/o.pt failed", "bytes left: make room"),
            small_disk("disk", trained(), size="8k"),
        ),
        Case(
            "full disk, HF to Composer",
            CONVERT,
            "save_hf_to_composer {f}/hf {f}/disk/o.pt",
            ("Writing", "disk/o.pt failed", "bytes left: make room"),
            small_disk("disk", hf_folder(), size="40k"),
        ),
        Case(
            "full disk, Composer to HF",
            CONVERT,
            "save_composer_to_hf {f}/m.pt {f}/disk/out",
            ("Writing", "disk/out failed", "No space left on device", "bytes left: make room"),
            small_disk("disk", converted, size="40k"),
        ),
        Case(
            "full disk, preparing",
            PREPARE,
            PREPARED[1].replace("{f}/out", "{f}/disk/out"),
            ("No space left on device for", "make room and run the same command again"),
            small_disk("disk", text("0.jsonl", b"\n".join([b'{"text": "w1 w2"}'] * 20000)), size="48k"),
            "disk",
        ),
    ],
}
