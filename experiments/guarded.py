"""Turns failures of recording into warnings, so that the run continues."""

from __future__ import annotations

from typing import Any

from gpt_mesh.errors import InputError
from gpt_mesh.experiments.sacred_import import import_sacred
from gpt_mesh.storage.progress import log

import_sacred()

from sacred.observers import RunObserver  # noqa: E402

Metrics = dict[str, dict[str, list[Any]]]  # by name: "steps", "values" and "timestamps"


class Guarded(RunObserver):
    """Passes events on to an observer.

    A file that cannot be recorded (deleted meanwhile, too large) is skipped. After any other failure the observer gets
    no more events, except if it writes to the local disk (`ours`), which may have space again later; metrics that could
    not be written are sent again with the next ones.
    """

    def __init__(self, observer: Any, name: str, *, ours: bool = False) -> None:
        """`name`: for messages."""
        self.observer, self.name, self.ours = observer, name, ours
        self.priority = observer.priority
        self._works = False
        self._unsent: Metrics = {}
        self._said: set[str] = set()

    def started_event(self, **event: Any) -> Any:  # type: ignore[override]
        """Start the record; returns the run's number if the observer assigns one.

        Raises:
            InputError: the observer that numbers runs failed.
        """
        try:
            number = self.observer.started_event(**event)
        except Exception as error:
            if event["_id"] is None:
                why = _reason(error)
                raise InputError(f"{self.name}: cannot be written to ({why}); name another folder") from error
            self._leave_out(error)
            return None
        self._works = True
        return number

    def log_metrics(self, metrics_by_name: Metrics, info: Any) -> None:
        if not self._works:
            return
        if self.ours:
            metrics_by_name = self._unsent = _joined(self._unsent, metrics_by_name)
        if self._pass_on("log_metrics", metrics_by_name=metrics_by_name, info=info):
            self._unsent = {}

    def heartbeat_event(self, **event: Any) -> None:  # type: ignore[override]
        self._pass_on("heartbeat_event", **event)

    def artifact_event(self, name: str, **event: Any) -> None:  # type: ignore[override]
        self._pass_on("artifact_event", lost=name, name=name, **event)

    def resource_event(self, filename: str) -> None:
        self._pass_on("resource_event", lost=filename, filename=filename)

    def completed_event(self, **event: Any) -> None:  # type: ignore[override]
        self._pass_on("completed_event", **event)

    def interrupted_event(self, **event: Any) -> None:  # type: ignore[override]
        self._pass_on("interrupted_event", **event)

    def failed_event(self, **event: Any) -> None:  # type: ignore[override]
        self._pass_on("failed_event", **event)

    def join(self) -> None:
        self._pass_on("join")

    def _pass_on(self, method: str, lost: str = "", **event: Any) -> bool:
        """Pass an event on; returns whether the observer accepted it."""
        if not self._works:
            return False
        try:
            getattr(self.observer, method)(**event)
        except Exception as error:
            if lost or self.ours:
                self._warn(f"{lost or 'what the run reports'} is not kept: {_reason(error)}")
            else:
                self._leave_out(error)
            return False
        return True

    def _leave_out(self, error: Exception) -> None:
        self._works = False
        self._warn(f"left out of this run from here on: {_reason(error)}")

    def _warn(self, text: str) -> None:
        if text not in self._said:  # once, not at every heartbeat
            self._said.add(text)
            log.warning("%s: %s", self.name, text)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _joined(first: Metrics, second: Metrics) -> Metrics:
    names = {**first, **second}
    return {
        name: {
            column: [*first.get(name, {}).get(column, []), *second.get(name, {}).get(column, [])]
            for column in ("steps", "values", "timestamps")
        }
        for name in names
    }
