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
