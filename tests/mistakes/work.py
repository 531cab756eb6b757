"""Mistakes in preparing data, planning and reporting, and what goes wrong while something runs."""

import gzip
from typing import Any

from mistakes.case import CONVERT, FROM_WEIGHTS, PREPARE, PRUNE, TRAIN, Case
from spoiling import (
    beside,
    converted,
    hf_folder,
    small_disk,
    text,
    trained,
    weights,
)

SETTINGS = "--tokenizer {t} --seq_length 32 --eval_tokens 64 --workers 1"
PREPARED = (PREPARE, f"--input {{f}}/text --output {{f}}/out {SETTINGS}")
REPORT = ("llmshearing.report.__main__", "{f}/run")
FEW_BROKEN = (PREPARE, f"{PREPARED[1]} --max_broken 3")
BROKEN = b'{"text": "w1"}\n' + b"{broken\n" * 5


def conversion_to_full_disk(
    name: str, module: str, command: str, output: str, before: Any, size: str
) -> Case:
    """A command that writes `output`, its last argument, to a disk of so many bytes."""
    said = ("Writing", f"{output} failed", "bytes left: make room")
    return Case(
        f"full disk, {name}", module, f"{command} {{f}}/{output}", said, small_disk("disk", before, size=size)
    )


CASES: dict[str, list[Case]] = {
    "Preparing data": [
        Case("no text folder", *PREPARED, ("text",)),
        Case("no documents", *PREPARED, ("book", "no documents"), text("0.jsonl", b'{"text": ""}\n')),
        Case("broken lines", *FEW_BROKEN, ("0.jsonl", "broken"), text("0.jsonl", BROKEN)),
        Case(
            "text file cut off", *PREPARED, ("cut off",), text("0.jsonl.gz", gzip.compress(BROKEN * 99)[:-9])
        ),
        Case(
            "no tokenizer",
            PREPARE,
            PREPARED[1].replace("{t}", "{f}/none"),
            ("none",),
            text("0.jsonl", BROKEN[:15]),
        ),
        Case(
            "text that is no UTF-8",
            *FEW_BROKEN,
            ("0.jsonl", "more than 3 broken records"),
            text("0.jsonl", b'{"text": "\xff"}\n' * 5),
        ),
        Case(
            "domain of one document",
            *PREPARED,
            ("domain book", "in 1 different documents", "too few for a sequence of 32"),
            text("0.jsonl", b'{"text": "' + b"w1 " * 999 + b'"}\n'),
        ),
    ],
    "Plan and report": [
        Case("plan of nothing", "llmshearing.utils.plan", "{f}/none.yaml", ("none.yaml does not exist",)),
        Case("plan for no device", "llmshearing.utils.plan", "{y} --devices 0", ("--devices is 0",)),
        Case(
            "report of no run", "llmshearing.report.__main__", "{f}", ("expected the save_folder of a run",)
        ),
        Case(
            "report with damaged masks",
            *REPORT,
            ("run/zs_s4.safetensors cannot be read as masks", "delete it: the report can do without it"),
            trained(beside("zs_s4.safetensors", lambda path: path.write_bytes(b"\x40\x00"))),
        ),
        Case(
            "report of a line that is a list",
            *REPORT,
            ("run/metrics.jsonl, line 1: found [1,2]", "expected numbers such as", "remove the line"),
            trained(beside("metrics.jsonl", lambda path: path.write_text("[1,2]\n"))),
        ),
        Case(
            "report of a binary line",
            *REPORT,
            ("run/metrics.jsonl, line 1: not JSON", "expected numbers such as", "remove the line"),
            trained(beside("metrics.jsonl", lambda path: path.write_bytes(b"\xff\xfe"))),
        ),
        Case(
            "report over another file",
            REPORT[0],
            f"{REPORT[1]} --out {{f}}/run/config.yaml",
            ("config.yaml exists and is not a report",),
            trained(),
        ),
        Case(
            "report to a folder",
            REPORT[0],
            f"{REPORT[1]} --out {{f}}/data",
            ("data is a folder", "expected a file to write, such as", "data/report.html"),
            trained(),
        ),
    ],
    "While it runs": [
        Case(
            "a weight that is no number",
            *FROM_WEIGHTS,
            ("Step 0 is not finite: loss nan", "Its samples:", "max_skipped_steps=1"),
            weights(lambda w: w["model.transformer.ln_f.weight"].fill_(float("nan"))),
            "run",
        ),
        Case(
            "full disk, training",
            TRAIN,
            "{y} save_interval=1ba",
            ("The checkpoint of step", "could not be saved", "bytes left: make room"),
            small_disk("run", size="800k"),
            "run",
        ),
        conversion_to_full_disk(
            "pruning", PRUNE, "prune_and_save_model {f}/run/latest-rank0.pt", "disk/o.pt", trained(), "8k"
        ),
        conversion_to_full_disk(
            "HF to Composer", CONVERT, "save_hf_to_composer {f}/hf", "disk/o.pt", hf_folder(), "40k"
        ),
        conversion_to_full_disk(
            "Composer to HF", CONVERT, "save_composer_to_hf {f}/m.pt", "disk/out", converted, "40k"
        ),
        Case(
            "full disk, preparing",
            PREPARE,
            PREPARED[1].replace("{f}/out", "{f}/disk/out"),
            ("No space left on device for", "make room and run the same command again"),
            small_disk("disk", text("0.jsonl", b"\n".join([b'{"text": "w1 w2"}'] * 20000)), size="48k"),
            "disk",
        ),
    ],
}
