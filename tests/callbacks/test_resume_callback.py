"""What resuming restores, and which checkpoints it rejects."""

import copy
import json

import pytest
import torch
from composer.core import Timestamp
from composer.utils import reproducibility
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from llmshearing.callbacks.resume import Resume
from stubs import NO_LOGGER, state

CONFIG = "{model: {d_model: 3}, optimizer: {lr: 0.1}, precision: fp32, max_duration: 4ba}"

STREAM = {
    "names": ["code", "books"],
    "sizes": [8, 8],
    "seed": 17,
    "exhausted": "repeat",
    "shuffle": True,
    "since": [0],
    "weights": [[0.5, 0.5]],
    "sample": 3,
    "counts": [2, 1],
    "epoch_start": 0,
}
PARTS = {"callbacks", "dataset_state", "rank_zero_seed", "schedulers", "timestamp"}


class Run:
    """A model of one weight, trained for some steps, and the state of its trainer."""

    def __init__(self, steps: int = 0, size: int = 3) -> None:
        torch.manual_seed(steps)
        self.model = torch.nn.Linear(size, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.loaded: dict[str, object] = {}
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(1, self.model.in_features)).square().sum().backward()
        self.optimizer.step()

    @property
    def state(self):
        return state(
            model=self.model,
            optimizers=[self.optimizer],
            callbacks=[],
            load_state_dict=lambda values, logger: self.loaded.update(values),
        )

    def contents(self):
        options = StateDictOptions(full_state_dict=True)
        optimizers = {"AdamW": get_optimizer_state_dict(self.model, self.optimizer, options=options)}
        saved = {
            "model": self.model.state_dict(),
            "optimizers": optimizers,
            "callbacks": {"RunRecord": {"config": CONFIG}},
            "timestamp": {"Timestamp": Timestamp(batch=3).state_dict()},
            "schedulers": {"LambdaLR": {"base_lrs": [0.1], "last_epoch": 3}},
            "rank_zero_seed": 17,
            "dataset_state": {"train": {"mixture": json.dumps(STREAM)}},
            "run_name": "of the run before",
        }
        return copy.deepcopy({"state": saved, "rng": reproducibility.get_rng_state()})


def resume(path, contents, into, config=CONFIG, weights_only=False):
    torch.save(contents, path / "c.pt")
    callback = Resume(path / "c.pt", config, weights_only)
    callback.before_load(into.state, NO_LOGGER)
    return callback


def test_a_resumed_run_takes_the_next_step_of_the_one_before(tmp_path):
    before, after = Run(steps=3), Run()
    resume(tmp_path, before.contents(), after)
    before.step()
    after.step()
    assert torch.equal(before.model.weight, after.model.weight)
    assert set(after.loaded) == PARTS, "a run keeps its own name"


def test_weights_alone_start_a_new_run(tmp_path):
    before, after = Run(steps=3), Run()
    resume(tmp_path, before.contents(), after, "{model: {d_model: 9}}", weights_only=True)
    assert torch.equal(before.model.weight, after.model.weight)
    assert not after.optimizer.state
    assert not after.loaded


def test_random_numbers_continue_at_the_first_step_and_are_set_once(tmp_path):
    before = Run(steps=1)
    contents = before.contents()
    expected = [torch.rand(()), torch.rand(())]
    callback = resume(tmp_path, contents, Run())
    torch.manual_seed(99)  # as the trainer does after loading
    drawn = []
    for _ in range(2):
        callback.batch_start(state(), NO_LOGGER)
        drawn.append(torch.rand(()))
    assert drawn == expected


@pytest.mark.parametrize(
    ("change", "weights_only"),
    [
        (lambda contents: contents.pop("state"), True),
        (lambda contents: contents["state"].update(model={}), True),
        (lambda contents: contents["state"].update(optimizers={"SGD": {}}), False),
        (lambda contents: contents["state"].pop("optimizers"), False),
        (lambda contents: contents["state"]["model"].pop("bias"), True),
        (lambda contents: contents["state"]["model"].update(weight=torch.zeros(2, 4)), True),
    ],
    ids=["no state", "no weights", "another optimizer", "no optimizer", "no bias", "another shape"],
)
def test_what_does_not_fit_is_rejected_by_name_and_nothing_else_is_restored(tmp_path, change, weights_only):
    contents, after = Run(steps=1).contents(), Run()
    change(contents)
    with pytest.raises(ValueError, match=r"c\.pt"):
        resume(tmp_path, contents, after, weights_only=weights_only)
    assert not after.loaded
    assert not after.optimizer.state


