"""Training and evaluation batches: reproducible from any position, complete, in proportion, and refused with a line."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_mesh.data import corpus, special_tokens, tfrecords
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import EvaluationData, TrainingData, count_bytes, split
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.storage import progress
from tests.support.corpora import (
    TEXTS,
    add_dataset,
    make_tokenizer,
    model_config,
    numbered_documents,
    write_corpus,
)
from tests.support.runs import logged

EOS = 999_999
WIDTH = 9  # n_ctx 8, and the last label


def training_data(config) -> TrainingData:
    return TrainingData(config, progress=False)


def evaluation_data(config, *, progress: bool = False) -> EvaluationData:
    return EvaluationData(config, packed=objective_of(config).packed, progress=progress)


@pytest.fixture
def mixed(tmp_path):
    """Three datasets, of a mode each, over several files."""
    lengths = np.random.default_rng(0).integers(5, 40, 60)
    add_dataset(tmp_path, "random", numbered_documents(lengths), files=3, eos_id=EOS)
    add_dataset(tmp_path, "fixed", numbered_documents([12] * 20, first=10_000), files=2, eos_id=EOS)
    add_dataset(tmp_path, "chunks", numbered_documents([WIDTH] * 30, first=20_000), files=4)
    uses = [["random", 2, "documents_random", 0.5], ["fixed", 1, "documents_fixed", 0.3], ["chunks", 1, "chunks", 0.2]]
    return model_config(tmp_path, uses)


def refusal(config, kind=TrainingData) -> str:
    """The one line with which the data is refused."""
    with pytest.raises(InputError) as caught:
        kind(config, progress=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The same samples at the same positions


@pytest.mark.tpu_env
def test_an_interrupted_run_sees_the_batches_of_an_uninterrupted_one(mixed):
    with training_data(mixed).batches(0, 4) as batches:
        whole = [next(batches) for _ in range(30)]
    for stop in (1, 13, 29):
        with training_data(mixed).batches(stop * 4, 4) as batches:
            for expected in whole[stop:]:
                found = next(batches)
                assert found.dtype == np.int32
                assert found.tobytes() == expected.tobytes()


def test_a_changed_batch_size_continues_with_the_same_samples(mixed):
    data = training_data(mixed)
    samples = np.stack([data.sample(position) for position in range(60)])
    assert np.array_equal(data.batch(0, 60), samples)
    assert np.array_equal(np.concatenate([data.batch(0, 12), data.batch(12, 5), data.batch(17, 43)]), samples)
    assert np.array_equal(data.batch(10_000 - 3, 6)[3:], data.batch(10_000, 3))  # over the border of a mixture block


@settings(deadline=None, max_examples=20)
@given(position=st.integers(0, 10**15), size=st.integers(1, 9))
def test_any_position_is_a_batch_of_single_samples(shared_mixed, position, size):
    batch = shared_mixed.batch(position, size)
    assert batch.shape == (size, WIDTH)
    assert np.array_equal(batch, [shared_mixed.sample(position + i) for i in range(size)])


@pytest.fixture(scope="module")
def shared_mixed(tmp_path_factory):
    root = tmp_path_factory.mktemp("shared")
    add_dataset(root, "a", numbered_documents([5, 30, 9, 14, 22, 7, 100]), files=2, eos_id=EOS)
    add_dataset(root, "b", numbered_documents([WIDTH] * 5, first=20_000))
    return training_data(model_config(root, [["a", 3, "documents_random", 2.0], ["b", 1, "chunks", 1.0]]))


def test_a_resume_is_instant_at_any_step(mixed):
    """From nothing but the config to the batch after 10,000 steps, and after ten million."""
    training_data(mixed).batch(0, 8)  # indexes are written, and TensorFlow has started
    for step in (10_000, 10_000_000):
        start = time.perf_counter()
        training_data(mixed).batch(step * 8, 8)
        assert time.perf_counter() - start < 1, step


def test_seeds_give_other_samples(mixed):
    other = dataclasses.replace(mixed, training=mixed.training.model_copy(update={"seed": 2}))
    first, second = training_data(mixed), training_data(other)
    assert not np.array_equal(first.batch(0, 40), second.batch(0, 40))
    assert first.fingerprint != second.fingerprint


def test_labels_are_the_tokens_after_the_inputs():
    inputs, labels = split(np.arange(10, dtype=np.int32).reshape(2, 5))
    assert inputs.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert labels.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]


# What the samples are made of


@pytest.mark.parametrize("stitch", [1, 3, 4])
def test_a_sample_is_a_window_of_its_stitched_documents(tmp_path, stitch):
    """Every window, whatever its documents, is found in the text that these documents make when joined by eos_id."""
    documents = numbered_documents([9, 31, 12, 10, 25, 9, 14, 60, 11, 9, 17, 13])
    add_dataset(tmp_path, "numbers", documents, files=2, eos_id=EOS)
    data = training_data(model_config(tmp_path, [["numbers", stitch, "documents_random", 1.0]]))
    owner = {token: number for number, document in enumerate(documents) for token in document}
    begins = set()
    for window in data.batch(0, 300).tolist():
        parts = [list(part) for eos, part in itertools.groupby(window, lambda token: token == EOS) if not eos]
        numbers = [owner[part[0]] for part in parts]
        assert len(numbers) <= stitch
        joined: list[int] = []
        for number in numbers:
            joined += ([EOS] if joined else []) + documents[number]
        lead, tail = window[0] == EOS, window[-1] == EOS  # a cut beside a separator leaves it at an end
        joined = [EOS] * lead + joined + [EOS] * tail
        assert any(joined[i : i + WIDTH] == window for i in range(len(joined) - WIDTH + 1))
        begins.add(window[0])
    assert len(begins) > 60  # windows begin anywhere
    assert stitch == 1 or EOS in begins


def test_random_windows_reach_both_ends_of_a_document_evenly(tmp_path):
    add_dataset(tmp_path, "one", numbered_documents([WIDTH + 3]))
    data = training_data(model_config(tmp_path, [["one", 1, "documents_random", 1.0]]))
    counts = np.bincount(data.batch(0, 800)[:, 0], minlength=5)[1:]
    assert len(counts) == 4  # begins 1, 2, 3, 4
    assert (abs(counts - 200) < 60).all()  # 5 standard deviations


def test_fixed_windows_begin_their_documents(tmp_path):
    documents = numbered_documents([4, 6, 20, 11, 5, 7])
    add_dataset(tmp_path, "numbers", documents, eos_id=EOS)
    data = training_data(model_config(tmp_path, [["numbers", 3, "documents_fixed", 1.0]]))
    firsts = {document[0]: document for document in documents}
    for window in data.batch(0, 20).tolist():
        document = firsts[window[0]]
        assert window[: len(document)] == document[:WIDTH]
        if len(document) < WIDTH:
            assert window[len(document)] == EOS


def test_each_document_is_used_once_an_epoch_and_epochs_differ(tmp_path):
    documents = numbered_documents([WIDTH] * 24)
    add_dataset(tmp_path, "numbers", documents, files=5)
    data = training_data(model_config(tmp_path, [["numbers", 1, "documents_fixed", 1.0]]))
    epochs = data.batch(0, 3 * 24).reshape(3, 24, WIDTH).tolist()
    assert [sorted(epoch) for epoch in epochs] == [documents] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] != documents


def test_stitched_documents_are_each_used_once_an_epoch(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([4] * 20), eos_id=EOS)
    data = training_data(model_config(tmp_path, [["numbers", 2, "documents_fixed", 1.0]], n_ctx=7))
    for epoch in range(3):
        tokens = data.batch(epoch * 10, 10)
        assert sorted(tokens[tokens != EOS].tolist()) == sorted(set(range(1, 81)) - missing_tails(tokens))


def missing_tails(tokens) -> set[int]:
    """Windows of 8 over 4 + eos + 4 tokens leave out the last token of the second document."""
    return {int(last) + 1 for last in tokens[:, -1]}


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_chunk_is_used_once_an_epoch(tmp_path, shuffle):
    chunks = numbered_documents([WIDTH] * 30)
    add_dataset(tmp_path, "numbers", chunks, files=12)  # part_10 is read after part_9, not after part_1
    config = model_config(tmp_path, [["numbers", 25, "chunks", 1.0]], shuffle_input_filenames=shuffle)
    epochs = training_data(config).batch(0, 90).reshape(3, 30, WIDTH).tolist()
    assert [sorted(epoch) for epoch in epochs] == [chunks] * 3
    assert (epochs == [chunks] * 3) is not shuffle


def test_fewer_documents_than_stitch_come_round_again(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([2, 2]), eos_id=EOS)
    data = training_data(model_config(tmp_path, [["numbers", 5, "documents_fixed", 1.0]]))
    for window in data.batch(0, 10).tolist():
        assert window[:2] + window[3:5] in ([1, 2, 3, 4], [3, 4, 1, 2])
        assert window[6:8] == window[:2]
        assert window[2] == window[5] == window[8] == EOS


def test_only_documents_that_a_window_overlaps_are_read(tmp_path, monkeypatch):
    add_dataset(tmp_path, "numbers", numbered_documents([WIDTH] * 500), eos_id=EOS)
    data = training_data(model_config(tmp_path, [["numbers", 100, "documents_random", 1.0]]))
    counts = []

    def read(path, offsets, sizes):
        counts.append(len(offsets))
        return tfrecords.read_records(path, offsets, sizes)

    monkeypatch.setattr(corpus, "read_records", read)
    for position in range(20):
        data.sample(position)
    assert max(counts) == 2  # of 100: the window has the length of one document


def test_datasets_come_in_proportion_to_their_weights(mixed):
    tokens = training_data(mixed).batch(0, 10_000)
    source = tokens.min(axis=1) // 10_000  # by first id: 0 random, 1 fixed, 2 chunks
    assert np.bincount(source).tolist() == [5000, 3000, 2000]


def test_a_dataset_listed_twice_is_drawn_from_in_two_orders(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([WIDTH] * 50))
    data = training_data(model_config(tmp_path, [["numbers", 1, "chunks", 1.0], ["numbers", 1, "chunks", 1.0]]))
    assert len(np.unique(data.batch(0, 40), axis=0)) > 25  # one order twice would give about 20


def test_file_names_may_take_any_form(tmp_path):
    folder = tmp_path / "numbers" / "train"
    documents = numbered_documents([WIDTH] * 12)
    names = ["a", "file_12_99999.tfrecords", "no digits.tfrecords", "7", "ünï [x]*.bin", "b.tfrecords.0"]
    for number, name in enumerate(names):
        write_corpus(folder, documents[2 * number : 2 * number + 2], name=name)
    add_dataset(tmp_path, "numbers", None, path=str(folder / "*"))
    config = model_config(tmp_path, [["numbers", 1, "chunks", 1.0]])
    for _ in range(2):  # the second time, index files lie beside the data
        (folder / "half.tfrecords.1.tmp").write_bytes(b"being written")
        assert sorted(training_data(config).batch(0, 12).tolist()) == documents


def test_an_index_of_many_files_is_one_sequence(tmp_path):
    """Empty files among them shift nothing."""
    folder, documents = tmp_path / "numbers" / "train", numbered_documents([WIDTH] * 6)
    for number, part in enumerate([[], documents[:2], [], [], documents[2:], []]):
        write_corpus(folder, part, name=f"{number}.tfrecords")
    add_dataset(tmp_path, "numbers", None, path=str(folder / "*"))
    config = model_config(tmp_path, [["numbers", 1, "chunks", 1.0]], shuffle_input_filenames=False)
    data = training_data(config)
    assert data.batch(0, 6).tolist() == documents


# What cannot work is refused before any work


def test_no_matching_file(tmp_path):
    add_dataset(tmp_path, "numbers", None, path=str(tmp_path / "nowhere" / "*.tfrecords"))
    line = refusal(model_config(tmp_path, [["numbers", 1, "chunks", 1.0]]))
    for part in ("numbers.json", "path", "nowhere/*.tfrecords"):
        assert part in line


@pytest.mark.parametrize(("ids", "named"), [([5, 100, 7], "100"), ([5, -3, 7], "-3")])
def test_a_token_id_outside_the_vocabulary(tmp_path, monkeypatch, ids, named):
    write = tfrecords._varints
    monkeypatch.setattr(tfrecords, "_varints", lambda values: negative_varints(values, write))
    add_dataset(tmp_path, "numbers", [[1] * WIDTH, [*ids, 1, 1, 1, 1, 1, 1]], files=2, n_vocab=100)
    line = refusal(model_config(tmp_path, [["numbers", 1, "chunks", 1.0]], n_vocab=100))
    assert "part_1.tfrecords" in line
    assert f"token id {named}" in line
    assert "n_vocab" in line


def negative_varints(values, write):
    """Protobuf's form of an int64, the negative ones that `write` refuses included."""
    return b"".join(
        write(np.array([value])) if value >= 0 else ten_bytes(int(value)) for value in np.asarray(values).tolist()
    )


