"""Collect the quickstart's text: what every Python installation holds, as four domains of jsonl.

    python scripts/quickstart_corpus.py OUTPUT_FOLDER [--installed]

With `--installed`, code and docstrings also come from the installed distributions, three times as much text
in all. Writes `text/{code,docs,readme,legal}/*.jsonl` with a field `text`, and `tokenizer/`, a byte-level BPE
tokenizer of 4,096 tokens trained on it.
"""

import argparse
import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MEGABYTES = {"code": 3, "docs": 2, "readme": 2, "legal": 2}
MEGABYTES_INSTALLED = {"code": 14, "docs": 8, "readme": 3, "legal": 3}
MODULES = 2500  # of the installed distributions
VOCABULARY = 4096
LICENCE_NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")


def main(output: Path, installed: bool = False) -> None:
    """Write corpus and tokenizer below `output`."""
    modules = library_files() + (installed_modules() if installed else [])
    megabytes = MEGABYTES_INSTALLED if installed else MEGABYTES
    sources = {"code": code(modules), "docs": docs(modules), "readme": readmes(), "legal": licences()}
    texts = {}
    for domain, documents in sources.items():
        texts[domain] = sample(documents, megabytes[domain] * 10**6)
        folder = output / "text" / domain
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "part.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts[domain])
        size = sum(map(len, texts[domain])) / 1e6
        sys.stdout.write(f"  {domain:8}{len(texts[domain]):6,} documents {size:6.1f} million characters\n")
    train_tokenizer(texts).save_pretrained(output / "tokenizer")


def library_files() -> list[Path]:
    """The standard library's sources, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}
    return sorted(path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts))


def installed_modules() -> list[Path]:
    """Some sources of the installed distributions, without their tests."""
    files = {path for path in distribution_files() if path.suffix == ".py"}
    wanted = sorted(path for path in files if not {"test", "tests"} & set(path.parts) and path.is_file())
    return random.Random(0).sample(wanted, min(MODULES, len(wanted)))


def code(modules: list[Path]) -> Iterator[str]:
    """The text of modules."""
    for path in modules:
        yield path.read_text(encoding="utf-8", errors="replace")


def docs(modules: list[Path]) -> Iterator[str]:
    """The language reference that `pydoc` shows, and the docstrings of every module."""
    yield from topics.values()
    for path in modules:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        except SyntaxError:
            continue  # sample files of other syntax versions are part of some installations
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        yield "\n\n".join(text for text in found if text)


def readmes() -> Iterator[str]:
    """Long descriptions of the installed distributions."""
    for distribution in metadata.distributions():
        yield str(distribution.metadata.get_payload() or distribution.metadata.get("Description", ""))


def licences() -> Iterator[str]:
    """Licence texts of Python and of the installed distributions."""
    for path in [Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt", *distribution_files()]:
        if path.name.upper().startswith(LICENCE_NAMES) and path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def distribution_files() -> Iterator[Path]:
    """Every file that an installed distribution lists."""
    for distribution in metadata.distributions():
        for file in distribution.files or []:
            yield Path(str(distribution.locate_file(file)))


def sample(documents: Iterator[str], characters: int) -> list[str]:
    """Distinct documents of some length, in an order fixed by their text, up to `characters` in all."""
    distinct = sorted({text.strip() for text in documents if len(text.strip()) > 200})
    random.Random(0).shuffle(distinct)
    kept, total = [], 0
    for text in distinct:
        if total >= characters:
            break
        kept.append(text)
        total += len(text)
    return kept


def train_tokenizer(texts: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the corpus with `<s>` and `</s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for domain in texts.values() for text in domain), trainer)
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=names,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", metavar="OUTPUT_FOLDER", type=Path)
    parser.add_argument("--installed", action="store_true", help="also from the installed distributions")
    main(**vars(parser.parse_args()))
