"""Comparison of two models' logits: `llmshearing.commands.equality` by its earlier name."""

from llmshearing.commands.equality import conclude, differences, lengths_up_to, load_ours, load_theirs

__all__ = ["conclude", "differences", "lengths_up_to", "load_ours", "load_theirs"]
