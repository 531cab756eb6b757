"""Shear a large language model into a smaller one of a shape you name, and train it on.

The path of the work, and where each part of it lives:

    jsonl / parquet text, one folder a domain
      -> tokens -> MDS shards: for_prune, for_ft, eval_merge     llmshearing.data
    HF model -> weights under Composer's names                   llmshearing.utils.composer_to_hf
      -> [pruning run]                                           train.py, llmshearing.training
           batch <- mixture of domains                           llmshearing.datasets
           masked decoder, hard-concrete masks, Lagrangian       llmshearing.models
           step, sparsities, domain weights                      llmshearing.callbacks
      -> masked checkpoint -> prune_and_save                     llmshearing.utils.post_pruning_processing
      -> [continued pre-training]                                the same trainer, no masks
      -> HF model that transformers loads as it is               llmshearing.utils.composer_to_hf

Imports point one way: train -> training -> callbacks -> models, datasets; utils -> models; the files of
pure mathematics (hard_concrete, lagrangian, masks, mixture, loss) import nothing above them.
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
