"""The original's path of the L0 module."""

from llmshearing.pruning.l0 import L0Module

__all__ = ["L0Module"]
