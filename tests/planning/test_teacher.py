"""What a plan says of a run's teacher: what cannot teach, what it costs, where it does not fit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from llmshearing.checkpoints.opening import open_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.plan import render
from llmshearing.config import DistillationConfig, ModelConfig, build
from llmshearing.config.writing import to_yaml
from llmshearing.data.text_tokenizer import vocabulary_sha256
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.datasets.manifest import Manifest
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.planning import estimates, text
from llmshearing.planning.prepared import Prepared, prepare
from llmshearing.shapes.counts import forward_flops, parameters, training_flops
from runs import SEQ_LEN, SIZES, VOCABULARY, run_config, write_data
from twins import CONFIGS, make, masked_checkpoint, save


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def words(count: int = VOCABULARY, first: str = "w") -> str:
    """A tokenizer.json of so many words."""
    vocabulary = {f"{first}{i}": i for i in range(count)}
    return Tokenizer(models.WordLevel(vocabulary, unk_token=f"{first}0")).to_str()


def write_model(path: Path, tokenizer: str | None = None, **sizes: Any) -> str:
    """The checkpoint of a model of the tests' sizes but for `sizes`."""
    section = build(ModelConfig, {**SIZES, "max_seq_len": SEQ_LEN, **sizes})
    config = run_config(Path("nowhere"), prune=False)
    config.model = section
    files = {} if tokenizer is None else {"tokenizer.json": tokenizer}
    weights = ComposerMosaicLlama(section).state_dict()
    write_checkpoint(path, weights, {"config": to_yaml(config), "hf_files": files})
    return str(path)


def prepared(
    data: Path, teacher: str | None, source: str | None = None, prune: bool = False, **changes
) -> Prepared:
    section = asdict(DistillationConfig(teacher))
    config = run_config(data, None, prune, distillation=section, model__path=source, **changes)
    config.autoresume = False
    return prepare(config)


def test_a_good_teacher_is_opened_and_the_source_not_twice(tmp_path: Path, data: Path) -> None:
    source = write_model(tmp_path / "source.pt", words())
    teacher = write_model(tmp_path / "teacher.pt", words(), family="gpt_neox", d_model=64)
    other = prepared(data, teacher, source)
    assert not other.problems
    assert other.teacher is not None
    assert other.teacher.arch.family == "gpt_neox"
    itself = prepared(data, None, source, prune=True)
    assert not itself.problems
    assert itself.teacher is not None
    assert itself.teacher.checkpoint is itself.checkpoint
    assert itself.teacher.section.l0_module is None
    link = tmp_path / "link.pt"
    link.symlink_to(source)
    linked = prepared(data, str(link), source)
    assert linked.teacher is not None
    assert linked.teacher.checkpoint is linked.checkpoint


def test_a_teacher_in_an_hf_folder(tmp_path: Path, data: Path) -> None:
    folder = save(make(CONFIGS["qwen2"]), tmp_path / "hf")
    found = prepared(data, str(folder), model__vocab_size=96)
    assert not found.problems
    assert found.teacher is not None
    assert found.teacher.arch.family == "qwen2"


def test_no_teacher_is_opened_for_nothing(data: Path) -> None:
    found = prepared(data, "nowhere.pt", distillation__kl_weight=0)
    assert not found.problems
    assert found.teacher is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, "distillation.teacher is not set; only a pruning run has a teacher by default"),
        (
            {"prune": True},
            "model.path, which a pruning run has for its teacher by default, is not set either",
        ),
        ({"teacher": "none.pt"}, "distillation.teacher is none.pt: There is no file"),
        ({"teacher": "none.pt", "source": "none.pt"}, "none.pt"),
        (
            {"distillation__kl_weight": 0, "distillation__ce_weight": 0},
            "distillation.kl_weight and distillation.ce_weight are both 0; expected one above 0",
        ),
    ],
)
def test_what_is_missing_or_contradicts(data: Path, changes: dict[str, Any], problem: str) -> None:
    problems = prepared(data, **{"teacher": None, **changes}).problems
    assert sum(problem in each for each in problems) == 1
    assert len(problems) == len(set(problems))


def test_a_teacher_that_is_not_finite_is_named_when_a_run_starts(tmp_path: Path, data: Path) -> None:
    """A plan does not read all weights."""
    path = Path(write_model(tmp_path / "teacher.pt", d_model=64))
    found = open_checkpoint(path)
    spoiled = found.weights["model.transformer.ln_f.weight"].clone()
    spoiled[3] = float("nan")
    weights = {**found.weights, "model.transformer.ln_f.weight": spoiled}
    write_checkpoint(path, weights, found.record or {})
    section = asdict(DistillationConfig(str(path)))
    config = run_config(data, None, prune=False, distillation=section)
    (problem,) = prepare(config, starts=True).problems
    assert problem.startswith(f"The teacher {path} has weights that are NaN or infinite")
    assert prepare(config).problems == []


def test_a_teacher_with_another_vocabulary(tmp_path: Path, data: Path) -> None:
    teacher = write_model(tmp_path / "teacher.pt", vocab_size=70)
    (problem,) = prepared(data, teacher).problems
    assert "has a vocabulary of 70 tokens, the model one of 64; expected the same" in problem


