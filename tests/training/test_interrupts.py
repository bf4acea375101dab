"""Asking a run to end, by signals and without."""

from __future__ import annotations

import signal

import pytest

from gpt_mesh.training.interrupts import Interrupts


def test_a_signal_after_a_request_is_the_first_signal() -> None:
    """A scheduler tells every host at once: what a worker passed on must not make the chief's own signal the second."""
    interrupts = Interrupts()
    interrupts.request()
    with interrupts.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
