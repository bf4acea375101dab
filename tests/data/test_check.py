"""The report of --check_dataset: the facts, the samples, and every problem at once."""

from __future__ import annotations

from tokenizers import Tokenizer

from data.check import check_dataset
from tests.support.corpora import (
    TEXTS,
    add_dataset,
    make_tokenizer,
    model_config,
    numbered_documents,
    random_documents,
)


def report(config):
    return check_dataset(config, progress=False)


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
