"""Figures and tables: the numbers of a run, each where it belongs."""

import json
import re
from pathlib import Path

import pytest
from runs_on_disk import write_run

from llmshearing.report import figures
from llmshearing.report.maps import MaskHistory
from llmshearing.report.page import comparison
from llmshearing.report.reading import Run, read_run

LINES = [
    {"step": 0, "loss/train/total": 5.0, "metrics/train/code_weight": 0.5, "metrics/train/books_weight": 0.5},
    {"step": 4, "loss/train/total": 4.0, "metrics/train/code_weight": 0.8, "metrics/train/books_weight": 0.2},
    {"step": 4, "metrics/eval/LanguageCrossEntropy": 3.5, "metrics/eval/code_LanguageCrossEntropy": 3.0},
    {"step": 9, "loss/train/total": 3.0, "loss/train/lag_loss": 0.1},
    {"step": 10, "metrics/eval/LanguageCrossEntropy": 2.5, "metrics/eval/code_LanguageCrossEntropy": 1.5},
    {"step": 10, "metrics/eval/books_LanguageCrossEntropy": 2.75},
    {"step": 9, "metrics/train/expected_head_sparsity": 0.25, "metrics/train/target_head_sparsity": 0.5},
    {"step": 9, "metrics/train/expected_layer_sparsity": 0.255, "metrics/train/target_layer_sparsity": 0.25},
]


def with_metrics(folder: Path, lines: list[dict[str, float]]) -> Run:
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return read_run(folder)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return with_metrics(write_run(tmp_path / "run", steps=10), LINES)


