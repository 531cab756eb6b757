"""What a run would do and need, and everything that is wrong with it, before a machine is booked.

Prints source and target shape and parameters, what each mask has to remove, steps, tokens and files, how long
each domain's data lasts, memory of each device, hours, and every problem it finds, with status 1 if there is
one. Needs no GPU, reads no weights, and prints what it can where data or checkpoint are missing.

    llmshearing plan CONFIG.yaml [key=value ...] [--devices 8] [--gpu a100]

Example:

    llmshearing plan configs/llama2/7b.yaml data_local=data/mds --devices 8 --gpu h100-sxm
"""

import argparse
import sys
from collections.abc import Sequence

from composer.callbacks.speed_monitor import GPU_AVAILABLE_FLOPS

from llmshearing import cli
from llmshearing.config.reading import read_what_fits
from llmshearing.planning import text
from llmshearing.planning.estimates import DEVICE_GIB
from llmshearing.planning.prepared import Prepared, prepare


def render(
    prepared: Prepared,
    devices: Sequence[int],
    gpu: str = "a100",
    tokens_per_second: float | None = None,
) -> str:
    """The plan as text.

    Args:
        devices: numbers of devices to show memory and hours for.
        gpu: what Composer's table of peak rates calls the devices.
        tokens_per_second: training rate of one device, instead of an estimate for `gpu`.
    """
    sections = [
        text.describe(prepared, devices).splitlines(),
        text.describe_time(prepared, devices, gpu, tokens_per_second),
        [f"Warning: {each}" for each in text.describe_fit(prepared, devices[-1], gpu, DEVICE_GIB.get(gpu))],
        text.describe_problems(prepared),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... below `limit`, and `limit`."""
    return [2**i for i in range(limit.bit_length()) if 2**i < limit] + [limit]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("llmshearing.utils.plan", __doc__)
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration of the run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="its keys, overridden")
    parser.add_argument("--devices", type=int, default=8, help="largest number of devices (default: 8)")
    known = [name for name, peak in GPU_AVAILABLE_FLOPS.items() if "amp_bf16" in peak]
    parser.add_argument(
        "--gpu", choices=known, default="a100", metavar="NAME", help=f"{', '.join(known)} (default: a100)"
    )
    parser.add_argument(
        "--tokens_per_second",
        type=float,
        metavar="RATE",
        help="training tokens a second of one device, where you know it (default: estimated for --gpu)",
    )
    return parser.parse_intermixed_args(words)


def main() -> None:
    """Print the plan; exit with status 1 when there are problems."""
    arguments = parse(sys.argv[1:])
    if arguments.devices < 1:
        raise ValueError(f"--devices is {arguments.devices}; expected at least 1.")
    if arguments.tokens_per_second is not None and not arguments.tokens_per_second > 0:
        raise ValueError(f"--tokens_per_second is {arguments.tokens_per_second:g}; expected more than 0.")
    config, problems = read_what_fits(arguments.config, arguments.overrides)
    prepared = prepare(config, arguments.devices)
    told = [problem.removeprefix(f"{arguments.config}: ") for problem in problems]
    prepared.problems[:] = problems + [problem for problem in prepared.problems if problem not in told]
    devices = powers_of_two(arguments.devices)
    cli.say(render(prepared, devices, arguments.gpu, arguments.tokens_per_second))
    if prepared.problems:
        sys.exit(1)
