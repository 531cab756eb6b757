"""A run with dynamic loading on as many processes as launched it: ROOT of the data, OUT folder.

Every rank writes the rows of its batches, the weights, and the losses of the last evaluation.
"""

import json
import sys
from pathlib import Path
from typing import Any

from composer.utils import dist

from tests.callbacks.loading import callback
from tests.callbacks.test_dynamic_loading_callback import build


def main() -> None:
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    dist.initialize_dist("cpu", timeout=60)
    (out / f"{dist.get_global_rank()}.json").write_text(json.dumps(result(root, dist.get_world_size())))


def result(root: Path, world_size: int) -> dict[str, Any]:
    """What this process saw of the run."""
    trainer, recorder, _ = build(root, callback(), evaluation="eval_odd", world_size=world_size)
    trainer.fit()
    found = {
        "samples": recorder.samples,
        "history": trainer.state.train_dataloader.dataset.proportion_history,
        "losses": {name: float(value) for name, value in trainer.state.eval_metric_values.items()},
    }
    trainer.close()
    return found


if __name__ == "__main__":
    main()
