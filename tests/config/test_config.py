"""The configuration: what is accepted, what is refused, and in which words."""

from pathlib import Path

import pytest
import yaml

from llmshearing.config import Config, DataLoadingConfig, OptimizerConfig, build
from llmshearing.config.plain import parse
from llmshearing.config.reading import load_config, load_values
from llmshearing.config.writing import to_yaml
from runs import run_values

ROOT = Path(__file__).parents[2]


def write(folder, values):
    path = folder / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_a_base_gives_what_a_file_does_not_say(tmp_path):
    (tmp_path / "common").mkdir()
    lowest = run_values(tmp_path / "data") | {"run_name": "lowest", "save_folder": "runs/${run_name}"}
    write(tmp_path / "common", lowest).rename(tmp_path / "common/lowest.yaml")
    (tmp_path / "common/middle.yaml").write_text(
        "base: lowest.yaml\nrun_name: middle\noptimizer: {lr: 0.5}\n"
    )
    path = write(tmp_path, "base: common/middle.yaml\nmodel: {l0_module: null}\nscheduler: {alpha_f: 0.2}\n")
    config = load_config(path, ["seed=3", "scheduler.alpha_f=0.3"])
    assert (config.run_name, config.save_folder, config.seed) == ("middle", "runs/middle", 3)
    assert (config.optimizer.lr, config.optimizer.lag_lr) == (0.5, 0.5)
    assert (config.scheduler.t_warmup, config.scheduler.alpha_f) == ("2ba", 0.3)
    assert config.model.l0_module is None
    assert config.model.d_model == 32


def test_a_base_that_is_missing_or_circular_is_reported(tmp_path):
    path = write(tmp_path, "base: other.yaml\n")
    with pytest.raises(
        FileNotFoundError, match=r"other.yaml does not exist, the base of .*run.yaml; correct"
    ):
        load_config(path)
    (tmp_path / "other.yaml").write_text("base: ./run.yaml\n")
    with pytest.raises(ValueError, match=r"is based on itself: .*run.yaml -> .*other.yaml -> .*run.yaml"):
        load_config(path)
    with pytest.raises(ValueError, match=r"base is \['a'\]; expected the path of one file"):
        load_config(write(tmp_path, "base: [a]\n"))


def test_overrides_reach_any_depth(tmp_path):
    path = write(tmp_path, run_values(tmp_path / "data"))
    overrides = [
        "model.l0_module=null",
        "max_duration=10ba",
        "callbacks.data_loading.set_names=[a,b,c]",
        "callbacks.data_loading.proportion=[0.2,0.3,0.5]",
        "callbacks.data_loading.target_loss=[1,2,3]",
        "train_loader.prefetch_factor=null",
    ]
    config = load_config(path, overrides)
    assert config.model.l0_module is None
    assert config.max_duration == "10ba"
    assert config.data_loading.proportion == [0.2, 0.3, 0.5]


