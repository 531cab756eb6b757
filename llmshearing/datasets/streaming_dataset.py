"""Datasets of token sequences: one folder for evaluation, a mixture of domains for training.

A sample is {"input_ids": int64 [S], "labels": the same, "set": index of its domain, "idx": index
of the sequence in its folder}.
"""

import json
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from llmshearing.datasets.mixture import Mixture, Plan
from llmshearing.datasets.sequence_folder import DomainSequences, SequenceFolder, TokenSequence

logger = logging.getLogger(__name__)

PREFETCH_BATCHES = 2  # read ahead of the one that is trained on

Sample = dict[str, Any]


def _sample(sequence: TokenSequence, domain: int, index: int) -> Sample:
    """One sequence as the model takes it."""
    tokens = torch.from_numpy(sequence.tokens)
    return {"input_ids": tokens, "labels": tokens, "set": domain, "idx": index}


class TextStreamingDataset(Dataset[Sample]):
    """The sequences of one folder, each once; used for evaluation.

    Args:
        folder: the sequences.
        set_names: the domains; a sample's `set` is the place of its domain here. None: all 0.
    """

    def __init__(self, folder: SequenceFolder, set_names: Sequence[str] | None = None):
        self.folder = folder
        self.set_names = list(set_names) if set_names is not None else None
        self._places: list[int] = []  # of the first sequences, as far as anybody asked

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Sample:
        sequence = self.folder[index]
        return _sample(sequence, self._place(sequence.domain, index), index)

    def samples_per_domain(self, first: int | None = None) -> dict[str, int]:
        """How many of the first sequences (None: of all) each domain of `set_names` has.

        Raises:
            ValueError: for a sequence of a domain that `set_names` does not have.
        """
        count = len(self) if first is None else min(first, len(self))
        for index in range(len(self._places), count):
            self._places.append(self._place(self.folder.domain(index), index))
        found = Counter(self._places[:count])
        return {name: found[place] for place, name in enumerate(self.set_names or [])}

    def _place(self, name: str, index: int) -> int:
        if self.set_names is None:
            return 0
        if name not in self.set_names:
            raise ValueError(
                f"{self.folder.path}: sequence {index} is of domain {name!r}, expected one of "
                f"{', '.join(self.set_names)}: add it to set_names or prepare {self.folder.path.name} again"
            )
        return self.set_names.index(name)


