"""The divergence from a teacher against torch's own on whole logits, and what it keeps in memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from llmshearing.checkpoints.hf_files import HFModel, from_hf
from llmshearing.config import DistillationConfig, ModelConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.models.distillation import DIVERGENCES, Divergence, Teacher, forward_kl, held_in
from llmshearing.models.loss import IGNORE_INDEX, CrossEntropy, linear_loss
from llmshearing.shapes.model_section import complete
from twins import CONFIGS, make, tokens


def model_of(name: str) -> ComposerMosaicLlama:
    """The model `name` with random weights."""
    hf = HFModel("twin", CONFIGS[name].to_dict(), dict(make(CONFIGS[name]).state_dict()), {})
    weights, arch = from_hf(hf)
    model = ComposerMosaicLlama(complete(ModelConfig(), arch, name))
    model.load_state_dict(weights)
    return model


def taught(name: str, teacher: str, **changes) -> ComposerMosaicLlama:
    """The model `name` with the teacher `teacher`."""
    model, decoder = model_of(name), model_of(teacher).model
    chosen = DistillationConfig(**changes)
    model.teacher, model.ce_weight = Teacher(decoder, chosen), chosen.ce_weight
    return model


def whole_kl(student, teacher, temperature):
    """torch's divergence of every row of whole logits."""
    logs = [F.log_softmax(logits / temperature, -1) for logits in (student, teacher)]
    return temperature**2 * F.kl_div(*logs, reduction="none", log_target=True).sum(-1)


