"""A run opens each tokenizer, data folder, manifest and checkpoint once, and keeps what it opened."""

import copy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from streaming.base.format.mds import MDSWriter
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from llmshearing.checkpoints.run_folder import checkpoints
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.config import Config
from llmshearing.config.writing import to_yaml
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.datasets import shard_folder
from llmshearing.datasets.manifest import MANIFEST, Manifest
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.planning.prepared import prepare
from llmshearing.training import train
from runs import SEQ_LEN, VOCABULARY, run_config


def write_domains(folder: Path, names: list[str], tokenizer: Path) -> None:
    """Four sequences of each domain to train on, one to evaluate, and a manifest."""
    columns = {"tokens": "bytes", "set": "str"}
    tokens = np.arange(SEQ_LEN, dtype=np.uint16).tobytes()
    for name in names:
        with MDSWriter(out=str(folder / "for_prune" / name), columns=columns) as writer:
            for _ in range(4):
                writer.write({"tokens": tokens, "set": name})
    with MDSWriter(out=str(folder / "eval_merge"), columns=columns) as writer:
        for name in names:
            writer.write({"tokens": tokens, "set": name})
    record = load_tokenizer(str(tokenizer)).record
    Manifest(SEQ_LEN, "uint16", record, {}, {}, {}, {}).write(folder)


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir()
    vocabulary = {f"w{i}": i for i in range(VOCABULARY)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def full_config(folder: Path, domains: int, **changes: Any) -> Config:
    """A run that has everything to open: source, tokenizer, manifest, domains, evaluation data."""
    names = [f"domain{i}" for i in range(domains)]
    tokenizer = write_tokenizer(folder / "tokenizer")
    write_domains(folder / "data", names, tokenizer)
    lengths = {"max_duration": "2ba", "save_interval": "1ba"}
    config = run_config(folder / "data", folder / "run", **(lengths | changes))
    config.tokenizer_name = str(tokenizer)
    config.eval_interval, config.eval_first, config.autoresume = "1ba", True, True
    for loader in (config.train_loader, config.eval_loader):
        assert loader is not None
        loader.dataset.tokenizer_name = str(tokenizer)
    config.data_loading.set_names = names
    config.data_loading.proportion = [1 / domains] * domains
    config.data_loading.target_loss = [2.0] * domains
    dense = run_config(folder / "data", prune=False)
    files = {"tokenizer.json": (tokenizer / "tokenizer.json").read_text()}
    record = {"config": to_yaml(dense), "hf_files": files}
    write_checkpoint(folder / "source.pt", ComposerMosaicLlama(dense.model).state_dict(), record)
    config.model.path = str(folder / "source.pt")
    return config


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each thing is opened from here on, by its name."""
    count: Counter[str] = Counter()

    def counting(owner: Any, name: str, what: Any) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **more: Any) -> Any:
            if label := what(*arguments):
                count[label] += 1
            return real(*arguments, **more)

        monkeypatch.setattr(owner, name, call)

    counting(torch, "load", lambda file, *_: file.name if isinstance(file, Path) else None)
    counting(shard_folder, "read_index", lambda path, *_: Path(path).parent.name)
    counting(Path, "read_bytes", lambda path: MANIFEST if path.name == MANIFEST else None)
    counting(Path, "read_text", lambda path, *_: MANIFEST if path.name == MANIFEST else None)
    load = PreTrainedTokenizerBase.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, *arguments: Any, **more: Any) -> Any:
        count["tokenizer"] += 1
        return load(cls, *arguments, **more)

    monkeypatch.setattr(PreTrainedTokenizerBase, "from_pretrained", classmethod(from_pretrained))

    class CountingTokenizer:
        @staticmethod
        def from_str(json: str) -> Tokenizer:
            count["tokenizer"] += 1
            return Tokenizer.from_str(json)

    for name, module in list(sys.modules.items()):
        if name.startswith("llmshearing.") and hasattr(module, "Tokenizer"):
            monkeypatch.setattr(module, "Tokenizer", CountingTokenizer)
    return count


@pytest.mark.parametrize("domains", [1, 7, 70])
def test_a_run_opens_each_thing_once(tmp_path: Path, domains: int, opened: Counter[str]) -> None:
    config = full_config(tmp_path, domains)
    opened.clear()
    train(config)
    names = [f"domain{i}" for i in range(domains)]
    once = dict.fromkeys(["tokenizer", MANIFEST, "source.pt", "eval_merge", *names], 1)
    assert opened == once
    (last, *_) = checkpoints(tmp_path / "run")
    opened.clear()
    config.max_duration = "3ba"
    train(config)  # resumes
    assert opened == once | {last.name: 1}


def test_a_plan_opens_each_thing_once(tmp_path: Path, opened: Counter[str]) -> None:
    config = full_config(tmp_path, 7)
    opened.clear()
    prepared = prepare(config, devices=2)
    assert set(opened.values()) == {1}
    assert len(opened) == 4 + 7
    assert prepared.problems == []


@pytest.mark.parametrize(
    "changes", [{}, {"max_duration": "2ep", "scheduler__t_warmup": "100tok", "save_interval": "1ep"}]
)
def test_preparing_leaves_the_configuration_as_it_is(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = full_config(tmp_path, 2, **changes)
    before = copy.deepcopy(config)
    prepared = prepare(config, devices=2)
    assert config == before
    assert prepared.config.model.set_names == ["domain0", "domain1"]
    assert prepared.config.model.init_device == "meta"
    assert prepared.config.max_duration == "2ba"  # also of 2ep: 2 domains of 4 sequences are a batch of 8


def test_a_run_records_the_completed_model_section(tmp_path: Path) -> None:
    config = full_config(tmp_path, 2)
    config.model.max_seq_len = None
    before = copy.deepcopy(config)
    train(config)
    assert config == before
    recorded = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert recorded.model.max_seq_len is not None
    assert recorded.model.set_names == ["domain0", "domain1"]