class TextDynamicStreamingDataset(IterableDataset[Sample]):
    """An endless stream of sequences from several domains, mixed by weights that may change.

    Every rank plans the same global batches and reads its own rows of them: rank r of W rows
    [r B / W, (r + 1) B / W). A thread reads the coming batches ahead. They are planned with the
    weights in force; when the weights change, they are discarded and planned again, so that a
    change takes effect at the very next batch.

    Args:
        folders: the sequences of each domain.
        mixture: which of them comes when, over the same domains.
        device_batch_size: rows of a batch on this rank, B / W.
        rank: number of this process.
        world_size: number of processes, W.
    """

    def __init__(
        self,
        folders: Sequence[SequenceFolder | DomainSequences],
        mixture: Mixture,
        device_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.folders = list(folders)
        self.exhausted = False
        self._mixture = mixture
        self._rows = slice(rank * device_batch_size, (rank + 1) * device_batch_size)
        self._global_batch = device_batch_size * world_size
        self._announces = rank == 0
        self._cursor = self._before = mixture.start()  # behind and before the batch handed out last
        self._ahead: deque[tuple[Any, Future[list[Sample]]]] = deque()
        self._epoch_start = 0
        self._iteration_start = 0
        self._continues_epoch = True

    @property
    def set_names(self) -> list[str]:
        """The domains."""
        return self._mixture.names

    @property
    def proportion(self) -> list[float]:
        """The weights of the next sample, in the order of `set_names`."""
        return self._mixture.weights

    @property
    def proportion_history(self) -> list[tuple[int, list[float]]]:
        """Every (first sample, weights) so far."""
        return self._mixture.history

    @property
    def samples_used(self) -> dict[str, int]:
        """How many sequences of each domain were handed out, repeated ones counted again."""
        return dict(zip(self.set_names, self._cursor.counts.tolist(), strict=True))

    @property
    def passes(self) -> dict[str, float]:
        """How often each domain was gone through: 0.25 is a quarter of it, 2.5 is in its third pass."""
        return dict(zip(self.set_names, (self._cursor.counts / self._mixture.sizes).tolist(), strict=True))

    def set_proportion(self, weights: Sequence[float]) -> None:
        """Mix the samples after the batch handed out last by these weights.

        Raises:
            ValueError: for weights that `mixture.normalized_weights` rejects.
        """
        self._mixture.set_weights(self._cursor.sample, weights)
        self._forget_ahead()

    def __iter__(self) -> Iterator[Sample]:
        if self.exhausted:
            raise ValueError(
                f"the training data ran out after {self._cursor.sample} sequences (exhausted: "
                f"{self._mixture.exhausted}): prepare more, or set train_loader.dataset.exhausted to repeat"
            )
        if not self._continues_epoch:
            self._epoch_start = self._cursor.sample
        self._continues_epoch = False
        self._iteration_start = self._cursor.sample
        self._forget_ahead()
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
            while (batch := self._next_batch(reader)) is not None:
                yield from batch

    def _next_batch(self, reader: ThreadPoolExecutor) -> list[Sample] | None:
        """This rank's rows of the next global batch, None at the end; keeps the thread busy."""
        while len(self._ahead) <= PREFETCH_BATCHES and not self.exhausted:
            start = self._ahead[-1][0] if self._ahead else self._cursor
            plan, end = self._mixture.plan(start, self._global_batch)
            if plan.domain.size < self._global_batch:
                break
            self._ahead.append((end, reader.submit(self._read, plan)))
        if not self._ahead:
            self.exhausted = True
            return None
        end, batch = self._ahead.popleft()
        rows = batch.result()
        self._announce_passes(end.counts)
        self._before, self._cursor = self._cursor, end
        return rows

    def _read(self, plan: Plan) -> list[Sample]:
        domains, indices = plan.domain[self._rows].tolist(), plan.index[self._rows].tolist()
        return [_sample(self.folders[d][i], d, i) for d, i in zip(domains, indices, strict=True)]

    def _forget_ahead(self) -> None:
        for _, batch in self._ahead:
            batch.cancel()
        self._ahead.clear()

    def _announce_passes(self, counts: Any) -> None:
        """Log where a domain begins to repeat."""
        pass_ = (counts - 1) // self._mixture.sizes
        begun = (pass_ > (self._cursor.counts - 1) // self._mixture.sizes) & (pass_ > 0)
        for domain in begun.nonzero()[0] if self._announces else ():
            logger.log(
                logging.WARNING if pass_[domain] == 1 else logging.INFO,
                "domain %s was used up after %d sequences: pass %d begins",
                self.set_names[domain],
                self._mixture.sizes[domain],
                pass_[domain] + 1,
            )

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, str]:
        """What resumes the stream, as Composer's checkpoints ask for it.

        Args:
            num_samples: sequences trained on, over all ranks.
            from_beginning: counted since the epoch began; False: since this process began to iterate.

        Returns one JSON text under "mixture": a sharded checkpoint restores only keys that the new
        run has too, so the state must not have keys that come and go. It does not depend on the
        number of ranks or on the batch size.
        """
        epoch_start = self._cursor.sample if self.exhausted else self._epoch_start  # then it is over
        sample = num_samples + (epoch_start if from_beginning else self._iteration_start)
        start = self._cursor if sample >= self._cursor.sample else self._before
        if sample < start.sample:
            raise ValueError(f"cannot save the stream at sample {sample}: it is past {start.sample}")
        state = self._mixture.state_dict(self._mixture.advance(start, sample))
        return {"mixture": json.dumps({**state, "epoch_start": epoch_start})}

    def load_state_dict(self, obj: dict[str, str]) -> None:
        """Resume where `state_dict` was taken.

        Raises:
            ValueError: if it belongs to a different stream (`Mixture.load_state_dict`).
        """
        state = json.loads(obj["mixture"])
        self._cursor = self._before = self._mixture.load_state_dict(state)
        self._epoch_start = state["epoch_start"]
        self._continues_epoch = True
        self.exhausted = False
        self._forget_ahead()
