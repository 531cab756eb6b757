"""The rule against hand-made numbers, and the callback in real runs of Composer's Trainer."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.core import Callback
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel
from composer.utils import dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MeanMetric

from llmshearing.callbacks.dynamic_loading_callback import (
    DynamicLoadingCallback,
    bandit_weights,
    cap_weights,
    doremi_weights,
)
from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.data.merge_data import merge
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from tests.datasets.folders import SEQ_LEN, write_folder

NAMES = ["cc", "book"]
START = [0.5, 0.5]


def callback(target_loss=(2.0, 3.0), **settings) -> DynamicLoadingCallback:
    return DynamicLoadingCallback(target_loss, START, NAMES, **settings)


# The rule


def test_doremi_equals_the_formula():
    """w = (.5, .5), excess (ln 2, 0): 2 : 1 before smoothing by .1."""
    got = callback(smoothing=0.1).update_proportion(START, [2.0 + math.log(2), 3.0])
    assert got == pytest.approx([0.9 * 2 / 3 + 0.05, 0.9 / 3 + 0.05])


def test_bandit_equals_the_formula():
    got = callback(update_type="bandit", smoothing=0.1).update_proportion([0.6, 0.4], [2.5, 3.0])
    first = math.exp(1.1) / (math.exp(1.1) + math.exp(0.4))
    assert got == pytest.approx([0.9 * first + 0.05, 0.9 * (1 - first) + 0.05])


def test_constant_keeps_the_weights():
    assert callback(update_type="constant").update_proportion([0.3, 0.7], [9, 1]) == [0.3, 0.7]


def test_clip_excess_ignores_domains_below_their_reference():
    losses = [1.0, 3.5]
    assert callback(clip_excess=True, smoothing=0).update_proportion(START, losses) == pytest.approx(
        [1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-0.5))]
    )
    assert callback(smoothing=0).update_proportion(START, losses)[0] < 0.2


def test_no_weight_is_updated_beyond_its_maximum():
    got = callback(smoothing=0, max_weight=0.6).update_proportion(START, [9.0, 3.0])
    assert got == pytest.approx([0.6, 0.4])


def test_step_size_scales_the_excess():
    whole = callback(smoothing=0, step_size=0.5).update_proportion(START, [3.0, 3.0])
    assert whole == pytest.approx(callback(smoothing=0).update_proportion(START, [2.5, 3.0]))


weights_st = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=8).map(lambda w: np.array(w) / sum(w))


@given(weights=weights_st, shift=st.floats(-5, 5), smoothing=st.floats(0, 1))
@settings(deadline=None)
def test_the_same_excess_everywhere_only_smooths(weights, shift, smoothing):
    got = doremi_weights(weights, np.full(weights.size, shift), 1.0, smoothing)
    assert got == pytest.approx((1 - smoothing) * weights + smoothing / weights.size)


@given(weights=weights_st, seed=st.integers(0, 1000), scale=st.floats(0, 1e4))
@settings(deadline=None)
def test_weights_stay_a_distribution(weights, seed, scale):
    excess = np.random.default_rng(seed).normal(size=weights.size) * scale
    limit = 1 / weights.size + 0.1 * (1 - 1 / weights.size)
    for rule in (doremi_weights, bandit_weights):
        got = rule(weights, excess, 1.0, 1e-4)
        capped = cap_weights(got, limit)
        assert got.sum() == pytest.approx(1)
        assert got.min() >= 0
        assert capped.sum() == pytest.approx(1)
        assert capped.max() <= limit
        assert capped.min() >= got.min()


def test_cap_gives_the_rest_to_the_others_in_proportion():
    assert cap_weights(np.array([0.7, 0.2, 0.1]), 0.4) == pytest.approx([0.4, 0.4, 0.2])
    assert cap_weights(np.array([0.7, 0.25, 0.05]), 0.45) == pytest.approx([0.45, 0.45, 0.1])
    assert cap_weights(np.array([1.0, 0.0, 0.0]), 0.4) == pytest.approx([0.4, 0.3, 0.3])


@pytest.mark.parametrize("update_type", ["doremi", "bandit"])
@pytest.mark.parametrize("max_weight", [None, 0.6])
def test_a_domain_of_weight_0_is_never_used(update_type, max_weight):
    """However far it lags; the others are mixed as if it were not there."""
    settings = {"update_type": update_type, "max_weight": max_weight, "smoothing": 0.1}
    three = DynamicLoadingCallback([2.0, 2.0, 2.0], [0.0, 0.3, 0.7], ["a", "b", "c"], **settings)
    two = DynamicLoadingCallback([2.0, 2.0], [0.3, 0.7], ["b", "c"], **settings)
    weights, others = [0.0, 0.3, 0.7], [0.3, 0.7]
    for losses in ([9.0, 2.5, 2.1], [9.0, 2.0, 4.0]):
        weights = three.update_proportion(weights, losses)
        others = two.update_proportion(others, losses[1:])
        assert weights == [0.0, *others]
    with pytest.raises(
        ValueError, match=r"max_weight is 0.4: expected from 1/2 \(the domains with a weight above 0"
    ):
        DynamicLoadingCallback([2.0, 2.0, 2.0], [0.0, 0.3, 0.7], ["a", "b", "c"], max_weight=0.4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update_type": "doremy"}, "expected one of doremi, bandit, constant"),
        ({"target_loss": [2.0]}, "target_loss has 1 values, set_names has 2"),
        ({"target_loss": None}, "target_loss has 0 values"),
        ({"smoothing": -0.1}, "smoothing is -0.1"),
        ({"step_size": 0}, "step_size is 0"),
        ({"step_size": math.inf}, "step_size is inf: expected a finite number"),
        ({"target_loss": [2.0, math.nan]}, "target_loss of domain book is nan: expected a finite number"),
        ({"max_weight": 0.4}, r"max_weight is 0.4: expected from 1/2"),
    ],
)
def test_wrong_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        callback(**settings)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(ValueError, match="loss of domain book is nan: the model has diverged"):
        callback().update_proportion(START, [2.0, float("nan")])


# In runs


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
        eval_dataloader=build_text_dataloader(section(evaluation), 2, set_names=NAMES),
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


def test_other_domains_than_the_loaders_are_rejected(root):
    other = DynamicLoadingCallback((1.0, 1.0), START, ["book", "cc"])
    trainer, _, _ = build(root, other)
    with pytest.raises(ValueError, match=r"domains are \['cc', 'book'\], expected .*\['book', 'cc'\]"):
        trainer.fit()
