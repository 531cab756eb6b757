"""Mistakes with models: checkpoints of runs, and those of Hugging Face."""

import torch

from mistakes.case import CONVERT, FROM_WEIGHTS, PRUNE, START, TO_COMPOSER, TRAIN, Case
from spoiling import (
    Touch,
    cut_short,
    flip_a_bit,
    hf_folder,
    integer_weights,
    lose_a_shard,
    lose_manifest,
    malicious_hf,
    masked_nowhere,
    quantize,
    sharded_hf,
    trained,
    weights,
)

RESUME = (TRAIN, "{y} autoresume=true")

CASES: dict[str, list[Case]] = {
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
            ("of the wrong shape", "expected (32,), found (31,)"),
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
            ("whose masks are not applied yet",),
            trained(),
        ),
        Case(
            "masks in an export",
            CONVERT,
            "save_composer_to_hf {f}/run/latest-rank0.pt {f}/out",
            ("whose masks are not applied yet",),
            trained(),
        ),
        Case(
            "an export over something else",
            PRUNE,
            "prune_and_save_model {f}/run/latest-rank0.pt --hf {f}/data",
            ("data exists and is not empty; choose another folder",),
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
            "a run over the model that it starts from",
            TRAIN,
            "{y} model.path={f}/run/latest-rank0.pt save_overwrite=true",
            ("model.path is", "which save_overwrite=true would delete", "another save_folder"),
            trained(),
        ),
        Case(
            "resuming from a truncated checkpoint",
            *RESUME,
            ("is damaged", "bytes; ", "were written", "The one before it is", "ep0-ba2-rank0.pt"),
            trained(cut_short),
        ),
        Case(
            "a checkpoint copied without its manifest",
            *RESUME,
            ("holds ep0-ba4-rank0.pt without ep0-ba4-rank0.pt.json", "load_path=", "save_overwrite=true"),
            trained(lose_manifest),
        ),
        Case(
            "pruning from a flipped bit",
            PRUNE,
            "prune_and_save_model {f}/run/latest-rank0.pt",
            ("is damaged", "its SHA-256 differs", "The one before it is", "ep0-ba2-rank0.pt"),
            trained(flip_a_bit),
        ),
        Case(
            "resuming from a flipped bit",
            *RESUME,
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
            ("is quantized: its", "torch.int8", "fp32, bf16 or fp16"),
            sharded_hf(quantize),
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
    "Teachers": [
        Case(
            "no teacher",
            TRAIN,
            "{y} distillation={{}} model.l0_module=null",
            ("only a pruning run has a teacher by default",),
        ),
        Case(
            "a teacher for nothing",
            TRAIN,
            "{y} distillation.kl_weight=0 distillation.ce_weight=0",
            ("kl_weight and distillation.ce_weight are both 0",),
        ),
        Case(
            "a teacher with another vocabulary",
            TRAIN,
            "{y} distillation.teacher={f}/hf",
            ("has a vocabulary of 96 tokens, the model one of 64",),
            hf_folder(),
        ),
        Case(
            "a teacher whose masks are not applied",
            TRAIN,
            "{y} distillation.teacher={f}/run/latest-rank0.pt save_folder={f}/new",
            ("whose masks are not applied yet", "llmshearing prune"),
            trained(),
        ),
    ],
}
