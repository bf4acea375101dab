"""The report of --check_dataset: the facts, the samples, and every problem at once."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from gpt_mesh.data.check import check_dataset
from gpt_mesh.data.create_tfrecords import main as create_tfrecords
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import TrainingData
from tests.support.corpora import (
    TEXTS,
    add_dataset,
    make_tokenizer,
    model_config,
    numbered_documents,
    random_documents,
)


def report(config, **options):
    return check_dataset(config, progress=False, **options)


def test_data_that_fits(tmp_path):
    path = make_tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    documents = [tokenizer.encode(text).ids for text in TEXTS]
    n_vocab = tokenizer.get_vocab_size()
    add_dataset(
        tmp_path, "texts", documents, files=2, held_out=documents[:1], n_vocab=n_vocab, tokenizer_path=str(path)
    )
    found = report(model_config(tmp_path, [["texts", 2, "documents_random", 1.0]], n_vocab=n_vocab))
    text = "\n".join(found.lines())
    lengths = [len(document) for document in documents]
    ids = [token for document in documents for token in document]
    assert found.ok and found.problems == []
    for part in (
        f"files 2, documents {len(TEXTS)}, tokens {sum(lengths)}",
        f"token ids {min(ids)} to {max(ids)}; n_vocab of the model is {n_vocab}",
        f"shortest {min(lengths)} tokens",
        f"longest {max(lengths)} tokens",
        "stitch 2; for n_ctx + 1 = 9 tokens, 1 is the least",
        f"files 2, documents 1, tokens {lengths[0]}",
        "the data fits the model",
    ):
        assert part in text
    train = found.datasets[0]
    assert len(train.samples) == 3
    assert train.samples[0].startswith("'The mill stood")
    assert TEXTS[4][:8] in train.samples[2]
    assert len(found.datasets[1].samples) == 1


def test_held_out_text_is_required_where_it_is_scored(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([9, 20]), n_vocab=100)
    uses = [["numbers", 1, "documents_random", 1.0]]
    assert report(model_config(tmp_path, uses, n_vocab=100)).ok
    found = report(model_config(tmp_path, uses, n_vocab=100, eval_steps=2))
    assert len(found.problems) == 1 and "eval_path" in found.problems[0] and "--eval_fraction" in found.problems[0]
    assert found.datasets[1].title == "numbers (eval_path: none)"


def test_every_line_is_one_line(tmp_path):
    path = make_tokenizer(tmp_path / "tokenizer")
    add_dataset(tmp_path, "noise", random_documents(1, [20] * 9, 400), n_vocab=400, tokenizer_path=str(path))
    found = report(model_config(tmp_path, [["noise", 1, "documents_random", 1.0]], n_vocab=400))
    assert found.ok
    assert all(len(line.splitlines()) == 1 for line in found.lines())


def test_lengths_are_shown_in_powers_of_two(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([9] * 10 + [31] * 5 + [32]))
    text = "\n".join(report(model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]])).lines())
    counts = {
        low: text.split(f"{low:>9} to {high:>9} tokens:")[1].split("\n")[0]
        for low, high in ((8, 15), (16, 31), (32, 63))
    }
    assert [int(line.split()[0]) for line in counts.values()] == [10, 5, 1]
    assert [line.count("#") for line in counts.values()] == [40, 20, 4]


def test_all_problems_are_listed_and_none_is_raised(tmp_path):
    add_dataset(tmp_path, "short", numbered_documents([9, 3, 50]), n_vocab=100)
    add_dataset(tmp_path, "chunks", numbered_documents([9, 9, 8, 9], first=200), held_out=[[1] * 7], n_vocab=100)
    add_dataset(tmp_path, "missing", None, path=str(tmp_path / "nowhere*"), n_vocab=100)
    add_dataset(tmp_path, "damaged", numbered_documents([9] * 4), files=2, n_vocab=100)
    damaged = tmp_path / "damaged" / "train" / "part_0.tfrecords"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    uses = [
        ["short", 2, "documents_random", 1.0],
        ["chunks", 1, "chunks", 1.0],
        ["missing", 1, "chunks", 1.0],
        ["damaged", 1, "chunks", 1.0],
    ]
    found = report(model_config(tmp_path, uses, n_vocab=100))
    assert not found.ok
    expected = [
        ("short", "record 1", "set stitch to 3"),
        ("short.json", "eos_id"),
        ("chunks", "train", "token id 234", "at least 235"),
        ("chunks", "train", "record 2", "holds 8 tokens"),
        ("chunks", "held_out", "record 0", "holds 7 tokens"),
        ("missing.json", "nowhere*"),
        ("damaged", "part_0.tfrecords", "record 1"),
    ]
    assert len(found.problems) == len(expected)
    for problem, parts in zip(found.problems, expected, strict=True):
        assert all(part in problem for part in parts), problem
        assert f"  PROBLEM: {problem}" in found.lines()
    assert "files 1, chunks 2" in "\n".join(found.lines())  # the whole file of the damaged dataset is still counted
    assert found.lines()[-1] == "problems: 7"


def test_a_tokenizer_that_cannot_have_made_the_data(tmp_path):
    path = make_tokenizer(tmp_path / "tokenizer", n_vocab=300)
    add_dataset(tmp_path, "numbers", [[350] * 20], n_vocab=400, tokenizer_path=str(path))
    problems = report(model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]], n_vocab=400)).problems
    assert len(problems) == 1
    assert "token id 350" in problems[0]
    assert "tokenizer_path" in problems[0]


def test_a_tokenizer_is_needed_only_to_decode(tmp_path):
    add_dataset(tmp_path, "none", numbered_documents([20]))
    add_dataset(tmp_path, "absent", numbered_documents([20]), tokenizer_path="nowhere/tokenizer.json", eos_id=0)
    uses = [["none", 1, "documents_random", 1.0], ["absent", 1, "documents_random", 1.0]]
    found = report(model_config(tmp_path, uses))
    assert found.ok
    assert "\n".join(found.lines()).count("not decoded: ") == 2


def test_fewer_documents_than_stitch_are_pointed_out(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([20]), eos_id=0)
    found = report(model_config(tmp_path, [["numbers", 5, "documents_random", 1.0]]))
    assert found.ok
    assert "fewer documents than stitch 5" in "\n".join(found.lines())


# Sampled


def test_only_so_many_files_when_told_so(tmp_path):
    documents = numbered_documents([9] * 20)
    documents[12][0] = 5_000_000
    add_dataset(tmp_path, "numbers", documents, files=10, held_out=documents[:1])
    config = model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]])
    whole = report(config)
    assert not whole.ok
    assert "documents 20" in "\n".join(whole.lines())
    sampled = report(config, files=2)
    assert sampled.ok
    text = "\n".join(sampled.lines())
    assert "looked at 2 of 10 files" in text
    assert "files 2, documents 4" in text
    assert "files 2, documents 1" not in text, "the held-out document is in the last file"
    assert sampled.lines()[-1] == "the files looked at fit the model; others were not read"
    assert report(config, files=10).lines() == whole.lines()


# Tokenizers


def encoded(tmp_path, name: str, n_vocab: int, *, first: str = "") -> None:
    """A dataset `name` of create_tfrecords, with a manifest, and a tokenizer of its own."""
    tokenizer = make_tokenizer(tmp_path / f"{name}_tokenizer", n_vocab=n_vocab, texts=[first, *TEXTS])
    (tmp_path / "text").mkdir(exist_ok=True)
    for number, text in enumerate(TEXTS):
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    flags = ["--input_dir", str(tmp_path / "text"), "--name", name, "--output_dir", str(tmp_path / "encoded")]
    flags += ["--encoder_path", str(tokenizer), "--processes", "1"]
    assert create_tfrecords([*flags, "--write_dataset_config", str(tmp_path / f"dataset_configs/{name}.json")]) == 0


def mixed(tmp_path, *names: str, **keys):
    return model_config(tmp_path, [[name, 1, "documents_random", 1.0] for name in names], **{"n_vocab": 400, **keys})


def test_tokenizers_may_not_be_mixed(tmp_path):
    encoded(tmp_path, "a", 300)
    encoded(tmp_path, "b", 300, first="x" * 99)
    encoded(tmp_path, "c", 300)
    assert report(mixed(tmp_path, "a", "c")).ok, "the same tokenizer, trained twice"
    config = mixed(tmp_path, "a", "b")
    (problem,) = report(config).problems
    for part in ("model.json", "datasets mixes tokenizers", "a was made with", "b was made with", "one tokenizer"):
        assert part in problem
    with pytest.raises(InputError, match="mixes tokenizers"):
        TrainingData(config, progress=False)


def test_without_manifests_the_vocabularies_tell(tmp_path):
    for name, n_vocab in (("a", 300), ("b", 301), ("c", 300)):
        add_dataset(tmp_path, name, [[1] * 20], n_vocab=n_vocab)
    assert report(mixed(tmp_path, "a", "c")).ok
    (problem,) = report(mixed(tmp_path, "a", "b")).problems
    assert "a of 300 tokens and b of 301" in problem
    encoded(tmp_path, "d", 310)
    assert "a of 300 tokens and d of 310" in report(mixed(tmp_path, "a", "d")).problems[0]


def test_a_tokenizer_larger_than_the_model(tmp_path):
    """Though no id of the data, nor n_vocab of its config, tells."""
    encoded(tmp_path, "a", 330)
    path = tmp_path / "dataset_configs" / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_vocab": 329}))
    config = mixed(tmp_path, "a", n_vocab=329)
    problems = report(config).problems
    assert any("a tokenizer of 330 tokens" in problem and "at least 330" in problem for problem in problems)
    with pytest.raises(InputError, match="a tokenizer of 330 tokens"):
        TrainingData(config, progress=False)


def test_another_tokenizer_than_the_one_that_made_the_data(tmp_path):
    encoded(tmp_path, "a", 300)
    other = make_tokenizer(tmp_path / "other", n_vocab=300, texts=["y" * 99, *TEXTS])
    path = tmp_path / "dataset_configs" / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_path": str(other)}))
    (problem,) = report(mixed(tmp_path, "a")).problems
    assert "a.json: tokenizer_path" in problem
    assert "is not the tokenizer that made the data" in problem