def ten_bytes(value: int) -> bytes:
    value += 2**64
    return bytes(((value >> 7 * i) & 0x7F) | (0x80 if i < 9 else 0) for i in range(10))


def test_a_damaged_file(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([WIDTH] * 6), files=2)
    damaged = tmp_path / "numbers" / "train" / "part_1.tfrecords"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    line = refusal(model_config(tmp_path, [["numbers", 1, "chunks", 1.0]]))
    assert "part_1.tfrecords" in line
    assert "record 2" in line


@pytest.mark.parametrize("length", [WIDTH - 1, WIDTH + 1])
def test_a_chunk_of_the_wrong_length(tmp_path, length):
    add_dataset(tmp_path, "numbers", numbered_documents([WIDTH] * 7 + [length]), files=2)
    line = refusal(model_config(tmp_path, [["numbers", 1, "chunks", 1.0]]))
    for part in ("part_1.tfrecords, record 3", f"holds {length} tokens", f"n_ctx + 1 = {WIDTH}", "1 of 8"):
        assert part in line


def test_stitch_that_does_not_reach_the_context(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([30, 40, 3, 20]), files=2, eos_id=EOS)
    line = refusal(model_config(tmp_path, [["numbers", 2, "documents_random", 1.0]]))
    for part in ("part_1.tfrecords, record 0", "is 3 tokens long", "set stitch to 3", "--minimum_size 5"):
        assert part in line
    training_data(model_config(tmp_path, [["numbers", 3, "documents_random", 1.0]])).batch(0, 50)


