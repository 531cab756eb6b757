"""Dynamic loading in real runs of Composer's Trainer."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composer import Trainer
from composer.core import Callback
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel
from composer.utils import dist
from torchmetrics import MeanMetric

from llmshearing.callbacks.dynamic_loading_callback import (
    DynamicLoadingCallback,
)
from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.data.merge_data import merge
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from tests.callbacks.loading import NAMES, START, callback
from tests.datasets.folders import SEQ_LEN, write_folder


class DomainLoss(MeanMetric):
    """Mean loss of one domain's sequences."""

    def __init__(self, domain):
        super().__init__()
        self.domain = domain


class TinyModel(ComposerModel):
    """Predicts each token from the one before; its metrics are those of the real models by name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(64, 64)
        self.metrics = {f"{name}_LanguageCrossEntropy": DomainLoss(i) for i, name in enumerate(NAMES)}

    def forward(self, batch):
        return self.table(batch["input_ids"])

    def loss(self, outputs, batch):
        return self._losses(outputs, batch).mean()

    def _losses(self, outputs, batch):
        loss = torch.nn.functional.cross_entropy(
            outputs[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
        )
        return loss.view(len(outputs), -1).mean(1)

    def get_metrics(self, is_train):
        return {} if is_train else self.metrics

    def update_metric(self, batch, outputs, metric):
        metric.update(self._losses(outputs, batch)[batch["set"] == metric.domain])

    def eval_forward(self, batch, outputs=None):
        return self(batch)


class Recorder(Callback):
    """The (domain, index) of every training sample, by batch, and the loss."""

    def __init__(self):
        self.samples, self.losses = [], []

    def batch_start(self, state, logger):
        self.samples.append(list(zip(state.batch["set"].tolist(), state.batch["idx"].tolist(), strict=True)))

    def batch_end(self, state, logger):
        self.losses.append(float(state.loss))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in NAMES:
        write_folder(root / "for_ft" / name, 40, name)
        write_folder(root / f"eval_{name}", 4, name)
    write_folder(root / "eval_merge", 4, "cc")
    write_folder(root / "eval_three", 3, "book")
    write_folder(root / "eval_one", 1, "book")
    merge([root / "eval_cc", root / "eval_one"], root / "eval_late")
    merge([root / "eval_cc", root / "eval_book"], root / "eval_both")
    merge([root / "eval_cc", root / "eval_three"], root / "eval_odd")
    return root


def build(
    root, loading, *, evaluation="eval_both", exhausted="repeat", duration="12ba", world_size=1, **settings
):
    def section(split, **more):
        return LoaderConfig(DatasetConfig(local=str(root), split=split, max_seq_len=SEQ_LEN, **more))

    train = section("for_ft", shuffle=True, exhausted=exhausted)
    recorder, memory, model = Recorder(), InMemoryLogger(), TinyModel()
    trainer = Trainer(
        model=model,
        train_dataloader=build_text_dataloader(train, 4 // world_size, True, NAMES, START, vocab_size=64),
        eval_dataloader=evaluation and build_text_dataloader(section(evaluation), 2, set_names=NAMES),
        optimizers=torch.optim.Adam(model.parameters(), lr=0.1),
        max_duration=duration,
        eval_interval="4ba",
        callbacks=[loading, recorder],
        loggers=[memory],
        device="cpu",
        progress_bar=False,
        **settings,
    )
    return trainer, recorder, memory


def logged(memory, key) -> list[tuple[int, float]]:
    return [(stamp.batch.value, float(value)) for stamp, value in memory.data.get(key, [])]


def test_weights_follow_the_losses_of_each_evaluation(root):
    trainer, recorder, memory = build(root, callback((0.0, 3.0)))
    trainer.fit()
    losses = {name: dict(logged(memory, f"metrics/eval/{name}_LanguageCrossEntropy")) for name in NAMES}
    assert sorted(losses["cc"]) == [4, 8, 12]
    expected = START
    for batch in (4, 8, 12):
        expected = callback((0.0, 3.0)).update_proportion(expected, [losses[name][batch] for name in NAMES])
        assert dict(logged(memory, "metrics/train/cc_weight"))[batch] == pytest.approx(expected[0], rel=1e-5)
    history = trainer.state.train_dataloader.dataset.proportion_history
    assert [since for since, _ in history] == [0, 16, 32, 48]
    assert history[0][1] == START
    assert logged(memory, "metrics/train/cc_weight")[0] == (0, 0.5)
    used = sum(domain == 0 for batch in recorder.samples for domain, _ in batch)
    assert dict(logged(memory, "metrics/train/cc_pass"))[12] == pytest.approx(used / 40)
    for name, reference in (("cc", 0.0), ("book", 3.0)):
        excess = losses[name][4] - reference
        assert logged(memory, f"metrics/train/{name}_excess_loss")[0][1] == pytest.approx(excess)


def test_the_first_batch_after_an_update_uses_the_new_weights(root):
    trainer, recorder, _ = build(root, callback((0.0, 50.0), smoothing=0), duration="8ba")
    trainer.fit()
    assert {domain for batch in recorder.samples[:4] for domain, _ in batch} == {0, 1}
    assert {domain for batch in recorder.samples[4:] for domain, _ in batch} == {0}


def test_constant_updates_nothing(root):
    trainer, _, memory = build(root, callback(None, update_type="constant"))
    trainer.fit()
    assert trainer.state.train_dataloader.dataset.proportion_history == [(0, START)]
    assert logged(memory, "metrics/train/cc_weight") == [(batch, 0.5) for batch in (0, 4, 8, 12)]


def test_an_evaluation_outside_training_updates_nothing(root):
    """`eval_first` before step 1, and `trainer.eval()` at any step, also in the middle of an interval."""
    trainer, _, _ = build(root, callback(), duration="6ba")
    trainer.eval()
    assert trainer.state.train_dataloader.dataset.proportion == START
    trainer.fit()
    history = trainer.state.train_dataloader.dataset.proportion_history
    trainer.eval()
    assert trainer.state.train_dataloader.dataset.proportion_history == history


def evaluated(trainer, label, batch, losses):
    """State after the evaluation `label` of a step with these losses; another one gave others."""
    metrics = {
        f"{name}_LanguageCrossEntropy": SimpleNamespace(compute=lambda loss=loss: loss)
        for name, loss in zip(NAMES, losses, strict=False)
    }
    return SimpleNamespace(
        train_dataloader=trainer.state.train_dataloader,
        eval_metrics={"another": dict.fromkeys(metrics), label: metrics},
        dataloader_label=label,
        timestamp=SimpleNamespace(batch=SimpleNamespace(value=batch)),
    )


def test_an_update_reads_the_evaluation_that_ended_once_a_step(root):
    loading = callback((0.0, 0.0), smoothing=0)
    trainer, _, _ = build(root, loading)
    dataset, logger = (
        trainer.state.train_dataloader.dataset,
        SimpleNamespace(log_metrics=lambda metrics: None),
    )
    loading.eval_end(evaluated(trainer, "eval", 4, [9.0]), logger)  # of one domain alone
    assert dataset.proportion == START
    losses = [math.log(3), 0.0]
    for batch, expected in ((4, [3 / 4, 1 / 4]), (4, [3 / 4, 1 / 4]), (5, [9 / 10, 1 / 10])):
        loading.eval_end(evaluated(trainer, "eval", batch, losses), logger)
        assert dataset.proportion == pytest.approx(expected)
    again = callback()
    again.load_state_dict(loading.state_dict())
    again.eval_end(evaluated(trainer, "eval", 5, losses), logger)
    assert dataset.proportion == pytest.approx([9 / 10, 1 / 10])


def test_rank_0_decides_for_all(root, monkeypatch):
    trainer, _, _ = build(root, loading := callback())
    monkeypatch.setattr(dist, "broadcast_object_list", lambda objects: objects.__setitem__(0, [0.25, 0.75]))
    logger = SimpleNamespace(log_metrics=lambda metrics: None)
    loading.eval_end(evaluated(trainer, "eval", 4, [3.0, 3.0]), logger)
    assert trainer.state.train_dataloader.dataset.proportion == [0.25, 0.75]


class Interrupted(Exception):
    pass


class Interrupt(Callback):
    """Ends the process, so to speak, in the middle of the step after `batches`."""

    def __init__(self, batches):
        self.batches = batches

    def after_forward(self, state, logger):
        if state.timestamp.batch.value == self.batches:
            raise Interrupted


@pytest.mark.parametrize("cut", [1, 4, 6, 11])
def test_interrupted_equals_uninterrupted(root, tmp_path, cut):
    """Samples, losses and weights, whether the cut lies at an evaluation or between two."""
    whole, expected, memory = build(root, callback())
    whole.fit()
    first, head, _ = build(root, callback(), save_folder=str(tmp_path), save_interval="1ba")
    first.state.callbacks.append(Interrupt(cut))
    with pytest.raises(Interrupted):
        first.fit()
    second, tail, resumed = build(root, callback(), load_path=str(tmp_path / f"ep0-ba{cut}-rank0.pt"))
    second.eval()  # as eval_first does
    second.fit()
    assert head.samples[:cut] + tail.samples == expected.samples
    assert head.losses + tail.losses == expected.losses
    for name in NAMES:
        key = f"metrics/train/{name}_weight"
        assert logged(resumed, key) == [entry for entry in logged(memory, key) if entry[0] > cut]


@pytest.mark.slow
@pytest.mark.world_size
def test_two_processes_train_and_evaluate_as_one_does(root, tmp_path):
    """The same samples, weights and losses; seven sequences of evaluation, none counted twice."""
    from tests.callbacks.dynamic_run import result

    single = json.loads(json.dumps(result(root, world_size=1)))
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    module = ["tests.callbacks.dynamic_run", str(root), str(tmp_path)]
    command = [sys.executable, "-m", *launcher, "-m", *module]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env={**os.environ, "NODE_RANK": "0"})
    pair = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [a + b for a, b in zip(pair[0]["samples"], pair[1]["samples"], strict=True)] == single["samples"]
    assert pair[0]["history"] == pair[1]["history"]
    assert pair[0]["losses"] == pytest.approx(single["losses"], rel=1e-5)
    for (since, weights), (expected_since, expected) in zip(
        pair[0]["history"], single["history"], strict=True
    ):
        assert since == expected_since
        assert weights == pytest.approx(expected, rel=1e-5)


def test_a_domain_without_evaluation_samples_is_rejected_at_start(root, monkeypatch):
    trainer, _, _ = build(root, callback(), evaluation="eval_merge")
    with pytest.raises(ValueError, match="evaluation data has no sequences of book, needed to update"):
        trainer.fit()
    trainer, _, _ = build(root, callback(), evaluation="eval_late", eval_subset_num_batches=1)
    with pytest.raises(ValueError, match="raise eval_subset_num_batches"):
        trainer.fit()
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)  # which read twice as much
    callback()._check_evaluation(trainer.state)
    monkeypatch.undo()
    fixed = callback(None, update_type="constant")
    trainer, _, _ = build(root, fixed, evaluation="eval_merge", duration="1ba")
    trainer.fit()


def test_without_evaluation_data_weights_stay_as_they_are(root):
    trainer, _, memory = build(root, callback(), evaluation=None, duration="2ba")
    trainer.fit()
    assert {value for name in NAMES for _, value in logged(memory, f"metrics/train/{name}_weight")} == set(
        START
    )


def test_other_domains_than_the_loaders_are_rejected(root):
    other = DynamicLoadingCallback((1.0, 1.0), START, ["book", "cc"])
    trainer, _, _ = build(root, other)
    with pytest.raises(ValueError, match=r"domains are \['cc', 'book'\], expected .*\['book', 'cc'\]"):
        trainer.fit()
