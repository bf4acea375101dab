"""Whether the data fits the model: the checks made before training, and the report of --check_dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.config import Config, DatasetConfig, DatasetUse
from gpt_mesh.data.corpus import Corpus, data_files, load_indexes
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.manifest import manifests_of, unlike_manifests
from gpt_mesh.data.marks import unmarked
from gpt_mesh.data.special_tokens import end_of_text
from gpt_mesh.data.tfrecords import RecordIndex
from gpt_mesh.data.tokenizer_check import tokenizer_misfits, wrong_tokenizer
from gpt_mesh.errors import InputError, shown

_SAMPLES = 3
_SAMPLE_TOKENS = 48
_BAR = 40  # characters of the histogram's longest bar


def known_padding_id(dataset: DatasetConfig) -> int | None:
    """The dataset config's padding_id, else its tokenizer's, else None."""
    if dataset.padding_id is not None or not dataset.tokenizer_path:
        return dataset.padding_id
    return load_encoder(dataset.resolve(dataset.tokenizer_path), dataset.tokenizer_is_pretrained).padding_id


def as_sampled(use: DatasetUse, corpus: Corpus) -> Corpus:
    """The documents as samples are made of them. Raises InputError when a tokenizer that must be known is not there."""
    if use.sampling_mode == "chunks" or not any(corpus.dtypes):
        return corpus
    if use.whole_documents:  # they end with what the model is to end its answers with
        return corpus.without_empty()
    eos_id = end_of_text(use.dataset)
    return (corpus if eos_id is None else corpus.without_final(eos_id)).without_empty()


def misfits(config: Config, use: DatasetUse, corpus: Corpus, *, held_out: bool = False) -> Iterator[str]:
    """What keeps this data from being used as the config says, one line each.

    held_out: the data is evaluated, not trained on.
    """
    if not len(corpus):
        yield f"{corpus.paths[0]}: holds no record, nor does any other file of dataset {use.id}; write the data again"
        return
    yield from unlike_manifests(corpus.sizes_of_files())
    yield from _kind_misfits(config, use, corpus)
    yield from _id_misfits(config, use, corpus)
    if config.training.learns_pairs:
        return
    if use.sampling_mode == "chunks":
        yield from _chunk_misfits(config, use, corpus)
        return
    if use.whole_documents:
        yield from _size_misfits(config, use, corpus, held_out)
        return
    if not held_out:
        yield from _stitch_misfits(config, use, corpus)
    if held_out or use.stitch > 1:
        yield from _separator_misfits(config, use, required=not held_out)


def record_kinds(corpus: Corpus) -> set[str]:
    """What the records of a corpus are, as far as their manifests tell (`--records`)."""
    return {str(manifest.settings.get("records", "text")) for manifest in manifests_of(corpus.paths)}


def _kind_misfits(config: Config, use: DatasetUse, corpus: Corpus) -> Iterator[str]:
    """Preferences are for objectives that learn from them, and those for nothing else."""
    objective, source = config.training.objective, config.source
    for kind in sorted(record_kinds(corpus)):
        wanted = {"preference": ("dpo", "kto", "reward"), "kto": ("kto",)}.get(kind)
        if wanted is not None and objective not in wanted:
            yield (
                f"{use.dataset.source}: holds records of kind {kind}, which objective = {objective} ({source}) does "
                f"not learn from; set objective to {' or '.join(wanted)}"
            )
        elif wanted is None and config.training.learns_pairs:
            yield (
                f"{use.dataset.source}: holds records of kind {kind}, and objective = {objective} ({source}) learns "
                "from preferences; write the data with --records preference or kto"
            )


def _id_misfits(config: Config, use: DatasetUse, corpus: Corpus) -> Iterator[str]:
    n_vocab = config.model.n_vocab
    marked = config.training.objective == "sft" or config.training.learns_pairs
    lowest = -n_vocab if marked else 0
    for path, (least, greatest) in zip(corpus.paths, corpus.id_ranges, strict=True):
        if least < lowest:
            yield f"{shown(path)}: holds token id {least}; ids are {lowest} to n_vocab - 1: write the file again"
        if greatest >= n_vocab:
            yield (
                f"{shown(path)}: holds token id {greatest}, and n_vocab of {config.source} is {n_vocab}; "
                f"set n_vocab to at least {greatest + 1}, or encode the data with a smaller tokenizer"
            )


def _chunk_misfits(config: Config, use: DatasetUse, corpus: Corpus) -> Iterator[str]:
    width = config.model.n_ctx + 1
    wrong = np.flatnonzero(corpus.lengths != width)
    if wrong.size:
        yield (
            f"{corpus.where(int(wrong[0]))}: holds {corpus.lengths[wrong[0]]} tokens, and sampling mode chunks of "
            f"dataset {use.id} needs n_ctx + 1 = {width} in every record ({wrong.size:,} of {len(corpus):,} differ); "
            f"write chunks of {width} tokens, or use documents_random in {config.source}"
        )


def _size_misfits(config: Config, use: DatasetUse, corpus: Corpus, held_out: bool) -> Iterator[str]:
    width = config.model.n_ctx + 1
    longest = int(corpus.lengths.argmax())
    if corpus.lengths[longest] > width and not held_out:
        yield (
            f"{corpus.where(longest)}: is {corpus.lengths[longest]} tokens long, and sampling mode {use.sampling_mode} "
            f"of dataset {use.id} keeps documents whole, which n_ctx + 1 = {width} ({config.source}) has no room for; "
            f"write the data again with --maximum_size {width}, or raise n_ctx"
        )
    if not corpus.lengths.all():
        yield f"{corpus.where(int(corpus.lengths.argmin()))}: holds no token; write the data again"


def sufficient_stitch(corpus: Corpus, width: int) -> int | None:
    """The least `stitch` whose shortest possible joined text reaches `width` tokens; None when no number does."""
    shortest = int(corpus.lengths.min())
    return -(-width // shortest) if shortest else None


def _stitch_misfits(config: Config, use: DatasetUse, corpus: Corpus) -> Iterator[str]:
    width = config.model.n_ctx + 1
    enough = sufficient_stitch(corpus, width)
    if enough is not None and use.stitch >= enough:
        return
    record = int(corpus.lengths.argmin())
    minimum = -(-width // use.stitch)
    remedy = f"write the data again with --minimum_size {minimum}"
    if enough is not None:
        remedy = f"set stitch to {enough}, or {remedy}"
    yield (
        f"{corpus.where(record)}: is {corpus.lengths[record]} tokens long, the shortest of dataset {use.id}; stitch "
        f"{use.stitch} of them do not reach n_ctx + 1 = {width} ({config.source}): {remedy}"
    )


def _separator_misfits(config: Config, use: DatasetUse, required: bool) -> Iterator[str]:
    dataset, n_vocab = use.dataset, config.model.n_vocab
    try:
        eos_id = end_of_text(dataset)
    except InputError as error:
        yield f"{dataset.source}: eos_id is not set, and tokenizer_path gives none ({error}); set eos_id"
        return
    if eos_id is None and required:
        yield (
            f"{dataset.source}: eos_id is not known, and stitch {use.stitch} puts it between documents; set eos_id, or "
            "tokenizer_path to a tokenizer that has <|endoftext|>"
        )
    elif eos_id is not None and not 0 <= eos_id < n_vocab:
        yield f"{dataset.source}: eos_id {eos_id} is not below n_vocab {n_vocab} of {config.source}; correct either"


@dataclass
class DatasetReport:
    """What was found in one dataset's `path` or `eval_path`."""

    title: str
    facts: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sampled: bool = False