def test_an_empty_document(tmp_path):
    add_dataset(tmp_path, "numbers", [list(range(30)), []], eos_id=EOS)
    line = refusal(model_config(tmp_path, [["numbers", 2, "documents_random", 1.0]]))
    assert "record 1" in line
    assert "set stitch" not in line
    assert "--minimum_size 5" in line


def test_files_without_records(tmp_path):
    add_dataset(tmp_path, "numbers", [])
    assert "holds no record" in refusal(model_config(tmp_path, [["numbers", 1, "chunks", 1.0]]))


def test_an_unknown_eos_id_is_never_guessed(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([30, 40]))
    line = refusal(model_config(tmp_path, [["numbers", 2, "documents_random", 1.0]]))
    for part in ("numbers.json", "eos_id", "stitch 2", "tokenizer_path"):
        assert part in line
    training_data(model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]]))  # nothing to put between


def test_eos_id_comes_from_the_tokenizer(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    add_dataset(tmp_path, "numbers", numbered_documents([12, 12]), tokenizer_path=str(tokenizer))
    window = training_data(model_config(tmp_path, [["numbers", 2, "documents_fixed", 1.0]], n_ctx=20)).sample(0)
    assert window[12] == load_encoder(str(tokenizer)).eos_id == 0


def test_an_eos_id_outside_the_vocabulary(tmp_path, monkeypatch):
    """One in the dataset config is refused with that config; the tokenizer's is only known here."""
    monkeypatch.setattr(special_tokens, "load_encoder", lambda path, pretrained: SimpleNamespace(eos_id=50))
    add_dataset(tmp_path, "numbers", [[1] * 30, [2] * 30], tokenizer_path="any", n_vocab=10)
    line = refusal(model_config(tmp_path, [["numbers", 2, "documents_random", 1.0]], n_vocab=10))
    for part in ("numbers.json", "eos_id 50", "n_vocab 10"):
        assert part in line


def test_a_file_that_changes_during_the_run(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([WIDTH] * 4))
    data = training_data(model_config(tmp_path, [["numbers", 1, "chunks", 1.0]]))
    path = tmp_path / "numbers" / "train" / "part_0.tfrecords"
    path.write_bytes(path.read_bytes()[: data._sources[0].corpus.offsets[2]])
    with pytest.raises(InputError, match=r"part_0\.tfrecords"):
        data.batch(0, 4)


def test_a_file_that_becomes_another_during_the_run(tmp_path):
    add_dataset(tmp_path, "numbers", numbered_documents([WIDTH] * 4))
    data = training_data(model_config(tmp_path, [["numbers", 1, "chunks", 1.0]]))
    path = tmp_path / "numbers" / "train" / "part_0.tfrecords"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(InputError, match=r"part_0\.tfrecords, record 0 is not a tf\.train\.Example"):
        data.batch(0, 4)


@pytest.mark.parametrize(("position", "size"), [(-1, 4), (0, 0)])
def test_positions_and_sizes_that_make_no_batch(shared_mixed, position, size):
    with pytest.raises(ValueError, match="batch"):
        shared_mixed.batch(position, size)


# Fingerprint and description


def test_the_fingerprint_follows_the_data_and_not_its_place(tmp_path):
    def fingerprint(root, lengths, **keys):
        add_dataset(root, "numbers", numbered_documents(lengths), eos_id=EOS)
        return training_data(model_config(root, [keys.pop("use", ["numbers", 2, "documents_random", 1.0])], **keys))

    lengths = [30, 40, 50]
    base = fingerprint(tmp_path / "a", lengths).fingerprint
    assert fingerprint(tmp_path / "b", lengths).fingerprint == base
    assert fingerprint(tmp_path / "c", lengths, train_batch_size=7).fingerprint == base
    others = [
        fingerprint(tmp_path / "d", [30, 41, 50]),
        fingerprint(tmp_path / "e", [40, 30, 50]),
        fingerprint(tmp_path / "f", lengths, seed=3),
        fingerprint(tmp_path / "g", lengths, n_ctx=9),
        fingerprint(tmp_path / "h", lengths, use=["numbers", 3, "documents_random", 1.0]),
        fingerprint(tmp_path / "i", lengths, use=["numbers", 2, "documents_fixed", 1.0]),
    ]
    assert len({base, *(data.fingerprint for data in others)}) == 7


def test_description(mixed):
    lines = training_data(mixed).describe()
    assert len(lines) == 3
    for part in ("fixed", "2 files", "20 documents", "240 tokens", "160 tokens per epoch", "30.00%"):
        assert part in lines[1]


def test_progress_is_shown_only_while_files_are_indexed(mixed, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with logged() as lines:
        TrainingData(mixed)
    assert len(lines) == 9  # one for each file
    assert all(line.startswith("indexing: ") for line in lines)
    assert "(100%)" in lines[-1]
    with logged() as lines:
        TrainingData(mixed)
    assert not lines


# The background thread


def test_errors_in_the_background_reach_the_training_loop(mixed, monkeypatch):
    data = training_data(mixed)
    with data.batches(0, 4, prefetch=1) as batches:
        next(batches)
        monkeypatch.setattr(corpus, "read_records", failing_read)
        with pytest.raises(OSError, match="disk on fire"):
            for _ in range(10):
                next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_before_a_record_that_cannot_be_read_are_given(mixed, monkeypatch):
    """Batches are drawn many at a time; a bad one among them takes none of the others with it."""
    data, whole = training_data(mixed), training_data(mixed)
    original = data.batch

    def batch(position, size):
        if position <= 22 < position + size:
            raise InputError("sample 22 cannot be read")
        return original(position, size)

    monkeypatch.setattr(data, "batch", batch)
    with data.batches(2, 4) as batches, pytest.raises(InputError, match="sample 22"):
        for number in itertools.count():
            assert np.array_equal(next(batches), whole.batch(2 + 4 * number, 4))
    assert number == 5


def failing_read(*_):
    raise OSError("disk on fire")


def test_records_of_a_bucket_are_read_one_by_one_and_kept_in_order(mixed, monkeypatch):
    local = training_data(mixed)._sources[0].corpus
    remote = dataclasses.replace(local, paths=tuple(f"bucket://{path}" for path in local.paths))
    requests = []

    def read(path, offsets, sizes):
        requests.append(len(offsets))
        return tfrecords.read_records(path.removeprefix("bucket://"), offsets, sizes)

    monkeypatch.setattr(corpus, "read_records", read)
    records = np.arange(0, len(local), 3)
    assert remote.read(records) == local.read(records)
    assert requests[: len(records)] == [1] * len(records)


def test_data_in_a_bucket(tmp_path):
    """Indexes are kept beside the files there too, and the batches are those of local files."""
    import tensorflow as tf

    lengths = np.random.default_rng(0).integers(9, 40, 30)
    add_dataset(tmp_path, "numbers", numbered_documents(lengths), held_out=[[1, 2, 3]] * 4, files=3, eos_id=EOS)
    config = model_config(tmp_path, [["numbers", 2, "documents_random", 1.0]])
    local = training_data(config).batch(5, 20), list(evaluation_data(config).batches(3))
    for part in ("train", "held_out"):
        for path in sorted((tmp_path / "numbers" / part).glob("*.tfrecords")):
            folder = f"ram://{tmp_path.name}/{part}"
            tf.io.gfile.makedirs(folder)
            with tf.io.gfile.GFile(f"{folder}/{path.name}", "wb") as file:
                file.write(path.read_bytes())
    bucket = f"ram://{tmp_path.name}"
    add_dataset(tmp_path, "numbers", None, eos_id=EOS, path=f"{bucket}/train/*", eval_path=f"{bucket}/held_out/*.tf*")
    config = model_config(tmp_path, [["numbers", 2, "documents_random", 1.0]])
    for _ in range(2):  # the second time, from the indexes
        assert np.array_equal(training_data(config).batch(5, 20), local[0])
        for found, expected in zip(evaluation_data(config).batches(3), local[1], strict=True):
            assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    assert tf.io.gfile.exists(f"ram://{tmp_path.name}/train/part_0.tfrecords.index")


# Evaluation


def scored(data, size, **options) -> list[int]:
    """Every label with a weight, in order."""
    labels = []
    for tokens, weights in data.batches(size, **options):
        assert tokens.shape == (size, WIDTH) and tokens.dtype == np.int32
        assert weights.shape == (size, WIDTH - 1) and weights.dtype == np.float32
        labels += tokens[:, 1:][weights > 0].tolist()
    return labels


HELD_OUT = [1, 2, 8, 9, 10, 16, 17, 3, 40, 0, 7]


@pytest.mark.parametrize("size", [1, 3, 64])
@pytest.mark.parametrize("eos", [EOS, None])
def test_every_held_out_token_is_predicted_once(tmp_path, size, eos):
    documents = numbered_documents(HELD_OUT)
    add_dataset(tmp_path, "numbers", [[1] * 9], held_out=documents, files=3, eos_id=eos)
    data = evaluation_data(model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]]))
    # Without an eos_id before it, nothing predicts a document's first token.
    expected = [token for document in documents for token in document[0 if eos else 1 :]]
    assert scored(data, size) == expected
    assert scored(data, size) == expected


