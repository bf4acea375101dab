"""Writes a run to MongoDB in the format of Sacred's MongoObserver, which Omniboard reads. Each event is written once.

MongoObserver appends metrics with `$push`, which a retry after a lost response repeats, and drops what it cannot write.
Here events are numbered, and each document to which events append has the number of the last one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mimetypes
from collections.abc import Callable
from datetime import datetime
from typing import Any

from gpt_mesh.errors import InputError
from gpt_mesh.experiments.outbox import Event, Outbox, Rejected, Unreachable

FORMAT = "MongoObserver-0.7.0"
DATABASE = "sacred"
TIMEOUT_MS = 3000
# Error codes of documents that the server will never accept: https://www.mongodb.com/docs/manual/reference/error-codes/
# BadValue, FailedToParse, TypeMismatch, Overflow, InvalidBSON, DollarPrefixedFieldName, DottedFieldName,
# DocumentValidationFailure, BSONObjectTooLarge, KeyTooLong, and two for an update that makes a document too large.
PERMANENT_ERRORS = {2, 9, 14, 15, 22, 52, 57, 121, 10334, 17280, 17419, 17420}


class _RunDeleted(Exception):
    """The run was deleted from the database: its further events are dropped."""


class Mongo:
    """A MongoDB database. Connects on first use."""

    def __init__(self, url: str, where: str = "--mongo_url") -> None:
        """`where`: the origin of the URL, for messages.

        Raises:
            InputError: the URL is invalid, pymongo is missing, or the server rejects the user or password.
        """
        if importlib.util.find_spec("pymongo") is None:
            raise InputError(f"{where}: pymongo is not installed; pip install 'pymongo>=4' brings it")
        import pymongo
        from pymongo import errors, uri_parser

        try:
            options = uri_parser.parse_uri(url)
            self.client: Any = pymongo.MongoClient(
                url,
                serverSelectionTimeoutMS=TIMEOUT_MS,
                connectTimeoutMS=TIMEOUT_MS,
                socketTimeoutMS=10 * TIMEOUT_MS,
                tz_aware=False,
            )
        except (errors.InvalidURI, errors.ConfigurationError, ValueError) as error:
            raise InputError(
                f"{where}: {error}; the form is mongodb://user:password@host:27017/sacred?authSource=admin"
            ) from None
        host, port = (options["nodelist"] or [("localhost", 27017)])[0]
        self.name = f"MongoDB at {host}:{port}"  # without the password
        self.database = self.client[options["database"] or DATABASE]
        try:
            self.database.command("ping")
        except errors.OperationFailure as error:
            refusal = (error.details or {}).get("errmsg", str(error))
            raise InputError(f"{where}: {self.name} refuses: {refusal}; check user and password") from None
        except errors.PyMongoError:
            pass  # the outbox waits for it

    def receiver(self, key: str) -> MongoReceiver:
        return MongoReceiver(self.database, key)


class MongoReceiver:
    """Takes the events of the run that has this key."""

    def __init__(self, database: Any, key: str) -> None:
        import gridfs

        self.database, self.key = database, key
        self.runs, self.metrics, self.fs = database["runs"], database["metrics"], gridfs.GridFS(database)
        self._id: int | None = None

    def deliver(self, event: Event, outbox: Outbox) -> None:
        handlers: dict[str, Callable[[Event, Outbox], None]] = {
            "started": self._started,
            "metrics": self._metrics,
            "artifact": self._artifact,
            "resource": self._resource,
        }
        self._guarded(lambda: handlers.get(event["kind"], self._ended)(event, outbox))

    def heartbeat(self, values: Event) -> None:
        def write() -> None:
            series = self.metrics.find({"run_id": self._run_id()}, {"name": 1})
            info = {**values["info"], "metrics": [{"name": one["name"], "id": str(one["_id"])} for one in series]}
            self._set(
                info=_storable(info),
                captured_out=values["captured_out"],
                heartbeat=_time(values["beat_time"]),
                result=values["result"],
            )

        self._guarded(write)

    @staticmethod
    def _guarded(write: Callable[[], None]) -> None:
        """
        Raises:
            Rejected: it can never be written: too large, or what the database does not have.
            Unreachable: it cannot now. That the user lacks a right, an administrator may change.
        """
        from bson.errors import BSONError
        from pymongo.errors import OperationFailure, PyMongoError

        try:
            write()
        except _RunDeleted:
            return
        except (BSONError, OverflowError) as error:
            raise Rejected(str(error)) from error
        except PyMongoError as error:
            hopeless = isinstance(error, OperationFailure) and error.code in PERMANENT_ERRORS
            raise (Rejected if hopeless else Unreachable)(str(error).partition(",")[0]) from error

    def _started(self, event: Event, outbox: Outbox) -> None:
        """Insert the run under the next free number, as Sacred does, unless it is there."""
        from pymongo.errors import DuplicateKeyError

        if self.runs.find_one({"outbox": self.key}, {"_id": 1}) is not None:
            return
        experiment = dict(event["experiment"])
        experiment["sources"] = [[name, self._store(outbox, digest, name)] for name, digest in event["sources"]]
        entry = {
            "outbox": self.key,
            "format": FORMAT,
            "command": event["command"],
            "host": event["host"],
            "start_time": _time(event["time"]),
            "config": event["config"],
            "meta": event["meta"],
            "experiment": experiment,
            "status": "RUNNING",
            "resources": [],
            "artifacts": [],
            "captured_out": "",
            "info": {},
            "heartbeat": None,
        }
        while True:
            newest = next(iter(self.runs.find({}, {"_id": 1}).sort("_id", -1).limit(1)), {"_id": 0})
            try:
                self.runs.insert_one({"_id": int(newest["_id"]) + 1, **_storable(entry)})
                return
            except DuplicateKeyError:  # another run took the number
                continue

    def _metrics(self, event: Event, outbox: Outbox) -> None:
        rejected = []
        for name, points in event["metrics"].items():
            try:
                self._guarded(lambda name=name, points=points: self._append(event["n"], name, points))  # type: ignore[misc]
            except Rejected as error:  # such as a series that is too long for a document; the others go on
                rejected.append(f"{name}: {error}")
        if rejected:
            raise Rejected("; ".join(rejected))

    def _append(self, number: int, name: str, points: dict[str, list[Any]]) -> None:
        """Measurements of one metric, unless its document has those of this event."""
        run = self._run_id()
        times = [_time(text) for text in points["timestamps"]]
        columns = {"steps": points["steps"], "values": points["values"], "timestamps": times}
        appended = self.metrics.update_one(
            {"run_id": run, "name": name, "delivered": {"$lt": number}},
            {"$push": {key: {"$each": items} for key, items in columns.items()}, "$set": {"delivered": number}},
        )
        if not appended.matched_count and self.metrics.find_one({"run_id": run, "name": name}, {"_id": 1}) is None:
            self.metrics.insert_one({"run_id": run, "name": name, **columns, "delivered": number})

    def _artifact(self, event: Event, outbox: Outbox) -> None:
        run, name = self._run_id(), event["name"]
        file_id = self._store(outbox, event["file"], f"artifact://runs/{run}/{name}", event["n"])
        self.runs.update_one({"_id": run}, {"$pull": {"artifacts": {"name": name}}})  # replaced by the newer file
        self.runs.update_one({"_id": run}, {"$addToSet": {"artifacts": {"name": name, "file_id": file_id}}})

    def _resource(self, event: Event, outbox: Outbox) -> None:
        self.runs.update_one({"_id": self._run_id()}, {"$addToSet": {"resources": [event["name"], event["md5"]]}})

    def _ended(self, event: Event, outbox: Outbox) -> None:
        values = {name: event[name] for name in ("result", "fail_trace") if name in event}
        self._set(status=event["status"], stop_time=_time(event["time"]), **values)

    def _run_id(self) -> int:
        """The run's number, which the event `started` gave it."""
        if self._id is None:
            entry = self.runs.find_one({"outbox": self.key}, {"_id": 1})
            if entry is None:
                raise _RunDeleted
            self._id = int(entry["_id"])
        return self._id

    def _set(self, **values: Any) -> None:
        self.runs.update_one({"_id": self._run_id()}, {"$set": values})

    def _store(self, outbox: Outbox, digest: str, name: str, number: int = 0) -> Any:
        """Store a file in GridFS under an id that is derived from it, so that a retry finds the first attempt."""
        from bson import ObjectId

        # Runs share equal sources; an artifact belongs to its event.
        whose = f"{self.key}/{number}" if number else digest
        file_id = ObjectId(hashlib.sha256(f"{whose}/{name}".encode()).digest()[:12])
        if self.database["fs.files"].find_one({"_id": file_id}, {"_id": 1}) is None:
            self.database["fs.chunks"].delete_many({"files_id": file_id})  # of an interrupted attempt
            kind = mimetypes.guess_type(name)[0]
            self.fs.put(outbox.content(digest), _id=file_id, filename=name, content_type=kind)
        return file_id


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _storable(value: Any) -> Any:
    """The value with keys that are valid in all versions of MongoDB."""
    if isinstance(value, dict):
        return {str(key).replace(".", ",").replace("$", "@"): _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return value
