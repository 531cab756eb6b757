"""The plan: its figures against published ones and against real runs, and that it finds every problem."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from llmshearing import components
from llmshearing.config_file import load_config, read_config
from llmshearing.data.manifest import Manifest
from llmshearing.models.architecture import Architecture
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.models.decoder import Block
from llmshearing.models.layers import LayerMasks
from llmshearing.models.rope import rope_tables
from llmshearing.planning import estimates, sizes
from llmshearing.planning.activations import saved_bytes
from llmshearing.planning.findings import check, examine
from llmshearing.utils import plan
from llmshearing.utils.weights import weight_shapes
from runs import DOMAINS, SEQ_LEN, run_config, run_values, write_data

ROOT = Path(__file__).parents[2]
SEVEN = ROOT / "configs" / "llama2" / "7b.yaml"
LLAMA_7B = Architecture(4096, 32, 32, 128, 32, 11008, 32000, 4096)
TINY = Architecture(64, 4, 2, 16, 2, 96, 128, 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("hidden", "heads", "layers", "intermediate", "count"),
    [
        (4096, 32, 32, 11008, 6_738_415_616),
        (2560, 20, 32, 6912, 2_701_560_320),
        (2048, 16, 24, 5504, 1_345_423_360),
        (1024, 8, 24, 2816, 373_867_520),
    ],
)
def test_parameters_are_the_published_ones(
    hidden: int, heads: int, layers: int, intermediate: int, count: int
) -> None:
    arch = Architecture(hidden, heads, heads, 128, layers, intermediate, 32000, 4096)
    assert sizes.parameters(arch) == count


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"family": "qwen2", "qkv_bias": True, "tie_embeddings": True},
        {"family": "qwen3", "qk_norm": True},
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        {"family": "gpt_neox", "n_kv_heads": 4, "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    ],
)
def test_parameters_are_those_of_the_model(options: dict[str, Any]) -> None:
    arch = TINY.resized(**options)
    assert sizes.parameters(arch) == sum(math.prod(shape) for shape in weight_shapes(arch).values())


@pytest.mark.parametrize("masked", [False, True])
def test_saved_bytes_are_what_a_real_block_keeps(masked: bool) -> None:
    tokens, kept = 48, {}
    block = Block(TINY, "sdpa")
    own = {p.untyped_storage().data_ptr() for p in block.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    x = torch.randn(1, tokens, TINY.d_model, requires_grad=True)
    shapes = [(TINY.d_model,), (TINY.n_heads,), (TINY.intermediate_size,), (), ()]
    masks = LayerMasks(*(torch.rand(s, requires_grad=True) for s in shapes)) if masked else LayerMasks()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(x, rope_tables(TINY, tokens, x.device), masks)
    real = sum(storage.nbytes() for storage in kept.values())
    estimate = saved_bytes(TINY, torch.float32, torch.float32, masked).of(tokens)
    assert estimate == pytest.approx(real, rel=0.02)


def test_sharded_memory_falls_with_devices_and_states_add_up() -> None:
    config, found = read_config(SEVEN), examine(read_config(SEVEN))
    one, eight = (estimates.memory(config, found, n) for n in (1, 8))
    count = 6_738_415_616
    assert one.weights + one.gradients + one.optimizer == 16 * count
    assert eight.weights + eight.gradients + eight.optimizer == 2 * count
    block = 4 * 4096**2 + 3 * 4096 * 11008
    assert (one.gathered, eight.gathered) == (0, 2 * (3 * block + 2 * 32000 * 4096))
    assert eight.recomputed < eight.activations / 10
    assert eight.total(True) < 30 * 2**30 < one.total(True)


def test_rate_and_hours_are_near_the_published_ones(data: Path) -> None:
    quarter = estimates.tokens_per_second(LLAMA_7B, 4096, "a100", 0.27)
    half = estimates.tokens_per_second(LLAMA_7B, 4096, "a100", 0.54)
    assert quarter == pytest.approx(1844, rel=0.02)
    assert half == pytest.approx(3684, rel=0.02)
    config = run_config(data)
    found = examine(config)
    trained, evaluated = 12 * 8 * SEQ_LEN, 3 * 24 * SEQ_LEN
    assert estimates.hours(config, found, 100.0) == pytest.approx((trained + evaluated / 3) / 100 / 3600)


def test_domain_budgets_count_passes_at_the_starting_weights(data: Path) -> None:
    config = run_config(data)
    budgets = {b.name: b for b in estimates.domain_budgets(config, examine(config))}
    assert list(budgets) == DOMAINS
    code = budgets["code"]  # 56 sequences, half of each batch of 8, 12 steps
    assert (code.sequences, code.evaluation) == (56, 8)
    assert (code.steps_a_pass, code.passes) == (pytest.approx(14), pytest.approx(48 / 56))


def test_checkpoints_and_evaluations_are_counted() -> None:
    config = run_config(Path("nowhere"), save_interval="5ba")  # 12 steps
    assert estimates.checkpoint_bytes(config, LLAMA_7B) == 12 * 6_738_415_616
    config.save_weights_only = True
    assert estimates.checkpoint_bytes(config, LLAMA_7B) == 4 * 6_738_415_616
    for keep, kept in ((-1, 3), (0, 1), (2, 2), (9, 3)):
        config.save_num_checkpoints_to_keep = keep
        assert estimates.checkpoints_kept(config) == kept
    assert sizes.evaluations(config) == 3
    config.eval_first = True
    assert sizes.evaluations(config) == 4


@pytest.mark.parametrize(("duration", "steps"), [("7ba", 7), ("65sp", 9), ("1025tok", 9), ("128tok", 1)])
def test_durations_in_steps(duration: str, steps: int) -> None:
    config = run_config(Path("nowhere"))
    assert sizes.steps_in(duration, config) == steps


def test_finds_every_problem_at_once(tmp_path: Path, data: Path) -> None:
    config = run_config(
        data,
        global_train_batch_size=9,
        model__path=str(tmp_path / "missing.pt"),
        model__l0_module__target_model__d_model=64,
        model__l0_module__pruning_modules=["head"],
        model__attn_pdrop=0.1,
        callbacks__data_loading__proportion=[0.5, 0.25, 0.5],
        callbacks__data_loading__set_names=["code", "plays", "poems"],
        scheduler__name="step",
        algorithms__freezing={},
        loggers__file_logger={"colour": "red"},
    )
    problems = "\n".join(examine(config, devices=2).problems)
    for part in (
        "proportion sums to 1.25",
        "scheduler.name is 'step'; expected one of cosine_with_warmup",
        "algorithms.freezing is not known; expected some of: gradient_clipping",
        "loggers.file_logger: got an unexpected keyword argument 'colour'",
        "missing.pt",
        "attn_pdrop is 0.1",
        "target_model.d_model is 64, more than the source's 32",
        "global_train_batch_size is 9 for 2 devices",
        "for_prune/plays",
        "for_prune/poems",
        "is of domain 'books', expected one of code, plays, poems",
    ):
        assert part in problems
    with pytest.raises(ValueError, match=r"(?s)proportion sums.*poems"):
        check(config, 2, None)


def test_finds_what_would_end_a_run_later(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(components._PACKAGES, "tensorboard", "no_such_package")
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    torch.save({"state": {"model": {"a": torch.ones(1)}}}, tmp_path / "bare.pt")
    (tmp_path / "run" / "ep0-ba2-rank0.pt").touch()
    for changes, problem in (
        ({"callbacks__data_loading__max_weight": 0.1}, "max_weight is 0.1: expected from 1/3"),
        (
            {"callbacks__data_loading__smoothing": 2.0, "max_duration": "0ba"},
            "smoothing is 2.0: expected a share from 0 to 1",
        ),
        ({"eval_loader": None}, "eval_loader is not set, but eval_interval or eval_first is"),
        ({"save_folder": str(tmp_path / "file")}, "file, which is a file: give a folder"),
        ({"save_folder": str(tmp_path / "run")}, "ep0-ba2-rank0.pt without ep0-ba2-rank0.pt.json"),
        ({"compile_config": {"mode": "bla"}}, "compile_config: torch.compile refuses it: Unrecognized mode"),
        ({"loggers__tensorboard": {}}, "loggers.tensorboard needs the package no_such_package: EXTRAS=track"),
        ({"model__l0_module__target_model__d_model": 0}, "target_model.d_model is 0; expected at least 1"),
        ({"model__l0_module__lagrangian_warmup_steps": "0.1dur"}, "expected batches, such as 640ba"),
        ({"fsdp_config": {"state_dict_type": "foo"}}, "state_dict_type is 'foo'; expected one of full"),
        (
            {"algorithms__gradient_clipping": {"clipping_type": "foo"}},
            "clipping_type is 'foo'; expected one of",
        ),
        (
            {"algorithms__gradient_clipping": {"clipping_type": "norm", "clipping_threshold": -1}},
            "algorithms.gradient_clipping.clipping_threshold is -1; expected a number above 0",
        ),
        ({"callbacks__speed_monitor": {"window_size": -1}}, "window_size is -1; expected a number above 0"),
        (
            {"load_path": str(tmp_path / "bare.pt")},
            "its optimizer state is of nothing, this run's is of AdamW",
        ),
        ({"model__l0_module__pruning_modules": []}, "add head to model.l0_module.pruning_modules"),
    ):
        assert [p for p in examine(run_config(data, **changes)).problems if problem in p], problem


def test_a_warm_up_as_long_as_the_run_is_a_warning(data: Path) -> None:
    config = run_config(data, scheduler__t_warmup="12ba", model__l0_module__lagrangian_warmup_steps="13ba")
    assert [warning.split(" is ")[0] for warning in examine(config).warnings] == [
        "scheduler.t_warmup",
        "model.l0_module.lagrangian_warmup_steps",
    ]


def test_a_good_configuration_has_no_problem(data: Path) -> None:
    found = examine(run_config(data), devices=2)
    assert (found.problems, found.warnings) == ([], [])
    assert found.kinds == ["head", "intermediate", "layer", "hidden"]
    config = run_config(data, eval_subset_num_batches=99)
    config.callbacks = {}
    config.train_loader.dataset.split = "for_prune/code"
    found = examine(config)
    assert (found.problems, found.training, found.evaluation) == ([], {"": 56}, {"": 24})


def test_data_that_is_elsewhere_is_no_missing_folder(tmp_path: Path, data: Path) -> None:
    config = run_config(tmp_path / "cache")
    for loader in (config.train_loader, config.eval_loader):
        assert loader is not None
        loader.dataset.remote = str(data)
    assert examine(config).problems == []


def test_only_an_update_of_weights_needs_every_domain_in_the_evaluation(data: Path) -> None:
    settings = {"eval_subset_num_batches": 1, "device_eval_batch_size": 8}
    (problem,) = examine(run_config(data, **settings)).problems
    assert "no sequences of books, wiki" in problem
    config = run_config(data, **settings, callbacks__data_loading__update_type="constant")
    assert examine(config).problems == []


def test_what_stands_behind_several_problems_is_told_once(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", sequences=16)
    tokenizer = {"name": "words", "vocab_size": 65, "vocabulary_sha256": ""}
    Manifest(SEQ_LEN, "uint16", tokenizer, {}, {}, {}, {}).write(data)
    (problem,) = examine(run_config(data)).problems
    assert "words of 65 tokens, the model's vocab_size is 64" in problem
    config = run_config(data / "none", model__path="none.pt", model__l0_module=None)
    for name in ("d_model", "n_heads", "n_layers", "intermediate_size", "vocab_size"):
        setattr(config.model, name, None)
    first, second = examine(config).problems
    assert "none.pt" in first
    assert "no data folder" in second


def test_a_package_that_is_missing_is_a_problem(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    (problem,) = examine(run_config(data, model__attn_impl="flash")).problems
    assert "flash-attn" in problem


def test_what_cannot_be_meant_is_a_warning_and_no_problem(data: Path) -> None:
    config = run_config(data, eval_interval="0ba")
    found = examine(config)
    assert found.problems == []
    shown = plan.render(config, found, [1])
    assert "Warning: eval_interval is 0ba: without evaluations the domain weights never change." in shown
    config = run_config(data, eval_interval="0ba", callbacks__data_loading__update_type="constant")
    assert examine(config).warnings == []


def test_a_tokenizer_that_cannot_travel_and_targets_that_fall_are_warned_about(data: Path) -> None:
    config = run_config(data, tokenizer_name="nowhere/llama", model__l0_module__start_sparsity=0.4)
    found = examine(config)
    assert found.problems == []
    falling, tokenizer = found.warnings
    assert "start_sparsity is 0.4, above the 0.333 that mask layer is to reach: its target falls" in falling
    assert tokenizer.startswith("tokenizer_name is nowhere/llama, which is no folder here")


def test_numbers_out_of_range_leave_a_plan_of_the_rest(data: Path) -> None:
    for key in ("device_train_microbatch_size", "max_seq_len", "global_train_batch_size"):
        config = run_config(data, **{key: 0})
        found = examine(config)
        assert found.problems[0].startswith(f"{key} is 0; expected")
        assert "Memory of each device" in plan.render(config, found, [1, 2])


def test_a_size_that_is_not_the_checkpoints_is_one_problem(tmp_path: Path, data: Path) -> None:
    config = run_config(data, model__l0_module=None)
    record = {"config": OmegaConf.to_yaml(OmegaConf.structured(config))}
    state = {"model": ComposerMosaicLlama(config.model).state_dict(), "callbacks": {"RunRecord": record}}
    torch.save({"state": state}, tmp_path / "run.pt")
    config = run_config(data, model__l0_module=None, model__path=str(tmp_path / "run.pt"))
    for name in ("n_heads", "n_layers", "intermediate_size", "vocab_size", "max_seq_len"):
        setattr(config.model, name, None)
    config.model.d_model = 48
    (problem,) = examine(config).problems
    assert "model.d_model is 48, but the checkpoint" in problem


def test_a_part_of_an_evaluation_is_counted_over_all_devices(data: Path) -> None:
    config = run_config(data, eval_subset_num_batches=1, device_eval_batch_size=8)
    for devices, counts in ((1, [8, 0, 0]), (2, [8, 8, 0]), (4, [8, 8, 8])):
        assert examine(config, devices).evaluation == dict(zip(DOMAINS, counts, strict=True))


def test_a_bare_state_dict_is_described_by_the_configuration(tmp_path: Path, data: Path) -> None:
    config = run_config(data, model__l0_module=None)
    torch.save(ComposerMosaicLlama(config.model).state_dict(), tmp_path / "original.pt")
    config.model.path = str(tmp_path / "original.pt")
    found = examine(config)
    assert found.problems == []
    assert found.source is not None
    assert (found.source.n_heads, found.source.head_dim) == (4, 8)
    config.model.n_layers = 5
    assert "model.n_layers is 5, but the checkpoint" in examine(config).problems[0]
    config.model.n_layers = 3
    state = torch.load(config.model.path)
    del state["model.transformer.ln_f.weight"]
    torch.save(state, config.model.path)
    assert "1 missing: model.transformer.ln_f.weight" in examine(config).problems[0]


def test_microbatches_of_a_step_are_equally_large(data: Path) -> None:
    config = run_config(data, device_train_microbatch_size=3)
    (problem,) = examine(config).problems
    assert "microbatch_size is 3, which does not divide the 8 sequences of a device" in problem
    assert not examine(config, devices=4).problems


def test_a_batch_that_does_not_divide_comes_with_one_that_does(data: Path) -> None:
    for batch, better in ((7, 6), (1, 3)):
        (problem,) = examine(run_config(data, global_train_batch_size=batch), devices=3).problems
        assert problem.endswith(f"expected a multiple of 3: set it to {better}, or use another number.")


def test_a_missing_data_folder_is_one_problem() -> None:
    assert [p for p in examine(load_config(SEVEN)).problems if "data folder data/mds" in p]
    assert len(examine(load_config(SEVEN)).problems) == 1


def test_command_prints_plan_and_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(SEVEN), "data_local=nowhere", "--devices", "8", "seed=three"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        plan.main()
    printed = capsys.readouterr().out
    assert stop.value.code == 1
    for part in (
        "1,345,423,360",
        "419,430,400 tokens",
        "64 evaluations",
        "80.9 GB",
        "There is no data folder",
        "seed: Value 'three'",
    ):
        assert part in printed


def test_command_prints_the_plan_of_a_small_run(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_values(data)))
    words = ["plan", str(tmp_path / "run.yaml"), "--devices", "3", "--tokens_per_second", "2000"]
    monkeypatch.setattr(sys, "argv", [*words, "global_train_batch_size=24"])
    plan.main()
    printed = capsys.readouterr().out
    assert "No problems found." in printed
    assert "Read more than once, and more often if their weights rise: code" in printed
    assert math.isclose(float(printed.split("given, 2,000 tokens/s each")[1].split()[1]), 0.0)


def test_unknown_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="'abacus' is not known; expected one of"):
        estimates.tokens_per_second(LLAMA_7B, 4096, "abacus", 0.5)


def test_powers_of_two() -> None:
    assert plan.powers_of_two(1) == [1]
    assert plan.powers_of_two(8) == [1, 2, 4, 8]
    assert plan.powers_of_two(12) == [1, 2, 4, 8, 12]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "target", "reference"),
    [("pruning.sh", "370m", "2.1401"), ("continue_pretraining.sh", "1.3b", "1.9643")],
)
def test_recipes_show_command_and_plan(script: str, target: str, reference: str, tmp_path: Path) -> None:
    settings = {"MODEL": "none.pt", "DATA": str(tmp_path / "none"), "TARGET": target, "DRY_RUN": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shown = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), "max_duration=7ba"],
        env={**os.environ, **settings, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 1
    assert shown.stdout.startswith("composer train.py configs/llama2/")
    assert reference in shown.stdout.splitlines()[0]
    assert "  7 steps of " in shown.stdout
    assert "There is no file none.pt" in shown.stdout.split("2 problems")[1]