NEAR = {"atol": 1e-5, "rtol": 1e-5}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 300)),
    temperature=st.floats(0.25, 5),
    spread=st.floats(0.01, 8),
    seed=st.integers(0, 99),
    name=st.sampled_from(sorted(DIVERGENCES)),
)
def test_divergence_and_gradient_equal_torchs(shape, temperature, spread, seed, name):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(shape, generator=generator) for _ in range(2))
    losses, gradient = DIVERGENCES[name](student, teacher, temperature)
    wide = student.double().requires_grad_()
    both = (wide, teacher.double())
    reference = whole_kl(*(both if name == "forward_kl" else both[::-1]), temperature)
    reference.sum().backward()
    torch.testing.assert_close(losses.double(), reference, **NEAR)
    torch.testing.assert_close(gradient.double(), wide.grad, **NEAR)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(2, 90), st.integers(1, 9), st.integers(1, 9)),
    temperature=st.floats(0.25, 5),
    spread=st.floats(0.1, 1),
    ce_weight=st.sampled_from([0.0, 0.5, 1.0]),
    kl_weight=st.sampled_from([0.3, 1.0]),
    ignored=st.floats(0, 1),
    chunk=st.sampled_from([None, 1, 7]),
    seed=st.integers(0, 99),
)
def test_equals_torchs_divergence_of_whole_logits(
    shape, temperature, spread, ce_weight, kl_weight, ignored, chunk, seed
):
    """Loss of every token, and gradients of hidden states and head, beside a cross entropy."""
    n, vocabulary, size, its_size = shape
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return spread * torch.randn(*shape, generator=generator)

    hidden, weight = random(n, size).requires_grad_(), random(vocabulary, size).requires_grad_()
    its_hidden, its_head = random(n, its_size), random(vocabulary, its_size)
    targets = torch.randint(0, vocabulary, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < ignored] = IGNORE_INDEX
    chosen = DistillationConfig(kl_weight=kl_weight, temperature=temperature)
    term, entropy = Divergence(its_hidden, its_head, chosen), CrossEntropy(targets, ce_weight)
    mean, losses = linear_loss(hidden, weight, [term, entropy], entropy.predicted, chunk)
    mean.backward()
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    logits = hidden.double() @ weight.double().T
    divergence = whole_kl(logits, its_hidden.double() @ its_head.double().T, temperature)
    predicted = targets != IGNORE_INDEX
    count = max(1, int(predicted.sum()))
    reference = kl_weight * divergence[predicted].sum() / count
    reference = reference + ce_weight * F.cross_entropy(logits, targets, reduction="sum") / count
    reference.backward()
    torch.testing.assert_close(mean.double(), reference, **NEAR)
    torch.testing.assert_close(losses[0].double(), divergence * predicted, **NEAR)
    for mine, its in zip(ours, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(mine, its, **NEAR)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_no_divergence_and_no_gradient_from_itself(name, temperature):
    logits = 20 * torch.randn(5, 70)
    losses, gradient = DIVERGENCES[name](logits, logits.clone(), temperature)
    assert losses.abs().max() == gradient.abs().max() == 0


def test_a_distribution_that_is_nearly_certain_gives_finite_numbers():
    student, teacher = torch.zeros(2, 8), torch.zeros(2, 8)
    student[:, 0], teacher[:, 1] = 500, 500
    losses, gradient = forward_kl(student, teacher, 1.0)
    assert losses.tolist() == [500, 500]
    assert gradient[0, :3].tolist() == [1, -1, 0]


@pytest.mark.parametrize("name", ["llama grouped", "llama tied", "gpt_neox"])
def test_a_model_that_teaches_itself_learns_nothing_from_it(name):
    model, chosen = model_of(name), DistillationConfig(ce_weight=0)
    model.teacher, model.ce_weight = Teacher(twin_of(model).model, chosen), chosen.ce_weight
    ids = tokens(20)
    losses = model.loss(model({"input_ids": ids, "labels": ids}), {})
    losses["total"].backward()
    assert losses["kl_loss"].abs() < 1e-6
    assert losses["ce_loss"] > 1
    assert losses["total"].abs() < 1e-6
    assert max(p.grad.abs().max() for p in model.parameters()) < 1e-6


def twin_of(model):
    """A copy of a model without a teacher."""
    twin = ComposerMosaicLlama(model.model.cfg)
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("teacher", ["gpt_neox", "qwen2", "llama tied", "mistral window"])
def test_a_teacher_of_another_family(teacher):
    """The whole model against torch's divergence of both models' logits, padding left out."""
    model = taught("llama grouped", teacher, kl_weight=0.7, ce_weight=0.2, temperature=2.0)
    ids = tokens(20)
    labels = ids.clone()
    labels[1, 12:] = IGNORE_INDEX
    outputs = model({"input_ids": ids, "labels": labels})
    losses = model.loss(outputs, {})
    with torch.no_grad():
        decoder = model.teacher._decoder
        its = decoder(ids)["logits"]
    shifted = labels[:, 1:].flatten()
    kept = shifted != IGNORE_INDEX
    student = outputs["logits"][:, :-1].flatten(0, 1)[kept]
    divergence = whole_kl(student, its[:, :-1].flatten(0, 1)[kept], 2.0).mean()
    entropy = F.cross_entropy(student, shifted[kept])
    torch.testing.assert_close(losses["kl_loss"], divergence, **NEAR)
    torch.testing.assert_close(losses["ce_loss"], entropy, **NEAR)
    torch.testing.assert_close(losses["total"], 0.7 * divergence + 0.2 * entropy, **NEAR)
    torch.testing.assert_close(outputs["token_loss"].sum() / kept.sum(), entropy, **NEAR)


def test_the_teacher_is_no_part_of_the_model():
    model = taught("llama grouped", "gpt_neox")
    plain = model_of("llama grouped")
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    assert not any(p.requires_grad for p in model.teacher._decoder.parameters())
    assert not model.teacher._decoder.training
    model.train()
    assert not model.teacher._decoder.training


def test_nothing_is_taught_in_evaluation():
    model = taught("llama grouped", "llama grouped").eval()
    ids = tokens(20)
    outputs = model({"input_ids": ids, "labels": ids})
    assert outputs["term_losses"] == {}


class Held(TorchDispatchMode):
    """Counts the bytes of tensors made inside that live at once, those `given` left out.

    Attributes:
        most: their largest sum after any operation.
    """

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.most = 0
        self._given = {tensor.untyped_storage()._cdata for tensor in given}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self._given:
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return result


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("ce_weight", [0.0, 1.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_teacher_adds_at_most_two_chunks_of_logits(temperature, ce_weight, name):
    tokens, vocabulary, chunk = 256, 4000, 64
    hidden = torch.randn(tokens, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    its_hidden, its_head = torch.randn(tokens, 8), torch.randn(vocabulary, 8)
    entropy = CrossEntropy(torch.randint(0, vocabulary, (tokens,)), ce_weight)
    chosen, peaks = DistillationConfig(loss=name, temperature=temperature), []
    for terms in ([], [Divergence(its_hidden, its_head, chosen)]):
        with Held(hidden, weight, its_hidden, its_head) as held:
            linear_loss(hidden, weight, [*terms, entropy], entropy.predicted, chunk)
        peaks.append(held.most)
    logits = 4 * chunk * vocabulary
    assert peaks[0] > logits, "nothing was counted"
    assert peaks[1] - peaks[0] <= 2 * logits


def test_a_teacher_is_held_in_what_autocast_computes_in():
    assert held_in("amp_bf16", "cuda") == torch.bfloat16
    assert held_in("amp_fp16", "cuda") == torch.float16
    assert held_in("fp32", "cuda") == held_in("amp_bf16", "cpu") == torch.float32


@pytest.mark.parametrize("name", ["llama grouped", "gpt_neox"])
def test_a_teacher_in_bf16_teaches_nearly_the_same(name):
    model = taught("llama grouped", name)
    ids = tokens(20)
    wide = model({"input_ids": ids, "labels": ids})["term_losses"]["kl_loss"]
    decoder = model.teacher._decoder.to(torch.bfloat16)
    with torch.autocast("cpu", torch.float16):  # the run's, which the teacher does not follow
        assert model.teacher.term(ids)._hidden.dtype == torch.bfloat16
    narrow = model({"input_ids": ids, "labels": ids})["term_losses"]["kl_loss"]
    assert decoder.head.weight.dtype == torch.bfloat16
    assert narrow != wide
    torch.testing.assert_close(narrow, wide, rtol=0.05, atol=0)
