"""Files and command lines of the original: the keys they hold, as they are.

The values are made up; the keys are those of the original's four LLaMA files, its two scripts and its
train.py, and what llm-foundry's train.py of that time reads.
"""

import logging
from typing import Any

import pytest
import yaml

from llmshearing.config import Config
from llmshearing.config.original import ADVICE, CALLED_HERE, IDLE
from llmshearing.config.reading import load_config
from llmshearing.config.strict import build_what_fits

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


SIZES = {
    "mosaic_llama2_7b": (4096, 32, 32, 11008),
    "mosaic_llama2_1.3b": (2048, 16, 24, 5504),
    "mosaic_llama2_3b": (2560, 20, 32, 6912),
    "mosaic_llama2_370m": (1024, 8, 24, 2816),
}
SCRIPTS = {
    "pruning": [
        "run_name=llama2_7b_pruning_scaling_doremi_to1.3b_sl4096",
        "data_local=data/mds",
        "eval_loader.dataset.split=eval_merge",
        "global_train_batch_size=32",
        "device_train_microbatch_size=4",
        "device_eval_batch_size=8",
        "max_seq_len=4096",
        "max_duration=3200ba",
        "eval_first=false",
        "scheduler.t_warmup=320ba",
        "save_folder=out/test_release_pruning_full",
        "loggers.wandb.init_kwargs.dir=out",
        "eval_interval=50ba",
        "save_interval=3200ba",
        "optimizer.lr=1e-4",
        "optimizer.lag_lr=1.0",
        "model.path=models/state_dict.pt",
        "model.l0_module.lagrangian_warmup_steps=640ba",
        "model.l0_module.pruning_modules=[head,intermediate,layer,hidden]",
        "model.l0_module.eval_target_model=false",
        "model.l0_module.target_model.d_model=2048",
        "model.l0_module.target_model.n_heads=16",
        "model.l0_module.target_model.n_layers=24",
        "model.l0_module.target_model.intermediate_size=5504",
        "callbacks.data_loading.dynamic=True",
        "callbacks.data_loading.set_names=[cc,github,book,stackexchange,wiki,arxiv,c4-rp]",
        "callbacks.data_loading.proportion=[0.67,0.045,0.045,0.02,0.045,0.025,0.15]",
        "callbacks.data_loading.update_type=doremi",
        "callbacks.data_loading.target_loss=[1.9643,0.7459,2.1393,1.6117,1.7590,1.4449,2.1251]",
        "train_loader.num_workers=0",
        "train_loader.prefetch_factor=null",
        "train_loader.persistent_workers=false",
        "autoresume=false",
    ],
    "continue_pretrain": [
        "run_name=llama2_1.3b_doremi_ft48000ba",
        "data_local=data/mds",
        "eval_loader.dataset.split=eval_merge",
        "global_train_batch_size=256",
        "device_train_microbatch_size=16",
        "device_eval_batch_size=8",
        "max_seq_len=4096",
        "max_duration=48000ba",
        "eval_first=true",
        "scheduler.t_warmup=1440ba",
        "save_folder=out/ft",
        "loggers.wandb.init_kwargs.dir=out",
        "eval_interval=400ba",
        "save_interval=3200ba",
        "optimizer.lr=1e-4",
        "model.path=models/pruned-latest-rank0.pt",
        "model.l0_module=null",
        "callbacks.data_loading.dynamic=True",
        "callbacks.data_loading.set_names=[cc,github,book,stackexchange,wiki,arxiv,c4-rp]",
        "callbacks.data_loading.proportion=[0.2192,0.0002,0.0791,0.0064,0.0096,0.001,0.6845]",
        "callbacks.data_loading.update_type=doremi",
        "callbacks.data_loading.target_loss=[1.8712,0.6883,2.0325,1.5353,1.6297,1.3560,2.0328]",
        "train_loader.num_workers=0",
        "train_loader.prefetch_factor=null",
        "train_loader.persistent_workers=false",
        "autoresume=true",
    ],
}


