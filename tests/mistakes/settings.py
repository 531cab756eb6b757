"""Mistakes in a configuration: of the run, of the model and its target, of the data it names."""

from pathlib import Path

from mistakes.case import INSPECT, START, TRAIN, Case
from spoiling import (
    change,
    cut_off,
    manifest,
    other_masks,
    remove_domain,
    shard,
    wrong_index,
)

CASES: dict[str, list[Case]] = {
    "Configuration": [
        Case("no configuration", TRAIN, "{f}/none.yaml", ("none.yaml does not exist",)),
        Case("no YAML", *START, ("run.yaml is not plain YAML",), lambda p: p.yaml.write_text("a: [1")),
        Case(
            "no UTF-8",
            *START,
            ("run.yaml is not plain YAML",),
            lambda p: p.yaml.write_bytes(b"seed: \xff\xfe"),
        ),
        Case("a list", *START, ("expected keys and values",), lambda p: p.yaml.write_text("- 1")),
        Case("override without =", TRAIN, "{y} seed", ("'seed' is not of the form key=value",)),
        Case("unknown key", TRAIN, "{y} optimizer.lrr=1", ("optimizer.lrr", "did you mean optimizer.lr?")),
        Case(
            "two unknown keys", TRAIN, "{y} sed=1 modle.path=x", ("did you mean seed?", "did you mean model?")
        ),
        Case("wrong type", TRAIN, "{y} seed=many", ("seed is 'many'; expected a whole number",)),
        Case("missing key", *START, ("max_duration is missing",), change(max_duration=...)),
        Case(
            "duration without unit", TRAIN, "{y} max_duration=12", ("max_duration is '12'", "such as 320ba")
        ),
        Case("minutes", TRAIN, "{y} max_duration=9min", ("max_duration is '9min'", "ba, tok, sp, ep")),
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
        Case("unknown update", TRAIN, "{y} {d}.update_type=magic", ("'magic'; expected one of doremi",)),
        Case("one word for a list", TRAIN, "{y} {d}.set_names=code", ("set_names is code; expected a list",)),
        Case("a value for a section", TRAIN, "{y} model=5", ("model is 5; expected keys and values",)),
        Case("an empty value", TRAIN, "{y} seed=null", ("seed is empty; give a value",)),
        Case(
            "a number out of its range",
            TRAIN,
            "{y} scheduler.alpha_f=5",
            ("is 5.0; expected a number, from 0 to 1",),
        ),
        Case(
            "clipping to less than nothing",
            TRAIN,
            "{y} algorithms.gradient_clipping.clipping_threshold=-1",
            ("clipping_threshold is -1; expected a number above 0",),
        ),
        Case("a file for a folder", TRAIN, "{y} save_folder={y}", ("save_folder is", "which is a file")),
        Case(
            "betas",
            TRAIN,
            "{y} optimizer.betas=[2,3]",
            ("optimizer.betas has 2.0; expected each to be a number, from 0 to less than 1",),
        ),
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
            ("'sgd'; expected one of decoupled_adamw, adamw",),
        ),
        Case(
            "unknown schedule",
            TRAIN,
            "{y} scheduler.name=step",
            ("'step'; expected one of cosine",),
        ),
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
        Case(
            "two pruning methods",
            TRAIN,
            "{y} model.maskllm.pattern=2:4",
            ("model.l0_module and model.maskllm are both set", "remove the others"),
        ),
        Case(
            "a pattern that keeps too much",
            TRAIN,
            "{y} model.l0_module=null model.maskllm.pattern=5:4",
            ("model.maskllm.pattern is 5:4, which keeps 5 of 4",),
        ),
        Case(
            "a pattern that does not divide the inputs",
            TRAIN,
            "{y} model.l0_module=null model.maskllm.pattern=2:5",
            ("attn.wq has 32 inputs, which blocks of 5 do not divide",),
        ),
        Case(
            "masks of another model",
            TRAIN,
            "{y} model.l0_module=null model.maskllm.prior={f}/masks.npz",
            ("belongs to another model", "llmshearing oneshot"),
            other_masks,
        ),
        Case(
            "fixed masks without masks",
            TRAIN,
            "{y} model.l0_module=null model.maskllm.fixed=true",
            ("model.maskllm.fixed is true without a prior",),
        ),
        Case("unknown mask", TRAIN, "{y} {l}.pruning_modules=[haed]", ("'haed'; did you mean head?",)),
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
            ("no data folder", "llmshearing prepare"),
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
}
