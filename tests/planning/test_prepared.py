"""A plan finds every problem of a run, all at once, and warns of what cannot be meant."""

import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models

from llmshearing.callbacks import components
from llmshearing.commands import plan
from llmshearing.config import Config, DataLoadingConfig
from llmshearing.config.reading import load_config
from llmshearing.config.strict import build_what_fits
from llmshearing.config.writing import to_yaml
from llmshearing.datasets.manifest import Manifest
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.planning.prepared import prepare
from runs import DOMAINS, SEQ_LEN, run_config, run_values, write_data

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
    problems = "\n".join(prepare(config, devices=2).problems)
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
        ({"compile_config": {"mode": "bla"}}, "compile_config: torch.compile rejects it: Unrecognized mode"),
        ({"compile_config": {"options": 3}}, "compile_config: torch.compile rejects it: 'int' object has no"),
        ({"compile_config": {"dynamic": "x"}}, "compile_config: torch.compile rejects it: "),
        ({"compile_config": {"modes": "bla"}}, "compile_config: torch.compile rejects it: compile() got an"),
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
            "it holds no optimizer state (this run uses AdamW)",
        ),
        ({"model__l0_module__pruning_modules": ["haed"]}, "pruning_modules has 'haed'; did you mean head?"),
        ({"model__l0_module__pruning_modules": []}, "add head to model.l0_module.pruning_modules"),
    ):
        assert [p for p in prepare(run_config(data, **changes)).problems if problem in p], problem
    for changes in (
        {"save_folder": str(tmp_path / "run"), "save_overwrite": True},
        {"load_path": str(tmp_path / "bare.pt"), "load_weights_only": True},
    ):
        assert prepare(run_config(data, **changes)).problems == []


