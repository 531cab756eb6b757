"""A plan in words and tables, for people."""

import math
from collections.abc import Sequence

from llmshearing.planning import estimates
from llmshearing.planning.prepared import Prepared
from llmshearing.planning.sizes import evaluations, planned_steps, training_tokens
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import embedding_parameters, parameters, prunable_parameters
from llmshearing.shapes.units import KINDS, kept_size, row_size

_GIB = 2**30
_SIZES = {
    "d_model": "hidden",
    "n_layers": "layers",
    "n_heads": "heads",
    "n_kv_heads": "KV heads",
    "head_dim": "head size",
    "intermediate_size": "intermediate",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(["", line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
    ]


def describe_model(prepared: Prepared) -> list[str]:
    """Source and target, their parameters, and what the pruning method has to remove."""
    source, aim = prepared.source, prepared.aim
    if source is None:
        return []
    shapes = {"source": source} | ({"target": aim.target} if aim.target else {})
    shapes |= {"teacher": prepared.teacher.arch} if prepared.teacher is not None else {}
    header = ["", "parameters", "without embeddings", *_SIZES.values()]
    lines = ["Model", *table(header, [_shape_row(name, arch) for name, arch in shapes.items()])]
    if prepared.teacher is not None:
        lines.append(f"  The teacher is {prepared.teacher.path}.")
    if aim.target is not None:
        lines += ["", "To remove", *_units_table(source, aim.target, aim.kinds)]
    elif aim.share is not None:
        body = prunable_parameters(aim.kinds, source)
        reach = ", ".join(aim.kinds)
        lines.append(f"  To remove: {aim.share:.1%} of the {body:,} parameters in reach of {reach}.")
    return [*lines, *(f"  {note}" for note in aim.notes)]


def _shape_row(name: str, arch: Architecture) -> list[str]:
    count = parameters(arch)
    body = count - embedding_parameters(arch)
    return [name, f"{count:,}", f"{body:,}", *(str(getattr(arch, size)) for size in _SIZES)]


def _units_table(source: Architecture, target: Architecture, kinds: Sequence[str]) -> list[str]:
    rows = []
    for kind in kinds:
        if kind not in KINDS:
            continue
        units = math.prod(KINDS[kind].shape(source))
        size, kept = row_size(kind, source), kept_size(kind, source, target)
        rows.append([kind, f"{units:,}", str(size), str(kept), f"{1 - kept / size:.1%}"])
    return table(["kind", "units", "of a row", "stay", "removed"], rows)


def describe_run(prepared: Prepared) -> list[str]:
    """Steps, tokens, evaluations and files."""
    config, steps, tokens = prepared.config, planned_steps(prepared.config), training_tokens(prepared.config)
    lines = [
        "Run",
        f"  {steps:,} steps of {config.global_train_batch_size} x {config.max_seq_len:,} tokens: "
        f"{tokens:,} tokens",
    ]
    if evaluations(prepared.config):
        read = sum(prepared.evaluation.values())
        size = f", {read:,} sequences, {read * config.max_seq_len:,} tokens each" if read else ""
        count = evaluations(prepared.config)
        lines.append(f"  {count:,} evaluation{'s' if count != 1 else ''}{size}")
    if config.save_folder and prepared.source is not None:
        size, kept = estimates.checkpoint_bytes(prepared), estimates.checkpoints_kept(prepared)
        lines.append(
            f"  {kept} checkpoint{'s' if kept != 1 else ''} of {size / 1e9:.3g} GB in {config.save_folder}: "
            f"{kept * size / 1e9:.3g} GB of disk"
        )
    return lines


def describe_data(prepared: Prepared) -> list[str]:
    """How long each domain's data lasts at the starting weights."""
    budgets, length = estimates.domain_budgets(prepared), prepared.config.max_seq_len
    if not budgets:
        return []
    header = ["domain", "weight", "sequences", "tokens", "a pass lasts", "passes", "evaluation"]
    rows = [
        [
            b.name or "all",
            f"{b.weight:.4f}",
            f"{b.sequences:,}",
            f"{b.sequences * length:,}",
            "unused" if math.isinf(b.steps_a_pass) else f"{b.steps_a_pass:,.0f} steps",
            f"{b.passes:.2f}",
            f"{b.evaluation:,}",
        ]
        for b in budgets
    ]
    lines = ["Data, at the starting weights", *table(header, rows)]
    short = [b.name for b in budgets if b.passes > 1 and b.name]
    if short:
        lines.append(f"  Read more than once, and more often if their weights rise: {', '.join(short)}.")
    return lines


def describe_memory(prepared: Prepared, devices: Sequence[int]) -> list[str]:
    """Estimated memory of each device for several numbers of devices."""
    if prepared.source is None:
        return []
    header = ["devices", "weights", "gradients", "optimizer", "gathered", "logits"]
    header += [*(["teacher"] if prepared.teacher else []), "activations", "recomputed"]
    header += ["total", "total recomputed"]
    rows = []
    for count in devices:
        m = estimates.memory(prepared, count)
        parts = [m.weights, m.gradients, m.optimizer, m.gathered, m.logits]
        parts += [*([m.teacher] if prepared.teacher else []), m.activations, m.recomputed]
        cells = [*parts, m.total(False), m.total(True)]
        rows.append([str(count), *(f"{cell / _GIB:.1f}" for cell in cells)])
    config, recomputes = prepared.config, _recomputes(prepared)
    microbatches = sorted({estimates.microbatch(config, count) for count in devices})
    batch = " to ".join(str(each) for each in sorted({microbatches[0], microbatches[-1]}))
    return [
        f"Memory of each device in GiB, estimated ({config.precision}, microbatches of {batch} x "
        f"{config.max_seq_len:,} tokens)",
        *table(header, rows),
        "  recomputed: with fsdp_config.activation_checkpointing, which is "
        f"{'on' if recomputes else 'off'} here. Driver and allocator take about",
        f"  {estimates.DRIVER_GIB} GiB more.",
    ]


def _recomputes(prepared: Prepared) -> bool:
    fsdp = prepared.config.fsdp_config
    return fsdp is not None and fsdp.activation_checkpointing


def describe_fit(prepared: Prepared, count: int, name: str, gib: float | None) -> list[str]:
    """A warning where the run does not fit on so many devices, and which part of that is the teacher's.

    Args:
        name: what a device is called.
        gib: its memory; None where that is not known.
    """
    if prepared.source is None or gib is None:
        return []
    memory = estimates.memory(prepared, count)
    needed = memory.total(_recomputes(prepared)) / _GIB + estimates.DRIVER_GIB
    if needed <= gib:
        return []
    taught = memory.teacher / _GIB
    share = f" ({taught:.1f} of them for the teacher)" if taught else ""
    ways = ["more devices", "a smaller device_train_microbatch_size"]
    ways += [] if _recomputes(prepared) else ["fsdp_config.activation_checkpointing"]
    ways += ["a smaller teacher"] if taught else []
    return [
        f"By this estimate the run does not fit on {count} device{'s' if count > 1 else ''}: each needs "
        f"{needed:.1f} GiB{share}, and {name} has {gib:.0f}. Use {', '.join(ways[:-1])} or {ways[-1]}."
    ]


def describe_time(
    prepared: Prepared, devices: Sequence[int], gpu: str, tokens_per_second: float | None
) -> list[str]:
    """Estimated hours for several numbers of devices, by a measured rate or by what others published."""
    if prepared.source is None:
        return []
    length = prepared.config.max_seq_len
    taught = prepared.teacher.arch if prepared.teacher is not None else None
    if tokens_per_second is None:
        rates = {
            name: estimates.tokens_per_second(prepared.source, length, gpu, share, taught)
            for name, share in estimates.UTILIZATION.items()
        }
        title = f"Hours, estimated for {gpu} at the utilization of published runs"
    else:
        rates = {"given": tokens_per_second}
        title = "Hours, at the given rate"
    rows = [
        [str(count), *(f"{estimates.hours(prepared, rate * count):,.1f}" for rate in rates.values())]
        for count in devices
    ]
    each = [f"{name}, {rate:,.0f} tokens/s each" for name, rate in rates.items()]
    return [f"{title}, evaluations included", *table(["devices", *each], rows), *_describe_work(prepared)]


def _describe_work(prepared: Prepared) -> list[str]:
    """How much of the source a pruning run executes."""
    config = prepared.config
    if not prepared.aim.kinds:
        return []
    if config.compile_config is not None:
        return ["  Every unit is executed, closed ones too, because compile_config is set."]
    if config.model.execute == "all":
        return ["  Every unit is executed, closed ones too, because model.execute is all."]
    if (share := estimates.executed_share(prepared)) == 1.0:
        return ["  Closed units are not executed; how many there will be is not known, so none are deducted."]
    return [
        "  Closed units are not executed: by the schedule of the targets the run takes "
        f"{share:.0%} of the source's operations."
    ]


def describe_problems(prepared: Prepared) -> list[str]:
    """Warnings, and the problems, or that there are none."""
    warnings = [f"Warning: {warning}" for warning in prepared.warnings]
    if not prepared.problems:
        return [*warnings, "No problems found."]
    count = len(prepared.problems)
    title = f"{count} problem{'s' if count > 1 else ''}; the run would stop before its first step:"
    return [*warnings, title, *(f"  {i}. {problem}" for i, problem in enumerate(prepared.problems, 1))]


def describe(prepared: Prepared, devices: Sequence[int]) -> str:
    """What a run does and needs: its model, its data and its memory on so many devices."""
    sections = [
        describe_model(prepared),
        describe_run(prepared),
        describe_data(prepared),
        describe_memory(prepared, devices),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)
