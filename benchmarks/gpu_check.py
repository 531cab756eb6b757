"""Whether this machine's torch, transformers and GPU train, shard, resume and export as they should.

`python -m benchmarks.gpu --check` runs every check of `checks`, prints what each measured and how long it
took, and fails if one did. bf16 is compared with fp32 and attention by its definition, so that a wrong kernel
shows as a difference.
"""

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor

from benchmarks.common import write_result
from benchmarks.overhead import write_mds
from benchmarks.steps import finish
from llmshearing.checkpoints.run_folder import checkpoint_name
from llmshearing.commands.family_table import ROWS, measure
from llmshearing.config import Config, FsdpConfig, build
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.sharding import shard
from llmshearing.stack import complete_composer
from llmshearing.training import build_trainer, train

# bf16 has 8 significant bits; what its roundings add up to in a loss and in the norm of all gradients.
LOSS, GRADIENT = 2e-3, 0.06
EXACT = 1e-4  # fp32 against fp32 in another order
RESUMED = 1e-4  # on CUDA; on a CPU resumed losses are equal to the bit
DOMAINS = ["code", "books", "wiki"]
STEPS = 6


@dataclass(frozen=True, eq=False)
class Place:
    """Where the checks run, and the sizes that suit it."""

    device: torch.device
    sizes: dict[str, int]
    rows: int
    length: int

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


def place(tiny: bool) -> Place:
    """This machine; `tiny` sizes take seconds on a CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if tiny:
        sizes = {"d_model": 64, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "intermediate_size": 96}
        return Place(device, {**sizes, "vocab_size": 512}, 2, 64)
    sizes = {"d_model": 512, "n_heads": 8, "n_kv_heads": 4, "n_layers": 2, "intermediate_size": 1376}
    return Place(device, {**sizes, "vocab_size": 32_000}, 4, 1024)


def checks(here: Place) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """Every check: its name, and a function that returns what it measured or raises."""
    attentions = ["sdpa", "flash"] if here.is_cuda and find_spec("flash_attn") else ["sdpa"]
    for masked in (False, True):
        kind = "masked" if masked else "dense"
        yield f"{kind}, sdpa, fp32", partial(step_equals_reference, here, masked, "sdpa", False, False)
        for attention, compiled in product(attentions, (False, True)):
            name = f"{kind}, {attention}, bf16{', compiled' if compiled else ''}"
            yield name, partial(step_equals_reference, here, masked, attention, compiled, True)
    yield "FSDP2 on one device", partial(sharded_equals_whole, here)
    for prune in (False, True):
        yield f"{'pruning' if prune else 'dense'} run, resumed", partial(resumed_equals_straight, here, prune)
    if here.is_cuda:
        yield "microbatches halved when memory runs out", partial(microbatch_is_found, here)
    for name, family, options in ROWS:
        if name in ("Llama 3.1", "Qwen3", "Pythia, GPT-NeoX"):
            yield f"{name}: exported, read by transformers", partial(exported_equals_masked, family, options)


# --------------------------------------------------------------------- one step


def step_equals_reference(
    here: Place, masked: bool, attention: str, compiled: bool, bf16: bool
) -> dict[str, float]:
    """Forward and backward pass against the same model in fp32 with attention by its definition."""
    model = make_model(here, masked, attention)
    if compiled:
        torch._dynamo.reset()
        model.compile(backend="inductor" if here.is_cuda else "aot_eager")
    return compare(gradients(model, here, bf16), reference(here, masked), bf16)


@cache
def reference(here: Place, masked: bool) -> tuple[float, Tensor]:
    """Loss and gradients of the plain model in fp32."""
    return gradients(make_model(here, masked, "eager"), here, bf16=False)


def make_model(here: Place, masked: bool, attention: str) -> ComposerMosaicLlama:
    """A random model, the same each time, with gates that are 0, between, and 1 where it is masked."""
    torch.manual_seed(0)
    sizes = here.sizes
    target = {name: sizes[name] // 2 for name in ("d_model", "n_heads", "n_kv_heads", "intermediate_size")}
    l0 = {"lagrangian_warmup_steps": "10ba", "target_model": {**target, "n_layers": 1}}
    cfg = {**sizes, "max_seq_len": here.length, "attn_impl": attention, "l0_module": l0 if masked else None}
    model = ComposerMosaicLlama(cfg)
    if model.model.method is not None:
        for mask in model.model.method.masks.values():  # type: ignore[union-attr,operator]
            torch.nn.init.uniform_(mask.z_loga, -2.0, 4.0)
    model.return_logits = False
    return model.to(here.device)


def gradients(model: ComposerMosaicLlama, here: Place, bf16: bool) -> tuple[float, Tensor]:
    """The loss of a step, and the gradients of all parameters as one vector on the CPU."""
    ids = torch.randint(
        0, here.sizes["vocab_size"], (here.rows, here.length), generator=torch.Generator().manual_seed(1)
    )
    batch = {"input_ids": ids.to(here.device), "labels": ids.to(here.device)}
    if model.model.method is not None:
        model.model.method.begin_step(3, 20)
    with torch.autocast(here.device.type, dtype=torch.bfloat16, enabled=bf16):
        loss = model.loss(model(batch), batch)["total"]
    loss.backward()
    parts = [whole(p.grad).float().flatten().cpu() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(parts)


def whole(tensor: Any) -> Tensor:
    """A tensor with what other processes hold of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def compare(found: tuple[float, Tensor], expected: tuple[float, Tensor], bf16: bool) -> dict[str, float]:
    """Relative differences of loss and gradients; an error where they are larger than rounding explains."""
    values = {
        "loss off by": abs(found[0] - expected[0]) / abs(expected[0]),
        "gradients off by": float((found[1] - expected[1]).norm() / expected[1].norm()),
    }
    bars = (LOSS, GRADIENT) if bf16 else (EXACT, EXACT)
    for (name, value), bar in zip(values.items(), bars, strict=True):
        if not value <= bar:
            raise AssertionError(f"{name} {value:.2e}; expected at most {bar:g}")
    return values


