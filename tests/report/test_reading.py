"""Reading a run's folder, finished or in the middle of being written."""

import re
from pathlib import Path

import numpy as np
import pytest
from runs_on_disk import SHAPE, TARGET, write_run
from safetensors.numpy import save_file

from llmshearing.report.reading import read_metrics, read_run


def test_reads_what_a_run_left(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "prune", steps=40, interval=10))
    assert (run.name, run.steps, run.tokens_per_step, run.prunes) == ("prune", 40, 8 * 16, True)
    assert run.source.d_model == SHAPE["d_model"]
    assert run.target is not None
    assert run.target.n_layers == TARGET["n_layers"]
    assert list(run.mask_files) == [10, 20, 30, 40]
    assert run.masks(10)["head"].shape == (4, 8)
    evaluated = run.domain_metric("books", "loss")
    assert evaluated is not None
    assert evaluated.steps.tolist() == [10, 20, 30, 40]


def test_leaves_out_a_line_that_is_being_written_and_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "a": NaN, "b": 1}\n{"step": 3, "a": 5}\n{"step": 2, "a": 4}\n{"step": 4, "a"'
    )
    metrics = read_metrics(path)
    assert (metrics["a"].steps.tolist(), metrics["a"].values.tolist()) == ([2, 3], [4.0, 5.0])
    assert metrics["b"].values.tolist() == [1.0]


def test_of_two_values_at_a_step_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 3}\n{"step": 1, "a": 7}\n')
    assert read_metrics(path)["a"].values.tolist() == [7.0]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"hello\n", "not JSON (Expecting value"),
        (b"\xff\xfe\x00", "not JSON ('utf-8' codec can't decode byte 0xff"),  # as a last line too
        (b"[" * 100_000 + b"\n", "not JSON (maximum recursion depth"),
        (b"[1,2]", "found [1,2]"),
        (b'{"step": "x", "a": 1}', 'found {"step": "x"'),
        (b'{"step": 2, "a": null}', 'found {"step": 2, "a": null}'),
        (b'{"step": 2, "a": 1' + b"0" * 400 + b"}", 'found {"step": 2, "a": 1000'),
    ],
    ids=["text", "binary", "nested", "list", "step", "null", "huge"],
)
def test_rejects_a_line_that_is_not_a_record(tmp_path: Path, line: bytes, found: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "a": 3}\n' + line)
    with pytest.raises(ValueError, match=re.escape(f"metrics.jsonl, line 2: {found}")) as error:
        read_metrics(path)
    assert "expected numbers such as" in str(error.value)
    assert str(error.value).endswith("remove the line.")


def test_rejects_damaged_masks_and_those_of_a_different_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", steps=40, interval=10))
    (tmp_path / "run" / "zs_s20.safetensors").write_bytes(run.mask_files[20].read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"zs_s20.safetensors cannot be read as masks .* delete it"):
        run.masks(20)
    save_file({"head": np.ones((4, 6), np.float32)}, tmp_path / "run" / "zs_s30.safetensors")
    with pytest.raises(
        ValueError, match=r"zs_s30.safetensors holds {'head': \(4, 6\)}; expected .* delete it"
    ):
        run.masks(30)
    gates = run.masks(10)
    save_file({**gates, "head": gates["head"].T.copy()}, tmp_path / "run" / "zs_s40.safetensors")
    with pytest.raises(ValueError, match=r"zs_s40.safetensors holds .*'head': \(8, 4\)"):
        run.masks(40)


def test_masks_are_those_that_the_run_learns(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", steps=10))
    assert list(run.mask_shapes) == ["head", "intermediate", "layer", "hidden"]
    assert run.config.model.l0_module is not None
    run.config.model.l0_module.pruning_modules = ["head", "mlp"]
    assert run.mask_shapes == {"head": (4, 8), "mlp": (4,)}


def test_a_run_that_does_not_prune_has_no_masks(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prune=False)
    (folder / "zs_s10.safetensors").write_bytes(b"left by another run")
    assert read_run(folder).mask_files == {}


def test_rejects_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.yaml; expected the save_folder of a run"):
        read_run(tmp_path)
    folder = write_run(tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("d_model: 64", "d_model: null"))
    with pytest.raises(ValueError, match=r"config.yaml: model.d_model is not set"):
        read_run(folder)
    config.write_text(config.read_text() + "sed: 1\n")
    with pytest.raises(ValueError, match=r"config.yaml: unknown key sed; did you mean seed"):
        read_run(folder)
