"""What is done to a folder with good data and a good configuration so that a command must refuse it.

Each function here, or each that one returns, takes the `place` of `test_errors.py`: `folder`, `yaml` (the
run's configuration), `finished()` (the folder of a short run) and `mounted` (to be unmounted afterwards).
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from llmshearing.checkpoints import run_folder
from llmshearing.commands.convert import save_hf_to_composer
from llmshearing.datasets.manifest import Manifest
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.pruning.mask_file import write_masks
from runs import DOMAINS, SEQ_LEN
from tests.data.texts import documents, write_jsonl
from twins import CONFIGS, make, save


class Touch:
    """A pickle of this creates a file when it is run."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.path),))


def change(**values: Any) -> Callable[[SimpleNamespace], None]:
    """Other values in the run's YAML file; keys are `section__key`, values of ... are taken out."""

    def apply(place: SimpleNamespace) -> None:
        config = OmegaConf.load(place.yaml)
        for key, value in values.items():
            *parents, last = key.split("__")
            section = OmegaConf.select(config, ".".join(parents)) if parents else config
            if value is ...:
                section.pop(last)
            else:
                section[last] = value
        OmegaConf.save(config, place.yaml)

    return apply


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[SimpleNamespace], None]:
    """The checkpoint model.pt of the run's model, edited."""

    def apply(place: SimpleNamespace) -> None:
        config = OmegaConf.load(place.yaml)
        config.model.l0_module = None
        state = dict(ComposerMosaicLlama(config.model).state_dict())
        edit(state)
        torch.save(state, place.folder / "model.pt")

    return apply


def masked_nowhere(place: SimpleNamespace) -> None:
    """A checkpoint of a model, with its configuration beside it, that was never pruned."""
    weights(lambda state: None)(place)
    (place.folder / "config.yaml").write_text(place.yaml.read_text())


def hf_folder(**changes: Any) -> Callable[[SimpleNamespace], None]:
    """A Hugging Face model `hf` with other values in its config.json."""

    def apply(place: SimpleNamespace) -> None:
        path = save(make(CONFIGS["llama grouped"]), place.folder / "hf") / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def text(name: str, content: bytes) -> Callable[[SimpleNamespace], None]:
    """A folder `text` of one domain with this file, and one good domain."""

    def apply(place: SimpleNamespace) -> None:
        path = place.folder / "text" / "book" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        write_jsonl(place.folder / "text" / "wiki" / "0.jsonl", documents(50))

    return apply


def remove_domain(place: SimpleNamespace) -> None:
    """An evaluation without the last domain."""
    from streaming.base.format.mds import MDSReader, MDSWriter

    folder = place.folder / "data" / "eval_merge"
    entry = json.loads((folder / "index.json").read_text())["shards"][0]
    reader = MDSReader.from_json(str(folder), None, entry)
    rows = [reader[i] for i in range(reader.samples)]
    shutil.rmtree(folder)
    with MDSWriter(out=str(folder), columns={"tokens": "bytes", "set": "str"}) as writer:
        for row in rows:
            if row["set"] != DOMAINS[-1]:
                writer.write(row)


def manifest(place: SimpleNamespace) -> None:
    """The manifest of data that was made with a tokenizer of 64 tokens."""
    tokenizer = {"name": "words", "vocab_size": 64, "vocabulary_sha256": ""}
    Manifest(SEQ_LEN, "uint16", tokenizer, {}, {}, {}, {}).write(place.folder / "data")


def shard(edit: Callable[[Path], Any]) -> Callable[[SimpleNamespace], None]:
    """A shard of the data, damaged."""
    return lambda place: edit(place.folder / "data" / "for_prune" / "code" / "shard.00000.mds")


def cut_off(path: Path) -> None:
    """The first 100 bytes of a file alone."""
    os.truncate(path, 100)


def wrong_index(path: Path) -> None:
    """The index beside a shard names one sequence more than it holds."""
    index = path.with_name("index.json")
    content = json.loads(index.read_text())
    content["shards"][0]["samples"] += 1
    index.write_text(json.dumps(content))


def sharded_hf(edit: Callable[[Path], Any]) -> Callable[[SimpleNamespace], None]:
    """A Hugging Face model `hf` in several files, edited."""

    def apply(place: SimpleNamespace) -> None:
        edit(save(make(CONFIGS["llama grouped"]), place.folder / "hf", max_shard_size="20KB"))

    return apply


def lose_a_shard(hf: Path) -> None:
    """One file of weights is gone."""
    next(hf.glob("model-00002-*")).unlink()


def integer_weights(hf: Path) -> None:
    """One tensor is of whole numbers."""
    path = next(hf.glob("model-00001-*"))
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name].to(torch.int8)}, path, metadata={"format": "pt"})


def quantize(hf: Path) -> None:
    """One tensor is of whole numbers, and the configuration says that weights are quantized."""
    integer_weights(hf)
    config = json.loads((hf / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (hf / "config.json").write_text(json.dumps(config))


def malicious_hf(hf: Path) -> None:
    """Weights as a pickle that makes a file when it is run."""
    for path in hf.glob("model*"):
        path.unlink()
    torch.save({"lm_head.weight": Touch(str(hf.parent / "touched"))}, hf / "pytorch_model.bin")


def trained(*edits: Callable[[Path], Any]) -> Callable[[SimpleNamespace], None]:
    """The folder `run` of a run of 4 steps with checkpoints of 2 and 4, the later one's file edited."""

    def apply(place: SimpleNamespace) -> None:
        folder = place.folder / "run"
        shutil.copytree(place.finished(), folder, symlinks=True)
        last = run_folder.latest_checkpoint(folder)
        assert last is not None
        for edit in edits:
            edit(last)

    return apply


def beside(name: str, edit: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Another file in the folder of a checkpoint, edited."""

    def apply(checkpoint: Path) -> None:
        edit(checkpoint.with_name(name))

    return apply


def lose_manifest(checkpoint: Path) -> None:
    """A checkpoint copied without its manifest, and alone."""
    for manifest in checkpoint.parent.glob("ep0-*.json"):
        manifest.unlink()


def cut_short(path: Path) -> None:
    """A file without its end."""
    os.truncate(path, path.stat().st_size - 100)


def flip_a_bit(path: Path) -> None:
    """A file with one bit in its middle turned over."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def small_disk(name: str, *before: Callable[[SimpleNamespace], Any], size: str) -> Callable[..., None]:
    """A file system of so many bytes mounted at the folder `name`, after what is to be there before."""

    def apply(place: SimpleNamespace) -> None:
        for prepare in before:
            prepare(place)
        folder = place.folder / name
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting a small tmpfs is not permitted here")
        place.mounted.append(folder)

    return apply


def converted(place: SimpleNamespace) -> None:
    """A checkpoint m.pt that was converted from the Hugging Face model `hf`."""
    hf_folder()(place)
    save_hf_to_composer(place.folder / "hf", place.folder / "m.pt")


def other_masks(place: SimpleNamespace) -> None:
    """masks.npz: a mask of one weight, which this run's model does not have."""
    bits = {"model.layers.7.mlp.up_proj.weight": torch.zeros(4, dtype=torch.uint8)}
    write_masks(place.folder / "masks.npz", bits)
