"""Batches fed to a session by a thread."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.tpu.feed import CAPACITY, Feed

pytestmark = pytest.mark.tpu_env
v1 = tf.compat.v1


def numbered(begin: int, end: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batch i holds i, and its half."""
    while end is None or begin < end:
        yield np.full([2, 3], begin, np.int32), np.full([2], begin / 2, np.float32)
        begin += 1


def forms() -> dict[str, tf.TensorSpec]:
    return {"tokens": tf.TensorSpec([2, 3], tf.int32), "weights": tf.TensorSpec([2], tf.float32)}


def take(feed: Feed, step: int, count: int) -> list[int]:
    """The first tokens of so many batches, in a session that stands at that step."""
    with tf.Graph().as_default():
        v1.train.create_global_step()
        features = feed.input_fn({})
        assert {name: x.shape.as_list() for name, x in features.items()} == {"tokens": [2, 3], "weights": [2]}
        restore = v1.assign(v1.train.get_global_step(), step)
        scaffold = v1.train.Scaffold(init_fn=lambda scaffold, session: session.run(restore.op))
        found = []
        with v1.train.MonitoredSession(v1.train.ChiefSessionCreator(scaffold), hooks=[feed]) as session:
            for _ in range(count):
                values = session.run(features)
                assert (values["weights"] == values["tokens"][0, 0] / 2).all()
                found.append(int(values["tokens"][0, 0]))
    feed.finish()
    return found


def test_batches_begin_where_the_session_stands() -> None:
    assert take(Feed(forms(), numbered), 5, 3 * CAPACITY) == list(range(5, 5 + 3 * CAPACITY))


def test_a_source_may_end_with_what_is_wanted() -> None:
    assert take(Feed(forms(), lambda step: numbered(0, 3)), 0, 3) == [0, 1, 2]


def test_what_goes_wrong_in_the_source_is_raised() -> None:
    def broken(step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from numbered(0, 2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        take(Feed(forms(), broken), 0, 3)  # the session itself only ends
