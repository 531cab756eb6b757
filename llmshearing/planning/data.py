"""The data of a run, opened: each folder once, for the counts, the checks, the mixture and the loaders."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmshearing.config import Config, LoaderConfig
from llmshearing.config.checks import domain_problems
from llmshearing.data.text_tokenizer import check_tokenizer, is_made_with
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.datasets.load_text_dataloader import build_mixture, evaluated_sequences
from llmshearing.datasets.manifest import Manifest
from llmshearing.datasets.mixture import Mixture, check_exhausted
from llmshearing.datasets.opening import DataSection, check_section, dataset_manifest
from llmshearing.datasets.ranks import Ranks
from llmshearing.datasets.sequence_folder import DomainSequences, SequenceFolder
from llmshearing.datasets.streaming_dataset import TextStreamingDataset
from llmshearing.planning.findings import Findings

Folders = dict[str, SequenceFolder | DomainSequences]


@dataclass(frozen=True)
class OpenedData:
    """What was opened; of what could not be, nothing."""

    manifest: Manifest | None = None
    """That of the training data; None also for data of the original, which has none."""
    folders: Folders = field(default_factory=dict)
    """The training sequences of each domain; of the split under "" where there are no domains."""
    mixture: Mixture | None = None
    """In which order the sequences of all folders are trained on, from the beginning."""
    evaluation: TextStreamingDataset | None = None
    """The evaluation data."""
    evaluated: dict[str, int] = field(default_factory=dict)
    """Sequences of each domain that one evaluation reads, over all devices."""


def open_data(
    config: Config, vocab_size: int | None, files: Mapping[str, str | bytes], ranks: Ranks, found: Findings
) -> OpenedData:
    """Open what `train_loader` and `eval_loader` name, and note what is wrong with it.

    Args:
        vocab_size: the model's, None where it is not known.
        files: HF files of the model that the run starts from.
        ranks: this process among all of the run.
    """
    with found.collecting():
        check_exhausted(config.train_loader.dataset.exhausted)
    manifests = _read_manifests(config, found)
    _check_tokenizers(config, manifests, files, found)
    sections = {}
    for name, manifest in manifests.items():
        with found.collecting():
            sections[name] = DataSection(_loaders(config)[name], name, manifest, vocab_size, ranks)
    folders = _open_domains(config, sections.get("train_loader"), found)
    evaluation = _open_evaluation(config, sections.get("eval_loader"), found)
    return OpenedData(
        manifests.get("train_loader"),
        folders,
        _mixture(config, folders, found),
        evaluation,
        _count_evaluated(config, evaluation, ranks.world_size, found),
    )


def _loaders(config: Config) -> dict[str, LoaderConfig]:
    """The sections that name data, by their names."""
    both = {"train_loader": config.train_loader, "eval_loader": config.eval_loader}
    return {name: loader for name, loader in both.items() if loader is not None}


def _read_manifests(config: Config, found: Findings) -> dict[str, Manifest | None]:
    """The manifest of each section whose data is there, read once where sections share a folder."""
    manifests: dict[str, Manifest | None] = {}
    read: dict[tuple[str, str | None], Manifest | None] = {}
    for name, loader in _loaders(config).items():
        cfg = loader.dataset
        if not cfg.remote and not Path(cfg.local).is_dir():
            found.add(
                [
                    f"There is no data folder {cfg.local}; set data_local to the folder that "
                    "`llmshearing prepare` wrote."
                ]
            )
            continue
        with found.collecting():
            check_section(loader, name)
            place = (cfg.local, cfg.remote)
            if place not in read:
                read[place] = dataset_manifest(cfg)
            manifests[name] = read[place]
    return manifests


# ------------------------------------------------------------------ tokenizers


def _check_tokenizers(
    config: Config,
    manifests: Mapping[str, Manifest | None],
    files: Mapping[str, str | bytes],
    found: Findings,
) -> None:
    """A tokenizer that the configuration names must be the data's; each is loaded once.

    One that the source carries is warned about only: it may differ in tokens that the data does not have.
    """
    name = config.tokenizer_name
    is_folder = bool(name) and Path(name or "").is_dir()
    if name and not is_folder:
        found.warnings.append(
            f"tokenizer_name is {name}, which is not a folder here: it is not compared with the data's, and "
            "does not travel with the model."
        )
    wanted = {name: ["train_loader"]} if name and is_folder else {}
    for section, loader in _loaders(config).items():
        path = loader.dataset.tokenizer_name
        if path is not None and Path(path).exists():
            wanted.setdefault(path, []).append(section)
    for path, sections in wanted.items():
        held = {id(m): m for s in sections if (m := manifests.get(s)) is not None}
        if not held:
            continue
        with found.collecting():
            tokenizer = load_tokenizer(path)
            for manifest in held.values():
                with found.collecting():
                    check_tokenizer(manifest, tokenizer)
    _compare_carried(config, manifests.get("train_loader"), files, found)


def _compare_carried(
    config: Config, manifest: Manifest | None, files: Mapping[str, str | bytes], found: Findings
) -> None:
    carried = files.get("tokenizer.json")
    if manifest is None or not isinstance(carried, str):
        return
    own = Path(config.tokenizer_name or "", "tokenizer.json")
    if config.tokenizer_name and own.is_file() and own.read_text("utf-8") == carried:
        return  # compared already
    if not is_made_with(manifest, carried):
        found.warnings.append(
            f"The data was made with tokenizer {manifest.tokenizer['name']}; {config.model.path} carries "
            "one with another vocabulary: where they differ, the model reads nonsense."
        )


# -------------------------------------------------------------------- training


def _open_domains(config: Config, section: DataSection | None, found: Findings) -> Folders:
    folders: Folders = {}
    domains = config.data_loading
    names = [""] if domains.set_names is None else domains.set_names
    for name in dict.fromkeys(names) if section is not None else ():
        with found.collecting():
            folders[name] = section.open_domain(name, domains.dynamic)  # type: ignore[union-attr]
    return folders


def _mixture(config: Config, folders: Folders, found: Findings) -> Mixture | None:
    """The mixture of all domains; None where one is missing, or what is wrong is noted already."""
    domains = config.data_loading
    if list(folders) != (domains.set_names or [""]) or domain_problems(domains):
        return None
    with found.collecting():
        cfg = config.train_loader.dataset
        return build_mixture(cfg, list(folders.values()), domains.set_names, domains.proportion)
    return None


# ------------------------------------------------------------------ evaluation


def _open_evaluation(
    config: Config, section: DataSection | None, found: Findings
) -> TextStreamingDataset | None:
    if section is None:
        return None
    with found.collecting():
        return TextStreamingDataset(section.open(), config.data_loading.set_names)
    return None


def _count_evaluated(
    config: Config, dataset: TextStreamingDataset | None, devices: int, found: Findings
) -> dict[str, int]:
    """Sequences of each domain that an evaluation reads."""
    loader, batch = config.eval_loader, config.device_eval_batch_size
    if dataset is None or loader is None:
        return {}
    read = evaluated_sequences(len(dataset), batch, devices, config.eval_subset_num_batches, loader.drop_last)
    if not read:
        found.add([_no_whole_batch(len(dataset), batch, devices)])
        return {}
    if dataset.set_names is None:
        return {"": read}
    counts: dict[str, int] = {}
    with found.collecting():
        counts = dataset.samples_per_domain(read)
        found.add(_missing_domains(config, counts))
    return counts


def _no_whole_batch(sequences: int, batch: int, devices: int) -> str:
    smaller = sequences // devices
    advice = f"set device_eval_batch_size to at most {smaller}, or " if smaller else ""
    return (
        f"eval_loader.drop_last is true, but the evaluation data has {sequences} sequences for {devices} "
        f"device{'s' if devices > 1 else ''} with batches of {batch}: none is whole, so nothing would be "
        f"evaluated; {advice}set eval_loader.drop_last=false."
    )


def _missing_domains(config: Config, counts: dict[str, int]) -> list[str]:
    domains = config.data_loading
    missing = [name for name, count in counts.items() if not count]
    if not missing or not domains.updates:
        return []
    return [
        f"The evaluation data has no sequences of {', '.join(missing)}, which the update of domain weights "
        "needs: prepare eval_merge with every domain, raise eval_subset_num_batches, or set "
        "callbacks.data_loading.update_type=constant."
    ]