def test_inputs_of_held_out_labels_are_the_tokens_before_them(tmp_path):
    documents = numbered_documents(HELD_OUT)
    add_dataset(tmp_path, "numbers", [[1] * 9], held_out=documents, eos_id=EOS)
    data = evaluation_data(model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]]))
    firsts = {document[0] for document in documents if document}
    for tokens, weights in data.batches(4):
        inputs, labels = split(tokens)
        for before, label in zip(inputs[weights > 0], labels[weights > 0], strict=True):
            assert before == (EOS if label in firsts else label - 1)


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("eos", [EOS, None])
def test_windows_slide(tmp_path, stride, eos):
    """Every token once still, and in all windows but a document's first with the context that the stride leaves."""
    documents = numbered_documents(HELD_OUT)
    add_dataset(tmp_path, "numbers", [[1] * 9], held_out=documents, eos_id=eos)
    config = model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]])
    data = EvaluationData(config, stride=stride, progress=False)
    expected = [token for document in documents for token in document[0 if eos else 1 :]]
    assert scored(data, 3) == expected
    led = {token: [*([eos] if eos else []), *document] for document in documents for token in document}
    for tokens, weights in data.batches(3):
        for row, counted in zip(tokens, weights > 0, strict=True):
            if not counted.any():
                continue
            places, document = np.flatnonzero(counted), led[int(row[1])]
            first = document.index(row[places[0] + 1])  # of what is scored
            fitting = min(8, len(document) - 1)
            assert row[: fitting + 1].tolist() == document[first - places[0] - 1 :][: fitting + 1]
            if first > 8:  # not in the first window
                assert len(places) <= stride and places[0] + 1 >= 8 - stride + 1
                assert places[-1] == 7  # full


