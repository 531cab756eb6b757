"""Turn folders of text into the data of pruning and training: tokenized, split, packed, as MDS shards.

The input folder holds one folder for each domain, with files of one JSON record a line (.jsonl,
.ndjson, .json, also packed as .gz, .zst, .bz2, .xz) or .parquet. The output folder gets eval/DOMAIN,
for_prune/DOMAIN, for_ft/DOMAIN, eval_merge and manifest.json. An interrupted preparation resumes when the
same command is started again.

Example:

    llmshearing prepare --input text --output data --tokenizer path/to/llama \\
      --proportion cc=0.67 github=0.045 book=0.045 stackexchange=0.02 wiki=0.045 arxiv=0.025 c4-rp=0.15
"""

import argparse
import functools
import hashlib
import json
import logging
import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmshearing import cli
from llmshearing.config.key import SUM_TOLERANCE
from llmshearing.data.executors import EXECUTORS, run_stages
from llmshearing.data.job import MAX_BROKEN_SHARE, Job
from llmshearing.data.sources import list_tasks, open_folder, sha256
from llmshearing.data.splits import SPLITS
from llmshearing.data.stages import EVAL_MERGE, pack_tasks
from llmshearing.data.text_tokenizer import TextTokenizer
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.datasets.manifest import MANIFEST, Manifest, read_manifest
from llmshearing.files import occupied

logger = logging.getLogger(__name__)

WORK = ".prepare-"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("llmshearing.data.prepare", __doc__)
    add = parser.add_argument
    add("--input", required=True, help="folder of text, or a URL that fsspec reads (s3://...)")
    add("--output", required=True, help="folder of the result")
    add(
        "--tokenizer",
        required=True,
        help="folder, name on the Hugging Face hub, or SentencePiece .model file",
    )
    add("--seq_length", type=int, default=4096, help="tokens of a sequence (4096)")
    add("--text_field", default="text", help="key or column that holds the text (text)")
    add("--domains", nargs="+", help="folders to read (all)")
    tokens = functools.partial(add, type=cli.quantity)
    tokens("--eval_tokens", default=2_048_000, help="for evaluation, of each domain (2048000)")
    tokens("--prune_tokens", default=419_430_400, help="for pruning, of all domains (419430400; 420M, 0.42B)")
    tokens("--ft_tokens", help="for continued pre-training, of all domains (all that is left; 50B)")
    add("--proportion", nargs="+", help="share of each domain in the last two: cc=0.67 ... (by size)")
    add("--seed", type=int, default=17, help="of the split into evaluation, pruning and training (17)")
    add("--max_broken", type=int, default=100, help="broken records of a file that are skipped (100)")
    add(
        "--max_broken_share",
        type=float,
        default=MAX_BROKEN_SHARE,
        help=f"share of a domain's records that may be broken ({MAX_BROKEN_SHARE})",
    )
    add("--document_separator", help="token behind each document, and none before it (BOS and EOS)")
    add("--bos", help="token before each document, '' for none (the tokenizer's BOS)")
    add("--eos", help="token behind each document, '' for none (the tokenizer's EOS)")
    add(
        "--fix_mistral_regex",
        choices=["auto", "true", "false"],
        default="auto",
        help="replace the faulty pre-tokenizer of Mistral's converted tokenizers (auto: where it is one)",
    )
    add("--workers", type=int, default=os.cpu_count(), help="processes at a time (one for each core)")
    add("--executor", choices=EXECUTORS, default="local", help="where they run (local)")
    add("--slurm_partition", help="with --executor slurm")
    add("--slurm_time", default="24:00:00", help="with --executor slurm: limit of a task (24:00:00)")
    return parser.parse_args()


