"""The layouts of data that the original's files name."""

import logging
from pathlib import Path

import numpy as np
import pytest
from streaming.base.format.mds import MDSWriter

from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.datasets import places
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from llmshearing.training import train
from runs import DOMAINS, SEQ_LEN, run_config, write_data

SIZES = {"code": 5, "books": 3, "wiki": 2}


@pytest.fixture(autouse=True)
def forget_notes() -> None:
    places._note.cache_clear()


def write(folder: Path, counts: dict[str, int], first: int = 0) -> None:
    """An MDS folder whose sequences count up from a number of their domain's, `first` added."""
    with MDSWriter(out=str(folder), columns={"tokens": "bytes", "set": "str"}) as writer:
        for place in range(max(counts.values())):
            for index, (domain, count) in enumerate(counts.items()):
                if place < count:
                    tokens = np.full(SEQ_LEN, first + 10 * index + place, np.uint16)
                    writer.write({"tokens": tokens.tobytes(), "set": domain})


def first_tokens(
    root: Path,
    split: str,
    names: list[str] | None = DOMAINS,
    dynamic: bool = True,
    remote: Path | None = None,
) -> dict[str, set[int]]:
    """What the training loader reads of each domain in some batches; of the whole where none are named."""
    dataset = DatasetConfig(local=str(root), max_seq_len=SEQ_LEN, split=split, download_retry=0)
    dataset.remote = str(remote) if remote else None
    cfg = LoaderConfig(dataset)
    weights = [1 / len(names)] * len(names) if names else None
    loader = build_text_dataloader(
        cfg, 8, dynamic=True, set_names=names, proportion=weights, weights_change=dynamic
    )
    found: dict[str, set[int]] = {name: set() for name in names or [""]}
    for _, batch in zip(range(12), loader, strict=False):
        for tokens, domain in zip(batch["input_ids"], batch["set"], strict=True):
            found[(names or [""])[int(domain)]].add(int(tokens[0]))
    return found


WHOLE = {"code": set(range(5)), "books": {10, 11, 12}, "wiki": {20, 21}}
ELSEWHERE = {name: {100 + value for value in values} for name, values in WHOLE.items()}


def write_domains(root: Path, first: int = 0) -> None:
    for index, (name, count) in enumerate(SIZES.items()):
        write(root / name, {name: count}, first + 10 * index)


@pytest.mark.parametrize("split", ["train_small", "", "."])
def test_domains_beside_the_evaluation_split_are_read_and_the_split_ignored(tmp_path, split, caplog):
    write_domains(tmp_path)
    with caplog.at_level(logging.INFO, "llmshearing"):
        assert first_tokens(tmp_path, split) == WHOLE
    said = f"train_loader.dataset.split train_small is ignored: the domains' folders lie in {tmp_path} itself"
    assert [r.getMessage() for r in caplog.records if "split" in r.getMessage()] == (
        [said] if split == "train_small" else []
    )


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("split", ["train", ""])
def test_a_flat_split_is_read_by_the_domains_written_in_it(tmp_path, split, dynamic):
    write(tmp_path / split, SIZES)
    assert first_tokens(tmp_path, split, dynamic=dynamic) == WHOLE
    assert first_tokens(tmp_path, split, ["wiki", "code"]) == {"wiki": WHOLE["wiki"], "code": WHOLE["code"]}
    assert first_tokens(tmp_path, split, None) == {"": set.union(*WHOLE.values())}


def test_where_both_layouts_exist_dynamic_decides_as_in_the_original(tmp_path):
    write(tmp_path / "train", SIZES)
    write_domains(tmp_path, first=100)
    assert first_tokens(tmp_path, "train", dynamic=True) == ELSEWHERE
    assert first_tokens(tmp_path, "train", dynamic=False) == WHOLE


def test_a_folder_for_each_domain_below_the_split_comes_first(tmp_path):
    write_domains(tmp_path / "for_ft")
    write_domains(tmp_path, first=100)
    assert first_tokens(tmp_path, "for_ft") == WHOLE


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("layout", ["below", "beside", "flat", "beside and flat"])
def test_remote_data_is_read_in_each_layout(tmp_path, layout, dynamic, caplog):
    far = tmp_path / "far"
    if layout == "below":
        write_domains(far / "train")
    if "flat" in layout:
        write(far / "train", SIZES)
    if "beside" in layout:
        write_domains(far, first=100)
    is_beside = layout == "beside" or (layout == "beside and flat" and dynamic)
    expected = ELSEWHERE if is_beside else WHOLE
    said = f"train_loader.dataset.split train is ignored: the domains' folders lie in {far} itself"
    if layout == "beside" and not dynamic:
        with pytest.raises(OSError, match=r"cannot download \S*far/train/code/index.json"):
            first_tokens(tmp_path / "near", "train", dynamic=dynamic, remote=far)
        return
    with caplog.at_level(logging.INFO, "llmshearing"):
        for _ in ("downloaded", "here already"):
            assert first_tokens(tmp_path / "near", "train", dynamic=dynamic, remote=far) == expected
        assert first_tokens(tmp_path / "near", "train", dynamic=dynamic) == expected
    assert [r.getMessage() for r in caplog.records if "split" in r.getMessage()] == (
        [said, said.replace("far", "near")] if is_beside else []
    )


def test_remote_data_that_is_nowhere_is_named(tmp_path):
    write_domains(tmp_path / "far")
    with pytest.raises(OSError, match=r"cannot download \S*far/for_ft/poems/index.json .*data_remote"):
        first_tokens(tmp_path / "near", "for_ft", ["code", "poems"], remote=tmp_path / "far")


def test_what_is_nowhere_is_named(tmp_path):
    write(tmp_path / "train", SIZES)
    with pytest.raises(
        ValueError, match=r"train holds no sequences of domain poems: prepare more text of it"
    ):
        first_tokens(tmp_path, "train", ["code", "poems"])
    with pytest.raises(FileNotFoundError, match=r"for_ft/code/index.json not found"):
        first_tokens(tmp_path, "for_ft")
    write_domains(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"for_prnue/code/index.json not found"):
        first_tokens(tmp_path, "for_prnue", dynamic=False)


def test_a_flat_split_without_domains_is_named(tmp_path):
    with MDSWriter(out=str(tmp_path / "train"), columns={"tokens": "bytes"}) as writer:
        writer.write({"tokens": np.zeros(SEQ_LEN, np.uint16).tobytes()})
    with pytest.raises(ValueError, match="train has no column `set`, which tells the domain of each"):
        first_tokens(tmp_path, "train", ["code"])


def test_a_run_trains_on_a_flat_split(tmp_path):
    data = write_data(tmp_path / "data")
    settings = {"train_loader__dataset__split": "eval_merge", "max_duration": "2ba", "eval_interval": "0ba"}
    train(run_config(data, tmp_path / "run", callbacks__data_loading__dynamic=False, **settings))
    assert (tmp_path / "run/latest-rank0.pt").exists()
