"""Keys that files of the original and of its forks hold and that have no effect here, or another name."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Idle:
    """Why a key has no effect; `only`: the values that mean what is done here anyway, empty: any."""

    why: str
    only: tuple[Any, ...] = ()


_WORKERS = Idle("one thread of the training process reads ahead, there are no worker processes")
_STREAMING = Idle("mosaicml-streaming's own reader is not used")
_FSDP = Idle("an option of the first FSDP, which Composer has replaced")
_COMPOSER = Idle("names, loading and saving of checkpoints are this project's own")
_ICL = Idle("no in-context learning tasks are evaluated during a run", (None, False, [], {}))
_VALUE = "the model has no such variant"

IDLE: dict[str, dict[str, Idle]] = {
    "Config": {
        "tokenizer": Idle("the data is tokenized beforehand"),
        "load_ignore_keys": Idle("a checkpoint is restored whole; load_weights_only takes the weights alone"),
        "load_strict_model_weights": Idle("weights are always loaded strictly", (None, True)),
        "load_object_store": Idle("checkpoints are read from the file system", (None,)),
        "save_filename": _COMPOSER,
        "save_latest_filename": _COMPOSER,
        "save_artifact_name": _COMPOSER,
        "save_ignore_keys": Idle("a checkpoint is saved whole", (None, [])),
        "icl_tasks": _ICL,
        "icl_tasks_str": _ICL,
        "icl_seq_len": Idle(_ICL.why),
        "icl_subset_num_batches": Idle(_ICL.why),
        "eval_gauntlet": _ICL,
        "eval_gauntlet_str": _ICL,
        "model_gauntlet": _ICL,
        "lora": Idle("all parameters are trained", (None, False)),
        "max_split_size_mb": Idle("set PYTORCH_CUDA_ALLOC_CONF in the environment instead"),
        "expandable_segments": Idle("set PYTORCH_CUDA_ALLOC_CONF in the environment instead"),
        "n_gpus": Idle("the launcher says how many processes there are"),
        "device_train_batch_size": Idle("it is global_train_batch_size over the number of processes"),
        "code_paths": Idle("no code of others is imported", (None, [])),
        "deepspeed_config": Idle("fsdp_config says how the model is sharded", (None, {})),
        "load_progress_bar": Idle("loading shows no progress bar"),
        "log_config": Idle("the run's folder holds the configuration"),
        "profiler": Idle("Composer's profiler is not built", (None, {})),
    },
    "ModelConfig": {
        "tokenizer_name": Idle("the run's own tokenizer_name is used"),
        "verbose": Idle("python_log_level says how much is logged"),
        "softmax_scale": Idle("attention scales by 1 / sqrt(head_dim)", (None,)),
        "embedding_fraction": Idle("the embedding's gradient is not scaled", (None, 1)),
        "logit_scale": Idle("logits are not scaled", (None, 1)),
        "low_precision_layernorm": Idle(_VALUE, (None, False)),
        "param_init_fn": Idle("random weights are normal with init_std"),
        "init_config": Idle("random weights are normal with init_std"),
        "fc_type": Idle(_VALUE, (None, "torch")),
        "use_cache": Idle("training keeps no cache"),
        "no_bias": Idle("qkv_bias, out_bias and mlp_bias say which biases there are", (None, True)),
        "attn_clip_qkv": Idle(_VALUE, (None,)),
        "attn_qk_ln": Idle(_VALUE, (None, False)),
        "alibi": Idle(_VALUE, (None, False)),
        "attn_uses_sequence_id": Idle(_VALUE, (None, False)),
        "prefix_lm": Idle(_VALUE, (None, False)),
        "loss_fn": Idle("the loss is computed chunk by chunk"),
        "torch_dtype": Idle("weights are fp32, `precision` says what is computed in"),
    },
    "LoaderConfig": {
        "num_workers": _WORKERS,
        "persistent_workers": _WORKERS,
        "pin_memory": _WORKERS,
        "prefetch_factor": _WORKERS,
        "timeout": _WORKERS,
    },
    "DatasetConfig": {
        **dict.fromkeys(
            (
                "batching_method",
                "keep_raw",
                "keep_zip",
                "num_canonical_nodes",
                "partition_algo",
                "predownload",
                "shuffle_algo",
                "shuffle_block_size",
                "validate_hash",
            ),
            _STREAMING,
        ),
        "batch_size": Idle("the batch sizes are keys of the run"),
        "eos_token_id": Idle("the data was packed beforehand"),
        "bos_token_id": Idle("the data was packed beforehand"),
        "group_method": Idle("the data was packed beforehand"),
        "streams": Idle("the domains are folders, named by callbacks.data_loading.set_names", (None,)),
    },
    "FsdpConfig": dict.fromkeys(
        (
            "activation_checkpointing_reentrant",
            "backward_prefetch",
            "cpu_offload",
            "flatten_parameters",
            "forward_prefetch",
            "ignored_modules",
            "keep_low_precision_grads",
            "limit_all_gathers",
            "load_fsdp_monolith_rank0_only",
            "load_monolith_rank0_only",
            "min_params",
            "sharded_ckpt_prefix_dir",
            "sync_module_states",
            "use_orig_params",
        ),
        _FSDP,
    ),
}
"""Keys without effect by the dataclass of their section."""

CALLED_HERE: dict[str, str] = {
    "attention_bias": "qkv_bias",
    "attn_bias": "qkv_bias",
    "autocast_precision": "precision",
    "batch_size": "global_train_batch_size",
    "d_head": "head_dim",
    "device_train_grad_accum": "device_train_microbatch_size",
    "domains": "set_names",
    "ffn_hidden_size": "intermediate_size",
    "grad_accum": "device_train_microbatch_size",
    "hidden_act": "activation",
    "hidden_size": "d_model",
    "kv_heads": "n_kv_heads",
    "kv_n_heads": "n_kv_heads",
    "lag_warmup_steps": "lagrangian_warmup_steps",
    "layer_norm_epsilon": "layer_norm_eps",
    "learning_rate": "lr",
    "max_position_embeddings": "max_seq_len",
    "max_steps": "max_duration",
    "micro_batch_size": "device_train_microbatch_size",
    "microbatch_size": "device_train_microbatch_size",
    "n_embd": "d_model",
    "n_head": "n_heads",
    "n_layer": "n_layers",
    "norm_eps": "rms_norm_eps",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "num_key_value_heads": "n_kv_heads",
    "num_kv_heads": "n_kv_heads",
    "output_dir": "save_folder",
    "rope_base": "rope_theta",
    "rope_freq_base": "rope_theta",
    "rotary_base": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "rotary_emb_fraction": "rotary_pct",
    "rotary_percent": "rotary_pct",
    "tie_word_embeddings": "tie_embeddings",
    "tied_embeddings": "tie_embeddings",
    "train_batch_size": "global_train_batch_size",
    "use_bias": "qkv_bias",
    "window_size": "sliding_window",
}
"""What keys of the forks, of HF configurations and of llm-foundry are called here."""

_DTYPE = "leave it out: how many bytes a token has is found out from the data"
ADVICE: dict[str, str] = {
    "attn_config": "its keys stand in the section model itself, such as model.attn_impl and model.rope_theta",
    "expansion_ratio": "set model.intermediate_size, which is expansion_ratio times model.d_model",
    "is_uint32": _DTYPE,
    "is_int32": _DTYPE,
    "is_int64": _DTYPE,
    "token_dtype": _DTYPE,
    "tokenizer_path": "leave it out: tokenizer_name at the top of the file is the tokenizer's folder",
    "trust_remote_code": "leave it out: no code of a model is ever run",
    "pad_token_id": "leave it out: sequences are packed, nothing is padded",
    "model_type": "leave it out: the family is read from the checkpoint; without one set model.family",
    "data_loading": "it stands in the section callbacks: callbacks.data_loading",
    "base": "it stands at the top of a file and cannot be given on the command line",
}
"""What to do with keys that have no counterpart here."""