def original_file(name: str) -> dict[str, Any]:
    """One of the four files: that of a model of this name."""
    values = yaml.safe_load(ORIGINAL)
    sizes = dict(zip(("d_model", "n_heads", "n_layers", "intermediate_size"), SIZES[name], strict=True))
    values["model"] |= {"name": name, **sizes}
    values |= {"load_ignore_keys": ["state/optimizers"], "dist_timeout": 1800.0, "load_weights_only": False}
    values["model"] |= {"verbose": False, "softmax_scale": None, "embedding_fraction": 1.0}
    return values


@pytest.mark.parametrize("script", [None, *SCRIPTS])
@pytest.mark.parametrize("name", SIZES)
def test_files_and_command_lines_of_the_original_are_accepted(tmp_path, name, script, caplog):
    path = tmp_path / "original.yaml"
    path.write_text(yaml.safe_dump(original_file(name)))
    with caplog.at_level(logging.INFO):
        config = load_config(path, SCRIPTS.get(script, []))
    assert config.model.d_model == SIZES[name][0]
    assert config.train_loader.dataset.shuffle_seed == config.seed == 17
    assert config.loggers["wandb"]["init_kwargs"]["mode"] == "offline"
    assert (config.model.l0_module is None) == (script == "continue_pretrain")
    (line,) = [record.getMessage() for record in caplog.records]
    for key in ("tokenizer", "load_ignore_keys", "model.verbose", "train_loader.num_workers"):
        assert f"{key}," in f"{line},"


def read(section: str, **keys: Any) -> list[str]:
    values = yaml.safe_load(ORIGINAL)
    inside = values
    for part in filter(None, section.split(".")):
        inside = inside[part]
    inside.update(keys)
    return build_what_fits(Config, values | {"data_local": "data"}, "file")[1]


SECTIONS = {
    "Config": "",
    "ModelConfig": "model",
    "LoaderConfig": "train_loader",
    "DatasetConfig": "train_loader.dataset",
    "FsdpConfig": "fsdp_config",
}


def test_keys_without_effect_are_accepted_with_values_that_have_none():
    before = read("")
    for schema, idle in IDLE.items():
        for name, each in idle.items():
            assert read(SECTIONS[schema], **{name: each.only[0] if each.only else "anything"}) == before
            if each.only:
                (problem,) = [p for p in read(SECTIONS[schema], **{name: 0.123}) if p not in before]
                assert f"{name} is 0.123; it has no effect here ({each.why}): leave it out." in problem


@pytest.mark.parametrize(
    ("section", "key", "hint"),
    [
        ("model", "rotary_emb_base", "it is called model.rope_theta here"),
        ("train_loader.dataset", "is_uint32", "leave it out: how many bytes a token has is found out"),
        ("model", "num_key_value_heads", "it is called model.n_kv_heads here"),
        ("", "train_batch_size", "it is called global_train_batch_size here"),
        ("optimizer", "learning_rate", "it is called optimizer.lr here"),
        ("model", "attn_bias", "it is called model.qkv_bias here"),
        ("model", "num_kv_heads", "it is called model.n_kv_heads here"),
        ("model", "d_head", "it is called model.head_dim here"),
        ("model", "attn_config", "its keys stand in the section model itself, such as model.attn_impl"),
        ("model", "expansion_ratio", "set model.intermediate_size, which is expansion_ratio times"),
        ("", "autocast_precision", "it is called precision here"),
        ("model", "trust_remote_code", "leave it out: no code of a model is ever run"),
    ],
)
def test_keys_of_forks_are_answered_with_what_they_are_here(section, key, hint):
    (problem,) = [p for p in read(section, **{key: 1}) if "unknown key" in p]
    assert problem.startswith(f"file: unknown key {section}{'.' if section else ''}{key}; {hint}")


def test_the_table_of_names_leads_to_keys_that_exist_and_hides_none():
    from llmshearing.config.data import DataLoadingConfig
    from llmshearing.config.key import keys_of
    from llmshearing.config.model import L0Config, ModelConfig
    from llmshearing.config.run import OptimizerConfig

    known = [keys_of(each) for each in (Config, ModelConfig, L0Config, OptimizerConfig, DataLoadingConfig)]
    for name, here in CALLED_HERE.items():
        assert any(here in keys for keys in known), name
        assert not any(name in keys for keys in known), name
        assert name not in ADVICE
