"""A plan finds every problem of a run, all at once, and warns of what cannot be meant."""

import re
import sys
from pathlib import Path

import pytest
import torch

from llmshearing.callbacks import components
from llmshearing.commands import plan
from llmshearing.config import Config, DataLoadingConfig
from llmshearing.config.reading import load_config
from llmshearing.config.strict import build_what_fits
from llmshearing.config.writing import to_yaml
from llmshearing.datasets.manifest import Manifest
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.planning.findings import check, examine
from runs import SEQ_LEN, run_config, run_values, write_data

ROOT = Path(__file__).parents[2]
SEVEN = ROOT / "configs" / "llama2" / "7b.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def test_finds_every_problem_at_once(tmp_path: Path, data: Path) -> None:
    config = run_config(
        data,
        global_train_batch_size=9,
        model__path=str(tmp_path / "missing.pt"),
        model__l0_module__target_model__d_model=64,
        model__l0_module__pruning_modules=["head"],
        model__attn_pdrop=0.1,
        callbacks__data_loading__set_names=["code", "plays", "poems"],
        algorithms__freezing={},
        loggers__file_logger={"colour": "red"},
    )
    config.scheduler.name = "step"
    config.data_loading.proportion = [0.5, 0.25, 0.5]
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
        ({"eval_loader": None}, "eval_loader is not set, but eval_interval or eval_first is"),
        (
            {"eval_loader": None, "eval_interval": "0ba", "eval_first": True},
            "eval_loader is not set, but eval_interval or eval_first is",
        ),
        ({"save_folder": str(tmp_path / "file")}, "file, which is a file: give a folder"),
        ({"save_folder": str(tmp_path / "run")}, "ep0-ba2-rank0.pt without ep0-ba2-rank0.pt.json"),
        ({"compile_config": {"mode": "bla"}}, "compile_config: torch.compile refuses it: Unrecognized mode"),
        ({"compile_config": {"options": 3}}, "compile_config: torch.compile refuses it: 'int' object has no"),
        ({"compile_config": {"dynamic": "x"}}, "compile_config: torch.compile refuses it: AssertionError"),
        ({"compile_config": {"modes": "bla"}}, "compile_config: torch.compile refuses it: compile() got an"),
        ({"loggers__tensorboard": {}}, "loggers.tensorboard needs the package no_such_package: EXTRAS=track"),
        ({"model__l0_module__target_model__d_model": 0}, "target_model.d_model is 0; expected at least 1"),
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
        ({"model__l0_module__pruning_modules": ["haed"]}, "pruning_modules has 'haed' (did you mean head?)"),
        ({"model__l0_module__pruning_modules": []}, "add head to model.l0_module.pruning_modules"),
    ):
        assert [p for p in examine(run_config(data, **changes)).problems if problem in p], problem
    for changes in (
        {"save_folder": str(tmp_path / "run"), "save_overwrite": True},
        {"load_path": str(tmp_path / "bare.pt"), "load_weights_only": True},
    ):
        assert examine(run_config(data, **changes)).problems == []


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
    config.data_loading = DataLoadingConfig()
    config.train_loader.dataset.split = "for_prune/code"
    found = examine(config)
    assert (found.problems, found.training, found.evaluation) == ([], {"": 56}, {"": 24})
    assert re.search(r"(?m)^  all +1\.0000 +56 ", plan.render(config, found, [1]))
    assert examine(run_config(data, eval_loader=None, eval_interval="0ba")).problems == []


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
    (problem,) = examine(run_config(data, callbacks__data_loading__target_loss=[2.0])).problems
    assert "target_loss has 1 numbers for 3 domains" in problem
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
    config = run_config(data, tokenizer_name="nowhere/llama", model__l0_module__start_sparsity=0.5)
    found = examine(config)
    assert found.problems == []
    falling, tokenizer = found.warnings
    assert "start_sparsity is 0.5, above the 0.333 that mask layer is to reach: its target falls" in falling
    assert tokenizer.startswith("tokenizer_name is nowhere/llama, which is no folder here")


def test_numbers_out_of_range_leave_a_plan_of_the_rest(data: Path) -> None:
    for key in ("device_train_microbatch_size", "max_seq_len", "global_train_batch_size"):
        config, problems = build_what_fits(Config, run_values(data) | {key: 0})
        assert [key in problem for problem in problems] == [True]
        assert "Memory of each device" in plan.render(config, examine(config), [1, 2])


def test_a_size_that_is_not_the_checkpoints_is_one_problem(tmp_path: Path, data: Path) -> None:
    config = run_config(data, model__l0_module=None)
    record = {"config": to_yaml(config)}
    state = {"model": ComposerMosaicLlama(config.model).state_dict(), "callbacks": {"RunRecord": record}}
    torch.save({"state": state}, tmp_path / "run.pt")
    config = run_config(data, model__l0_module=None, model__path=str(tmp_path / "run.pt"))
    for name in ("n_heads", "n_layers", "intermediate_size", "vocab_size", "max_seq_len"):
        setattr(config.model, name, None)
    config.model.d_model = 48
    (problem,) = examine(config).problems
    assert "model.d_model is 48, but the checkpoint" in problem


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


def test_drop_last_that_leaves_no_evaluation_is_found(data: Path) -> None:
    settings = {"eval_loader__drop_last": True, "device_eval_batch_size": 16}
    assert not examine(run_config(data, **settings)).problems  # 24 sequences
    assert "drop_last leaves no batch to evaluate on: of 24 sequences each of 2 devices has 12" in "".join(
        examine(run_config(data, **settings), devices=2).problems
    )
    settings["eval_loader__drop_last"] = False
    assert not examine(run_config(data, **settings), devices=2).problems


def test_amp_fp16_needs_a_gpu(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan may be made elsewhere than the run, which is stopped."""
    config = run_config(data, precision="amp_fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = examine(config)
    assert not found.problems
    assert any("amp_fp16, which needs a GPU" in warning for warning in found.warnings)
    with pytest.raises(ValueError, match="amp_fp16, which needs a GPU"):
        check(config, 1, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not examine(config).warnings


def test_masks_that_cannot_move_are_found(data: Path) -> None:
    assert "optimizer.lag_lr is 0" in "".join(examine(run_config(data, optimizer__lag_lr=0.0)).problems)
    assert not examine(run_config(data, optimizer__lag_lr=0.0, prune=False)).problems
