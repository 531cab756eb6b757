"""The configuration: what is accepted, what is refused, and in which words."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from llmshearing.config.checks import config_problems
from llmshearing.config.keys import Config, OptimizerConfig, build
from llmshearing.config.reading import load_config, read_what_fits
from runs import run_values

ROOT = Path(__file__).parents[2]

# The keys of an original configuration file, section by section.
ORIGINAL = """
data_local: my-data
data_remote:
tokenizer_name: meta-llama/Llama-2-7b-hf
max_seq_len: 4096
global_seed: 17
run_name: test_run_name
model:
  name: mosaic_llama2_7b
  path: /nowhere/state_dict.pt
  init_device: cpu
  tokenizer_name: ${tokenizer_name}
  d_model: 4096
  n_heads: 32
  n_layers: 32
  intermediate_size: 11008
  max_seq_len: ${max_seq_len}
  vocab_size: 32000
  init_std: 0.02
  attn_pdrop: 0.0
  resid_pdrop: 0.0
  emb_pdrop: 0.0
  attn_impl: flash
  rms_norm_eps: 1.0e-5
  l0_module:
    start_sparsity: 0.0
    target_sparsity: 0.5
    pruning_modules: [head, head_layer, mlp, intermediate]
    lagrangian_warmup_steps: 320ba
    eval_target_model: false
    target_model:
      d_model: 2048
      n_layers: 24
      n_heads: 16
      intermediate_size: 5504
      vocab_size: 32000
tokenizer:
  type: hftokenizer
  args:
    tokenizer_name: ${tokenizer_name}
    max_seq_len: ${max_seq_len}
train_loader:
  name: text
  dataset:
    local: ${data_local}
    remote: ${data_remote}
    split: train
    shuffle: true
    tokenizer_name: ${tokenizer_name}
    max_seq_len: ${max_seq_len}
    shuffle_seed: ${global_seed}
    is_uint16: true
  drop_last: true
  num_workers: 8
  prefetch_factor: 2
  persistent_workers: true
eval_loader:
  name: text
  dataset:
    local: ${data_local}
    remote: ${data_remote}
    split: eval_merge
    shuffle: false
    tokenizer_name: ${tokenizer_name}
    max_seq_len: ${max_seq_len}
    shuffle_seed: ${global_seed}
    is_uint16: true
  drop_last: false
  num_workers: 8
scheduler:
  name: cosine_with_warmup
  t_warmup: 320ba
  alpha_f: 0.1
optimizer:
  name: decoupled_adamw
  lr: 1.0e-4
  betas: [0.9, 0.95]
  eps: 1.0e-8
  weight_decay: 0.0
  lag_lr: 1.0
algorithms:
  gradient_clipping:
    clipping_type: norm
    clipping_threshold: 1.0
max_duration: 3200ba
eval_interval: 50ba
eval_first: false
eval_subset_num_batches: -1
global_train_batch_size: 32
seed: ${global_seed}
device_eval_batch_size: 8
device_train_microbatch_size: 4
precision: amp_bf16
fsdp_config:
  sharding_strategy: FULL_SHARD
  mixed_precision: DEFAULT
  activation_checkpointing: true
  activation_cpu_offload: false
  verbose: false
progress_bar: false
log_to_console: true
console_log_interval: 1ba
callbacks:
  data_loading:
    dynamic: true
    set_names: [cc, github]
    proportion: [0.5, 0.5]
    update_type: doremi
    target_loss: [1.9, 0.7]
  speed_monitor:
    window_size: 10
  lr_monitor: {}
  memory_monitor: {}
  runtime_estimator: {}
loggers:
  wandb:
    project: pruning
    name: ${run_name}
    init_kwargs:
      mode: offline
