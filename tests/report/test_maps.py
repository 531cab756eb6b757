"""Maps of masks: pixels are gates, and a unit in a closed block is closed."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image
from runs_on_disk import write_run
from safetensors.numpy import save_file

from llmshearing.report.maps import MaskHistory, moments, png, pooled
from llmshearing.report.reading import read_run


def test_pixels_are_gates() -> None:
    gates = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
    image = Image.open(io.BytesIO(base64.b64decode(png(gates).split(",")[1])))
    assert np.asarray(image)[..., 3].tolist() == [[0, 255, 128], [255, 0, 0]]


def test_pooling_keeps_means_and_small_maps() -> None:
    values = np.random.default_rng(0).random((64, 4096))
    small = pooled(values, rows=32, columns=128)
    assert small.shape == (32, 128)
    assert np.allclose(small, values.reshape(32, 2, 128, 32).mean((1, 3)))
    assert pooled(values[:3, :5]) is not None
    assert np.array_equal(pooled(values[:3, :5]), values[:3, :5])


def test_units_of_closed_layers_are_closed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=10, interval=10)
    gates = {
        "head": np.ones((4, 8), np.float32),
        "intermediate": np.tile(np.float32([0.9, 0.0]), (4, 48)),
        "layer": np.float32([1, 0, 1, 1]),
        "hidden": np.float32([0, 0.5] + 62 * [0]),
    }
    save_file(gates, folder / "zs_s10.safetensors")
    history = MaskHistory(read_run(folder))
    assert history.closed("layer") == [1]
    assert history.heads["head"][0][:, 0].tolist() == [1, 0, 1, 1]
    assert history.intermediate is not None
    assert history.intermediate[:, 0].tolist() == [0.5, 0, 0.5, 0.5]
    assert history.hidden is not None
    assert history.hidden[:, 0].tolist() == [0, 1] + 62 * [0]


def test_units_of_closed_blocks_are_closed(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", steps=10, interval=10))
    gates = {
        "head": np.ones((4, 8), np.float32),
        "head_layer": np.array([1, 0, 1, 1], np.float32),
        "intermediate": np.ones((4, 96), np.float32),
        "mlp": np.array([1, 1, 0, 1], np.float32),
    }
    save_file(gates, run.mask_files[10])
    assert run.config.model.l0_module is not None
    run.config.model.l0_module.pruning_modules = list(gates)
    history = MaskHistory(run)
    assert (history.closed("head_layer"), history.closed("mlp")) == ([1], [2])
    assert history.heads["head"][0][:, 0].tolist() == [1, 0, 1, 1]
    assert history.intermediate is not None
    assert history.intermediate[:, 0].tolist() == [1, 1, 0, 1]


def test_moments_are_spread_with_both_ends() -> None:
    assert moments(64) == [0, 13, 25, 38, 50, 63]
    assert moments(2) == [0, 1]
    assert moments(0) == []
