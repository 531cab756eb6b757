"""A checkpoint as a stranger could make it, for tests of what is believed of it."""

import json

from llmshearing.checkpoints import hf_files
from llmshearing.checkpoints.hf_files import from_hf
from llmshearing.checkpoints.writing import write_checkpoint
from twins import CONFIGS, make

NAME = "llama grouped"


def checkpoint(path, **record):
    """A checkpoint of a small model whose record has these values."""
    hf = make(CONFIGS[NAME])
    weights, _ = from_hf(hf_files.HFModel("twin", hf.config.to_dict(), dict(hf.state_dict()), {}))
    files = {"config.json": json.dumps(hf.config.to_dict())}
    write_checkpoint(path, weights, {"hf_files": files, "config": None, **record})
    return path


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
