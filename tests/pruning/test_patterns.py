"""N:M patterns: candidates, priors, soft samples, schedules and files of masks."""

import numpy as np
import pytest
import torch

from llmshearing.pruning import patterns
from llmshearing.pruning.mask_file import MaskFile, write_masks
from llmshearing.pruning.maskllm import INITIAL_STD
from llmshearing.pruning.patterns import Pattern

TWO_FOUR = Pattern(2, 4)


def test_candidates_are_in_the_order_that_checkpoints_store() -> None:
    rows = ["".join(map(str, row)) for row in TWO_FOUR.candidates().int().tolist()]
    assert rows == ["1100", "1010", "1001", "0110", "0101", "0011"]
    assert Pattern(1, 4).candidates().int().tolist() == torch.eye(4).int().tolist()
    assert Pattern(4, 8).candidates().shape == (70, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2-4", "expected N:M, such as 2:4"),
        ("2:x", "expected N:M"),
        ("4:4", "keeps 4 of 4"),
        ("5:4", "keeps 5 of 4; expected N:M with N from 1 to M - 1"),
        ("0:4", "keeps 0 of 4"),
        ("8:16", "12,870 masks"),
    ],
)
def test_impossible_patterns_are_rejected(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        patterns.parse(text)


@pytest.mark.parametrize("pattern", [TWO_FOUR, Pattern(1, 4), Pattern(4, 8)], ids=str)
def test_top_mask_keeps_the_highest_of_each_block(pattern) -> None:
    scores = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    mask = patterns.top_mask(scores, pattern)
    assert (patterns.kept_counts(mask, pattern) == pattern.keep).all()
    for row, kept in zip(scores, mask, strict=True):
        for begin in range(0, 48, pattern.group):
            block, stays = row[begin : begin + pattern.group], kept[begin : begin + pattern.group]
            assert block[stays].min() > block[~stays].max()


def test_equal_scores_keep_what_is_to_the_left() -> None:
    assert patterns.top_mask(torch.zeros(1, 8), TWO_FOUR).int().tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize("shape", [(3, 4), (2, 12), (5, 8)])
def test_bits_give_the_mask_back(shape) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    bits = patterns.pack(mask)
    assert len(bits) == patterns.bytes_of(mask.numel())
    assert torch.equal(patterns.unpack_bits(bits, shape), mask)
    assert np.array_equal(np.packbits(mask.flatten().numpy()), bits.numpy())


def test_a_schedule_is_a_line_over_the_run() -> None:
    assert [patterns.linear_schedule((4.0, 0.05), t, 10) for t in (0, 5, 10)] == pytest.approx(
        [4, 2.025, 0.05]
    )
    assert patterns.linear_schedule((100.0, 500.0), 3, 0) == 100


def sampled(strength: float, scale: float, temperature: float) -> dict[str, float]:
    """What a start from a random prior gives: the oracles of the specification, in shares."""
    generator = torch.Generator().manual_seed(0)
    prior = patterns.top_mask(torch.randn(256, 1024, generator=generator), TWO_FOUR)
    drawn = torch.randn(256, 6, 256, generator=generator) * INITIAL_STD
    candidates = TWO_FOUR.candidates()
    logits = patterns.toward_prior(drawn, prior, candidates, strength, drawn.std())
    y = patterns.choice(logits, torch.rand(logits.shape, generator=generator), scale, temperature)

    def equal(mask):
        return float((mask == prior).unflatten(-1, (-1, 4)).all(-1).float().mean())

    sample = patterns.soft_mask(patterns.one_hot(y), candidates).bool()
    sums = patterns.soft_mask(y, candidates).unflatten(-1, (-1, 4)).sum(-1)
    assert torch.allclose(sums, torch.full_like(sums, 2.0), atol=1e-5)
    argmax = patterns.chosen_mask(logits, candidates)
    return {"argmax": equal(argmax), "sample": equal(sample), "highest": float(y.amax(-2).mean())}


def test_a_prior_leans_the_start_as_published() -> None:
    """Section 1.4 of the specification: 94.5 %, 73 %, 0.34; without a prior 1/6 and 0.27."""
    start = sampled(3.0, 100.0, 4.0)
    assert start["argmax"] == pytest.approx(0.945, abs=0.01)
    assert start["sample"] == pytest.approx(0.73, abs=0.01)
    assert start["highest"] == pytest.approx(0.34, abs=0.01)
    none = sampled(0.0, 100.0, 4.0)
    assert none["argmax"] == pytest.approx(1 / 6, abs=0.01)
    assert none["highest"] == pytest.approx(0.27, abs=0.01)
    assert sampled(3.0, 500.0, 0.05)["highest"] == pytest.approx(0.999, abs=0.01)


@pytest.mark.parametrize("pattern", [TWO_FOUR, Pattern(1, 4), Pattern(4, 8)], ids=str)
def test_a_prior_is_the_definition(pattern) -> None:
    """pi_i + std x strength x (<M0, S_i> - N^2 / M), block by block."""
    generator = torch.Generator().manual_seed(2)
    mask = patterns.top_mask(torch.randn(3, 16, generator=generator), pattern)
    candidates = pattern.candidates()
    logits = torch.randn(3, len(candidates), 16 // pattern.group, generator=generator)
    found = patterns.toward_prior(logits, mask, candidates, 3.0, 0.5)
    for row in range(3):
        for block in range(16 // pattern.group):
            own = mask[row, block * pattern.group : (block + 1) * pattern.group].float()
            for index, candidate in enumerate(candidates.float()):
                similarity = float(own @ candidate) - pattern.keep**2 / pattern.group
                expected = float(logits[row, index, block]) + 0.5 * 3.0 * similarity
                assert float(found[row, index, block]) == pytest.approx(expected, abs=1e-5)


def test_extreme_noise_stays_finite() -> None:
    logits = torch.zeros(1, 6, 2)
    for value in (0.0, 1.0 - 2.0**-24, 1.0):
        assert patterns.choice(logits, torch.full_like(logits, value), 500.0, 0.05).isfinite().all()


def test_gradient_of_the_choice_is_autograd_s() -> None:
    generator = torch.Generator().manual_seed(3)
    candidates = TWO_FOUR.candidates()
    logits = torch.randn(2, 6, 3, generator=generator, dtype=torch.float32, requires_grad=True)
    uniform = torch.rand(logits.shape, generator=generator)
    y = patterns.choice(logits, uniform.clone(), 2.0, 0.7)
    grad = torch.randn(2, 12, generator=generator)
    (expected,) = torch.autograd.grad(patterns.soft_mask(y, candidates), logits, grad)
    found = patterns.choice_gradient(y.detach(), grad, candidates, 2.0, 0.7)
    assert torch.allclose(found, expected, atol=1e-6)


# ------------------------------------------------------------------ files of masks


@pytest.fixture
def masks(tmp_path):
    """A file of two masks, and what it holds."""
    generator = torch.Generator().manual_seed(4)
    kept = {
        "a.weight": patterns.top_mask(torch.randn(3, 8, generator=generator), TWO_FOUR),
        "b.weight": patterns.top_mask(torch.randn(5, 4, generator=generator), TWO_FOUR),
    }
    write_masks(tmp_path / "m.npz", {name: patterns.pack(mask) for name, mask in kept.items()})
    return tmp_path / "m.npz", kept


def test_a_file_gives_the_masks_back(masks) -> None:
    path, kept = masks
    file = MaskFile(path, {name: mask.shape for name, mask in kept.items()})
    for name, mask in kept.items():
        assert torch.equal(file.checked(name, TWO_FOUR), mask)
    arrays = np.load(path)
    assert sorted(arrays) == ["a.weight.mask", "b.weight.mask"]
    assert arrays["a.weight.mask"].dtype == np.uint8


def test_files_of_another_model_are_rejected(masks) -> None:
    path, kept = masks
    shapes = {name: tuple(mask.shape) for name, mask in kept.items()}
    with pytest.raises(ValueError, match=r"belongs to another model: it lacks c\.weight"):
        MaskFile(path, shapes | {"c.weight": (1, 4)})
    with pytest.raises(ValueError, match=r"belongs to another model: it has b\.weight"):
        MaskFile(path, {"a.weight": (3, 8)})
    with pytest.raises(ValueError, match=r"expected uint8 \[4\], the bits of 4 x 8 weights"):
        MaskFile(path, shapes | {"a.weight": (4, 8)})["a.weight"]
    with pytest.raises(ValueError, match="another pattern than 1:4: 6 of 6 blocks"):
        MaskFile(path, shapes).checked("a.weight", Pattern(1, 4))


@pytest.mark.parametrize("spoil", ["text", "cut", "object", "claims"])
def test_damaged_files_are_rejected(masks, spoil) -> None:
    path, kept = masks
    shapes = {name: tuple(mask.shape) for name, mask in kept.items()}
    if spoil == "text":
        path.write_text("masks")
    elif spoil == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif spoil == "object":
        np.savez(path, **{f"{name}.mask": np.array([{}], dtype=object) for name in kept})
    else:  # more than memory holds
        import zipfile

        header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }" % 10**15
        with zipfile.ZipFile(path, "w") as file:
            for name in kept:
                file.writestr(f"{name}.mask.npy", header.ljust(127) + b"\n")
    with pytest.raises(ValueError, match=r"is not a file of masks, or is damaged|belongs to another model"):
        MaskFile(path, shapes)["a.weight"]