@dataclass
class Report:
    """What was found in the data of a config. `ok` when training can start on it.

    mix: what is wrong with the datasets together. sampled: not every file was looked at.
    """

    datasets: list[DatasetReport]
    mix: list[str] = field(default_factory=list)
    sampled: bool = False

    @property
    def problems(self) -> list[str]:
        """One line each, naming file, key, value and remedy."""
        return [problem for dataset in self.datasets for problem in dataset.problems] + self.mix

    @property
    def ok(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        """The whole report, to be printed."""
        lines: list[str] = []
        for dataset in self.datasets:
            lines += [dataset.title] + [f"  {fact}" for fact in dataset.facts]
            lines += [f"  sample: {sample}" for sample in dataset.samples]
            lines += [f"  PROBLEM: {problem}" for problem in dataset.problems]
        lines += [f"PROBLEM: {problem}" for problem in self.mix]
        fits = "the files looked at fit the model; others were not read" if self.sampled else "the data fits the model"
        lines.append(fits if self.ok else f"problems: {len(self.problems)}")
        return lines


def check_dataset(config: Config, *, files: int | None = None, progress: bool = True) -> Report:
    """Look at every record of every dataset of `config`; what does not fit is listed in the report and never raised.

    Held-out text is required if `eval_steps` > 0.

    files: look only at this many files of each `path` and `eval_path`, evenly spaced, and at every record of those.
    """
    reports = []
    for use in config.data.datasets:
        for key in ("path", "eval_path"):
            if key == "path" or use.dataset.eval_path or config.training.eval_steps:
                reports.append(_check_files(config, use, key, files, progress))
    return Report(reports, list(tokenizer_misfits(config)), any(report.sampled for report in reports))


def _check_files(config: Config, use: DatasetUse, key: str, files: int | None, progress: bool) -> DatasetReport:
    report = DatasetReport(f"{use.id} ({key}: {', '.join(getattr(use.dataset, key)) or 'none'})")
    try:
        paths = data_files(use.dataset, key)
    except InputError as error:
        report.problems.append(str(error))
        return report
    if files is not None and files < len(paths):
        report.sampled = True
        report.facts.append(f"looked at {files:,} of {len(paths):,} files")
        paths = [paths[len(paths) * number // files] for number in range(files)]
    indexes: list[RecordIndex] = []
    for found in load_indexes(paths, progress=progress):
        if isinstance(found, InputError):
            report.problems.append(str(found))
        else:
            indexes.append(found)
    if indexes:
        corpus = Corpus.from_indexes(indexes)
        try:
            corpus = as_sampled(use, corpus)
        except InputError as error:
            report.problems.append(str(error))
        if len(corpus) or not report.sampled:
            report.problems += misfits(config, use, corpus, held_out=key == "eval_path")
        if len(corpus):
            report.facts += _facts(config, use, corpus, held_out=key == "eval_path")
            _decode_samples(use, corpus, report)
    return report


def _facts(config: Config, use: DatasetUse, corpus: Corpus, held_out: bool) -> Iterator[str]:
    width = config.model.n_ctx + 1
    least = min(low for low, _ in corpus.id_ranges)
    greatest = max(high for _, high in corpus.id_ranges)
    unit = "chunks" if use.sampling_mode == "chunks" else "documents"
    yield f"files {len(corpus.paths):,}, {unit} {len(corpus):,}, tokens {corpus.n_tokens:,}"
    yield f"token ids {least} to {greatest}; n_vocab of the model is {config.model.n_vocab}"
    for word, record in (("shortest", int(corpus.lengths.argmin())), ("longest", int(corpus.lengths.argmax()))):
        yield f"{word} {corpus.lengths[record]:,} tokens ({corpus.where(record)})"
    if unit == "documents" and not held_out and not use.whole_documents and not config.training.learns_pairs:
        enough = sufficient_stitch(corpus, width)
        need = "no stitch suffices" if enough is None else f"{enough} is the least that suffices"
        yield f"stitch {use.stitch}; for n_ctx + 1 = {width} tokens, {need}"
        if len(corpus) < use.stitch:
            yield f"fewer documents than stitch {use.stitch}: they recur within a sample"
    yield from _histogram(corpus.lengths)


def _histogram(lengths: NDArray[np.int32]) -> Iterator[str]:
    """Lengths in classes of powers of two, a bar each."""
    powers = np.frexp(lengths)[1]  # 0 for 0 tokens, 1 for 1, 2 for 2 and 3, 3 for 4 to 7, …
    counts = np.bincount(powers)
    for power in range(int(powers.min()), len(counts)):
        low, high = 2**power // 2, 2**power - 1
        bar = "#" * -(-int(counts[power]) * _BAR // int(counts.max()))
        yield f"{low:>9,} to {high:>9,} tokens: {counts[power]:>11,} {bar}".rstrip()


def _decode_samples(use: DatasetUse, corpus: Corpus, report: DatasetReport) -> None:
    """Add the beginnings of a few records, spread over the files, as text."""
    dataset = use.dataset
    if not dataset.tokenizer_path:
        report.facts.append("not decoded: no tokenizer_path")
        return
    try:
        encoder = load_encoder(dataset.resolve(dataset.tokenizer_path), dataset.tokenizer_is_pretrained)
    except InputError as error:
        report.facts.append(f"not decoded: {error}")
        return
    if wrong := list(wrong_tokenizer(use, encoder)):
        report.problems += wrong
        return
    for path, (_, greatest) in zip(corpus.paths, corpus.id_ranges, strict=True):
        if greatest >= encoder.n_vocab:
            report.problems.append(
                f"{shown(path)}: holds token id {greatest}, and the tokenizer {dataset.tokenizer_path} has "
                f"{encoder.n_vocab} "
                f"tokens; set tokenizer_path of {dataset.source} to the tokenizer that made the data"
            )
            return
    report.samples += _sample_texts(encoder, corpus)


def _sample_texts(encoder: Encoder, corpus: Corpus) -> Iterator[str]:
    records = np.unique(np.linspace(0, len(corpus) - 1, _SAMPLES).astype(np.int64))
    for ids in corpus.read_tokens(records):
        text = encoder.decode(unmarked(ids[:_SAMPLE_TOKENS].astype(np.int64)).tolist())
        yield repr(text)  # on one line, whatever it holds