def put(contents, key, value):
    """Give a part another value, or take it away (None)."""
    *above, last = key.split(".")
    for name in above:
        contents = contents[name]
    contents.pop(last) if value is None else contents.update({last: value})


TENSOR = torch.ones(3)
RANDOM = reproducibility.get_rng_state()[0]
WRONG = {
    "state.callbacks": [None, [1], "x", TENSOR, {"FiniteGuard": 3}, {}],
    "state.callbacks.RunRecord": [None, "x"],
    "state.callbacks.RunRecord.config": [None, 3, "a: [b", "? [a]\n: 1", "- 1"],
    "state.callbacks.RunRecord.data": [3],
    "state.callbacks.RunRecord.teacher": ["x", {"path": "x"}, {"path": 3, "sha256": "x"}],
    "state.callbacks.FiniteGuard": [{"skipped": "x"}],
    "state.callbacks.DynamicLoadingCallback": [{"updated_at": [1]}],
    "state.callbacks.SpeedMonitor": [{"total_eval_wct": "x"}],
    "state.optimizers": [[1], TENSOR, "x"],
    "state.optimizers.AdamW": [3, [1], {}, {"state": {}, "param_groups": 3}],
    "state.schedulers": [None, TENSOR, {}],
    "state.schedulers.LambdaLR": [{"last_epoch": "x"}, {"last_epoch": 1, "base_lrs": [0.1], "step": 3}],
    "state.timestamp": [None, [1], {}, "x", TENSOR],
    "state.timestamp.Timestamp": [None, {}, [1]],
    "state.timestamp.Timestamp.batch": [None, "x", -1, TENSOR],
    "state.timestamp.Timestamp.total_wct": ["x", 3],
    "state.rank_zero_seed": [None, "x", [1], TENSOR],
    "state.dataset_state": [None, [1], "x", {}, TENSOR],
    "state.dataset_state.train": [None, "x", {}],
    "state.dataset_state.train.mixture": [
        3,
        "[",
        "[" * 100_000,
        *(json.dumps(STREAM | change) for change in ({"weights": [[0.5]]}, {"counts": [0.5, 1]})),
        *(json.dumps(STREAM | change) for change in ({"sample": "x"}, {"weights": [[-1, 1]]})),
    ],
    "state.scaler": [[1]],
    "rng": [None, [], [1], {}, "x", TENSOR, *([{**RANDOM, kind: 3}] for kind in RANDOM)],
    "division": [[1], "x", {"processes": 1}, {"processes": 1, "microbatch": "x"}],
    "max_duration": [[1], {}, TENSOR, "x", "0ba", "1dur"],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(key, value, id=f"{key}-{number}")
        for key, values in WRONG.items()
        for number, value in enumerate(values)
    ],
)
def test_a_part_that_is_missing_or_of_another_type_is_rejected_by_name(tmp_path, key, value):
    contents, after = Run(steps=1).contents(), Run()
    put(contents, key, value)
    place = (
        "a state of the optimizer" if key.endswith("AdamW") else f"(as {key}|as {key.rpartition('.')[0]},)"
    )
    with pytest.raises(ValueError, match=rf"c\.pt cannot be resumed: found .*{place}.*expected .*") as error:
        resume(tmp_path, contents, after)
    assert "load_weights_only=true" in str(error.value)
    assert "\n" not in str(error.value)
    assert not after.loaded
    resume(tmp_path, contents, Run(), weights_only=True)


def test_a_state_that_composer_cannot_take_over_is_reported(tmp_path):
    def fails(values, logger):
        raise KeyError("skipped")

    broken = Run().state
    broken.load_state_dict = fails
    torch.save(Run(steps=1).contents(), tmp_path / "c.pt")
    with pytest.raises(
        ValueError, match=r"c\.pt cannot be resumed: found a state of the trainer that does not"
    ):
        Resume(tmp_path / "c.pt", CONFIG).before_load(broken, NO_LOGGER)


def test_a_setting_that_a_checkpoint_decides_is_rejected_and_others_are_warned_of(tmp_path, caplog):
    contents, after = Run(steps=1).contents(), Run()
    with pytest.raises(ValueError, match=r"optimizer\.lr was 0\.1, is 0\.2.*load_weights_only=true"):
        resume(tmp_path, contents, after, CONFIG.replace("0.1", "0.2"))
    assert not after.loaded
    resume(tmp_path, contents, after, CONFIG.replace("fp32", "amp_bf16").replace("4ba", "8ba"))
    assert "precision was 'fp32', is 'amp_bf16'" in caplog.text
    assert "max_duration" not in caplog.text
