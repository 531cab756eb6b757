"""Prune a large language model to a smaller shape, then continue pre-training it.

The path of the work, with the command of each step and the rooms of the package that do it:

    jsonl / parquet text, one folder per domain
      -> tokens -> MDS shards: for_prune, for_ft, eval_merge     prepare           data
    HF model -> Composer checkpoint                              convert           checkpoints, shapes
      -> what a run needs, and every problem before it starts    plan              planning
      -> [pruning run]                                           train             training, sharding
           batch <- mixture of domains                                             datasets
           decoder under gates                                                     models
           hard-concrete masks, Lagrangian, cut                                    pruning
           step, sparsities, domain weights, saving, resuming                      callbacks
      -> masked checkpoint -> smaller model                      prune             pruning, checkpoints
      -> [continued pre-training]                                train             the same trainer, no masks
      -> HF model that transformers loads as it is               export            checkpoints, shapes
    what the runs did, as one HTML page                          report            report

Imports point one way: commands (and utils, their earlier names) -> training -> planning, report -> sharding
-> callbacks -> checkpoints -> models -> pruning -> data -> datasets -> shapes -> config -> files, progress,
cli.
"""

import os
import sys
from types import TracebackType


def _end_on_ctrl_c(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a command is being imported ends it as it does later (`cli.run`)."""
    if not issubclass(kind, KeyboardInterrupt) or "--debug" in sys.argv:
        return sys.__excepthook__(kind, error, trace)
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # what `python -m llmshearing.X` has there while it looks for X
    sys.excepthook = _end_on_ctrl_c
