"""The loaders: the same stream on any number of ranks, through any interruption, updated exactly."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import distributed

from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.datasets.load_text_dataloader import (
    build_text_dataloader,
    evaluated_sequences,
    evaluation_loader,
)
from llmshearing.datasets.mixture import Mixture
from llmshearing.datasets.ranks import Ranks
from llmshearing.datasets.sequence_folder import SequenceFolder
from llmshearing.datasets.streaming_dataset import TextDynamicStreamingDataset, TextStreamingDataset
from tests.datasets.folders import SEQ_LEN, write_folder

NAMES = ["cc", "book", "wiki"]
SIZES = [30, 11, 17]
WEIGHTS = [0.5, 0.2, 0.3]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three domains below for_ft, and an eval_merge of 4, 3 and 4 sequences of them."""
    root = tmp_path_factory.mktemp("data")
    for name, size in zip(NAMES, SIZES, strict=True):
        write_folder(root / "for_ft" / name, size, name)
    write_folder(root / "eval_one", 11, "book")
    return root


def dataset(root, rank=0, world_size=1, batch=4, seed=1, exhausted="repeat"):
    folders = [SequenceFolder(root / "for_ft" / name, SEQ_LEN) for name in NAMES]
    mixture = Mixture(NAMES, SIZES, WEIGHTS, seed, exhausted)
    return TextDynamicStreamingDataset(folders, mixture, batch // world_size, rank, world_size)


def ids(samples) -> list[tuple[int, int]]:
    return [(sample["set"], sample["idx"]) for sample in samples]


def take(stream, count) -> list[tuple[int, int]]:
    return ids(itertools.islice(stream, count))


def config(root, split="for_ft", **settings) -> LoaderConfig:
    return LoaderConfig(DatasetConfig(local=str(root), split=split, max_seq_len=SEQ_LEN, **settings))


def test_a_batch_holds_what_was_stored(root):
    loader = build_text_dataloader(config(root, shuffle=True), 4, True, NAMES, WEIGHTS)
    batch = next(iter(loader))
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (4, SEQ_LEN),
        "labels": (4, SEQ_LEN),
        "set": (4,),
        "idx": (4,),
    }
    assert batch["input_ids"].dtype == torch.int64
    assert torch.equal(batch["input_ids"], batch["idx"][:, None] + torch.arange(SEQ_LEN))
    assert torch.equal(batch["input_ids"], batch["labels"])


