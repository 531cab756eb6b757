"""Learned N:M masks inside a decoder: gradients, noise, frozen weights, what is saved and restored."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llmshearing.config import MaskLLMConfig, ModelConfig, OptimizerConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.pruning import METHODS, build_method, patterns
from llmshearing.pruning.mask_file import write_masks
from llmshearing.pruning.maskllm import MaskLLM, hf_shapes, masked_shapes
from llmshearing.pruning.sparse_linear import FixedLinear, LearnedLinear, keyed_generator
from llmshearing.shapes.model_section import architecture_of
from twins import CONFIGS, TWO_A_FAMILY, make, tokens

SIZES = {
    "d_model": 16,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
}


def config(**section) -> ModelConfig:
    return ModelConfig(**SIZES, max_seq_len=16, maskllm=MaskLLMConfig(**section))


def build(cfg: ModelConfig | None = None, seed: int = 1, **section) -> ComposerMosaicLlama:
    """A tiny model whose logits were drawn with `seed`, at step 3 of 10."""
    torch.manual_seed(0)
    model = ComposerMosaicLlama(cfg or config(**section))
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3)
    model.model.method.initialize(seed, ())
    model.model.method.begin_step(3, 10)
    return model.train()


def batch(rows: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 32, (rows, 12), generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "labels": ids}


def total(model: ComposerMosaicLlama, data=None) -> torch.Tensor:
    data = data or batch()
    return model.loss(model(data), data)["total"]


def learned(model) -> list[LearnedLinear]:
    return [module for module in model.modules() if isinstance(module, LearnedLinear)]


def test_only_logits_train_and_every_linear_of_a_block_has_them() -> None:
    model = build()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"model.transformer.{name}.mask_logits" for name in masked_shapes(model.model.arch)}
    assert len(trained) == 2 * 7
    (group,) = model.model.method.parameter_groups(OptimizerConfig())
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters() if p.requires_grad}
    total(model).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_gradients_are_those_of_the_definition(hard) -> None:
    """Loss and regulariser, against autograd over masks made from the same noise, kept and multiplied in."""
    model = build(weight_reg=3e-3, hard=hard)
    method = model.model.method
    total(model).backward()
    found = {layer.name: layer.mask_logits.grad for layer in learned(model)}

    plain = ComposerMosaicLlama(replace(config(), maskllm=None)).train()
    plain.load_state_dict(model.state_dict(), strict=False)
    scale, temperature = 100 + 400 * 0.3, 4 - 3.95 * 0.3
    leaves, substitutes, norm = {}, {}, 0.0
    for layer in learned(model):
        logits = leaves[layer.name] = layer.mask_logits.detach().clone().requires_grad_()
        generator = keyed_generator(torch.device("cpu"), 0, 3, 0, 0, name=layer.name)
        gumbel = -torch.log(-torch.log(torch.rand(logits.shape, generator=generator)))
        y = torch.softmax((scale * logits + gumbel) / temperature, dim=1)
        if hard:
            best = F.one_hot(y.argmax(1), 6).transpose(1, 2).float()
            y = best + y - y.detach()
        mask = torch.einsum("ocg,cm->ogm", y, method.candidates.float()).flatten(1)
        masked = layer.weight.detach() * mask
        substitutes[f"model.transformer.{layer.name}.weight"] = masked
        norm = norm + masked.square().sum()
    data = batch()
    outputs = torch.func.functional_call(plain, substitutes, (data,))
    expected = outputs["ce_loss"] - 3e-3 * norm
    expected.backward()
    assert float(total_at(model, data)) == pytest.approx(float(expected), rel=1e-5)
    for name, leaf in leaves.items():
        assert torch.allclose(found[name], leaf.grad, rtol=1e-3, atol=2e-6), name


def total_at(model, data) -> torch.Tensor:
    """The loss of the first pass of step 3 again."""
    model.model.method.begin_step(3, 10)
    return total(model, data)


def test_loss_and_regulariser_are_logged_apart() -> None:
    model, data = build(weight_reg=1e-3), batch()
    outputs = model(data)
    losses = model.loss(outputs, data)
    values = outputs["l0_output"][1]
    assert sorted(losses) == ["ce_loss", "mask_loss", "total"]
    assert float(losses["mask_loss"]) == pytest.approx(-1e-3 * float(values["masked_weight_norm"]))
    assert float(losses["total"]) == pytest.approx(float(losses["ce_loss"] + losses["mask_loss"]))
    assert float(values["mask_scale"]) == pytest.approx(220)
    assert float(values["mask_temperature"]) == pytest.approx(2.815)
    assert 1 / 6 < float(values["mask_confidence"]) < 1


def test_noise_is_keyed_by_step_microbatch_and_name_alone() -> None:
    model = build()
    method = model.model.method
    with torch.no_grad():
        torch.manual_seed(1)
        first, second = float(total(model)), float(total(model))
        torch.manual_seed(2)
        assert float(total_at(model, batch())) == first
        assert float(total(model)) == second
        assert first != second
        method.begin_step(4, 10)
        assert float(total(model)) not in (first, second)
    shared = build(noise="shared")
    with torch.no_grad():
        assert float(total(shared)) == float(total(shared))
    assert not shared.model.method.noise_depends_on_division
    assert method.noise_depends_on_division


def test_activation_checkpointing_draws_the_same_masks() -> None:
    from torch.utils.checkpoint import checkpoint

    plain, repeated = build(weight_reg=1e-2), build(weight_reg=1e-2)
    for block in repeated.model.transformer["blocks"]:
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
    for model in (plain, repeated):
        total(model).backward()
    for one, other in zip(learned(plain), learned(repeated), strict=True):
        assert torch.equal(one.mask_logits.grad, other.mask_logits.grad)
    assert repeated.model.method._sampling.found == []


def test_evaluation_uses_the_likeliest_masks() -> None:
    model = build().eval()
    plain = ComposerMosaicLlama(replace(config(), maskllm=None)).eval()
    weights = {name: weight for name, weight in model.state_dict().items() if "mask" not in name}
    for name in weights:
        mask = model.model.method.weight_mask(name)
        if mask is not None:
            assert (patterns.kept_counts(mask, patterns.Pattern(2, 4)) == 2).all()
            weights[name] = weights[name] * mask
    plain.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(model(batch())["logits"], plain(batch())["logits"])
    assert model(batch())["l0_output"] is None


def test_a_magnitude_prior_gives_magnitude_masks() -> None:
    model = build(prior="magnitude", prior_strength=100.0)
    for layer in learned(model):
        mask = model.model.method.weight_mask(f"model.transformer.{layer.name}.weight")
        assert torch.equal(mask, patterns.top_mask(layer.weight.abs(), patterns.Pattern(2, 4)))


def random_masks(path, seed: int = 0, pattern=patterns.Pattern(2, 4), cfg: ModelConfig | None = None):  # noqa: B008
    """A file of random masks for the tiny model, and the masks."""
    generator = torch.Generator().manual_seed(seed)
    shapes = hf_shapes(architecture_of(cfg or config()))
    masks = {
        n: patterns.top_mask(torch.rand(shape, generator=generator), pattern) for n, shape in shapes.items()
    }
    write_masks(path, {name: patterns.pack(mask) for name, mask in masks.items()})
    return masks


def test_a_prior_from_a_file(tmp_path) -> None:
    masks = random_masks(tmp_path / "m.npz")
    method = build(prior=str(tmp_path / "m.npz"), prior_strength=100.0).model.method
    mask = method.weight_mask("model.transformer.blocks.1.mlp.down_proj.weight")
    assert torch.equal(mask, masks["model.layers.1.mlp.down_proj.weight"])


def test_logits_that_are_given_keep_their_values() -> None:
    model = build()
    name = "model.transformer.blocks.0.attn.wq.mask_logits"
    before = copy.deepcopy(model.state_dict())
    model.model.method.initialize(2, [name])
    after = model.state_dict()
    assert torch.equal(before[name], after[name])
    assert not torch.equal(before[name.replace("wq", "wk")], after[name.replace("wq", "wk")])


def test_fixed_masks_drop_the_gradients_of_closed_weights(tmp_path) -> None:
    masks = random_masks(tmp_path / "m.npz")
    model = build(prior=str(tmp_path / "m.npz"), fixed=True)
    layers = [module for module in model.modules() if isinstance(module, FixedLinear)]
    assert len(layers) == 14
    total(model).backward()
    plain = ComposerMosaicLlama(replace(config(), maskllm=None)).train()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for layer in layers:
            mask = model.model.method.weight_mask(f"model.transformer.{layer.name}.weight")
            plain.model.transformer.get_submodule(layer.name).weight.mul_(mask)
    loss = plain.loss(plain(batch()), batch())["total"]
    loss.backward()
    for layer in layers:
        mask = model.model.method.weight_mask(f"model.transformer.{layer.name}.weight")
        expected = plain.model.transformer.get_submodule(layer.name).weight.grad * mask
        assert torch.allclose(layer.weight.grad, expected, atol=1e-7)
        assert not layer.weight.grad[~mask].any()
    assert torch.equal(
        model.model.method.weight_mask("model.transformer.blocks.0.attn.wk.weight"),
        masks["model.layers.0.self_attn.k_proj.weight"],
    )
    assert model.model.method.parameter_groups(OptimizerConfig()) == []
    assert all(p.requires_grad for p in model.parameters())


def test_restored_masks_are_those_of_the_model() -> None:
    model = build()
    state = model.state_dict()
    prefix = ("model.maskllm.", "model.transformer.")
    tensors = {}
    for name, tensor in state.items():
        if "mask" in name:
            tensors[name.removeprefix(prefix[0]).removeprefix(prefix[1])] = tensor
    cfg = replace(config(), maskllm=None)
    restored = MaskLLM.restored(tensors, cfg, None, "x.pt")
    for name in state:
        one, other = restored.weight_mask(name), model.model.method.weight_mask(name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert restored.weight_mask("model.transformer.wte.weight") is None
    missing = {name: tensor for name, tensor in tensors.items() if "blocks.1.attn.wq" not in name}
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.wq has none"):
        MaskLLM.restored(missing, cfg, None, "x.pt")
    with pytest.raises(ValueError, match=r"do not match its model: blocks\.0\.attn\.wq has logits"):
        MaskLLM.restored(tensors, replace(cfg, d_model=32, head_dim=4), None, "x.pt")


@pytest.mark.parametrize("name", TWO_A_FAMILY)
def test_every_family_can_learn_masks(name) -> None:
    """Biases and fused projections included; evaluation equals the exported model."""
    from llmshearing.checkpoints.hf_files import HFModel, from_hf
    from llmshearing.shapes.model_section import complete

    hf = HFModel("twin", CONFIGS[name].to_dict(), dict(make(CONFIGS[name]).state_dict()), {})
    weights, arch = from_hf(hf)
    plain = complete(ModelConfig(), arch, name)
    model = ComposerMosaicLlama(replace(plain, maskllm=MaskLLMConfig()))
    model.load_state_dict(weights, strict=False)
    method = model.model.method
    method.initialize(0, ())
    assert len(learned(model)) == len(masked_shapes(arch))
    ids = tokens(10)
    model.train()
    model.loss(model({"input_ids": ids, "labels": ids}), {})["total"].backward()
    assert all(layer.mask_logits.grad.abs().sum() > 0 for layer in learned(model))
    pruned = {n: w if (m := method.weight_mask(n)) is None else w * m for n, w in weights.items()}
    exported = ComposerMosaicLlama(plain).eval()
    exported.load_state_dict(pruned)
    with torch.no_grad():
        ours, theirs = (each.eval()({"input_ids": ids})["logits"] for each in (model, exported))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("section", "sizes", "message"),
    [
        ({"pattern": "2:4"}, {"intermediate_size": 26}, "mlp.down_proj has 26 inputs, which blocks of 4"),
        ({"pattern": "5:4"}, {}, "keeps 5 of 4"),
        ({"fixed": True}, {}, "fixed is true without a prior"),
        ({"prior": "wanda"}, {}, "which needs calibration data: make the masks first"),
        ({"prior": "none.npz"}, {}, r"model\.maskllm\.prior: none\.npz does not exist"),
    ],
)
def test_impossible_settings_are_named(section, sizes, message) -> None:
    cfg = replace(config(**section), **sizes)
    with pytest.raises(ValueError, match=message):
        build_method(cfg)


def test_a_prior_of_another_model_is_rejected(tmp_path) -> None:
    random_masks(tmp_path / "m.npz", cfg=replace(config(), n_layers=3))
    with pytest.raises(ValueError, match="belongs to another model"):
        build_method(config(prior=str(tmp_path / "m.npz")))


def test_two_methods_are_rejected() -> None:
    from llmshearing.config import L0Config, TargetConfig

    cfg = replace(config(), l0_module=L0Config(target_model=TargetConfig(n_layers=1)))
    with pytest.raises(ValueError, match=r"model\.l0_module and model\.maskllm are both set"):
        build_method(cfg)
    assert METHODS["maskllm"] is MaskLLM


def test_gates_of_a_batch_are_rejected() -> None:
    with pytest.raises(ValueError, match="gates of whole units cannot be combined"):
        build().eval()({**batch(), "head_z": torch.ones(2, 1, 4, 1)})


def test_bf16_keeps_logits_mask_and_regulariser_in_fp32() -> None:
    model = build(weight_reg=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch())
    assert outputs["l0_output"][1]["masked_weight_norm"].dtype == torch.float32
    model.loss(outputs, batch())["total"].backward()
    assert all(layer.mask_logits.grad.dtype == torch.float32 for layer in learned(model))
    exact = build(weight_reg=1e-3)
    norm = float(exact(batch())["l0_output"][1]["masked_weight_norm"])
    assert float(outputs["l0_output"][1]["masked_weight_norm"]) == pytest.approx(norm, rel=1e-6)