save_interval: 50ba
save_folder: out
save_num_checkpoints_to_keep: 2
save_overwrite: true
load_path:
autoresume: false
"""


def write(folder, values):
    path = folder / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_every_key_of_an_original_file_is_accepted(tmp_path):
    config = load_config(write(tmp_path, ORIGINAL))
    assert config.model.l0_module.target_model.d_model == 2048
    assert config.train_loader.dataset.shuffle_seed == 17
    assert config.seed == 17
    assert config.data_loading.target_loss == [1.9, 0.7]
    assert config.loggers["wandb"]["name"] == "test_run_name"


def test_overrides_reach_any_depth(tmp_path):
    path = write(tmp_path, ORIGINAL)
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


SHIPPED = [p for p in sorted((ROOT / "configs").rglob("*.yaml")) if p.stem != "reference_losses"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_files_are_valid_and_resolve_to_yaml(path):
    config = load_config(path)
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    assert build(Config, OmegaConf.create(text)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.l0_module.target_modle=3",
            r"unknown key model.l0_module.target_modle; did you mean .*target_model",
        ),
        ("max_durations=3ba", "unknown key max_durations; did you mean max_duration"),
        ("train_loader.dataset.splitt=x", "did you mean train_loader.dataset.split"),
        ("global_train_batch_size=many", "global_train_batch_size: Value 'many'"),
        ("max_duration=3", "max_duration is '3'; expected a whole number and a unit"),
        ("max_duration=0ba", "max_duration is 0; expected at least one batch"),
        ("global_train_batch_size=0", "global_train_batch_size is 0; expected a number, 1 or more"),
        ("device_eval_batch_size=0", "device_eval_batch_size is 0; expected a number, 1 or more"),
        (
            "device_train_microbatch_size=0",
            "device_train_microbatch_size is 0; expected a whole number, 1 or",
        ),
        (
            "device_train_microbatch_size=few",
            "device_train_microbatch_size is 'few'; expected a whole number",
        ),
        ("device_train_microbatch_size=1.5", "device_train_microbatch_size is 1.5; expected a whole number"),
        ("optimizer.lr=inf", "optimizer.lr is inf; expected a finite number, 0 or more"),
        ("seed=4294967296", "seed is 4294967296; expected a number, from 0 to 4294967295"),
        ("save_num_checkpoints_to_keep=-2", "save_num_checkpoints_to_keep is -2; expected a number, -1 or"),
        ("model.init_std=-1", "model.init_std is -1.0; expected a number, 0 or more"),
        ("model.loss_chunk_tokens=0", "model.loss_chunk_tokens is 0; expected a number, 1 or more"),
        ("train_loader.dataset.download_retry=-1", "download_retry is -1; expected a number, 0 or more"),
        ("train_loader.dataset.download_timeout=-1", "download_timeout is -1.0; expected a number, 1 or"),
        ("train_loader.dataset.shuffle_seed=-1", "shuffle_seed is -1; expected a number, from 0 to"),
        ("max_duration=9999999999999ba", "max_duration is '9999999999999ba'; expected a whole number"),
        ("scheduler.t_warmup=2.5dur", "scheduler.t_warmup is '2.5dur'; expected .* a part of the run"),
        ("scheduler.alpha_f=5", "scheduler.alpha_f is 5.0; expected a number, from 0 to 1"),
        (
            "fsdp_config.sharding_strategy=NO_SHARD",
            "is 'NO_SHARD'; expected one of FULL_SHARD, SHARD_GRAD_OP",
        ),
        (
            "fsdp_config.mixed_precision=HALF",
            "fsdp_config.mixed_precision is 'HALF'; expected one of DEFAULT",
        ),
        ("fsdp_config.state_dict_type=local", "state_dict_type is 'local'; expected one of full, sharded"),
        ("model.init_device=moon", "model.init_device is 'moon'; expected one of cpu, meta"),
        ("model.l0_module.noise=loud", "model.l0_module.noise is 'loud'; expected one of per_rank, shared"),
        ("callbacks.data_loading.set_names=[]", "set_names is empty; name at least one domain"),
        ("callbacks.data_loading.set_names=code", r"set_names is code; expected a list such as \[code\]"),
        ("model=5", "model is 5; expected keys and values below it"),
        ("loggers=wandb", "loggers is wandb; expected keys and values below it"),
        ("callbacks.data_loading=abc", "callbacks.data_loading is abc; expected keys and values"),
        ("model=[1]", "Override 'model=\\[1\\]' does not fit the value of model"),
        ("seed=null", "seed is empty; give a value, or leave the line out"),
        ("train_loader=null", "train_loader is missing; add it"),
        ("max_duration=null", "max_duration is missing; add it"),
        ("=5", "Override '=5' is not of the form key=value"),
        ("model.=5", "Override 'model.=5' is not of the form key=value"),
        ("optimizer.lr=-1", "optimizer.lr is -1.0; expected a number, 0 or more"),
        ("optimizer.betas=[2,0.9]", r"optimizer.betas is \[2.0, 0.9\]; expected two numbers from 0 to less"),
        ("optimizer.betas=[0.9,1]", r"optimizer.betas is \[0.9, 1.0\]; expected two numbers from 0 to less"),
        ("optimizer.betas=[-0.1,0.9]", r"optimizer.betas is \[-0.1, 0.9\]; expected two numbers from 0"),
        ("optimizer.betas=[0.9]", r"optimizer.betas is \[0.9\]; expected two numbers"),
        ("optimizer.betas=5", r"optimizer.betas is 5; expected a list such as \[5\]"),
        ("scheduler.t_warmup=soon", "scheduler.t_warmup is 'soon'; expected a whole number and a unit"),
        ("scheduler.t_warmup=1ep", "scheduler.t_warmup is '1ep'; expected a whole number and a unit"),
        ("seed=-1", "seed is -1; expected a number, from 0 to"),
        ("max_seq_len=1", "max_seq_len is 1; expected a number, 2 or more"),
        ("max_skipped_steps=-1", "max_skipped_steps is -1; expected a number, 0 or more"),
        ("optimizer.lag_lr=-1", "optimizer.lag_lr is -1.0; expected a number, 0 or more"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay is -1.0; expected a number, 0 or more"),
        ("scheduler.alpha_f=-1", "scheduler.alpha_f is -1.0; expected a number, from 0 to 1"),
        ("optimizer.eps=-1", "optimizer.eps is -1.0; expected a number, 0 or more"),
        ("console_log_interval=0ba", "console_log_interval is 0; expected at least one batch"),
        ("dist_timeout=-1", "dist_timeout is -1.0; expected a number, from 1 to"),
        ("eval_subset_num_batches=0", "eval_subset_num_batches is 0; expected 1 or more, or -1: all"),
        ("eval_subset_num_batches=-2", "eval_subset_num_batches is -2; expected 1 or more, or -1: all"),
        ("python_log_level=loud", "python_log_level is 'loud'; expected one of debug, info"),
        ("model.l0_module.start_sparsity=1", "start_sparsity is 1; expected from 0 to less than 1"),
        ("model.l0_module.target_sparsity=-3", "target_sparsity is -3; expected from 0 to less than 1"),
        ("callbacks.data_loading.set_names=[code,code,wiki]", "set_names has code twice; name each"),
        ("callbacks.data_loading.proportion=[1.2,-0.4,0.2]", "proportion has -0.4; expected numbers of 0 or"),
        (
            "callbacks.data_loading.target_loss=[nan,1,2]",
            "target_loss has nan; expected numbers of 0 or more",
        ),
        (
            "callbacks.data_loading.target_loss=[inf,1,2]",
            "target_loss has inf; expected numbers of 0 or more",
        ),
        ("optimizer.name=Decoupled_AdamW", "'Decoupled_AdamW'; expected one of decoupled_adamw, adamw"),
        ("scheduler.name=Constant_With_Warmup", "'Constant_With_Warmup'; expected one of cosine_with_warmup"),
        ("model.l0_module.noise=PER_RANK", "model.l0_module.noise is 'PER_RANK'; expected one of per_rank"),
        ("precision=FP32", "precision is 'FP32'; expected one of fp32, amp_bf16"),
        ("precision=fp8", "precision is 'fp8'; expected one of fp32, amp_bf16"),
        ("max_duration=1ep", "expected a whole number and a unit out of ba, tok, sp"),
        ("eval_interval=9tok", "eval_interval is '9tok'; expected a whole number and a unit out of ba,"),
        ("save_interval=9", "save_interval is '9'; expected a whole number and a unit out of ba,"),
        (
            "console_log_interval=1ep",
            "console_log_interval is '1ep'; expected a whole number and a unit out of ba,",
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
        ("callbacks.data_loading.update_type=doremy", "expected one of doremi, bandit, constant"),
        ("callbacks.data_loading.set_name=[a]", "unknown key set_name"),
        ("model.n_heads=4 5", "n_heads"),
        ("autoresume=true", "autoresume is true without save_folder"),
        ("nonsense", "not of the form key=value"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(tmp_path, override, message):
    path = write(tmp_path, run_values(tmp_path / "data"))
    with pytest.raises(ValueError, match=message):
        load_config(path, [override])


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    path = write(tmp_path, run_values(tmp_path / "data"))
    overrides = ["sed=1", "seed=many", "optimizer.lrr=1", "optimizer.lr=high", "max_duration=3"]
    overrides += ["callbacks.data_loading.smoothng=1", "callbacks.data_loading.proportion=[1]"]
    overrides += ["optimizer.betas=[a,b]", "optimizer.eps=tiny"]
    with pytest.raises(ValueError, match="did you mean") as found:
        load_config(path, overrides)
    lines = str(found.value).splitlines()
    wrong = ("sed", "optimizer.lrr", "seed", "optimizer.lr:", "smoothng", "proportion", "max_duration")
    wrong += ("optimizer.betas", "optimizer.eps")
    assert len(lines) == len(wrong)
    assert all(any(key in line for line in lines) for key in wrong)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scheduler.t_warmup", "0.03dur"),
        ("scheduler.t_warmup", "64tok"),
        ("scheduler.t_warmup", "1dur"),
        ("max_duration", "50000000000000tok"),
        ("eval_subset_num_batches", -1),
        ("fsdp_config.sharding_strategy", "full_shard"),
        ("model.init_device", "mixed"),
        ("python_log_level", "INFO"),
        ("device_train_microbatch_size", "auto"),
        ("optimizer.betas", [0.0, 0.999]),
    ],
)
def test_what_stands_at_an_edge_is_accepted(tmp_path, key, value):
    config = load_config(write(tmp_path, run_values(tmp_path / "data")), [f"{key}={value}"])
    assert OmegaConf.select(OmegaConf.structured(config), key) == value


@pytest.mark.parametrize(("given", "nearest"), [("-1", 0), ("5", 1), ("inf", 1)])
def test_a_number_out_of_its_range_is_set_to_the_nearest_in_it(tmp_path, given, nearest):
    path = write(tmp_path, run_values(tmp_path / "data"))
    config, _ = read_what_fits(path, [f"scheduler.alpha_f={given}"])
    assert len(config_problems(config)) == 1
    assert config.scheduler.alpha_f == nearest


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


def test_a_section_with_nothing_below_it_counts_as_left_out(tmp_path):
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


def test_a_yaml_file_cannot_run_code(tmp_path):
    target = tmp_path / "executed"
    text = f"run_name: !!python/object/apply:os.mkdir ['{target}']\n"
    with pytest.raises(ValueError, match="YAML"):
        load_config(write(tmp_path, text))
    assert not target.exists()