SHIPPED = [
    p for p in sorted((ROOT / "configs").rglob("*.yaml")) if p.stem not in ("reference_losses", "common")
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_files_are_valid_and_resolve_to_yaml(path):
    config = load_config(path)
    assert build(Config, parse(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.l0_module.target_modle=3",
            "unknown key model.l0_module.target_modle; did you mean model.l0_module",
        ),
        ("callbacks.data_loading.set_name=[a]", "unknown key callbacks.data_loading.set_name; did you mean"),
        ("callbacks.data_loading.set_names=code", r"set_names is code; expected a list such as \[code\]"),
        ("callbacks.data_loading.set_names=[]", "set_names is empty; give at least one, or leave it out"),
        ("callbacks.data_loading.set_names=[code,code,wiki]", "set_names has code twice; name each once"),
        ("callbacks.data_loading=abc", "callbacks.data_loading is abc; expected keys and values"),
        ("data_loading={}", "unknown key data_loading; it stands in the section callbacks"),
        ("model=[1]", r"model is \['1'\]; expected keys and values below it"),
        ("model.path.a=1", "Override 'model.path.a=1' does not fit model.path, which is a/b"),
        ("train_loader=null", "train_loader is missing; add it"),
        ("max_duration=???", "max_duration is missing; add it"),
        ("=5", "Override '=5' is not of the form key=value"),
        ("model.=5", "Override 'model.=5' is not of the form key=value"),
        ("nonsense", "not of the form key=value"),
        ("optimizer.betas=[0.9,b]", r"optimizer.betas\[1\] is 'b'; expected a number"),
        ("optimizer.betas=[0.9]", r"optimizer.betas has 1 values, \[0.9\]; expected 2"),
        ("optimizer.betas=5", r"optimizer.betas is 5; expected a list such as \[5\]"),
        ("device_train_microbatch_size=1.5", "is '1.5'; expected a whole number, 1 or more, or auto"),
        ("optimizer.lr=inf", "optimizer.lr is inf; expected a finite number, 0 or more"),
        (
            "max_duration=3",
            "max_duration is '3'; expected a whole number, more than 0 and a unit out of ba, tok, sp, ep",
        ),
        ("callbacks.data_loading.proportion=[0.5,0.2,0.2]", "proportion sums to 0.9; expected 1"),
        ("callbacks.data_loading.proportion=[0.5,0.5]", "has 2 numbers for 3 domains"),
        ("callbacks.data_loading.target_loss=[1]", "target_loss has 1 numbers for 3 domains"),
        (
            "callbacks.data_loading.target_loss=2",
            r"is 2; expected a list such as \[2\](.|\n)*1 numbers for 3",
        ),
        ("callbacks.data_loading.target_loss=null", "target_loss is missing"),
        ("callbacks.data_loading.proportion=null", "proportion is missing; give one number for each of"),
        ("callbacks.data_loading.set_names=null", "proportion is set without set_names; name the domains"),
        ("callbacks.data_loading.set_names=null", "target_loss is set without set_names; name the domains"),
        ("autoresume=true", "autoresume is true without save_folder"),
        ("seed=[1", "The value of override 'seed=\\[1' is not plain YAML"),
        ("save_folder=${nowhere}", r"save_folder refers to \$\{nowhere\}, but there is no nowhere"),
        ("save_folder=${save_folder}", "save_folder refers to itself; remove the circle"),
        ("save_folder=runs/${run_name}", r"save_folder is made of \$\{run_name\}, which is empty"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(tmp_path, override, message):
    values = run_values(tmp_path / "data") | {"run_name": None}
    values["model"]["path"] = "a/b"
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, values), [override])


def test_every_problem_is_reported_once_and_all_at_once(tmp_path):
    path = write(tmp_path, run_values(tmp_path / "data"))
    overrides = ["sed=1", "seed=many", "optimizer.lrr=1", "optimizer.lr=high", "max_duration=3"]
    overrides += ["callbacks.data_loading.smoothng=1", "callbacks.data_loading.proportion=[1]"]
    overrides += ["optimizer.betas=[a,b]", "optimizer.eps=tiny"]
    with pytest.raises(ValueError, match="did you mean") as found:
        load_config(path, overrides)
    lines = str(found.value).splitlines()
    wrong = ("sed", "optimizer.lrr", "seed", "optimizer.lr ", "smoothng", "proportion", "max_duration")
    wrong += ("optimizer.betas", "optimizer.eps")
    assert len(lines) == len(wrong)
    assert all(any(key in line for line in lines) for key in wrong)


@pytest.mark.parametrize("fixed", ["dynamic=false", "update_type=constant"])
def test_weights_that_never_change_need_no_references(tmp_path, fixed):
    overrides = ["callbacks.data_loading.target_loss=null", f"callbacks.data_loading.{fixed}"]
    assert load_config(write(tmp_path, run_values(tmp_path / "data")), overrides).data_loading.proportion


def test_missing_keys_and_files_are_named(tmp_path):
    values = run_values(tmp_path / "data")
    del values["global_train_batch_size"]
    with pytest.raises(ValueError, match="global_train_batch_size is missing"):
        load_config(write(tmp_path, values))
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_an_empty_section_counts_as_missing(tmp_path):
    path = write(tmp_path, run_values(tmp_path / "data"))
    empty = ("optimizer", "scheduler", "algorithms", "callbacks", "loggers")
    config = load_config(path, [f"{name}=null" for name in empty])
    assert (config.optimizer, config.callbacks, config.algorithms) == (OptimizerConfig(), {}, {})
    assert load_config(path, ["optimizer.betas=null"]).optimizer.betas == OptimizerConfig().betas


def test_a_path_below_the_home_folder_is_written_as_in_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, run_values(tmp_path / "data"))
    config = load_config(path, ["save_folder=~/runs/a", "train_loader.dataset.local=~/data"])
    assert config.save_folder == f"{tmp_path}/runs/a"
    assert config.train_loader.dataset.local == f"{tmp_path}/data"
    with pytest.raises(IsADirectoryError, match="is a folder; expected a configuration"):
        load_config(tmp_path)


def test_the_domains_section_is_built_once(tmp_path):
    config = load_config(write(tmp_path, run_values(tmp_path / "data")))
    config.data_loading.target_loss = [1.0, 1.0, 1.0]
    assert config.data_loading.target_loss == [1.0, 1.0, 1.0]
    assert "data_loading" not in config.callbacks
    config.data_loading = DataLoadingConfig()
    assert parse(to_yaml(config))["callbacks"]["data_loading"]["set_names"] is None


