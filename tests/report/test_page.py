"""The page as a whole: its story, its words, its size, and that it trusts no text of a run."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest
from runs_on_disk import write_run

from llmshearing.callbacks.report_callback import ReportCallback
from llmshearing.report import __main__ as command
from llmshearing.report import write_report
from llmshearing.report.figures import convergence, story, tokens_before
from llmshearing.report.page import comparison, render, sentences
from llmshearing.report.reading import read_run
from llmshearing.training import train
from runs import run_config, write_data

LARGE = {"d_model": 4096, "n_heads": 32, "n_layers": 32, "intermediate_size": 11008, "vocab_size": 32000}
SMALL = {"d_model": 2048, "n_heads": 16, "n_layers": 24, "intermediate_size": 5504}
DOMAINS = ("cc", "github", "book", "stackexchange", "wiki", "arxiv", "c4-rp")


class Tags(HTMLParser):
    """Tags that a page opens and does not close, and addresses that it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.scripts += tag == "script"
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def three_runs(folder: Path) -> list:
    """Pruning, continuing from it, and a control of the target's shape."""
    small = {"d_model": 32, "n_heads": 4, "n_layers": 3, "intermediate_size": 48}
    pruned = str(folder / "prune" / "pruned-latest-rank0.pt")
    return [
        write_run(folder / "prune"),
        write_run(folder / "continue", prune=False, path=pruned, shape=small),
        write_run(folder / "control", prune=False, shape=small, steps=80),
    ]


def test_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    page = render([read_run(folder) for folder in three_runs(tmp_path)])
    tags = Tags(page)
    assert tags.open == []
    assert tags.addresses
    assert all(address.startswith("data:image/png;base64,") for address in tags.addresses)
    assert "http" not in page
    assert "<script" not in page
    assert re.findall("<h3>(.*?)</h3>", page.split('id="run-2"')[0]) == [
        *("Runs", "Evaluation loss", "Last evaluation loss of each domain"),
        *("Architecture", "Removed", "Training loss", "Evaluation loss by domain"),
        *("Distance to the reference loss", "Domain weights", "Tokens used", "Sparsity", "Lagrangian"),
        *("Multipliers of the linear term", "Which layers stay", "How much of each MLP stays"),
        *("Which hidden dimensions stay", "Which attention heads stay"),
    ]
    told = ("Every kind of units has reached its target.", "continue ends 0.000 nats a token")
    for part in ("prefers-color-scheme: dark", "@media print", 'name="viewport"', *told):
        assert part in page


def test_a_table_fits_a_phone_or_shows_that_it_scrolls(tmp_path: Path) -> None:
    page = render([read_run(write_run(tmp_path / "run"))])
    narrow = page.split("@media (max-width: 720px)")[1].split("@media")[0]
    assert re.search(r"th, td {[^}]*white-space: normal", narrow)
    assert len(re.findall(r"no-repeat (?:local|scroll)", page.split(".scroll {")[1].split("}")[0])) == 4


def test_runs_tell_one_story(tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in three_runs(tmp_path)]
    assert tokens_before(runs) == [0, 40 * 8 * 16, 0]
    assert ">10k</text>" in story(runs[:2]).html  # 40 steps of 128 tokens, and then 40 more: 10,240
    caption = story(runs[:2]).caption
    assert "is drawn after that one's tokens. Every line begins at its run's first evaluation." in caption
    said = comparison(runs)
    assert said is not None
    assert said.startswith("continue ends 0.000 nats a token")
    assert comparison(runs[:2]) is None


def test_sentences_say_what_was_missed(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "prune"))
    assert sentences(run) == [
        "Every kind of units has reached its target.",
        "The evaluation loss went from 2.945 after step 10 to 2.100 after step 40.",
        "Data read more than once: code 2.0 times, books 2.0 times.",
    ]
    metrics = tmp_path / "prune" / "metrics.jsonl"
    head = "\n".join(metrics.read_text().splitlines()[:15])
    metrics.write_text(head + "\n")  # the run in its middle: the masks are still on their way
    run = read_run(tmp_path / "prune")
    expected = {kind: value for kind, value, _ in convergence(run)}["head"]
    assert f"Of head, {expected:.1%} is removed in expectation; the target is 50.0%." in sentences(run)
    assert "Data read" not in " ".join(sentences(run))


