"""Modules and names that the original's users, and those of this project's first version, import."""

import importlib

import pytest

NAMES = {
    "llmshearing.models.l0_module": ["L0Module"],
    "llmshearing.models.composer_llama": ["ComposerMosaicLlama"],
    "llmshearing.models.composer_pythia": ["ComposerMosaicPythia"],
    "llmshearing.callbacks.pruning_callback": ["PruningCallback"],
    "llmshearing.callbacks.dynamic_loading_callback": ["DynamicLoadingCallback"],
    "llmshearing.datasets.streaming_dataset": ["TextDynamicStreamingDataset", "TextStreamingDataset"],
    "llmshearing.datasets.load_text_dataloader": ["build_text_dataloader"],
    "llmshearing.utils.composer_to_hf": ["save_hf_to_composer", "save_composer_to_hf"],
    "llmshearing.utils.post_pruning_processing": ["prune_and_save_model"],
    "llmshearing.utils.equality": ["load_ours", "differences"],
    "llmshearing.utils.checkpoint": ["read_checkpoint", "write_checkpoint", "load_weights"],
    "llmshearing.utils.hf_files": ["read_hf", "write_hf"],
}


@pytest.mark.parametrize(("module", "names"), NAMES.items())
def test_name_is_where_it_was(module: str, names: list[str]) -> None:
    loaded = importlib.import_module(module)
    assert all(hasattr(loaded, name) for name in names)


def test_an_earlier_module_is_the_module_itself() -> None:
    assert importlib.import_module("llmshearing.utils.hf_files") is importlib.import_module(
        "llmshearing.checkpoints.hf_files"
    )