@pytest.mark.parametrize(("keys", "payload"), [({}, 8), ({"mlm_cls_token_id": 5}, 7)])
@pytest.mark.parametrize("eos", [EOS, None])
def test_a_masked_model_sees_no_padding(tmp_path, eos, keys, payload):
    """Documents follow each other, with eos_id between them, and the last window reaches back."""
    documents = numbered_documents(HELD_OUT, first=10)
    add_dataset(tmp_path, "numbers", [[1] * 9], held_out=documents, files=3, eos_id=eos)
    mlm = {"mlm_training": True, "mlm_mask_id": 6, **keys}
    data = evaluation_data(model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]], **mlm))
    assert scored(data, 4) == [token for document in documents for token in document]  # each once
    joined = documents[0]
    for document in documents[1:]:
        joined = [*joined, *([eos] if eos else []), *document]
    seen = 0
    for tokens, weights in data.batches(4):
        for row, counted in zip(tokens[:, 1 : payload + 1], weights > 0, strict=True):
            if not counted.any():
                continue
            begin = min(seen, len(joined) - payload)
            assert row.tolist() == joined[begin : begin + payload]
            assert not counted[payload:].any() and not (row[counted[:payload]] == eos).any()
            seen += payload
    assert len(joined) <= seen < len(joined) + payload