def test_sentences_say_nothing_of_what_was_not_logged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=10)
    line = '{"step": 0, "loss/train/total": 5.0, "metrics/eval/LanguageCrossEntropy": 5.0}\n'
    (folder / "metrics.jsonl").write_text(line)
    assert sentences(read_run(folder)) == []


def test_text_of_a_run_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</h1><script>alert(1)<script>"
    folder = write_run(tmp_path / "<script>alert(2)", domains=(evil, "<img src=x>"))
    tags = Tags(render([read_run(folder)]))
    assert tags.scripts == 0
    assert all(address.startswith("data:") for address in tags.addresses)


def test_a_run_without_metrics_yet_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("")
    for masks in folder.glob("zs_*"):
        masks.unlink()
    assert "0 of 40 steps." in render([read_run(folder)])


def test_a_long_run_of_a_deep_model_is_small(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=3200, interval=400, shape=LARGE, target=SMALL, domains=DOMAINS)
    write_report([folder], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_command_writes_beside_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(folder) for folder in three_runs(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["report", *folders])
    command.main()
    assert (tmp_path / "report.html").is_file()
    monkeypatch.setattr(sys, "argv", ["report", folders[0]])
    command.main()
    assert (tmp_path / "prune" / "report.html").is_file()
    assert "prune/report.html" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["report", folders[0], "--out", str(tmp_path / "other.html")])
    command.main()
    assert (tmp_path / "other.html").is_file()
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "nowhere")])
    with pytest.raises(FileNotFoundError, match="expected the save_folder of a run"):
        command.main()


@pytest.mark.parametrize("prune", [True, False])
def test_a_real_run_leaves_its_report(tmp_path: Path, prune: bool) -> None:
    train(run_config(write_data(tmp_path / "data"), tmp_path / "run", prune=prune))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "12 of 12 steps." in page
    assert ("Which layers stay" in page) == prune
    for domain in ("code", "books", "wiki"):
        assert f"<th>{domain}</th>" in page


def test_only_a_report_is_overwritten_and_a_run_is_named_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=10)
    before = (folder / "config.yaml").read_text()
    with pytest.raises(FileExistsError, match=r"config.yaml exists and is not a report; choose another file"):
        write_report([folder], folder / "config.yaml")
    assert (folder / "config.yaml").read_text() == before
    with pytest.raises(IsADirectoryError, match="is a folder; expected a file to write, such as"):
        write_report([folder], folder)
    for _ in range(2):
        write_report([folder], folder / "report.html")
    with pytest.raises(ValueError, match="is named twice; name each run once"):
        write_report([folder, folder], tmp_path / "both.html")


def test_a_report_that_cannot_be_written_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "run", steps=10)
    (folder / "metrics.jsonl").write_text("hello\n")
    callback = ReportCallback(folder, write_report)
    callback.fit_start(cast(Any, None), cast(Any, None))
    callback.post_close()
    assert "The report of this run could not be written" in caplog.text
    assert "metrics.jsonl, line 1" in caplog.text


def test_a_run_whose_sizes_stand_in_its_checkpoint_has_a_report(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    train(run_config(data, tmp_path / "source", prune=False, max_duration="1ba", save_interval="1ba"))
    config = run_config(data, tmp_path / "prune", max_duration="4ba")
    for name in ("d_model", "n_heads", "n_layers", "intermediate_size", "vocab_size", "max_seq_len"):
        setattr(config.model, name, None)
    config.model.path = str(tmp_path / "source" / "latest-rank0.pt")
    train(config)
    assert "<td>hidden size</td><td>32</td><td>16</td>" in (tmp_path / "prune" / "report.html").read_text()


def test_a_run_with_a_teacher_shows_what_it_learns(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prune=False, path="source.pt")
    assert not any("It learns from" in said for said in sentences(read_run(folder)))
    assert "divergence" not in render([read_run(folder)])
    text = (folder / "config.yaml").read_text()
    settings = "{teacher: big.pt, kl_weight: 0.5, ce_weight: 0.25, temperature: 2.0}"
    assert "distillation: null\n" in text
    (folder / "config.yaml").write_text(text.replace("distillation: null", f"distillation: {settings}"))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**values, "loss/train/kl_loss": 0.5}) for values in metrics]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(folder)
    assert "It learns from big.pt: 0.5 x forward_kl at temperature 2 + 0.25 x cross entropy." in sentences(
        run
    )
    assert "divergence from the teacher" in render([run])
