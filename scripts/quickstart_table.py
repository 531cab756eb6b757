"""The quickstart's closing table, and a few lines from the model it made.

python scripts/quickstart_table.py RUNS_FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

RUNS = {"source": "source", "just pruned": "prune", "continued": "continue", "scratch control": "scratch"}
DOMAINS = ("code", "docs", "readme", "legal")
PROMPTS = ("def __init__(self", "Permission is hereby granted")


def main(folder: Path) -> None:
    """Print the table, generations and what to do next."""
    model = AutoModelForCausalLM.from_pretrained(folder / "hf")
    source = AutoModelForCausalLM.from_pretrained(folder / "source-hf")
    sizes = {"source": parameters(source)}
    rows = [row(name, folder / run, sizes.get(name, parameters(model))) for name, run in RUNS.items()]
    say(
        f"{'':16}{'parameters':>12}{'body':>12}{'tokens':>10}"
        + "".join(f"{d:>9}" for d in (*DOMAINS, "mean"))
    )
    for name, (whole, body), tokens, losses in rows:
        mean = sum(losses) / len(losses)
        say(f"{name:16}{whole:12,}{body:12,}{tokens:10,}" + "".join(f"{x:9.3f}" for x in (*losses, mean)))
    say("\nLoss of the evaluation in nats per token, by domain; body: parameters without embeddings.")
    say("Tokens are those of a run; `continued` also rests on the source's and the pruning run's.\n")
    say(sizes_and_speed(folder))
    generate(model, folder / "hf")
    continued, scratch = (sum(rows[i][3]) / len(DOMAINS) for i in (2, 3))
    verdict = "beats" if continued < scratch else "DOES NOT BEAT"
    say(
        f"\nThe pruned model {verdict} the control by {abs(scratch - continued):.3f} nats per token at "
        "equal re-training tokens\n"
        "(those of pruning and of continued pre-training; the source's own are not counted)."
    )
    say(next_steps(folder))
    if continued >= scratch:
        sys.exit(1)


def sizes_and_speed(folder: Path) -> str:
    """A line each about source and result: their sizes, and the speed that `llmshearing speed` measured."""
    source, result = json.loads((folder / "continue" / "speed.json").read_text())["models"]
    lines = []
    for name, each in (("source", source), ("result", result)):
        ((setting, speed),) = each["speeds"].items()
        first = source["speeds"][setting]
        lines.append(
            f"{name}: {each['parameters']:,} parameters, {speed['weights'] / 1e6:.1f} MB; reads "
            f"{speed['prefill']:,.0f} tokens/s ({speed['prefill'] / first['prefill']:.2f}x), writes "
            f"{speed['decode']:,.0f} ({speed['decode'] / first['decode']:.2f}x) at batch x context {setting}"
        )
    return "\n".join(lines) + "\n"


def next_steps(folder: Path) -> str:
    """Where the results are and what to do with them."""
    return (
        f"The Hugging Face model: {folder / 'hf'}\n"
        f"The report of the runs, for a browser: {folder / 'report.html'}\n"
        "To prune your own model: source .venv/bin/activate, then README.md, 'Prune your own model'."
    )


def row(name: str, run: Path, size: tuple[int, int]) -> tuple[str, tuple[int, int], int, list[float]]:
    """Name, parameters, training tokens and the last evaluation's loss by domain of a run's folder."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "metrics/eval/LanguageCrossEntropy" in line][-1]
    config = OmegaConf.load(run / "config.yaml")
    tokens = last["step"] * config.global_train_batch_size * config.max_seq_len
    return name, size, tokens, [last[f"metrics/eval/{domain}_LanguageCrossEntropy"] for domain in DOMAINS]


def parameters(model: torch.nn.Module) -> tuple[int, int]:
    """All parameters, and those outside the input and output embeddings."""
    embeddings = sum(
        p.numel() for name, p in model.named_parameters() if "embed_tokens" in name or "lm_head" in name
    )
    whole = sum(p.numel() for p in model.parameters())
    return whole, whole - embeddings


def generate(model: torch.nn.Module, folder: Path) -> None:
    """Continue a prompt of two domains, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        tokens = model.generate(
            **inputs, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        say(f"> {tokenizer.decode(tokens[0], skip_special_tokens=True)!r}")


def say(text: str) -> None:
    """Print a line of the report."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
