"""The command: every way to name a model gives its scores, and what was done is not done again."""

import json
import math
import unittest.mock
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from command_line import status_of
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.trained_method import load_method
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands import evaluate
from llmshearing.commands.convert import save_hf_to_composer
from llmshearing.commands.prune import prune_and_save_model
from llmshearing.commands.reference_loss import measure
from llmshearing.config import L0Config, ModelConfig, TargetConfig
from llmshearing.evaluation import perplexity, suites
from llmshearing.evaluation.battery import BATTERY
from llmshearing.evaluation.perplexity import Text
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.model_section import complete
from llmshearing.shapes.units import to_z
from tests.data.conftest import prepared, tokenizer_folder
from tests.data.texts import WORDS

pytest.importorskip("lm_eval")
TARGET = {"d_model": 16, "n_heads": 2, "n_layers": 1, "intermediate_size": 24}
assert prepared  # a fixture
assert tokenizer_folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(WORDS[i * i % 11] for i in range(300)))
    return path


@pytest.fixture(scope="module")
def checkpoint(hf, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "source.pt"
    save_hf_to_composer(hf, path)
    return path


@pytest.fixture(scope="module")
def masked(checkpoint, tmp_path_factory):
    """A pruning run's checkpoint, and its model with the gates by which it is cut."""
    source = read_checkpoint(checkpoint)
    arch, _ = describe(source)
    l0 = L0Config(target_model=TargetConfig(**TARGET))
    model = ComposerMosaicLlama(complete(ModelConfig(l0_module=l0), arch, "source"))
    model.load_state_dict(source.weights, strict=False)
    for mask in model.model.l0_module.masks.values():
        torch.nn.init.uniform_(mask.z_loga, -4.6, 4.6)
    path = tmp_path_factory.mktemp("masked") / "latest-rank0.pt"
    run = yaml.safe_dump({"model": {"l0_module": {"target_model": TARGET}}})
    write_checkpoint(path, model.state_dict(), {"hf_files": source.hf_files, "config": run})
    return path, model.eval(), load_method(read_checkpoint(path), arch, {}).final_gates()


def found(folder):
    models = json.loads((folder / "evaluation.json").read_text())["models"]
    return [{name: score["metrics"] for name, score in each["scores"].items()} for each in models]


def test_folder_and_checkpoint_have_equal_scores_and_nothing_runs_twice(
    hf, checkpoint, cache, tmp_path, monkeypatch, capsys
):
    words = [hf, checkpoint, "--suite", "offline", "--cache", cache, "--out", tmp_path]
    assert status_of(monkeypatch, evaluate, *words) == 0
    out = capsys.readouterr().out
    first, second = found(tmp_path)
    assert set(first) == set(BATTERY)
    assert first == second
    assert "mean of 10" in out
    assert "share of the first" in out
    monkeypatch.setattr(evaluate, "load_model", None)  # nothing is left to do
    assert status_of(monkeypatch, evaluate, *words) == 0
    assert capsys.readouterr().out.splitlines()[0] == out.splitlines()[2]


def test_an_interrupted_evaluation_resumes_with_the_next_task(hf, cache, tmp_path, monkeypatch):
    from llmshearing.evaluation import harness

    ran, run = [], harness.run

    def once(model, choice, *rest):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(choice.task)
        return run(model, choice, *rest)

    words = [hf, "--tasks", "timedial,qa_wikidata,logiqa_en", "--cache", cache, "--out", tmp_path]
    monkeypatch.setattr(harness, "run", once)
    assert status_of(monkeypatch, evaluate, *words) == 130
    assert list(found(tmp_path)[0]) == ["timedial", "qa_wikidata"]
    ran.clear()
    assert status_of(monkeypatch, evaluate, *words) == 0
    assert ran == ["logiqa_en"]
    ran.clear()
    assert status_of(monkeypatch, evaluate, *words[:2], "logiqa_en", "--limit", 1, *words[3:]) == 0
    assert ran == ["logiqa_en"]  # with another limit it is another score


def test_scores_are_those_of_the_likelihoods(hf, cache, tmp_path, monkeypatch):
    """A task's accuracy, computed by hand: the choice of the greatest sum of log probabilities."""
    from transformers import AutoTokenizer

    from llmshearing.evaluation.battery import read_documents

    assert (
        status_of(monkeypatch, evaluate, hf, "--tasks", "social_iqa", "--cache", cache, "--out", tmp_path)
        == 0
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(hf), AutoTokenizer.from_pretrained(hf)
    right = []
    for document in read_documents("social_iqa", cache):
        sums = []
        for choice in document["choices"]:
            before = len(tokenizer(document["prompt"]).input_ids)
            ids = tokenizer(f"{document['prompt']} {choice}", return_tensors="pt").input_ids
            logs = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[before - 1 :]
            sums.append(float(logs.sum()))
        right.append(sums.index(max(sums)) == document["answer"])
    assert found(tmp_path)[0]["social_iqa"]["acc"] == pytest.approx(sum(right) / len(right))


def test_choices_that_share_a_context_have_the_numbers_of_lm_eval(hf, monkeypatch):
    """Against lm-eval's own path: contexts that are shared, too short, of one choice, and too long."""
    from lm_eval.models.huggingface import HFLM

    from llmshearing.evaluation import harness

    loaded = AutoModelForCausalLM.from_pretrained(hf)
    model = harness.Model(loaded, evaluate.load_tokenizer(hf, "m"), 4)
    generator = torch.Generator().manual_seed(1)

    def ids(length):
        return torch.randint(2, 500, (length,), generator=generator).tolist()

    long, longest = ids(40), ids(510)
    greedy = [int(loaded(torch.tensor([long])).logits[0, -1].argmax())]
    pairs = [(long, ids(5)), (ids(3), ids(2)), (long, greedy), (long, ids(2)), (ids(50), ids(4))]
    requests = [(("", ""), *pair) for pair in [*pairs, (longest, ids(6)), (longest, ids(2))]]
    found = model._loglikelihood_tokens(requests)
    model._bar = unittest.mock.Mock()
    expected = HFLM._loglikelihood_tokens(model, requests, disable_tqdm=True)
    assert [answer[0] for answer in found] == pytest.approx([answer[0] for answer in expected], rel=1e-5)
    assert [answer[1] for answer in found] == [answer[1] for answer in expected]
    assert found[2][1]
    shared = []
    monkeypatch.setattr(
        harness,
        "log_likelihoods",
        lambda _, context, choices: shared.append(context) or [(0.0, False) for _ in choices],
    )
    model._loglikelihood_tokens(requests)
    assert shared == [tuple(long)]


def test_memory_that_runs_out_halves_the_batch(hf, cache, tmp_path, monkeypatch, caplog):
    from llmshearing.evaluation import harness

    sizes, call = [], harness.Model._model_call

    def limited(self, inps, *args, **options):
        sizes.append(len(inps))
        if len(inps) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return call(self, inps, *args, **options)

    monkeypatch.setattr(harness.Model, "_model_call", limited)
    words = [hf, "--tasks", "social_iqa", "--batch_size", 8, "--cache", cache, "--out", tmp_path]
    assert status_of(monkeypatch, evaluate, *words) == 0
    assert sizes[:3] == [8, 4, 2]
    assert "out of memory: the batch is 2 requests from here on" in caplog.text
    monkeypatch.setattr(harness.Model, "_model_call", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    assert status_of(monkeypatch, evaluate, *words, "--limit", 1) == 2


def test_the_masked_model_has_the_perplexity_of_its_export(masked, text, tmp_path, monkeypatch):
    """The masked forward pass, the checkpoint given to the command, and the exported folder agree."""
    path, model, gates = masked
    prune_and_save_model(path, tmp_path / "cut.pt", hf=tmp_path / "cut")
    words = [path, path.parent, tmp_path / "cut", "--suite", "perplexity", "--data", text, "--seq_length", 16]
    assert status_of(monkeypatch, evaluate, *words, "--out", tmp_path) == 0
    values = [each["text: words.txt"]["loss"] for each in found(tmp_path)]
    assert len(values) == 2  # the run's folder is its last checkpoint
    assert values[0] == values[1]
    tokenizer = evaluate.load_tokenizer(tmp_path / "cut", "cut")
    losses = []
    for batch in perplexity.text_batches(Text(text, 16), tokenizer, 64):
        ids = batch["input_ids"]
        logits = model({"input_ids": ids, **to_z(gates)})["logits"][:, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none"))
    assert values[0] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_perplexity_of_prepared_data_is_that_of_reference_losses(prepared, hf, tmp_path, monkeypatch):
    data = prepared[1]
    expected = measure(str(hf), data, None, "eval_merge", None, 2)
    words = [hf, "--suite", "perplexity", "--data", data, "--out", tmp_path]
    assert status_of(monkeypatch, evaluate, *words) == 0
    (scores,) = found(tmp_path)
    assert set(scores) == {*(f"text: {name}" for name in expected), "text: all domains"}
    for name, loss in expected.items():
        assert scores[f"text: {name}"]["loss"] == pytest.approx(loss, rel=1e-6)
        assert scores[f"text: {name}"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)


def test_windows_are_full_and_do_not_overlap(text, tokenizer_folder):
    tokenizer = evaluate.load_tokenizer(tokenizer_folder, "words")
    batches = list(perplexity.text_batches(Text(text, 16), tokenizer, 64))
    rows = torch.cat([batch["input_ids"] for batch in batches])
    assert rows.flatten().tolist() == tokenizer(text.read_text()).input_ids[: len(rows) * 16]
    assert len(rows) == 300 // 16
    with pytest.raises(ValueError, match="has 300 tokens, less than a window of 400: give --seq_length"):
        list(perplexity.text_batches(Text(text, 400), tokenizer, 512))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["m", "--suite", "ofline"], "Suite ofline does not exist; did you mean offline"),
        (["m"], r"give --suite (sheared, chop, offline, perplexity) or --tasks"),
        ([], "no MODEL is given"),
        (["m", "--suite", "perplexity"], "--suite perplexity needs --data"),
        (["m", "--suite", "perplexity", "--data", "no/such"], "no/such does not exist"),
        (
            ["no/such/model", "--suite", "chop"],
            "no/such/model is neither a folder or file nor a model on the",
        ),
        (["m", "--suite", "offline", "--cache", "no"], "`llmshearing evaluate --fetch` gets them"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(words, reason, monkeypatch, capsys):
    assert status_of(monkeypatch, evaluate, *words) == 2
    assert reason in capsys.readouterr().err


@pytest.fixture
def sciq_alone(monkeypatch):
    """lm-eval with one task of its own: looking through all of them takes seconds."""
    import lm_eval.tasks

    from llmshearing.evaluation import harness

    folder = Path(lm_eval.tasks.__file__).parent / "sciq"
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=folder)
    monkeypatch.setattr(harness, "known_tasks", lambda with_defaults: (manager, manager.all_tasks))


@pytest.mark.usefixtures("sciq_alone")
def test_an_unknown_task_is_named_with_the_nearest(hf, cache, tmp_path, monkeypatch, capsys):
    words = [hf, "--tasks", "hyperbatn,sciq", "--cache", cache, "--out", tmp_path]
    assert status_of(monkeypatch, evaluate, *words) == 2
    assert "Task hyperbatn does not exist; did you mean hyperbaton?" in capsys.readouterr().err


@pytest.mark.usefixtures("sciq_alone")
def test_tasks_that_need_the_hub_are_named_where_it_is_not_reached(hf, cache, tmp_path, monkeypatch, capsys):
    words = [hf, "--tasks", "sciq,timedial", "--cache", cache, "--out", tmp_path]
    assert status_of(monkeypatch, evaluate, *words) == 2
    said = capsys.readouterr().err
    assert "take their documents from the Hugging Face hub, and could not be loaded: sciq (" in said
    assert "timedial (" not in said
    assert "The suites offline and perplexity need no hub." in said
    assert not (tmp_path / "evaluation.json").exists()


def test_suites_are_those_of_the_papers():
    sheared = {choice.task: choice.shots for choice in suites.SUITES["sheared"]}
    assert len(sheared) == 11
    assert {task: shots for task, shots in sheared.items() if shots} == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "boolq": 32,
        "nq_open": 32,
        "mmlu": 5,
    }
    assert [choice.task for choice in suites.choose(["chop", "offline"], ["sciq", "hyperbaton"])].count(
        "sciq"
    ) == 2
