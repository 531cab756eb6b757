"""Run by another Python: load every model folder below FOLDER with transformers alone and save its logits."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
ids, found = load_file(folder / "ids.safetensors")["ids"], {}
for place in sorted(path for path in folder.iterdir() if path.is_dir()):
    model, loading = AutoModelForCausalLM.from_pretrained(
        place, output_loading_info=True, attn_implementation="eager"
    )  # transformers 4 leaves Gemma 2's soft caps out of its other implementations
    wrong = {kind: sorted(names) for kind, names in loading.items() if kind != "error_msgs" and names}
    assert not wrong, f"{place.name}: {wrong}"
    with torch.no_grad():
        found[place.name] = torch.nn.Module.float(model).eval()(ids).logits.contiguous()
save_file(found, folder / "logits.safetensors")