def rows(figure: figures.Figure | None) -> list[list[str]]:
    """The cells of a table, row by row, its head left out."""
    assert figure is not None
    return [re.findall("<td>(.*?)</td>", row) for row in figure.html.split("<tr>")[2:]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of each line that a chart gets, by its name."""
    found: dict[str, tuple[list[float], list[float]]] = {}

    def note(lines, *_, **__) -> str:
        found.update({each.name: (each.x.tolist(), each.y.tolist()) for each in lines})
        return ""

    monkeypatch.setattr(figures, "chart", note)
    return found


def test_tables_say_first_and_last_losses_and_the_reference(run: Run) -> None:
    assert rows(figures.runs_table([run])) == [["run", "10", "1,280", "3.5000", "2.5000", "pruning"]]
    losses = [["run", "1.5000", "2.7500"], ["reference", "2.0000", "2.0000"]]
    assert rows(figures.losses_table([run])) == losses


def test_shapes_say_what_is_kept_with_and_without_embeddings(run: Run) -> None:
    *_, layers, _, _, _, whole, body = rows(figures.shape_table(run))
    assert layers[:3] == ["layers", "4", "3"]
    assert layers[3].endswith("75%")
    assert [*whole[:3], whole[3][-3:]] == ["parameters", "148,032", "30,432", "21%"]
    assert [*body[:3], body[3][-3:]] == ["without embeddings", "139,840", "26,336", "19%"]


def test_masks_say_what_they_are_asked_and_what_they_do(run: Run) -> None:
    assert rows(figures.removed_table(run)) == [
        ["head", "8", "4", "50.0%", "25.0%", "25.0 points off"],
        ["layer", "4", "3", "25.0%", "25.5%", "reached"],
    ]


def test_distances_are_above_the_reference_and_below_it(run: Run, drawn) -> None:
    figures.excess_losses(run)
    assert drawn == {"code": ([4, 10], [1.0, -0.5]), "books": ([10], [0.75])}


def test_runs_of_other_domains_or_without_references_leave_cells_empty(run: Run, tmp_path: Path) -> None:
    other = read_run(write_run(tmp_path / "other", domains=("books", "wiki")))
    other.config.data_loading.target_loss = None
    assert figures.excess_losses(other) is None
    assert rows(figures.losses_table([run, other])) == [
        ["run", "1.5000", "2.7500", ""],
        ["other", "", "2.0996", "3.0996"],
        ["reference", "2.0000", "2.0000", ""],
    ]


def test_captions_say_what_a_point_is_and_how_masks_ended(run: Run) -> None:
    layers, mlps, *_ = figures.mask_maps(MaskHistory(run))
    assert layers.caption.endswith("step 10 to 10. Closed in the end, counted from 0: 3.")
    assert mlps.caption.endswith("In the end 0% to 52%.")
    assert "Each point" not in figures.training_loss(run).caption
    line = {"step": 600, "loss/train/total": 1.0, "loss/train/ce_loss": 1.0}
    caption = figures.training_loss(with_metrics(run.folder, [line])).caption
    assert caption.endswith("Each point is the mean of 3 steps.")


def test_weights_hold_until_they_change_and_count_tokens(run: Run, drawn) -> None:
    figures.domain_weights(run)
    assert drawn["code"] == ([0, 4, 4, 10], [0.5, 0.5, 0.8, 0.8])
    figures.domain_tokens(run)
    x, tokens = drawn["code"]
    assert x == [0, 4, 10]
    assert tokens == pytest.approx([0, 0.5 * 4 * 128, (0.5 * 4 + 0.8 * 6) * 128])


def test_weights_that_no_step_used_are_reported_instead_of_drawn(run: Run, drawn) -> None:
    last = {"step": 10, "metrics/train/code_weight": 0.9, "metrics/train/books_weight": 0.1}
    figure = figures.domain_weights(with_metrics(run.folder, [*LINES, last]))
    assert figure is not None
    assert drawn["code"] == ([0, 4, 4, 10], [0.5, 0.5, 0.8, 0.8])
    assert figure.caption.endswith("Set after the last step: code 0.900, books 0.100.")
    waiting = figures.domain_weights(with_metrics(run.folder, LINES[:1]))
    assert waiting is not None
    assert "Set after" not in waiting.caption


def test_sparsities_are_drawn_beside_their_targets(run: Run, drawn) -> None:
    overall = {"metrics/train/expected_sparsity": 0.3, "metrics/train/target_sparsity": 0.6}
    figures.sparsities(with_metrics(run.folder, [*LINES, {"step": 9, **overall}]))
    assert (drawn["overall"], drawn["target: overall"]) == (([9], [0.3]), ([9], [0.6]))
    assert drawn["head"] == ([9], [0.25])
    assert drawn["target: head"] == ([9], [0.5])


def test_a_run_whose_folder_was_moved_is_still_the_start_of_another(tmp_path: Path) -> None:
    source = read_run(write_run(tmp_path / "prune", steps=10))
    moved = write_run(tmp_path / "more", prune=False, path="/elsewhere/prune/pruned.pt")
    own = write_run(tmp_path / "own", prune=False, path=str(tmp_path / "own" / "ep0-ba2-rank0.pt"))
    assert figures.tokens_before([source, read_run(moved), read_run(own)]) == [0, 10 * 128, 0]


def test_a_comparison_is_between_models_of_one_shape_and_says_which_is_better(tmp_path: Path) -> None:
    small = {"d_model": 32, "n_heads": 4, "n_layers": 3, "intermediate_size": 48}
    better = write_run(tmp_path / "better", prune=False, path="prune/pruned.pt", shape=small)
    other = read_run(write_run(tmp_path / "other", prune=False))
    scratch = with_metrics(write_run(tmp_path / "scratch", prune=False, shape=small), LINES)
    run = with_metrics(better, [{"step": 10, "metrics/eval/LanguageCrossEntropy": 2.25}])
    earlier = write_run(tmp_path / "earlier", prune=False, path="prune/pruned.pt", shape=small)
    blank = with_metrics(write_run(tmp_path / "blank", prune=False, shape=small), LINES[:1])
    assert comparison([run, other, blank]) is None
    said = comparison([read_run(earlier), run, other, blank, scratch])
    assert said == (
        "better ends 0.250 nats a token below scratch, which has its shape and was trained from scratch."
    )
