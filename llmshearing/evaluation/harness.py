"""Tasks of lm-eval, one at a time, on an HF model. Needs the extra `eval`."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmshearing.evaluation.continuations import WORTHWHILE, log_likelihoods
from llmshearing.evaluation.models import is_out_of_memory
from llmshearing.evaluation.results import Score
from llmshearing.evaluation.suites import PREFERRED, Choice
from llmshearing.progress import bar

logger = logging.getLogger(__name__)

VERSION = version("lm-eval")
_QUIET = ("lm_eval", "datasets")


_Base: Any = HFLM  # lm-eval's registry hides its type


class Model(_Base):
    """lm-eval's HF model with this package's bars: one a task, in requests that have been answered."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        super().__init__(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32"
        )
        self.what = ""
        self._bar: Any = None

    def _counted(self, answer: Any, requests: Sequence[Any], **options: Any) -> Any:
        with bar(self.what, total=len(requests), unit="request") as self._bar:
            answers = answer(requests, disable_tqdm=True, **options)
            self._bar.update(len(requests) - self._bar.n)  # requests that share their tokens are run once
            return answers

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: Any = None
    ) -> Any:
        """Answers in the order of requests; the choices of a question share its context."""
        contexts: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            contexts.setdefault(tuple(context), []).append(index)
        answers: dict[int, tuple[float, bool]] = {}

        def answer(requests: Any, **options: Any) -> None:
            for context, indices in contexts.items():
                choices = [requests[index][2] for index in indices]
                if not self._shares(context, choices):
                    continue
                found = log_likelihoods(self.model, context, choices)
                answers.update(zip(indices, found, strict=True))
                self._bar.update(len(indices))
            alone = [index for index in range(len(requests)) if index not in answers]
            found = super(Model, self)._loglikelihood_tokens([requests[i] for i in alone], **options)
            answers.update(zip(alone, found, strict=True))

        self._counted(answer, requests, override_bs=override_bs)
        return [answers[index] for index in range(len(requests))]

    def _shares(self, context: tuple[int, ...], choices: Sequence[Sequence[int]]) -> bool:
        fits = len(context) + max(map(len, choices)) <= self.max_length
        return fits and len(choices) > 1 and len(context) >= WORTHWHILE

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return self._counted(super().generate_until, requests)

    def _model_call(self, inps: torch.Tensor, *args: Any, **options: Any) -> Any:
        logits = super()._model_call(inps, *args, **options)
        self._bar.update(len(inps))
        return logits

    def _model_generate(self, context: torch.Tensor, *args: Any, **options: Any) -> Any:
        tokens = super()._model_generate(context, *args, **options)
        self._bar.update(len(context))
        return tokens


def quieten() -> None:
    """Let lm-eval and datasets say no more than what went wrong, and draw no bars of their own."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    with suppress(ImportError, AttributeError):
        import datasets

        datasets.disable_progress_bars()
    import lm_eval.api.task as building

    building.tqdm = lambda items, **_: items  # "Building contexts": takes no time worth a bar


def known_tasks(with_defaults: bool) -> tuple[TaskManager, list[str]]:
    """What loads tasks, and the names it knows: those of lm-eval, or none."""
    manager = TaskManager(include_defaults=with_defaults)
    return manager, list(manager.all_tasks)


def load_tasks(
    specifications: Mapping[str, Any], manager: TaskManager
) -> tuple[dict[str, Any], dict[str, Exception]]:
    """Tasks with their documents, and why those that could not be loaded could not."""
    loaded, failed = {}, {}
    for name, specification in bar("loading tasks", list(specifications.items()), unit="task"):
        try:
            loaded[name] = manager.load([specification])
        except Exception as error:  # anything: a task is code of others, and so is the hub's client
            failed[name] = error
    return loaded, failed


def run(model: Model, choice: Choice, task: Any, limit: int | None, settings: dict[str, Any]) -> Score:
    """What a model reaches in a task; where memory runs out the batch is halved and the task begins again.

    Args:
        task: what `load_tasks` gives for it.
        limit: documents of each task; None: all.

    Raises:
        ValueError: when a batch of one does not fit in memory.
    """
    if choice.shots is not None:
        for each in task["tasks"].values():
            each.set_config(key="num_fewshot", value=choice.shots)
    for each in task["tasks"].values():
        each.set_fewshot_seed(seed=SEED)
    model.what = choice.task
    while True:
        try:
            found = evaluator.evaluate(model, task, limit=limit, log_samples=False, bootstrap_iters=1000)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = int(model.batch_size_per_gpu)
            if size == 1:
                raise ValueError(f"{choice.task}: a batch of one request does not fit in memory.") from error
        model.batch_size_per_gpu = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("out of memory: the batch is %d requests from here on", size // 2)
    assert found is not None
    return _score(choice, dict(found), settings)


SEED = 1234


def _score(choice: Choice, found: Mapping[str, Any], settings: dict[str, Any]) -> Score:
    """The score in what lm-eval returns; of a group, that of the group."""
    results = {**found["results"], **found.get("groups", {})}
    name = choice.task if choice.task in results else next(iter(results))
    metrics: dict[str, float] = {}
    for key, value in results[name].items():
        metric, comma, _ = key.partition(",")
        if comma and isinstance(value, int | float):
            metrics[metric] = float(value)
    counted = [count["effective"] for count in found.get("n-samples", {}).values()]
    metric = choice.metric or next((each for each in PREFERRED if each in metrics), next(iter(metrics)))
    stderr = metrics.get(f"{metric}_stderr", math.nan)
    return Score(choice.task, metric, metrics[metric], stderr, sum(counted), settings, metrics)
