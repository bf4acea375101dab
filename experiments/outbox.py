"""A queue on disk between a run and a database that may be away: what goes in is delivered in order, once.

The folder of a run holds `events.jsonl` (numbered, appended), `files/` (copies, named by their digest),
`heartbeat.json` (the latest only) and `delivered` (the number of the last event that the other side has). An event that
was delivered in the moment of a crash is offered again: the receiver knows it by its number (experiments/mongo.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from gpt_mesh.storage.progress import log

Event = dict[str, Any]  # `n` from 1, `kind`, and what the kind needs
RETRY_SECONDS = 5.0
LAST_KINDS = ("completed", "interrupted", "failed")


class Unreachable(Exception):
    """The receiver cannot take anything now."""


class Rejected(Exception):
    """The receiver will never take this event."""


class Receiver(Protocol):
    """Takes the events of one run, in order; those that it has already are taken and change nothing."""

    def deliver(self, event: Event, files: Path) -> None:
        """Raises Unreachable or Rejected."""

    def heartbeat(self, values: Event) -> None:
        """The latest state; raises Unreachable or Rejected."""


class Outbox:
    """The folder of one run. One process at a time has it open."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            BlockingIOError: another process has it open.
        """
        self.folder, self.files = folder, folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self._lock_file = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise
        self._lock = threading.Lock()
        self._beats, self._beats_sent = int((folder / "heartbeat.json").exists()), 0
        self._file = _appendable(folder / "events.jsonl")
        self.delivered = int(_read(folder / "delivered") or 0)
        self._position = 0  # in bytes, of the first event that is not delivered
        self.count, self.ended = self.delivered, False
        for event, end in list(self._events()):
            self.count, self.ended = event["n"], event["kind"] in LAST_KINDS
            if event["n"] <= self.delivered:
                self._position = end

    @property
    def key(self) -> str:
        """Names the run to the receiver, whatever machine it came from."""
        return self.folder.name

    def put(self, kind: str, **values: Any) -> None:
        """Add an event; it is on disk when this returns.

        Raises:
            OSError: the disk is full; nothing of the event is there.
        """
        with self._lock:
            line = (json.dumps({"n": self.count + 1, "kind": kind, **values}) + "\n").encode()
            end = self._file.tell()
            try:
                while line:
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                self._file.seek(end)
                raise
            self.count += 1
            self.ended = kind in LAST_KINDS

    def beat(self, **values: Any) -> None:
        """Replace the latest heartbeat."""
        with self._lock:
            _replace(self.folder / "heartbeat.json", json.dumps(values))
            self._beats += 1

    def copy(self, path: str) -> str:
        """Keep a copy of a file as it is now; returns the name that it has in `files`."""
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        if not (self.files / digest).exists():
            temporary = self.files / f"{digest}.writing"
            shutil.copyfile(path, temporary)
            os.replace(temporary, self.files / digest)
        return digest

    @property
    def waiting(self) -> int:
        """How many events the receiver does not have."""
        return self.count - self.delivered

    def send(self, receiver: Receiver) -> None:
        """Deliver what waits; what the receiver rejects is left out, with a warning.

        Raises:
            Unreachable: what was delivered until then stays so.
        """
        for event, end in self._events():
            if event["kind"] in LAST_KINDS:  # the last of the output comes before the end
                self._send_beat(receiver)
            try:
                receiver.deliver(event, self.files)
            except Rejected as error:
                log.warning("event %d (%s) is not kept: %s", event["n"], event["kind"], error)
            _replace(self.folder / "delivered", str(event["n"]))
            self.delivered, self._position = event["n"], end
        self._send_beat(receiver)

    def _send_beat(self, receiver: Receiver) -> None:
        beats, text = self._beats, _read(self.folder / "heartbeat.json")
        if text and self.delivered and beats != self._beats_sent:
            try:
                receiver.heartbeat(json.loads(text))
            except Rejected as error:
                log.warning("a heartbeat is not kept: %s", error)
            self._beats_sent = beats

    def _events(self) -> Iterator[tuple[Event, int]]:
        """The events that are not delivered, each with the position of its end."""
        with (self.folder / "events.jsonl").open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):  # in the writing
                    return
                yield json.loads(line), file.tell()

    def close(self) -> None:
        """Leave it; the folder goes when nothing of it is needed any more."""
        if not self.waiting and self.ended:
            self.discard()
        self._file.close()
        self._lock_file.close()

    def discard(self) -> None:
        """Remove the folder, whatever is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Postman(threading.Thread):
    """Delivers an outbox in the background, and tries again while the receiver is away."""

    def __init__(self, outbox: Outbox, receiver: Receiver, name: str) -> None:
        """`name`: of the receiver, for messages."""
        super().__init__(name="postman", daemon=True)
        self._outbox, self._receiver, self._where = outbox, receiver, name
        self._wake, self._stop_at = threading.Event(), float("inf")
        self._away = False

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()

    def run(self) -> None:
        while True:
            sent = self._try()
            now = time.monotonic()
            if now >= self._stop_at or (sent and self._stop_at < float("inf") and not self._outbox.waiting):
                return
            self._wake.wait(None if sent else min(RETRY_SECONDS, max(0.1, self._stop_at - now)))
            self._wake.clear()

    def _try(self) -> bool:
        try:
            self._outbox.send(self._receiver)
        except Unreachable as error:
            if not self._away:
                log.warning(
                    "%s takes nothing (%s): the run goes on, what it reports waits in %s",
                    self._where,
                    error,
                    self._outbox.folder,
                )
            self._away = True
            return False
        except Exception:  # a defect must not end the run that it reports
            log.exception("%s: nothing more is sent in this run; it waits in %s", self._where, self._outbox.folder)
            self._stop_at = 0.0
            return False
        if self._away:
            log.info("%s is back and has everything", self._where)
        self._away = False
        return True

    def finish(self, seconds: float) -> bool:
        """Deliver what can be delivered in that time, and end; returns whether all was."""
        self._stop_at = time.monotonic() + seconds
        self._wake.set()
        self.join()
        return not self._outbox.waiting


def new_outbox(parent: Path) -> Outbox:
    """An empty one, under a name that no other has."""
    return Outbox(parent / uuid.uuid4().hex)


def left_behind(parent: Path) -> Iterator[Outbox]:
    """Outboxes of runs that ended before all was delivered. Whoever takes one closes it."""
    for folder in sorted(parent.glob("*/")):
        with contextlib.suppress(OSError):  # its run is alive
            yield Outbox(folder)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _appendable(path: Path) -> io.FileIO:
    """The file, open at the end of its last whole line, and unbuffered: what could not be written is not tried again.
    """
    text = _read(path)
    if text and not text.endswith("\n"):
        _replace(path, text[: text.rfind("\n") + 1])
    file = path.open("ab", buffering=0)
    assert isinstance(file, io.FileIO)
    file.seek(0, os.SEEK_END)
    return file


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
