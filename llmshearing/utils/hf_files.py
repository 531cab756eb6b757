"""HF models on disk: `llmshearing.checkpoints.hf_files` by its earlier name, the very same module."""

import sys

from llmshearing.checkpoints import hf_files

sys.modules[__name__] = hf_files