def build_job(args: argparse.Namespace) -> Job:
    """The checked job that the arguments describe.

    Raises:
        ValueError, FileNotFoundError: for settings that cannot work.
    """
    for name, least in {"seq_length": 2, "seed": 0, "max_broken": 0, "workers": 1}.items():
        value = getattr(args, name)
        if not least <= value < 2**63:
            expected = f"{least} or more" if value < least else "less than 2^63"
            raise ValueError(f"--{name} is {value}: expected {expected}")
    if args.eval_tokens == args.prune_tokens == args.ft_tokens == 0:
        raise ValueError("--eval_tokens, --prune_tokens and --ft_tokens are all 0: nothing would be made")
    output = _at_home(args.output.removeprefix("file://"))
    if "://" in str(args.output).removeprefix("file://"):
        raise ValueError(f"--output is {args.output}: expected a local folder; copy it elsewhere afterwards")
    source = args.input.removeprefix("file://")
    source = source if "://" in source else str(_at_home(source))
    if "://" not in source and output.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(
            f"--output {output} lies in --input {source}, where it would be taken for text the next time: "
            "choose a folder outside"
        )
    if not 0 <= args.max_broken_share <= 1:
        raise ValueError(f"--max_broken_share is {args.max_broken_share}: expected a share from 0 to 1")
    tokenizer = _load_tokenizer(args)
    tasks = tuple(list_tasks(source, args.domains))
    domains = list(dict.fromkeys(task.domain for task in tasks))
    job: dict[str, Any] = {
        "input": source,
        "output": str(output),
        "seq_length": args.seq_length,
        "text_field": args.text_field,
        "eval_tokens": args.eval_tokens,
        "prune_tokens": args.prune_tokens,
        "ft_tokens": args.ft_tokens,
        "proportion": _shares(args.proportion, domains) if args.proportion else None,
        "seed": args.seed,
        "max_broken": args.max_broken,
    }
    identity = [job, [asdict(task) for task in tasks], tokenizer.sha256]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    work = str(output / f"{WORK}{fingerprint}")
    share = args.max_broken_share
    return Job(**job, tokenizer=tokenizer, work=work, tasks=tasks, max_broken_share=share)


def _at_home(name: str) -> Path:
    """A path whose ~ is the user's home folder; ~other is an ordinary name."""
    return Path(name).expanduser() if name.split("/")[0] == "~" else Path(name)


def _load_tokenizer(args: argparse.Namespace) -> TextTokenizer:
    """The tokenizer with the chosen tokens around documents."""
    fix = {"auto": None, "true": True, "false": False}[args.fix_mistral_regex]
    bos, eos = args.bos, args.eos
    if args.document_separator is not None:
        if (bos, eos) != (None, None):
            raise ValueError(
                "--document_separator and --bos or --eos are given: it stands for --bos '' --eos TOKEN, "
                "omit one of them"
            )
        bos, eos = "", args.document_separator
    tokenizer = load_tokenizer(args.tokenizer, fix).between(bos, eos)
    if tokenizer.chat_warning:
        logger.warning(tokenizer.chat_warning)
    return tokenizer


def _shares(words: list[str], domains: list[str]) -> dict[str, float]:
    """The shares given as domain=number, scaled to sum to 1."""
    shares = cli.key_values(words, f"{domains[0]}=0.25")
    for name, share in shares.items():
        if type(share) not in (int, float) or not math.isfinite(share):
            shown = "" if share is None else share
            raise ValueError(f"--proportion {name}={shown}: expected a number such as {name}=0.25")
    if sorted(shares) != sorted(domains):
        raise ValueError(f"--proportion names {', '.join(shares)}, expected each of {', '.join(domains)}")
    for name, share in shares.items():
        if share <= 0:
            raise ValueError(
                f"--proportion {name}={share}: expected a share above 0; --domains leaves a domain out"
            )
    total = sum(shares.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"--proportion sums to {total:.6g}: expected shares that sum to 1")
    return {name: share / total for name, share in shares.items()}


