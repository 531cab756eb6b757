"""What the commands say to mistakes: one table from an input to the message it gets.

Each row runs a command as a user would, in this process. It must end with status 2 and `error: ...` that
holds every fragment of the row, without a traceback, and leave nothing behind; with `--debug` the error
itself comes.
"""

import gzip
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from llmshearing.data.manifest import Manifest
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.utils.cli import run
from runs import DOMAINS, SEQ_LEN, run_values, write_data
from tests.data.conftest import documents, tokenizer_folder, write_jsonl
from twins import CONFIGS, make, save

assert tokenizer_folder  # a fixture

ROOT = Path(__file__).parents[1]
TRAIN, PREPARE = "train", "llmshearing.data.prepare"
CONVERT, PRUNE = "llmshearing.utils.composer_to_hf", "llmshearing.utils.post_pruning_processing"


class Touch:
    """A pickle of this creates a file when it is run."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.path),))


@dataclass(frozen=True)
class Case:
    """A mistake: a command, its arguments, what the message must hold, and what to do before."""

    name: str
    module: str
    words: str
    message: tuple[str, ...]
    before: Callable[[SimpleNamespace], Any] | None = None


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
    import shutil

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


def truncate(place: SimpleNamespace) -> None:
    """A shard of the data that was cut off."""
    shard = place.folder / "data" / "for_prune" / "code" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:100])


PREPARED = "--input {f}/text --output {f}/out --tokenizer {t} --seq_length 32 --eval_tokens 64 --workers 1"
BROKEN = b'{"text": "w1"}\n' + b"{broken\n" * 5

CASES = [
    # ------------------------------------------------------------- the configuration
    Case("no configuration", TRAIN, "{f}/none.yaml", ("none.yaml does not exist",)),
    Case("no YAML", TRAIN, "{y}", ("run.yaml is not plain YAML",), lambda p: p.yaml.write_text("a: [1")),
    Case("a list", TRAIN, "{y}", ("expected keys and values",), lambda p: p.yaml.write_text("- 1")),
    Case("override without =", TRAIN, "{y} seed", ("'seed' is not of the form key=value",)),
    Case("unknown key", TRAIN, "{y} optimizer.lrr=1", ("optimizer.lrr", "did you mean optimizer.lr?")),
    Case("two unknown keys", TRAIN, "{y} sed=1 modle.path=x", ("did you mean seed?", "did you mean model?")),
    Case("wrong type", TRAIN, "{y} seed=many", ("seed", "many", "Integer")),
    Case("missing key", TRAIN, "{y}", ("max_duration is missing",), change(max_duration=...)),
    Case("duration without unit", TRAIN, "{y} max_duration=12", ("max_duration is '12'", "3200ba")),
    Case("epochs", TRAIN, "{y} max_duration=1ep", ("max_duration is '1ep'", "ba, tok, sp")),
    Case("autoresume nowhere", TRAIN, "{y} save_folder=null autoresume=true", ("without save_folder",)),
    Case("weights do not sum", TRAIN, "{y} {d}.proportion=[0.5,0.25,0.5]", ("sums to 1.25; expected 1",)),
    Case("weights do not match", TRAIN, "{y} {d}.proportion=[0.5,0.5]", ("has 2 numbers for 3 domains",)),
    Case("references do not match", TRAIN, "{y} {d}.target_loss=[2.0]", ("has 1 numbers for 3 domains",)),
    Case("unknown update", TRAIN, "{y} {d}.update_type=magic", ("'magic'; expected doremi, bandit or",)),
    Case("unknown logger", TRAIN, "{y} loggers.paper={{}}", ("loggers.paper is not known", "tensorboard")),
    Case("unknown callback", TRAIN, "{y} callbacks.tea={{}}", ("callbacks.tea is not known", "lr_monitor")),
    Case("unknown optimizer", TRAIN, "{y} optimizer.name=sgd", ("'sgd'; expected decoupled_adamw or adamw",)),
    Case("unknown schedule", TRAIN, "{y} scheduler.name=step", ("'step'; expected cosine_with_warmup",)),
    # ------------------------------------------------------------------- model and target
    Case(
        "unknown model", TRAIN, "{y} model.name=bert", ("'bert'; expected a name that begins with mosaic_",)
    ),
    Case("dropout", TRAIN, "{y} model.attn_pdrop=0.1", ("model.attn_pdrop is 0.1; expected 0",)),
    Case("attention", TRAIN, "{y} model.attn_impl=fast", ("'fast'; expected one of sdpa, flash, eager",)),
    Case("heads", TRAIN, "{y} model.n_heads=5", ("d_model is 32 and model.n_heads is 5", "model.head_dim")),
    Case("no shape", TRAIN, "{y}", ("model.d_model is not set", "model.path"), change(model__d_model=...)),
    Case("target larger", TRAIN, "{y} {l}.target_model.d_model=64", ("is 64, more than the source's 32",)),
    Case(
        "uncovered",
        TRAIN,
        "{y} {l}.pruning_modules=[head]",
        ("add hidden to model.l0_module.pruning_modules",),
    ),
    Case("unknown mask", TRAIN, "{y} {l}.pruning_modules=[haed]", ("'haed' (did you mean head?)",)),
    Case(
        "head dims", TRAIN, "{y} {l}.pruning_modules=[qk_head_dim]", ("qk_head_dim, which is not supported",)
    ),
    Case("vocabulary", TRAIN, "{y} {l}.target_model.vocab_size=32", ("vocabulary is not pruned",)),
    Case(
        "groups",
        TRAIN,
        "{y} model.n_kv_heads=2 {l}.target_model.n_heads=3",
        ("n_heads is 3, which 2 KV heads do not divide",),
    ),
    # --------------------------------------------------------------------------- data
    Case(
        "no data", TRAIN, "{y}", ("no data folder", "data.prepare"), change(train_loader__dataset__local="x")
    ),
    Case("no split", TRAIN, "{y} train_loader.dataset.split=for_ft", ("for_ft/code/index.json not found",)),
    Case("unknown domain", TRAIN, "{y} {d}.set_names=[code,books,poems]", ("for_prune/poems", "set_names")),
    Case(
        "tokenizer too large",
        TRAIN,
        "{y} model.vocab_size=32",
        ("made with tokenizer words of 64 tokens", "model's vocab_size is 32"),
        manifest,
    ),
    Case("sequence length", TRAIN, "{y} train_loader.dataset.max_seq_len=7", ("expected 7 tokens",)),
    Case(
        "truncated shard", TRAIN, "{y}", ("shard.00000.mds has 100 bytes", "copy this folder again"), truncate
    ),
    Case("eval lacks a domain", TRAIN, "{y}", ("no sequences of wiki", "eval_merge"), remove_domain),
    # ------------------------------------------------------------------------- checkpoints
    Case("no checkpoint", TRAIN, "{y} model.path={f}/none.pt", ("none.pt",)),
    Case(
        "no checkpoint at all",
        TRAIN,
        "{y} model.path={y}",
        ("run.yaml", "cannot be read as a checkpoint"),
    ),
    Case(
        "missing weight",
        TRAIN,
        "{y} model.path={f}/model.pt",
        ("1 missing", "blocks.0.ln_2.weight"),
        weights(lambda w: w.pop("model.transformer.blocks.0.ln_2.weight")),
    ),
    Case(
        "unexpected weight",
        TRAIN,
        "{y} model.path={f}/model.pt",
        ("1 unexpected", "blocks.0.extra.weight"),
        weights(lambda w: w.update({"model.transformer.blocks.0.extra.weight": torch.zeros(1)})),
    ),
    Case(
        "wrong shape",
        TRAIN,
        "{y} model.path={f}/model.pt",
        ("of another shape", "expected (32,), found (31,)"),
        weights(lambda w: w.update({"model.transformer.ln_f.weight": torch.zeros(31)})),
    ),
    Case(
        "other sizes",
        TRAIN,
        "{y} model.path={f}/model.pt model.intermediate_size=40",
        ("model.intermediate_size is 40", "has 48", "set model.intermediate_size=48 or leave it out"),
        weights(lambda w: None),
    ),
    Case(
        "malicious",
        TRAIN,
        "{y} model.path={f}/evil.pt",
        ("evil.pt holds", "nothing of it was run"),
        lambda p: torch.save({"x": Touch(str(p.folder / "touched"))}, p.folder / "evil.pt"),
    ),
    Case("nothing to prune", PRUNE, "prune_and_save_model {f}/none.pt", ("none.pt",)),
    Case(
        "no masks",
        PRUNE,
        "prune_and_save_model {f}/model.pt",
        ("model.pt", "masks"),
        masked_nowhere,
    ),
    # ----------------------------------------------------------------- Hugging Face models
    Case("no model", CONVERT, "save_hf_to_composer {f}/none {f}/o.pt", ("none",)),
    Case("not key=value", CONVERT, "save_composer_to_hf {f}/model.pt {f}/o hidden", ("hidden_size=2048",)),
    Case(
        "family",
        CONVERT,
        "save_hf_to_composer {f}/hf {f}/o.pt",
        ("'mixtral', which is not supported", "llama, mistral", "Mixture-of-experts"),
        hf_folder(model_type="mixtral"),
    ),
    Case(
        "quantized",
        CONVERT,
        "save_hf_to_composer {f}/hf {f}/o.pt",
        ("quantized", "fp32, bf16 or fp16"),
        hf_folder(quantization_config={"quant_method": "gptq", "bits": 4}),
    ),
    Case(
        "rope",
        CONVERT,
        "save_hf_to_composer {f}/hf {f}/o.pt",
        ("rope_scaling has type 'spiral'; supported: default",),
        hf_folder(rope_scaling={"rope_type": "spiral", "factor": 2.0}),
    ),
    # --------------------------------------------------------------------- preparing data
    Case("no text", PREPARE, PREPARED, ("text",)),
    Case("no documents", PREPARE, PREPARED, ("book", "no documents"), text("0.jsonl", b'{"text": ""}\n')),
    Case(
        "broken lines", PREPARE, PREPARED + " --max_broken 3", ("0.jsonl", "broken"), text("0.jsonl", BROKEN)
    ),
    Case("cut off", PREPARE, PREPARED, ("cut off",), text("0.jsonl.gz", gzip.compress(BROKEN * 99)[:-9])),
    Case(
        "no tokenizer", PREPARE, PREPARED.replace("{t}", "{f}/none"), ("none",), text("0.jsonl", BROKEN[:15])
    ),
    # ------------------------------------------------------------------------ plan, report
    Case("plan of nothing", "llmshearing.utils.plan", "{f}/none.yaml", ("none.yaml does not exist",)),
    Case("plan for no device", "llmshearing.utils.plan", "{y} --devices 0", ("--devices is 0",)),
    Case("report of no run", "llmshearing.report.__main__", "{f}", ("expected the save_folder of a run",)),
]


def command(name: str) -> ModuleType:
    """The module of a command; train.py is none of the package's."""
    if name != TRAIN:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path: Path, tokenizer_folder: Path) -> SimpleNamespace:
    """A folder with data and a good configuration, to be spoilt."""
    data = write_data(tmp_path / "data", sequences=16)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_values(data, tmp_path / "run")))
    return SimpleNamespace(folder=tmp_path, yaml=tmp_path / "run.yaml", tokenizer=tokenizer_folder)


def arguments(case: Case, place: SimpleNamespace) -> list[str]:
    named = {"f": place.folder, "y": place.yaml, "t": place.tokenizer}
    return case.words.format(**named, d="callbacks.data_loading", l="model.l0_module").split()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mistakes_get_their_message(
    case: Case, place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if case.before is not None:
        case.before(place)
    before = sorted(place.folder.rglob("*"))
    monkeypatch.setattr(sys, "argv", [case.module, *arguments(case, place)])
    with pytest.raises(SystemExit) as stop:
        run(command(case.module).main)
    said = capfd.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    for part in case.message:
        assert part in message
    made = [path for path in place.folder.rglob("*") if path not in before]
    half_made = [path for path in made if path.is_file() and ".prepare-" not in str(path)]
    assert not half_made  # preparing keeps its finished parts, to go on from


def test_debug_shows_the_traceback(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", str(place.folder / "none.yaml"), "--debug"])
    with pytest.raises(FileNotFoundError):
        run(command(TRAIN).main)
