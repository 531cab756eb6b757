"""DimCHOP sums scores over what goes together, closes as many as are due, and lets columns come back."""

import itertools
import math

import pytest
import torch
import yaml
from stepping import TWINS, architecture, model, train
from transformers import AutoModelForCausalLM

from llmshearing import training
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.commands.check_pruning import masked_against_pruned
from llmshearing.commands.prune import prune_and_save_model, prune_checkpoint
from llmshearing.config import DimChopConfig, ModelConfig, TargetConfig
from llmshearing.config.reading import read_what_fits
from llmshearing.planning.prepared import prepare
from llmshearing.pruning import aim_of
from llmshearing.pruning.cut import cut
from llmshearing.pruning.dimchop import DimChop
from llmshearing.pruning.dimensions import Columns, Units, key
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.model_section import complete
from llmshearing.shapes.units import GATES, drive, row_size, rows, weight_shapes
from processes import metrics
from runs import run_config, run_values, write_data

TARGET = {"d_model": 16, "n_heads": 2, "intermediate_size": 20}
SHORT = {"window": 2, "warm_steps": "2ba", "final_steps": "3ba"}
UNTIED = {"tied": False, "sparsity": 0.5, **SHORT}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


# ---------------------------------------------------------------- scores


def numbers(arch):
    """One number for each entry of every weight."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in weight_shapes(arch)}


def added(units, values):
    sums = {kind: torch.zeros(math.prod(s), dtype=torch.float64) for kind, s in units.shapes().items()}
    for name in units.scored():
        units.add(sums, name, values[name])
    return sums


@pytest.mark.parametrize("name", [*TWINS, "llama biases", "qwen3 tied, biases"])
def test_the_score_of_a_unit_is_what_cutting_it_out_takes_away(name):
    arch = architecture(name)
    kinds = ["hidden", "intermediate", "head", *(["kv_head"] if arch.group_size > 1 else [])]
    values = numbers(arch)
    sums = added(Units(arch, arch, tuple(kinds)), values)
    for kind in kinds:
        by_row = rows(kind, sums[kind].view(GATES[kind].shape(arch)), arch)
        for unit in (0, row_size(kind, arch) - 1):
            gates = torch.ones_like(by_row, dtype=torch.float32)
            gates[..., unit] = 0  # of every row, since an exported model's rows are equally long
            closed = drive({kind: gates.view(GATES[kind].shape(arch))})
            left, _ = cut({PREFIX + name: value for name, value in values.items()}, closed, arch)
            gone = sum(v.double().sum() for v in values.values()) - sum(
                v.double().sum() for v in left.values()
            )
            assert by_row[..., unit].sum().item() == pytest.approx(gone.item(), rel=1e-5)


def test_shards_add_up_to_the_whole():
    arch = architecture("llama grouped")
    units, columns, values = (
        Units(arch, arch, ("hidden", "head", "kv_head")),
        Columns(arch, 0.5),
        numbers(arch),
    )
    for ways in (units, columns):
        whole = {n: torch.zeros(math.prod(s), dtype=torch.float64) for n, s in ways.shapes().items()}
        parts = {name: torch.zeros_like(value) for name, value in whole.items()}
        for name in ways.scored():
            ways.add(whole, name, values[name])
            for first in range(0, len(values[name]), 7):
                ways.add(parts, name, values[name][first : first + 7], first)
        for name, value in whole.items():
            assert torch.allclose(parts[name], value)
            assert value.all()


def test_a_step_adds_weight_times_gradient_unless_it_is_not_finite():
    made = model(architecture("llama"), dimchop={"target_model": TARGET, **SHORT, "window": 100})
    method, expected = made.model.method, {}

    def spoil(step):
        for name, weight in made.model.transformer.named_parameters():
            if step == 1:
                weight.grad.view(-1)[0] = float("nan")
            else:
                now = (weight * weight.grad).abs().detach()
                expected[name] = expected.get(name, 0) + now

    train(made, 3, spoil=spoil)
    found = {name: method.averages[key(name)] for name in expected}
    smoothed = {name: 0.15 * value / 2 for name, value in expected.items()}
    for name, averages in found.items():
        assert torch.allclose(averages.smoothed, smoothed[name], rtol=1e-4, atol=1e-9)
        assert not averages.total.any()


# ---------------------------------------------------------------- choice


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("schedule", ["cubic", "exponential"])
def test_units_close_on_schedule_and_stay_closed(name, schedule):
    arch = architecture(name)
    made = model(arch, dimchop={"target_model": TARGET, "schedule": schedule, **SHORT})
    method, seen = made.model.method, []
    train(made, 12, lambda step: seen.append({k: g.clone() for k, g in method.gates_by_kind().items()}))
    assert all(bool(gate.all()) for gate in seen[2].values())
    for before, after in itertools.pairwise(seen):
        for kind in before:
            assert bool((after[kind] <= before[kind]).all())
    for kind, gate in seen[-1].items():
        by_row = rows(kind, gate, arch)
        assert set(by_row.sum(-1).flatten().tolist()) == {method.dimensions.sizes(kind)[1]}
    _, smaller = cut(made.state_dict(), method.final_gates(), arch)
    assert smaller == method.target
    assert any(0 < gate.mean() < 1 for gate in seen[6].values())
    longer = {kind: method._chosen(kind, 0.1) for kind in seen[-1]}  # as when the run is made longer
    assert all(torch.equal(longer[kind], gate) for kind, gate in seen[-1].items())


@pytest.mark.parametrize("name", TWINS)
def test_equally_many_columns_of_every_matrix_are_zero_and_may_come_back(name):
    arch = architecture(name)
    made = model(arch, dimchop=UNTIED)
    method, zeros = made.model.method, []
    matrices = [n for n, shape in weight_shapes(arch) if n.startswith("blocks") and len(shape) == 2]
    weights = dict(made.model.transformer.named_parameters())

    def note(step):
        zeros.append({name: (weights[name] == 0).all(0) for name in matrices})

    def raise_one(step):
        if step > 7:  # a zeroed column of every matrix comes to matter
            for name in matrices:
                weights[name].grad[:, zeros[7][name].nonzero()[0]] *= 1e4

    train(made, 24, note, raise_one)
    for name in matrices:
        size = weights[name].shape[1]
        assert zeros[-1][name].sum() == round(size / 2)
        assert all(torch.equal(after[name], zeros[-1][name]) for after in zeros[21:])
    regrown = [name for name in matrices if zeros[7][name].any() and not zeros[8][name].any()]
    assert regrown == matrices, "between two choices zeroed columns train"
    for name in matrices:
        assert not zeros[9][name][zeros[7][name].nonzero()[0]], "a zeroed column can come back"
    assert method.gates() == {}


# ---------------------------------------------------------------- runs


def run(data, folder, section, **settings):
    settings = {"max_duration": "10ba", "eval_interval": "0ba", "model__n_layers": 2, **settings}
    config = run_config(data, folder, prune=False, model__dimchop=section, **settings)
    training.train(config)
    return folder / "latest-rank0.pt"


def test_a_tied_run_exports_its_target(data, tmp_path):
    checkpoint = run(data, tmp_path, {"target_model": TARGET, **SHORT}, eval_interval="5ba")
    pruned = prune_checkpoint(read_checkpoint(checkpoint), {})
    assert (pruned.arch.d_model, pruned.arch.n_heads, pruned.arch.intermediate_size) == (16, 2, 20)
    assert all(row.reached for row in pruned.convergence.values())
    assert max(row.largest for row in masked_against_pruned(read_checkpoint(checkpoint), {})) < 1e-4
    early = prune_checkpoint(read_checkpoint(tmp_path / "ep0-ba4-rank0.pt"), {})
    assert early.arch == pruned.arch
    assert not all(row.reached for row in early.convergence.values())
    logged = metrics(tmp_path)
    assert logged[9]["metrics/train/expected_hidden_sparsity"] == pytest.approx(0.5)
    assert logged[0]["metrics/train/expected_sparsity"] == 0


def test_an_untied_run_exports_zeroed_columns(data, tmp_path):
    run(data, tmp_path / "run", UNTIED, save_interval="3ba")
    for step in (3, 10):  # of which the first is between two choices
        checkpoint = tmp_path / "run" / f"ep0-ba{step}-rank0.pt"
        prune_and_save_model(checkpoint, tmp_path / f"{step}.pt", hf=tmp_path / f"hf-{step}")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"hf-{step}")
        for name, weight in model.named_parameters():
            if "layers" in name and weight.dim() == 2:
                assert (weight == 0).all(0).sum() == weight.shape[1] // 2, name
        assert max(row.largest for row in masked_against_pruned(read_checkpoint(checkpoint), {})) < 1e-4


def test_a_checkpoint_without_scores_is_rejected(data, tmp_path):
    checkpoint = run(
        data, tmp_path, {"target_model": TARGET, "window": 10}, max_duration="5ba", save_interval="1ba"
    )
    assert checkpoint.is_file()
    prune_checkpoint(read_checkpoint(checkpoint), {})  # the last window ends with the run
    with pytest.raises(ValueError, match="has no scores yet: it was written before the first window of 10"):
        prune_checkpoint(read_checkpoint(tmp_path / "ep0-ba2-rank0.pt"), {})


def test_a_checkpoint_without_its_settings_is_rejected():
    arch = architecture("llama")
    with pytest.raises(ValueError, match="does not say what its dimensions were chosen for"):
        DimChop.restored({}, complete(ModelConfig(), arch, "twin"), None, "x.pt")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "tied is true and target_model is not set"),
        ({"tied": False}, "tied is false and sparsity is not set"),
        (
            {"target_model": TargetConfig(d_model=16), "sparsity": 0.5},
            "tied=false alone: set that, or leave it out",
        ),
        ({"sparsity": 0.5}, "tied=false alone: set that, or set model.dimchop.target_model in its place"),
        (
            {"tied": False, "sparsity": 0.5, "target_model": TargetConfig()},
            "read with model.dimchop.tied=true alone",
        ),
        ({"tied": False, "sparsity": 0.01}, "of matrices with 32 and 56 columns some would keep all or none"),
        ({"tied": False, "sparsity": 0.99}, "would keep all or none"),
        ({"target_model": TargetConfig(n_layers=1)}, "DimCHOP keeps the depth"),
        ({"target_model": TargetConfig(d_model=64)}, "more than the source's 32"),
        ({"target_model": TargetConfig()}, "nothing would be pruned"),
    ],
)
def test_impossible_settings_are_rejected_with_what_to_change(settings, problem):
    arch = architecture("llama")
    config = complete(ModelConfig(dimchop=DimChopConfig(**settings)), arch, "twin")
    aim = aim_of(config, arch)
    assert aim is not None
    assert problem in "\n".join(aim.problems)
    with pytest.raises(ValueError, match=r"model\.dimchop|target_model"):
        DimChop(config)


@pytest.mark.parametrize("given", ["1.0", "0", "half"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_share_that_is_given_is_not_asked_for(data, tmp_path, given, tied):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_values(data, prune=False)))
    words = [f"model.dimchop.sparsity={given}", f"model.dimchop.tied={str(tied).lower()}"]
    config, problems = read_what_fits(path, words)
    assert len(problems) == 1
    assert given == "half" or "expected a number, more than 0 and less than 1" in problems[0]
    assert [problem.split(":")[0] for problem in prepare(config).problems] == (
        ["model.dimchop.sparsity is set, which is read with model.dimchop.tied=false alone"] if tied else []
    )


def test_scaled_gradients_are_rejected(data):
    config = run_config(data, prune=False, model__dimchop={"target_model": TARGET}, precision="amp_fp16")
    assert "precision is amp_fp16, which scales gradients" in "\n".join(prepare(config).problems)