def test_a_teacher_with_another_tokenizer(tmp_path: Path) -> None:
    """Compared with the data's where it is known, else with the model's; where neither is, not at all."""
    bare = write_data(tmp_path / "bare")
    same, other = words(), words(first="v")
    source = write_model(tmp_path / "source.pt", same)
    teacher = write_model(tmp_path / "teacher.pt", other)
    twin = write_model(tmp_path / "twin.pt", json.dumps(json.loads(same), indent=3))
    unknown = write_model(tmp_path / "unknown.pt")
    expected = "carries a tokenizer with another vocabulary than the one the model has"
    assert [expected in problem for problem in prepared(bare, teacher, source).problems] == [True]
    assert not prepared(bare, twin, source).problems
    assert not prepared(bare, unknown, source).problems
    assert not prepared(bare, teacher, unknown).problems
    made = write_data(tmp_path / "made")
    record = {"name": "words", "vocab_size": 64, "vocabulary_sha256": vocabulary_sha256(same, "a test")}
    Manifest(SEQ_LEN, "uint16", record, {}, {}, {}, {}).write(made)
    expected = "carries a tokenizer with another vocabulary than the one the data was made with"
    assert [expected in problem for problem in prepared(made, teacher, unknown).problems] == [True]
    assert not prepared(made, twin, unknown).problems
    broken = write_model(tmp_path / "broken.pt", "{}")
    (problem,) = prepared(made, broken, unknown).problems
    assert "The tokenizer.json that" in problem
    assert "is not a tokenizer" in problem


def test_the_hash_is_that_of_a_loaded_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(words())
    assert load_tokenizer(str(tmp_path)).vocabulary_sha256 == vocabulary_sha256(words(), "a test")


def test_a_checkpoint_of_a_pruning_run_cannot_teach(tmp_path: Path, data: Path) -> None:
    masked = str(masked_checkpoint(tmp_path / "masked.pt", n_heads=2))
    expected = (
        f"The teacher {masked} is the checkpoint of a pruning run, whose masks are not applied yet: run "
    )
    sizes = {"model__vocab_size": 96}
    assert [expected in problem for problem in prepared(data, masked, **sizes).problems] == [True]


def test_a_small_or_short_teacher_is_warned_about(tmp_path: Path, data: Path) -> None:
    small = write_model(tmp_path / "small.pt", n_layers=1)
    assert any("fewer than the" in warning for warning in prepared(data, small).warnings)
    short = write_model(tmp_path / "short.pt", n_layers=4, max_seq_len=8)
    (warning,) = (w for w in prepared(data, short).warnings if "positions" in w)
    assert "was trained on 8 positions; max_seq_len is 16" in warning


# ------------------------------------------------------------------------ costs


def test_memory_and_hours_count_the_teacher(tmp_path: Path, data: Path) -> None:
    teacher = write_model(tmp_path / "teacher.pt", d_model=64, n_layers=6)
    with_it, without = prepared(data, teacher), prepared(data, None, distillation__kl_weight=0)
    assert with_it.teacher is not None
    assert with_it.source is not None
    arch = with_it.teacher.arch
    added = estimates.memory(with_it, 1).total(False) - estimates.memory(without, 1).total(False)
    rows = estimates.chunk_size(VOCABULARY)
    chunks = 2 * 4 * rows * VOCABULARY
    hidden = 4 * SEQ_LEN * 64 * 4  # 4 sequences a microbatch, in fp32
    assert added == 4 * parameters(arch) + hidden + chunks
    sharded = estimates.memory(with_it, 4).teacher
    assert sharded == parameters(arch) + 2 * SEQ_LEN * 64 * 4 + 4 * VOCABULARY * 64 + chunks
    rates = [estimates.tokens_per_second(with_it.source, 16, "a100", 0.5, each) for each in (None, arch)]
    own, taught = training_flops(with_it.source, 1, 16), forward_flops(arch, 1, 16)
    assert rates[0] / rates[1] == pytest.approx((own + taught) / own)


def test_the_plan_shows_it(tmp_path: Path, data: Path) -> None:
    teacher = write_model(tmp_path / "teacher.pt", d_model=64, n_layers=6)
    found = prepared(data, teacher)
    said = text.describe(found, [1, 2])
    assert f"The teacher is {teacher}." in said
    assert "  teacher " in said
    (header,) = (line for line in said.splitlines() if "gathered" in line)
    assert header.split()[5:7] == ["logits", "teacher"]
    plain = text.describe(prepared(data, None, distillation__kl_weight=0), [1, 2])
    assert "teacher" not in plain


def test_the_plan_says_where_it_does_not_fit(tmp_path: Path, data: Path) -> None:
    found = prepared(data, write_model(tmp_path / "teacher.pt", d_model=64, n_layers=6))
    assert not text.describe_fit(found, 2, "a100", 80)
    (said,) = text.describe_fit(found, 2, "a toy", 2.0)
    assert said.startswith("By this estimate the run does not fit on 2 devices: each needs 2.")
    assert "of them for the teacher), and a toy has 2. Use more devices, a smaller" in said
    assert said.endswith("or a smaller teacher.")
    assert not text.describe_fit(found, 2, "unknown", None)
    lines = render(found, [1, 2], "a10").splitlines()
    assert not [line for line in lines if "does not fit" in line]