# ------------------------------------------------------------------ whole runs


def sharded_equals_whole(here: Place) -> dict[str, float]:
    """A masked step and an optimizer step under FSDP2, against the model that is not sharded."""
    dist.initialize_dist("gpu" if here.is_cuda else "cpu")
    model = make_model(here, True, "sdpa")
    shard(model, FsdpConfig(activation_checkpointing=True), "amp_bf16" if here.is_cuda else "fp32")
    values = compare(gradients(model, here, bf16=here.is_cuda), reference(here, True), here.is_cuda)
    finish(torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))
    if not all(bool(torch.isfinite(whole(parameter)).all()) for parameter in model.parameters()):
        raise AssertionError("a parameter is not finite after a step of the optimizer")
    return values


def resumed_equals_straight(here: Place, prune: bool) -> dict[str, float]:
    """A run of six steps with two evaluations, and one that resumes it after three."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_data(folder / "data", here)
            train(run_config(here, folder / "data", folder / "straight", prune))
            saved = folder / "straight" / checkpoint_name(0, STEPS // 2, False)
            train(run_config(here, folder / "data", folder / "resumed", prune, load_path=str(saved)))
            straight, resumed = losses(folder / "straight")[STEPS // 2 :], losses(folder / "resumed")
    finally:
        torch.use_deterministic_algorithms(False)
    if len(resumed) != STEPS - STEPS // 2:
        raise AssertionError(f"the resumed run logged {len(resumed)} losses; expected {STEPS - STEPS // 2}")
    worst = max(abs(a - b) / abs(a) for a, b in zip(straight, resumed, strict=True))
    if not worst <= (RESUMED if here.is_cuda else 0):
        raise AssertionError(f"losses after resuming are off by {worst:.2e}: {straight} and {resumed}")
    return {"last loss": straight[-1], "resumed off by": worst}


def microbatch_is_found(here: Place) -> dict[str, float]:
    """A run whose microbatch size Composer finds, on a device that seems to hold two sequences."""
    complete_composer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data", here)
        size = {"device_train_microbatch_size": "auto", "save_folder": None, "max_duration": "2ba"}
        trainer = build_trainer(run_config(here, folder / "data", folder / "run", True, **size))
        model = trainer.state.model
        forward = model.forward

        def small(batch: Any) -> Any:
            if model.training and len(batch["input_ids"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. (made up by the check)")
            return forward(batch)

        model.forward = small  # type: ignore[method-assign]
        trainer.fit()
        found = trainer.state.device_train_microbatch_size
        trainer.close()
    if found != 2:
        raise AssertionError(f"the microbatch has {found} sequences; expected 2")
    return {"sequences": float(found)}


def write_data(folder: Path, here: Place) -> None:
    """Random tokens: a training split of three domains and a merged evaluation."""
    for domain in DOMAINS:
        write_mds(folder / "for_prune" / domain, 32, here.length, [domain], here.sizes["vocab_size"])
    write_mds(folder / "eval_merge", 8, here.length, DOMAINS, here.sizes["vocab_size"])


def run_config(here: Place, data: Path, folder: Path, prune: bool, **changes: Any) -> Config:
    """A run of six steps in bf16 (fp32 on a CPU) over domains whose weights follow the losses."""
    target = {"n_heads": here.sizes["n_heads"] // 2, "n_kv_heads": here.sizes["n_kv_heads"] // 2}
    l0 = {"lagrangian_warmup_steps": "4ba", "target_model": target}
    dataset = {"local": str(data), "max_seq_len": here.length, "shuffle": True}
    values = {
        "max_seq_len": here.length,
        "model": {**here.sizes, "max_seq_len": here.length, "l0_module": l0 if prune else None},
        "train_loader": {"dataset": {**dataset, "split": "for_prune"}},
        "eval_loader": {"dataset": {**dataset, "split": "eval_merge", "shuffle": False}},
        "callbacks": {
            "data_loading": {
                "dynamic": True,
                "set_names": DOMAINS,
                "proportion": [0.5, 0.25, 0.25],
                "target_loss": [2.0, 2.0, 2.0],
            }
        },
        "optimizer": {"lr": 1e-3, "lag_lr": 0.5},
        "scheduler": {"t_warmup": "2ba"},
        "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
        "max_duration": f"{STEPS}ba",
        "eval_interval": f"{STEPS // 2}ba",
        "save_interval": f"{STEPS // 2}ba",
        "global_train_batch_size": 8,
        "device_train_microbatch_size": 4,
        "precision": "amp_bf16" if here.is_cuda else "fp32",
        "progress_bar": False,
        "save_folder": str(folder),
    }
    return build(Config, {**values, **changes})


def losses(folder: Path) -> list[float]:
    """The total loss of every step that a run folder has logged."""
    key = "loss/train/total"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def exported_equals_masked(family: str, options: dict[str, Any]) -> dict[str, float]:
    """A tiny model through conversion, soft masks, the cut and the installed transformers."""
    found = measure(family, options)
    if not (found.parity <= EXACT and found.masked <= EXACT and found.exact):
        raise AssertionError(f"{found}; expected differences of at most {EXACT:g} and an exact round trip")
    return {"logits off by": found.parity, "masked off by": found.masked}


# ---------------------------------------------------------------------- running


def run(tiny: bool) -> bool:
    """Run all checks, print a line for each and write the result; whether all passed."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which deterministic products need
    here, results = place(tiny), []
    for name, check in checks(here):
        start, values, failed = time.perf_counter(), {}, None
        try:
            values = check()
        except Exception as error:  # whatever went wrong, the other checks tell more
            failed = f"{type(error).__name__}: {error}"
            sys.stderr.write(traceback.format_exc())
        seconds = time.perf_counter() - start
        results.append({"check": name, "seconds": seconds, "failed": failed, **values})
        said = failed or ", ".join(f"{key} {value:.2e}" for key, value in values.items())
        sys.stdout.write(f"{'FAILED' if failed else 'ok':7}{seconds:6.1f} s  {name}: {said}\n")
        sys.stdout.flush()
    config = {"sizes": here.sizes, "rows": here.rows, "length": here.length, "device": str(here.device)}
    suffix = ("_tiny" if tiny else "") + ("" if here.is_cuda else "_cpu")
    write_result(f"gpu_check{suffix}", config, {"checks": results})
    failures = sum(result["failed"] is not None for result in results)
    sys.stdout.write(f"{len(results) - failures} passed, {failures} failed\n")
    return not failures