def test_a_masked_models_text_must_fill_a_window(tmp_path):
    add_dataset(tmp_path, "numbers", [[1] * 9], held_out=[[1, 2, 3], [4, 5]], eos_id=EOS)
    keys = {"mlm_training": True, "mlm_mask_id": 6}
    line = refusal(model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]], **keys), evaluation_data)
    assert "eval_path: holds 6 tokens in all, which do not fill one window of n_ctx = 8" in line


def test_held_out_chunks_are_windows(tmp_path):
    chunks = numbered_documents([WIDTH] * 7)
    add_dataset(tmp_path, "numbers", [[1] * WIDTH], held_out=chunks, files=2, eos_id=EOS)
    data = evaluation_data(model_config(tmp_path, [["numbers", 1, "chunks", 1.0]]))
    assert data.n_windows == 7
    tokens = np.concatenate([tokens for tokens, _ in data.batches(4)])
    assert tokens[:7].tolist() == chunks
    assert not tokens[7:].any()
    assert scored(data, 4) == [token for chunk in chunks for token in chunk[1:]]


def test_several_datasets_are_evaluated_one_after_the_other(tmp_path):
    first, second = numbered_documents([20, 5]), numbered_documents([WIDTH] * 3, first=1000)
    add_dataset(tmp_path, "a", [[1] * 9], held_out=first, eos_id=EOS)
    add_dataset(tmp_path, "b", [[1] * 9], held_out=second)
    data = evaluation_data(model_config(tmp_path, [["a", 1, "documents_random", 0.1], ["b", 1, "chunks", 5.0]]))
    expected = [token for document in first for token in document] + [token for chunk in second for token in chunk[1:]]
    assert scored(data, 3) == expected


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 12), limit=st.integers(1, 12))
def test_a_limit_takes_evenly_spaced_windows(shared_held_out, size, limit):
    data = shared_held_out
    batches = list(data.batches(size, limit=limit))
    rows = [int(tokens[i, 1]) for tokens, weights in batches for i in range(size) if weights[i].any()]
    numbers = [(first - 1) // 8 for first in rows]  # one document, windows of 8 new tokens each
    assert len(batches) <= limit
    assert len(numbers) == min(data.n_windows, size * limit)
    gaps = np.diff([*numbers, data.n_windows])
    assert numbers[0] == 0 and (gaps >= 1).all() and gaps.max() - gaps.min() <= 1
    assert [tokens.tobytes() for tokens, _ in batches] == [t.tobytes() for t, _ in data.batches(size, limit=limit)]


@pytest.fixture(scope="module")
def shared_held_out(tmp_path_factory):
    root = tmp_path_factory.mktemp("held_out")
    add_dataset(root, "numbers", [[1] * 9], held_out=numbered_documents([8 * 37]), eos_id=EOS)
    return evaluation_data(model_config(root, [["numbers", 1, "documents_random", 1.0]]))


@pytest.mark.parametrize("kind", ["documents_random", "chunks"])
def test_held_out_data_needs_no_stitch_but_whole_chunks(tmp_path, kind):
    add_dataset(tmp_path, "numbers", [[1] * WIDTH], held_out=[[1, 2, 3]], eos_id=EOS)
    config = model_config(tmp_path, [["numbers", 1, kind, 1.0]])
    if kind == "chunks":
        assert "held_out" in refusal(config, EvaluationData)
    else:
        assert scored(evaluation_data(config), 2) == [1, 2, 3]


def test_evaluation_without_held_out_files(tmp_path):
    add_dataset(tmp_path, "numbers", [[1] * WIDTH])
    line = refusal(model_config(tmp_path, [["numbers", 1, "chunks", 1.0]]), EvaluationData)
    assert "numbers.json" in line
    assert "eval_path" in line


def test_evaluation_on_nothing_to_predict(tmp_path):
    add_dataset(tmp_path, "numbers", [[1] * WIDTH], held_out=[[], [5]])
    line = refusal(model_config(tmp_path, [["numbers", 1, "documents_fixed", 1.0]]), EvaluationData)
    assert "numbers.json" in line
    assert "eval_path" in line


# Bytes of the scored text


def held_out_texts(root, texts):
    """The texts as held-out documents of a real tokenizer: (data, encoder, ids of each document)."""
    path = make_tokenizer(root / "tokenizer")
    encoder = load_encoder(str(path))
    documents = [encoder.encode(text) for text in texts]
    add_dataset(root, "texts", documents, held_out=documents, tokenizer_path=str(path), n_vocab=encoder.n_vocab)
    config = model_config(root, [["texts", 1, "documents_random", 1.0]], n_vocab=encoder.n_vocab)
    return evaluation_data(config), encoder, documents


@pytest.mark.parametrize("size", [1, 5])
def test_bytes_are_those_of_the_original_text(tmp_path, size):
    data, encoder, _ = held_out_texts(tmp_path, TEXTS)
    assert data.token_bytes(encoder, size) == len("".join(TEXTS).encode())


def test_bytes_of_a_limited_evaluation_are_those_of_its_windows(tmp_path):
    # In ASCII no character is split over two tokens, so that a window can be decoded by itself.
    data, encoder, documents = held_out_texts(tmp_path, [text for text in TEXTS if text.isascii()])
    windows = [document[begin : begin + 8] for document in documents for begin in range(0, len(document), 8)]
    assert data.n_windows == len(windows) > 2
    expected = sum(len(encoder.decode(window)) for window in (windows[0], windows[len(windows) // 2]))
    assert data.token_bytes(encoder, 2, limit=1) == expected


def test_ids_that_the_tokenizer_lacks_have_no_bytes_to_count():
    table, tokens = np.array([0, 1, 2]), np.array([[0, 1, 7]], np.int32)
    assert count_bytes(table, tokens, np.array([[1, 0]], np.float32)) == 1
    with pytest.raises(InputError, match="token id 7"):
        count_bytes(table, tokens, np.array([[1, 1]], np.float32))