@given(
    seed=st.integers(0, 2**32),
    world_size=st.sampled_from([1, 2, 3, 8]),
    per_rank=st.integers(1, 4),
    updates=st.sets(st.integers(0, 5), max_size=3),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_union_of_the_ranks_is_the_one_rank_stream(root, seed, world_size, per_rank, updates):
    """Also across updates of the weights, and row by row: rank r holds its slice of each batch."""
    batch = world_size * per_rank
    ranks = [dataset(root, rank, world_size, batch, seed) for rank in range(world_size)]
    single = dataset(root, 0, 1, batch, seed)
    streams, whole = [iter(rank) for rank in ranks], iter(single)
    for step in range(6):
        if step in updates:
            weights = np.random.default_rng(step).dirichlet(np.ones(3)).tolist()
            for one in (*ranks, single):
                one.set_proportion(weights)
        expected = take(whole, batch)
        assert list(itertools.chain(*(take(stream, per_rank) for stream in streams))) == expected


@given(
    seed=st.integers(0, 2**32),
    cut=st.integers(0, 7),
    before=st.sampled_from([1, 2, 3]),
    after=st.sampled_from([1, 2, 3]),
    update=st.integers(0, 7),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_and_resume_gives_the_same_continuation(root, seed, cut, before, after, update):
    """Interrupted after `cut` batches on `before` ranks, gone on with on `after` ranks."""
    changed = [0.1, 0.1, 0.8]

    def run(one, stream, steps, batch):
        taken = []
        for step in steps:
            if step == update:
                one.set_proportion(changed)
            taken.append(take(stream, batch))
        return taken

    whole = dataset(root, 0, 1, 6, seed)
    expected = run(whole, iter(whole), range(8), 6)

    first = dataset(root, 0, before, 6, seed)
    run(first, iter(first), range(cut), 6 // before)
    state = first.state_dict(cut * 6, True)

    ranks = [dataset(root, rank, after, 6, seed) for rank in range(after)]
    got = []
    for rank in ranks:
        rank.load_state_dict(state)
        got.append(run(rank, iter(rank), range(cut, 8), 6 // after))
    assert [list(itertools.chain(*step)) for step in zip(*got, strict=True)] == expected[cut:]


def test_an_update_takes_effect_at_the_next_batch_exactly(root):
    """Prefetched batches of the old weights are not handed out; the last old one is unchanged."""
    plain, updated = dataset(root), dataset(root)
    expected, stream = take(iter(plain), 40), iter(updated)
    assert take(stream, 20) == expected[:20]
    updated.set_proportion([0, 0, 1])
    assert {domain for domain, _ in take(stream, 20)} == {2}
    assert updated.proportion_history == [(0, WEIGHTS), (20, [0, 0, 1])]
    assert sum(updated.samples_used.values()) == 40


def test_state_before_the_current_batch_was_trained_on(root):
    """A checkpoint taken while a batch is in work begins with that batch again."""
    one = dataset(root)
    stream = iter(one)
    take(stream, 8)
    expected = take(stream, 4)
    resumed = dataset(root)
    resumed.load_state_dict(one.state_dict(8, True))
    assert take(iter(resumed), 4) == expected


def test_state_counts_from_the_epoch_or_from_the_resumption(root):
    one = dataset(root)
    take(iter(one), 8)
    resumed = dataset(root)
    resumed.load_state_dict(one.state_dict(8, True))
    stream = iter(resumed)
    take(stream, 4)
    assert resumed.state_dict(12, True) == resumed.state_dict(4, False)
    expected = take(stream, 8)
    again = dataset(root)
    again.load_state_dict(resumed.state_dict(16, True))
    assert take(iter(again), 4) == expected[4:]


def test_a_second_epoch_continues_where_the_first_stopped(root):
    whole, one = dataset(root), dataset(root)
    expected = take(iter(whole), 24)
    assert take(iter(one), 12) == expected[:12]
    stream = iter(one)
    assert take(stream, 4) == expected[12:16]
    resumed = dataset(root)
    resumed.load_state_dict(one.state_dict(4, True))
    assert take(iter(resumed), 8) == expected[16:]


def test_passes_are_counted_and_announced(root, caplog):
    caplog.set_level("INFO")
    one = dataset(root)
    one.set_proportion([0, 1, 0])
    drawn = take(iter(one), 24)
    assert len(set(drawn[:11])) == len(set(drawn[11:22])) == 11
    assert one.passes == {"cc": 0, "book": 24 / 11, "wiki": 0}
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "domain book was used up after 11 sequences: pass 2 begins"),
        ("INFO", "domain book was used up after 11 sequences: pass 3 begins"),
    ]


def test_stop_ends_after_whole_batches_and_says_so(root):
    one = dataset(root, exhausted="stop")
    drawn = ids(one)
    assert len(drawn) % 4 == 0
    assert len(set(drawn)) == len(drawn) > 8
    assert one.exhausted
    with pytest.raises(ValueError, match=r"ran out after \d+ sequences .*prepare more"):
        next(iter(one))


def test_renormalize_reads_everything_once(root):
    drawn = ids(dataset(root, exhausted="renormalize", batch=2))
    assert len(set(drawn)) == len(drawn) == sum(SIZES)


def test_a_damaged_sequence_surfaces_from_the_thread(tmp_path):
    folder = SequenceFolder(write_folder(tmp_path / "cc", 9), SEQ_LEN, vocab_size=10)
    one = TextDynamicStreamingDataset([folder], Mixture(["cc"], [9], [1.0], 0), 9)
    with pytest.raises(ValueError, match="the vocabulary has 10"):
        list(itertools.islice(one, 9))


def test_checkpoint_of_other_data_is_rejected(root):
    state = dataset(root, seed=1).state_dict(0, True)
    with pytest.raises(ValueError, match=r"train_loader.dataset.shuffle_seed"):
        dataset(root, seed=2).load_state_dict(state)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_reads_each_sequence_once_on_any_number_of_ranks(root, world_size, monkeypatch):
    """The sampler repeats a few to fill the last row; Composer drops those, given dataset length."""
    seen = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        loader = build_text_dataloader(config(root, "eval_one"), 2, set_names=NAMES)
        mine = [i for batch in loader for i in batch["idx"].tolist()]
        padded = rank >= world_size - (loader.sampler.total_size - len(loader.dataset))  # Composer's rule
        seen += mine[:-1] if padded else mine
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batches", [-1, 1, 9])
def test_evaluated_sequences_are_those_that_the_ranks_read(root, world_size, drop_last, batches):
    section = config(root, "eval_one")
    section.drop_last = drop_last
    read = set()
    for rank in range(world_size):
        dataset = TextStreamingDataset(SequenceFolder(root / "eval_one", SEQ_LEN))
        loader = evaluation_loader(section, dataset, 2, Ranks(rank, world_size))
        for batch in itertools.islice(loader, None if batches < 0 else batches):
            read |= set(batch["idx"].tolist())
    assert read == set(range(evaluated_sequences(11, 2, world_size, batches, drop_last)))


def test_domains_are_looked_up_once(root, monkeypatch):
    dataset = TextStreamingDataset(SequenceFolder(root / "eval_one", SEQ_LEN), NAMES)
    looked_up = []
    domain = SequenceFolder.domain
    monkeypatch.setattr(SequenceFolder, "domain", lambda s, i: looked_up.append(i) or domain(s, i))
    for first in (2, 5, None, 3):
        assert dataset.samples_per_domain(first)["book"] == (11 if first is None else first)
    assert looked_up == list(range(11))


def test_evaluation_maps_domains_by_name(root):
    loader = build_text_dataloader(config(root, "eval_one"), 3, set_names=NAMES)
    assert next(iter(loader))["set"].tolist() == [1, 1, 1]
    assert loader.dataset.samples_per_domain() == {"cc": 0, "book": 11, "wiki": 0}
    assert loader.dataset.samples_per_domain(first=2) == {"cc": 0, "book": 2, "wiki": 0}


def test_evaluation_rejects_an_unknown_domain(root):
    loader = build_text_dataloader(config(root, "eval_one"), 3, set_names=["cc", "wiki"])
    with pytest.raises(ValueError, match=r"sequence 0 is of domain 'book', expected one of cc, wiki"):
        next(iter(loader))


def test_one_folder_trains_without_domains(root):
    loader = build_text_dataloader(config(root / "for_ft", "cc"), 30, dynamic=True)
    assert sorted(next(iter(loader))["idx"].tolist()) == list(range(30))


@pytest.mark.parametrize(
    ("names", "weights", "settings", "message"),
    [
        (["cc", "news"], [0.5, 0.5], {}, r"for_ft/news/index.json not found"),
        (NAMES, [0.5, 0.5], {}, r"proportion has 2 values, set_names has 3"),
        (NAMES, [0.5, 0.3, 0.3], {}, r"proportion sums to 1.1"),
        (NAMES, None, {}, r"without proportion"),
        (NAMES, WEIGHTS, {"is_uint16": False}, r"are uint16, expected uint32 or int64"),
        (NAMES, WEIGHTS, {"exhausted": "again"}, r"exhausted is 'again'"),
    ],
)
def test_wrong_configs_are_rejected(root, names, weights, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_text_dataloader(config(root, **settings), 4, True, names, weights)


def test_an_empty_domain_is_rejected(root, tmp_path):
    write_folder(tmp_path / "for_ft" / "cc", 0)
    with pytest.raises(ValueError, match="for_ft/cc holds no sequences"):
        build_text_dataloader(config(tmp_path), 4, True, ["cc"], [1.0])


def test_remote_training_data_with_a_cache_limit_is_the_same_stream(root, tmp_path):
    local = build_text_dataloader(config(root), 4, True, NAMES, WEIGHTS)
    settings = {"remote": str(root), "cache_limit": "2kb"}
    remote = build_text_dataloader(config(tmp_path, **settings), 4, True, NAMES, WEIGHTS)
    for mine, theirs in itertools.islice(zip(local, remote, strict=True), 20):
        assert torch.equal(mine["input_ids"], theirs["input_ids"])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.mds")) <= 2048
