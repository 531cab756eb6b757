"""The figures of a plan: against published ones and against real models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmshearing.config import ModelConfig
from llmshearing.config.reading import load_config
from llmshearing.models.decoder import Block, Decoder
from llmshearing.models.rope import rope_tables
from llmshearing.planning import estimates, sizes
from llmshearing.planning.activations import saved_bytes
from llmshearing.planning.prepared import Prepared, prepare
from llmshearing.pruning import Aim
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import parameters, training_flops
from llmshearing.shapes.hf_config import architecture_from_hf
from llmshearing.shapes.layer_gates import LayerGates
from llmshearing.shapes.model_section import complete
from llmshearing.shapes.units import GATES, weight_table
from runs import DOMAINS, SEQ_LEN, run_config, write_data
from twins import CONFIGS

ROOT = Path(__file__).parents[2]
SEVEN = ROOT / "configs" / "llama2" / "7b.yaml"
LLAMA_7B = Architecture(4096, 32, 32, 128, 32, 11008, 32000, 4096)
TINY = Architecture(64, 4, 2, 16, 2, 96, 128, 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("hidden", "heads", "layers", "intermediate", "count"),
    [
        (4096, 32, 32, 11008, 6_738_415_616),
        (2560, 20, 32, 6912, 2_701_560_320),
        (2048, 16, 24, 5504, 1_345_423_360),
        (1024, 8, 24, 2816, 373_867_520),
    ],
)
def test_parameters_are_the_published_ones(
    hidden: int, heads: int, layers: int, intermediate: int, count: int
) -> None:
    arch = Architecture(hidden, heads, heads, 128, layers, intermediate, 32000, 4096)
    assert parameters(arch) == count


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    arch = architecture_from_hf(CONFIGS[name].to_dict())
    model = Decoder(complete(ModelConfig(init_device="meta"), arch, "test"))
    assert parameters(arch) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_saved_bytes_are_what_a_real_block_keeps(masked: bool) -> None:
    tokens, kept = 48, {}
    block = Block(TINY, "sdpa")
    own = {p.untyped_storage().data_ptr() for p in block.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    x = torch.randn(1, tokens, TINY.d_model, requires_grad=True)
    shapes = {name: gate.shape(TINY)[gate.per_layer :] for name, gate in GATES.items()}
    gates = {name: torch.rand(shape, requires_grad=True) for name, shape in shapes.items()}
    layer = LayerGates(weight_table(TINY), gates if masked else {})
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(x, rope_tables(TINY, tokens, x.device), layer)
    real = sum(storage.nbytes() for storage in kept.values())
    estimate = saved_bytes(TINY, torch.float32, torch.float32, masked).of(tokens)
    assert estimate == pytest.approx(real, rel=0.02)


def test_sharded_memory_falls_with_devices_and_states_add_up() -> None:
    prepared = prepare(load_config(SEVEN))
    one, eight = (estimates.memory(prepared, n) for n in (1, 8))
    count = 6_738_415_616
    assert one.weights + one.gradients + one.optimizer == 16 * count
    assert eight.weights + eight.gradients + eight.optimizer == 2 * count
    block = 4 * 4096**2 + 3 * 4096 * 11008
    assert (one.gathered, eight.gathered) == (0, 2 * (3 * block + 2 * 32000 * 4096))
    assert eight.recomputed < eight.activations / 10
    assert eight.total(True) < 30 * 2**30 < one.total(True)


def test_rate_and_hours_are_near_the_published_ones(data: Path) -> None:
    quarter = estimates.tokens_per_second(LLAMA_7B, 4096, "a100", 0.27)
    half = estimates.tokens_per_second(LLAMA_7B, 4096, "a100", 0.54)
    assert quarter == pytest.approx(1844, rel=0.02)
    assert half == pytest.approx(3684, rel=0.02)
    config = run_config(data, model__execute="all")
    prepared = prepare(config)
    trained, evaluated = 12 * 8 * SEQ_LEN, 3 * 24 * SEQ_LEN
    assert estimates.hours(prepared, 100.0) == pytest.approx((trained + evaluated / 3) / 100 / 3600)


def test_hours_of_a_pruning_run_follow_its_schedule(data: Path) -> None:
    """Targets rise for 4 of 12 steps, then everything that is closed is left out."""
    prepared = prepare(run_config(data))
    source, target = prepared.source, prepared.aim.target
    least = training_flops(target, 1, SEQ_LEN) / training_flops(source, 1, SEQ_LEN)
    share = estimates.executed_share(prepared)
    assert least < share < least + 4 / 12 * (1 - least)
    dense = estimates.hours(prepare(run_config(data, model__execute="all")), 100.0)
    assert estimates.hours(prepared, 100.0) == pytest.approx(share * dense)
    for key, value in {"compile_config": {}, "model__l0_module__target_model": None}.items():
        assert estimates.executed_share(prepare(run_config(data, **{key: value}))) == 1.0


def test_domain_budgets_count_passes_at_the_starting_weights(data: Path) -> None:
    config = run_config(data)
    budgets = {b.name: b for b in estimates.domain_budgets(prepare(config))}
    assert list(budgets) == DOMAINS
    code = budgets["code"]  # 56 sequences, half of each batch of 8, 12 steps
    assert (code.sequences, code.evaluation) == (56, 8)
    assert (code.steps_a_pass, code.passes) == (pytest.approx(14), pytest.approx(48 / 56))


def test_checkpoints_and_evaluations_are_counted() -> None:
    config = run_config(Path("nowhere"), save_interval="5ba")  # 12 steps
    prepared = Prepared(config, source=LLAMA_7B)
    assert estimates.checkpoint_bytes(prepared) == 12 * 6_738_415_616
    config.save_weights_only = True
    assert estimates.checkpoint_bytes(prepared) == 4 * 6_738_415_616
    prepared = replace(prepared, aim=Aim(own=6, trains_weights=False))  # these alone have moments
    assert estimates.checkpoint_bytes(prepared) == 4 * (6_738_415_616 + 6)
    config.save_weights_only = False
    assert estimates.checkpoint_bytes(prepared) == 4 * (6_738_415_616 + 6) + 8 * 6
    for keep, kept in ((-1, 3), (0, 1), (2, 2), (9, 3)):
        config.save_num_checkpoints_to_keep = keep
        assert estimates.checkpoints_kept(Prepared(config)) == kept
    assert sizes.evaluations(config) == 3
    config.eval_first = True
    assert sizes.evaluations(config) == 4


@pytest.mark.parametrize(("duration", "steps"), [("7ba", 7), ("65sp", 9), ("1025tok", 9), ("128tok", 1)])
def test_durations_in_steps(duration: str, steps: int) -> None:
    config = run_config(Path("nowhere"))
    assert sizes.steps_in(duration, config) == steps


def test_a_part_of_an_evaluation_is_counted_over_all_devices(data: Path) -> None:
    config = run_config(data, eval_subset_num_batches=1, device_eval_batch_size=8)
    for devices, counts in ((1, [8, 0, 0]), (2, [8, 8, 0]), (4, [8, 8, 8])):
        assert prepare(config, devices).evaluation == dict(zip(DOMAINS, counts, strict=True))


def test_unknown_gpu_is_rejected() -> None:
    with pytest.raises(ValueError, match="'abacus' is not known; expected one of"):
        estimates.tokens_per_second(LLAMA_7B, 4096, "abacus", 0.5)
