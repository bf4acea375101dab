"""A queue on disk between a run and a database that may be away: events are delivered in order, once.

Each run has an SQLite database, which its process keeps locked. It holds numbered events, the files that they name (by
digest), and the latest heartbeat. If the process is killed between a delivery and its record, the event is delivered
again: the receiver recognises it by its number (experiments/mongo.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from gpt_mesh.storage import strict_json
from gpt_mesh.storage.progress import log

Event = dict[str, Any]  # `n` from 1, `kind`, and what the kind needs
RETRY_SECONDS = 5.0
LAST_KINDS = ("completed", "interrupted", "failed")
SUFFIX = ".sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    n INTEGER PRIMARY KEY, kind TEXT NOT NULL, content TEXT NOT NULL, delivered INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS files (digest TEXT PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS heartbeat (one INTEGER PRIMARY KEY CHECK (one = 1), content TEXT NOT NULL);
"""


class Unreachable(Exception):
    """The receiver cannot take anything now."""


class Rejected(Exception):
    """The receiver will never take this event."""


class EventReceiver(Protocol):
    """Takes the events of one run, in order. An event that it already has changes nothing."""

    def deliver(self, event: Event, outbox: Outbox) -> None:
        """Raises Unreachable or Rejected."""

    def heartbeat(self, values: Event) -> None:
        """The latest state; raises Unreachable or Rejected."""


class Outbox:
    """The events of one run. One process at a time has it open."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            sqlite3.Error: another process has it open, or it cannot be written.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        # In autocommit mode, with `synchronous` at its default: an event is on disk when `put` returns.
        self._database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")  # the kernel releases it however a process ends
            self._database.executescript(f"BEGIN EXCLUSIVE; {_TABLES} COMMIT;")
        except sqlite3.Error:
            self._database.close()
            raise
        self._beats, self._beats_sent = 1, 0

    @property
    def key(self) -> str:
        """Identifies the run to the receiver, whatever machine it came from."""
        return self.path.stem

    @property
    def waiting(self) -> int:
        """How many events the receiver does not have."""
        return int(self._one("SELECT count(*) FROM events WHERE NOT delivered")[0])

    @property
    def last(self) -> str | None:
        """The kind of the newest event, delivered or not; None if there is no event."""
        row = self._one("SELECT kind FROM events ORDER BY n DESC LIMIT 1")
        return None if row is None else str(row[0])

    def put(self, kind: str, **values: Any) -> None:
        """Add an event; it is on disk when this returns.

        Raises:
            sqlite3.Error: the disk is full; nothing of the event is kept.
        """
        self._one("INSERT INTO events (kind, content) VALUES (?, ?)", kind, strict_json.dumps(values))

    def beat(self, **values: Any) -> None:
        """Replace the latest heartbeat."""
        with self._lock:
            self._one("INSERT OR REPLACE INTO heartbeat VALUES (1, ?)", strict_json.dumps(values))
            self._beats += 1

    def copy(self, path: str) -> str:
        """Keep a copy of a file as it is now; returns its digest."""
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self._one("INSERT OR IGNORE INTO files VALUES (?, ?)", digest, content)
        return digest

    def content(self, digest: str) -> bytes:
        """A file that was copied."""
        return bytes(self._one("SELECT content FROM files WHERE digest = ?", digest)[0])

    def last_beat(self) -> Event:
        """The latest heartbeat; empty if there was none."""
        found = self._one("SELECT content FROM heartbeat")
        return json.loads(found[0]) if found else {}

    def send(self, receiver: EventReceiver) -> None:
        """Deliver the waiting events. What the receiver rejects is dropped with a warning.

        Raises:
            Unreachable: events delivered until then stay delivered.
        """
        while (event := self._first()) is not None:
            if event["kind"] in LAST_KINDS:  # the last output comes before the end
                self._send_beat(receiver)
            try:
                receiver.deliver(event, self)
            except Rejected as error:
                log.warning("event %d (%s) is not kept: %s", event["n"], event["kind"], error)
            self._one("UPDATE events SET delivered = 1 WHERE n = ?", event["n"])
        self._send_beat(receiver)

    def _first(self) -> Event | None:
        row = self._one("SELECT n, kind, content FROM events WHERE NOT delivered ORDER BY n LIMIT 1")
        return None if row is None else {"n": row[0], "kind": row[1], **json.loads(row[2])}

    def _send_beat(self, receiver: EventReceiver) -> None:
        with self._lock:
            beats, values = self._beats, self.last_beat()
        # The receiver knows a run once it has the first event.
        if values and beats != self._beats_sent and self._one("SELECT n FROM events WHERE delivered"):
            try:
                receiver.heartbeat(values)
            except Rejected as error:
                log.warning("a heartbeat is not kept: %s", error)
            self._beats_sent = beats

    def _one(self, statement: str, *values: Any) -> Any:
        """Execute a statement; returns its first row, or None."""
        with self._lock:
            return self._database.execute(statement, values).fetchone()

    def close(self) -> None:
        """Close it. The file is removed if the run has ended and everything is delivered, or if it never started."""
        if self.last in (None, *LAST_KINDS) and not self.waiting:
            self.discard()
        self._database.close()

    def discard(self) -> None:
        """Remove the file, whatever is in it."""
        for suffix in ("", "-journal"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


class Delivery(threading.Thread):
    """Delivers an outbox in the background, and retries while the receiver is away."""

    def __init__(self, outbox: Outbox, receiver: EventReceiver, name: str) -> None:
        """`name`: of the receiver, for messages."""
        super().__init__(name="delivery", daemon=True)
        self._outbox, self._receiver, self._where = outbox, receiver, name
        self._wake, self._stop_at = threading.Event(), float("inf")
        self._away = False

    def wake(self) -> None:
        """There is something new to deliver."""
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
                    "%s is unreachable (%s): the run continues, and its reports wait in %s",
                    self._where,
                    error,
                    self._outbox.path,
                )
            self._away = True
            return False
        except Exception:  # a defect here must not end the run
            log.exception("%s: nothing more is sent in this run; reports wait in %s", self._where, self._outbox.path)
            self._stop_at = 0.0
            return False
        if self._away:
            log.info("%s is back and has everything", self._where)
        self._away = False
        return True

    def finish(self, seconds: float) -> bool:
        """Deliver what can be delivered in that time, and end; returns whether everything was."""
        self._stop_at = time.monotonic() + seconds
        self._wake.set()
        self.join()
        return not self._outbox.waiting


def new_outbox(folder: Path) -> Outbox:
    """An empty one, with a unique name."""
    return Outbox(folder / f"{uuid.uuid4().hex}{SUFFIX}")


def left_behind(folder: Path) -> Iterator[Outbox]:
    """Outboxes of runs that are over. Whoever takes one closes it.

    A run that was killed could not report its end: its outbox gets an event that says it was interrupted.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            outbox = Outbox(path)
        except sqlite3.Error as error:
            if "locked" not in str(error):  # else its run is alive
                log.warning("%s cannot be read (%s): left as it is", path, error)
            continue
        if outbox.last not in (None, *LAST_KINDS):
            seen = outbox.last_beat().get("beat_time") or _modified(path)
            outbox.put("interrupted", time=seen, status="INTERRUPTED")
        yield outbox


def _modified(path: Path) -> str:
    """When a file was last written, in Sacred's form: UTC, without a time zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(os.stat(path).st_mtime))