def test_what_the_next_launch_reads_is_not_deleted(tmp_path: Path, data: Path) -> None:
    """Whatever key names it, through a link or not; a file beside the run's own stays, and so may be read."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("ep0-ba2-rank0.pt", "source.pt"):
        torch.save({"state": {"model": {}}}, folder / name)
    (folder / "latest-rank0.pt").symlink_to("ep0-ba2-rank0.pt")
    (tmp_path / "link").symlink_to("run")
    settings = {"save_folder": str(folder), "save_overwrite": True}
    for place, name, deleted in (
        ("model__path", "run/ep0-ba2-rank0.pt", True),
        ("model__path", "run/latest-rank0.pt", True),
        ("distillation__teacher", "link/ep0-ba2-rank0.pt", True),
        ("model__l0_module__init", "link/latest-rank0.pt", True),
        ("model__path", "run/source.pt", False),
        ("load_path", "run/ep0-ba2-rank0.pt", False),
    ):
        problems = prepare(run_config(data, **settings, **{place: str(tmp_path / name)})).problems
        said = f"{place.replace('__', '.')} is {tmp_path / name}, which save_overwrite=true would delete"
        assert bool([problem for problem in problems if said in problem]) is deleted, (place, name)


def test_a_good_configuration_has_no_problem(data: Path) -> None:
    prepared = prepare(run_config(data), devices=2)
    assert (prepared.problems, prepared.warnings) == ([], [])
    assert prepared.aim.kinds == ["head", "intermediate", "layer", "hidden"]
    config = run_config(data, eval_subset_num_batches=99)
    config.data_loading = DataLoadingConfig()
    config.train_loader.dataset.split = "for_prune/code"
    prepared = prepare(config)
    assert (prepared.problems, prepared.training, prepared.evaluation) == ([], {"": 56}, {"": 24})
    assert re.search(r"(?m)^  all +1\.0000 +56 ", plan.render(prepared, [1]))
    assert prepare(run_config(data, eval_loader=None, eval_interval="0ba")).problems == []


def test_remote_data_is_not_a_missing_folder(tmp_path: Path, data: Path) -> None:
    config = run_config(tmp_path / "cache")
    for loader in (config.train_loader, config.eval_loader):
        assert loader is not None
        loader.dataset.remote = str(data)
    assert prepare(config).problems == []


def test_only_an_update_of_weights_needs_every_domain_in_the_evaluation(data: Path) -> None:
    settings = {"eval_subset_num_batches": 1, "device_eval_batch_size": 8}
    (problem,) = prepare(run_config(data, **settings)).problems
    assert "no sequences of books, wiki" in problem
    config = run_config(data, **settings, callbacks__data_loading__update_type="constant")
    assert prepare(config).problems == []


def test_a_cause_of_several_problems_is_reported_once(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", sequences=16)
    (problem,) = prepare(run_config(data, callbacks__data_loading__target_loss=[2.0])).problems
    assert "target_loss has 1 numbers for 3 domains" in problem
    tokenizer = {"name": "words", "vocab_size": 65, "vocabulary_sha256": ""}
    Manifest(SEQ_LEN, "uint16", tokenizer, {}, {}, {}, {}).write(data)
    (problem,) = prepare(run_config(data)).problems
    assert "words of 65 tokens, the model's vocab_size is 64" in problem
    config = run_config(data / "none", model__path="none.pt", model__l0_module=None)
    for name in ("d_model", "n_heads", "n_layers", "intermediate_size", "vocab_size"):
        setattr(config.model, name, None)
    first, second = prepare(config).problems
    assert "none.pt" in first
    assert "no data folder" in second


def test_a_package_that_is_missing_is_a_problem(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    (problem,) = prepare(run_config(data, model__attn_impl="flash")).problems
    assert "flash-attn" in problem


def test_what_cannot_be_meant_is_a_warning_and_no_problem(data: Path) -> None:
    config = run_config(data, eval_interval="0ba")
    prepared = prepare(config)
    assert prepared.problems == []
    shown = plan.render(prepared, [1])
    assert "Warning: eval_interval is 0ba: without evaluations the domain weights never change." in shown
    (warning,) = prepare(run_config(data, eval_interval="0ba", eval_loader=None)).warnings
    assert warning.startswith("eval_interval is 0ba: without evaluations the domain weights never change.")
    config = run_config(data, eval_interval="0ba", callbacks__data_loading__update_type="constant")
    assert prepare(config).warnings == []


def test_a_tokenizer_that_cannot_travel_and_targets_that_fall_are_warned_about(data: Path) -> None:
    config = run_config(data, tokenizer_name="nowhere/llama", model__l0_module__start_sparsity=0.5)
    prepared = prepare(config)
    assert prepared.problems == []
    falling, tokenizer = prepared.warnings
    assert "start_sparsity is 0.5, above the 0.333 that mask layer is to reach: its target falls" in falling
    assert tokenizer.startswith("tokenizer_name is nowhere/llama, which is not a folder here")


def test_numbers_out_of_range_leave_a_plan_of_the_rest(data: Path) -> None:
    for key in ("device_train_microbatch_size", "max_seq_len", "global_train_batch_size"):
        config, problems = build_what_fits(Config, run_values(data) | {key: 0})
        assert [key in problem for problem in problems] == [True]
        assert config is not None
        assert "Memory of each device" in plan.render(prepare(config), [1, 2])


def test_a_size_that_is_not_the_checkpoints_is_one_problem(tmp_path: Path, data: Path) -> None:
    config = run_config(data, model__l0_module=None)
    record = {"config": to_yaml(config)}
    state = {"model": ComposerMosaicLlama(config.model).state_dict(), "callbacks": {"RunRecord": record}}
    torch.save({"state": state}, tmp_path / "run.pt")
    config = run_config(data, model__l0_module=None, model__path=str(tmp_path / "run.pt"))
    for name in ("n_heads", "n_layers", "intermediate_size", "vocab_size", "max_seq_len"):
        setattr(config.model, name, None)
    config.model.d_model = 48
    (problem,) = prepare(config).problems
    assert "model.d_model is 48, but the checkpoint" in problem


def test_a_bare_state_dict_is_described_by_the_configuration(tmp_path: Path, data: Path) -> None:
    config = run_config(data, model__l0_module=None)
    torch.save(ComposerMosaicLlama(config.model).state_dict(), tmp_path / "original.pt")
    config.model.path = str(tmp_path / "original.pt")
    prepared = prepare(config)
    assert prepared.problems == []
    assert prepared.source is not None
    assert (prepared.source.n_heads, prepared.source.head_dim) == (4, 8)
    config.model.n_layers = 5
    assert "model.n_layers is 5, but the checkpoint" in prepare(config).problems[0]
    config.model.n_layers = 3
    state = torch.load(config.model.path)
    del state["model.transformer.ln_f.weight"]
    torch.save(state, config.model.path)
    assert "1 missing: model.transformer.ln_f.weight" in prepare(config).problems[0]


def test_microbatches_of_a_step_are_equally_large(data: Path) -> None:
    config = run_config(data, device_train_microbatch_size=3)
    (problem,) = prepare(config).problems
    assert "microbatch_size is 3, which does not divide the 8 sequences of a device" in problem
    assert not prepare(config, devices=4).problems


def test_a_batch_that_does_not_divide_comes_with_one_that_does(data: Path) -> None:
    for batch, better in ((7, 6), (1, 3)):
        (problem,) = prepare(run_config(data, global_train_batch_size=batch), devices=3).problems
        assert problem.endswith(f"expected a multiple of 3: set it to {better}, or use another number.")


def test_masks_that_are_not_applied_are_a_problem_of_a_run_that_prunes_nothing(
    tmp_path: Path, data: Path
) -> None:
    config = run_config(data)
    torch.save(ComposerMosaicLlama(config.model).state_dict(), tmp_path / "pruning.pt")
    for prune, expected in ((True, []), (False, ["masks are not applied yet"])):
        config = run_config(data, prune=prune, model__path=str(tmp_path / "pruning.pt"))
        problems = prepare(config).problems
        assert len(problems) == len(expected)
        assert all(part in problem for part, problem in zip(expected, problems, strict=True))


@pytest.mark.parametrize(
    ("devices", "batch", "advice"),
    [(1, 25, "at most 24"), (2, 13, "at most 12"), (25, 1, "set eval_loader.drop_last=false")],
)
def test_evaluation_data_smaller_than_a_batch_is_a_problem_with_drop_last(
    data: Path, devices: int, batch: int, advice: str
) -> None:
    """The evaluation data has 24 sequences."""
    settings = {"device_eval_batch_size": batch, "global_train_batch_size": 8 * devices}
    config = run_config(data, **settings)
    assert prepare(config, devices).problems == []
    assert config.eval_loader is not None
    config.eval_loader.drop_last = True
    (problem,) = prepare(config, devices).problems
    assert problem.startswith("eval_loader.drop_last is true, but the evaluation data has 24 sequences")
    assert advice in problem
    config.device_eval_batch_size = 24 // min(devices, 24)
    assert bool(prepare(config, devices).problems) == (devices > 24)
    config.device_eval_batch_size, config.eval_subset_num_batches = 1, 1000
    assert bool(prepare(config, devices).problems) == (devices > 24)


def test_only_sequences_that_an_evaluation_reads_are_counted(data: Path) -> None:
    config = run_config(data, device_eval_batch_size=9)
    assert config.eval_loader is not None
    config.eval_loader.drop_last = True
    assert prepare(config).evaluation == {"code": 8, "books": 8, "wiki": 2}
    assert prepare(config, devices=2).evaluation == {"code": 8, "books": 8, "wiki": 2}
    config.device_eval_batch_size = 8
    (problem,) = prepare(config, devices=2).problems
    assert "no sequences of wiki" in problem


def test_domains_that_the_model_section_names_otherwise_are_warned_about(data: Path) -> None:
    config = run_config(data, model__set_names=["other"])
    (warning,) = prepare(config).warnings
    assert "model.set_names is ['other'], but the run's domains are ['code', 'books', 'wiki']" in warning
    assert prepare(run_config(data, model__set_names=DOMAINS)).warnings == []


# Independent mistakes: each is to be found whatever others there are.
MISTAKES: dict[str, tuple[str, object]] = {
    "precision is 'fp8'": ("precision", "fp8"),
    "scheduler.name is 'step'": ("scheduler.name", "step"),
    "optimizer.betas has 2.0": ("optimizer.betas", [2.0, 0.9]),
    "max_duration is '3 days'": ("max_duration", "3 days"),
    "algorithms.freezing is not known": ("algorithms.freezing", {}),
    "unexpected keyword argument 'colour'": ("loggers.file_logger", {"colour": "red"}),
    "nowhere.pt; expected a checkpoint": ("model.path", "nowhere.pt"),
    "model.attn_pdrop is 0.1": ("model.attn_pdrop", 0.1),
    "target_model.d_model is 64": ("model.l0_module.target_model.d_model", 64),
    "proportion sums to 1.25": ("callbacks.data_loading.proportion", [0.5, 0.25, 0.5]),
    "for_prune/plays": ("callbacks.data_loading.set_names", ["code", "plays", "books"]),
    "load_path is gone.pt": ("load_path", "gone.pt"),
    "torch.compile rejects it": ("compile_config", {"mode": "fastest"}),
    "global_train_batch_size is 9 for 2 devices": ("global_train_batch_size", 9),
    "exhausted is 'again'": ("train_loader.dataset.exhausted", "again"),
    "eval_loader.dataset.cache_limit is 'much'": ("eval_loader.dataset.cache_limit", "much"),
    "train_loader.dataset.shuffle_seed is -1": ("train_loader.dataset.shuffle_seed", -1),
}


@settings(max_examples=20, deadline=None)
@given(chosen=st.sets(st.sampled_from(sorted(MISTAKES)), min_size=1))
def test_every_mistake_is_reported_with_all_others(data: Path, chosen: set[str]) -> None:
    """As the command does: what the schema says of the file, then what preparing it finds."""
    values = OmegaConf.create(run_values(data))
    for key, value in (MISTAKES[name] for name in chosen):
        OmegaConf.update(values, key, value, force_add=True)
    config, problems = build_what_fits(Config, OmegaConf.to_container(values))
    assert config is not None
    problems += prepare(config, devices=2).problems
    for name in MISTAKES:
        assert any(name in problem for problem in problems) == (name in chosen), (name, problems)


def test_a_tokenizer_and_a_manifest_that_differ_are_reported_together(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    made_with = {"name": "words", "vocab_size": 99, "vocabulary_sha256": "another"}
    Manifest(SEQ_LEN * 2, "uint32", made_with, {}, {}, {}, {}).write(data)
    (tmp_path / "words").mkdir()
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    words.save(str(tmp_path / "words" / "tokenizer.json"))
    config = run_config(data, tokenizer_name=str(tmp_path / "words"))
    config.train_loader.dataset.is_uint16 = True
    problems = "\n".join(prepare(config).problems)
    for part in (
        "words (64 ids) has another vocabulary",
        "prepared with seq_length 32, max_seq_len is 16",
        "of 99 tokens, the model's vocab_size is 64",
        "is_uint16 is True, but the tokens of",
    ):
        assert part in problems


def test_a_missing_data_folder_is_one_problem() -> None:
    assert [p for p in prepare(load_config(SEVEN)).problems if "data folder data/mds" in p]
    assert len(prepare(load_config(SEVEN)).problems) == 1


def test_amp_fp16_needs_a_gpu(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan may be made elsewhere than the run, which is stopped."""
    config = run_config(data, precision="amp_fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = prepare(config)
    assert not found.problems
    assert any("amp_fp16, which needs a GPU" in warning for warning in found.warnings)
    started = prepare(config, starts=True)
    assert any("amp_fp16, which needs a GPU" in problem for problem in started.problems)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not prepare(config).warnings