def _is_done(job: Job) -> bool:
    """True if the output is this job's result already, every file of its size.

    Raises:
        FileExistsError: if the output folder holds something else.
        ValueError: if a file of the result is damaged or missing.
    """
    output = Path(job.output)
    manifest = read_manifest(output)
    if manifest is not None:
        if differing := _differences(manifest, job):
            raise FileExistsError(
                f"{output} holds data prepared otherwise ({MANIFEST}): {', '.join(differing)}; choose "
                "another --output or remove it"
            )
        from llmshearing.datasets.sequence_folder import SequenceFolder  # takes seconds, in every worker too

        folders = [output / split / domain for split, domain in pack_tasks(job)]
        merged = [output / EVAL_MERGE] if job.eval_tokens else []
        try:
            for folder in [*folders, *merged]:
                SequenceFolder(folder, job.seq_length)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{output}, which is complete by its {MANIFEST}, is damaged: {error}; remove it, and run the "
                "same command again"
            ) from None
        return True
    taken = [split for split in (*SPLITS, EVAL_MERGE) if (output / split).exists()]
    if taken and not Path(job.work).exists():
        raise FileExistsError(
            f"{output} holds {', '.join(taken)} of other data: choose another --output or remove it"
        )
    return False


def _differences(manifest: Manifest, job: Job) -> list[str]:
    """Descriptions of how a result's tokenizer, settings and sources differ from the job's."""
    found = []
    tokenizer = job.tokenizer.record
    for key, what in {
        "vocabulary_sha256": "another vocabulary",
        "sha256": "other special tokens, merges or rules",
    }.items():
        if manifest.tokenizer.get(key, tokenizer[key]) != tokenizer[key]:
            found.append(f"its tokenizer {manifest.tokenizer['name']} has {what} than {tokenizer['name']}")
            break
    for key, wanted in job.settings.items():
        if (held := manifest.settings.get(key)) != wanted:
            held, wanted = ("not set" if value is None else value for value in (held, wanted))
            found.append(f"its {key} is {held}, not {wanted}")
    before = {file["name"]: file["bytes"] for files in manifest.sources.values() for file in files}
    now = {file.name: file.size for task in job.tasks for file in task.files}
    changed = dict(before.items() ^ now.items()) or _rewritten(manifest, job)
    if changed := sorted(changed):
        found.append(f"{len(changed)} of its sources, such as {changed[0]}, are new, changed or gone")
    return found


def _rewritten(manifest: Manifest, job: Job) -> list[str]:
    """Local sources that were written after the manifest and do not match their hash in it."""
    made = (Path(job.output) / MANIFEST).stat().st_mtime
    folder = open_folder(job.input)
    return [
        file["name"]
        for files in manifest.sources.values()
        for file in files
        if (folder.info(file["name"]).get("mtime") or 0) > made
        and sha256(folder, file["name"]) != file["sha256"]
    ]


def report(manifest: Manifest, output: str) -> None:
    """Print what was made."""
    for warning in manifest.settings["warnings"]:
        logger.warning(warning)
    cli.say(
        f"{'domain':<16}{'documents':>12}{'broken':>8}{'tokens':>16}" + "".join(f"{s:>12}" for s in SPLITS)
    )
    for name, entry in manifest.domains.items():
        sequences = "".join(f"{entry['splits'].get(s, {}).get('sequences', 0):>12,}" for s in SPLITS)
        cli.say(f"{name:<16}{entry['documents']:>12,}{entry['broken']:>8,}{entry['tokens']:>16,}{sequences}")
    cli.say(f"(each document between {manifest.around})")
    cli.say(f"(splits in sequences of {manifest.seq_length} tokens, {manifest.dtype}) {output}/{MANIFEST}")


def main() -> None:
    """The command."""
    args = parse_arguments()
    job = build_job(args)
    try:
        with occupied(Path(job.output), "preparation", "--output"):
            if not _is_done(job):
                run_stages(job, args.executor, args.workers, args.slurm_partition, args.slurm_time)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("start the same command again to resume") from error
    manifest = read_manifest(job.output)
    if manifest is None:
        cli.say(f"submitted; {job.output}/{MANIFEST} appears when everything is complete")
    else:
        for work in Path(job.output).glob(f"{WORK}*"):  # of interrupted runs with other settings too
            shutil.rmtree(work, ignore_errors=True)
        report(manifest, job.output)


if __name__ == "__main__":
    cli.run(main)