@pytest.mark.parametrize("value", ["null", ""])
def test_a_null_split_counts_as_missing(tmp_path, value):
    path = write(tmp_path, run_values(tmp_path / "data"))
    assert load_config(path, [f"train_loader.dataset.split={value}"]).train_loader.dataset.split == ""


NAMES = ["no", "on", "1e5", "2024_11", "2024-11-01", "0x1f", "1:30", "1.10", "true", "007", ".5"]


def test_texts_are_read_as_they_are_written(tmp_path):
    """YAML 1.1 takes these for booleans, numbers and dates."""
    values = run_values(tmp_path / "data")
    section = {"set_names": "NAMES", "proportion": [1, *[0] * (len(NAMES) - 1)]}
    values["callbacks"]["data_loading"] = section
    values |= {"run_name": "RUN", "loggers": {"wandb": {"name": "${run_name}", "tags": ["${run_name}"]}}}
    text = yaml.safe_dump(values).replace("NAMES", f"[{', '.join(NAMES)}]").replace("RUN", "2024_11")
    path = write(tmp_path, text)
    config = load_config(path)
    assert config.data_loading.set_names == NAMES
    assert config.run_name == "2024_11"
    for name in NAMES:
        config = load_config(
            path, [f"run_name={name}", f"callbacks.data_loading.set_names=[{','.join(NAMES)}]"]
        )
        assert (config.run_name, config.data_loading.set_names) == (name, NAMES)
        assert build(Config, parse(to_yaml(config))) == config


@pytest.mark.parametrize(("value", "word", "quoted"), [(False, "false", "no"), (None, "null", "null")])
def test_a_value_that_yaml_reads_as_another_type_is_reported_with_the_way_to_write_it(
    tmp_path, value, word, quoted
):
    values = run_values(tmp_path / "data")
    values["callbacks"]["data_loading"]["set_names"] = ["code", value, 1e5]
    with pytest.raises(
        ValueError,
        match=rf'set_names\[1\] is {word}; expected text: write it in quotes, such as "{quoted}"',
    ):
        build(Config, values)


def test_a_key_given_twice_is_reported(tmp_path):
    with pytest.raises(ValueError, match="is not plain YAML: key seed is there twice"):
        load_config(write(tmp_path, "seed: 1\nmodel: {}\nseed: 2\n"))


@pytest.mark.parametrize(
    "text",
    ["? [a]\n: 1", "? {a: 1}\n: 1", "a: !!int [1]", "a: !!str {b: 1}", "a: !!set {b}", 'a: "\\UFFFFFFFF"'],
)
def test_what_no_configuration_holds_is_reported(tmp_path, text):
    with pytest.raises(ValueError, match=r"run\.yaml is not plain YAML: "):
        load_values(write(tmp_path, text))


def test_anchors_are_copies(tmp_path):
    values = yaml.safe_dump(run_values(tmp_path / "data"))
    text = f"{values}\noptimizer: &a {{lr: 1.0}}\nscheduler: {{}}\n".replace("optimizer:\n", "unused:\n", 1)
    text = text.replace("unused:\n  lag_lr: 0.5\n  lr: 0.003\n", "").replace(
        "scheduler:\n  t_warmup: 2ba\n", ""
    )
    text += "algorithms: {gradient_clipping: &b {clipping_threshold: 1.0}}\nloggers: {file_logger: *b}\n"
    text = text.replace(yaml.safe_dump({"algorithms": run_values(tmp_path)["algorithms"]}), "")
    config = load_config(write(tmp_path, text), ["loggers.file_logger.clipping_threshold=2.0"])
    assert config.algorithms["gradient_clipping"]["clipping_threshold"] == 1.0
    assert config.loggers["file_logger"]["clipping_threshold"] == 2.0


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "\n".join(
            f"{n}: &{n} [{','.join([f'*{m}'] * 10)}]" for m, n in zip("abcdef", "bcdefg", strict=True)
        ),
        "a0: " + "x" * 100 + "\n" + "\n".join(f"a{i + 1}: ${{a{i}}}${{a{i}}}${{a{i}}}" for i in range(40)),
        "a0: [1, 2, 3]\n" + "\n".join(f"a{i + 1}: [{','.join([f'${{a{i}}}'] * 9)}]" for i in range(12)),
        "[" * 3000,
    ],
    ids=["aliases", "texts", "lists", "depth"],
)
def test_a_file_that_grows_without_end_is_rejected(tmp_path, text):
    with pytest.raises(
        ValueError, match=r"more than 100,000 values|longer than 100,000|nested too deeply|plain YAML"
    ):
        load_config(write(tmp_path, text))


def test_a_yaml_file_cannot_run_code(tmp_path):
    target = tmp_path / "executed"
    text = f"run_name: !!python/object/apply:os.mkdir ['{target}']\n"
    with pytest.raises(ValueError, match="YAML"):
        load_config(write(tmp_path, text))
    assert not target.exists()
