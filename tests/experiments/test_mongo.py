"""What a run reports reaches MongoDB once and in order, over a real socket, whatever happens to the server."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gpt_mesh.errors import InputError
from gpt_mesh.experiments.mongo import Mongo
from gpt_mesh.experiments.outbox import Delivery, Outbox, Unreachable, left_behind, new_outbox
from tests.support.mongo_server import Document, MongoServer
from tests.support.runs import logged

NOW = "2026-01-02T03:04:05"
STARTED = {
    "experiment": {"name": "tiny", "base_dir": "/", "dependencies": ["a.b==1"]},
    "command": "run",
    "host": {"hostname": "here"},
    "time": NOW,
    "config": {"lr": 0.1},
    "meta": {},
}


@pytest.fixture
def server() -> Iterator[MongoServer]:
    with MongoServer() as server:
        yield server


def filled(folder: Path, batches: int = 6) -> Outbox:
    """A run with metrics in batches of two steps, a file written twice, and its end."""
    outbox = new_outbox(folder)
    source = folder / "source.py"
    source.write_text("print(1)\n")
    outbox.put("started", **STARTED, sources=[("source.py", outbox.copy(str(source)))])
    for batch in range(batches):
        points = {"steps": [2 * batch, 2 * batch + 1], "values": [1.0, 2.0], "timestamps": [NOW, NOW]}
        outbox.put("metrics", metrics={"training.loss": points, "training.nll": points})
    for text in ("old", "new"):
        (folder / "sample.txt").write_text(text)
        outbox.put("artifact", name="sample.txt", file=outbox.copy(str(folder / "sample.txt")))
    outbox.put("resource", name="model.json", md5="0")
    outbox.beat(info={"a": {"b.c": 1}}, captured_out="printed", beat_time=NOW, result=None)
    outbox.put("completed", time=NOW, status="COMPLETED", result="completed")
    return outbox


def check(server: MongoServer, batches: int = 6) -> None:
    """The database has one such run, whole."""
    (run,) = server.database["runs"].find()
    assert (run["_id"], run["status"], run["captured_out"], run["config"]) == (1, "COMPLETED", "printed", {"lr": 0.1})
    series = {one["name"]: one for one in server.database["metrics"].find()}
    assert sorted(series) == ["training.loss", "training.nll"]
    for one in series.values():
        assert one["steps"] == list(range(2 * batches)) and one["values"] == [1.0, 2.0] * batches
        assert len(one["timestamps"]) == 2 * batches and one["run_id"] == 1
    assert {(m["name"], m["id"]) for m in run["info"]["metrics"]} == {(n, str(one["_id"])) for n, one in series.items()}
    (artifact,) = run["artifacts"]
    assert stored(server, artifact["file_id"]) == b"new"
    assert stored(server, run["experiment"]["sources"][0][1]) == b"print(1)\n"
    assert run["resources"] == [["model.json", "0"]]


def stored(server: MongoServer, file_id: Any) -> bytes:
    chunks = server.database["fs.chunks"].find({"files_id": file_id}).sort("n")
    return b"".join(chunk["data"] for chunk in chunks)


def deliver(outbox: Outbox, server: MongoServer) -> bool:
    """One try."""
    try:
        outbox.send(Mongo(server.url).receiver(outbox.key))
    except Unreachable:
        return False
    return True


def test_a_run_arrives_as_sacred_writes_it(server: MongoServer, tmp_path: Path) -> None:
    outbox = filled(tmp_path)
    assert deliver(outbox, server) and not outbox.waiting
    check(server)
    outbox.close()
    assert not list(tmp_path.glob("*.sqlite*"))


def test_answers_that_are_lost_repeat_nothing(server: MongoServer, tmp_path: Path) -> None:
    """Half of the writes are done, their answers lost, and tried again."""
    outbox, rng, lost = filled(tmp_path), random.Random(1), []

    def lose(command: Document) -> bool:
        name = next(iter(command))
        unlucky = name in ("insert", "update", "delete") and rng.random() < 0.5
        lost.extend([name] * unlucky)
        return unlucky

    server.lose_answers = lose
    tries = 1
    while not deliver(outbox, server):
        tries += 1
        assert tries < 200
    assert len(lost) > 12 and {*lost} == {"insert", "update", "delete"}
    check(server)


def test_a_crash_before_the_delivery_is_recorded_repeats_nothing(server: MongoServer, tmp_path: Path) -> None:
    outbox, crashes = filled(tmp_path), 0
    path = outbox.path
    while outbox.waiting:
        receiver = Mongo(server.url).receiver(outbox.key)
        try:
            outbox.send(Crashing(receiver))
        except SystemExit:
            crashes += 1
            outbox._database.close()  # as the death of its process does
            outbox = Outbox(path)
    assert crashes > 4
    check(server)


class Crashing:
    """Crashes when it has delivered an event with an odd number for the first time."""

    seen: ClassVar[set[int]] = set()

    def __init__(self, receiver: Any) -> None:
        self.receiver = receiver

    def deliver(self, event: dict[str, Any], outbox: Outbox) -> None:
        self.receiver.deliver(event, outbox)
        if event["n"] % 2 and event["n"] not in self.seen:
            self.seen.add(event["n"])
            raise SystemExit

    def heartbeat(self, values: dict[str, Any]) -> None:
        self.receiver.heartbeat(values)


def test_a_server_that_dies_and_returns_gets_the_rest(server: MongoServer, tmp_path: Path) -> None:
    outbox = new_outbox(tmp_path)
    delivery = Delivery(outbox, Mongo(server.url).receiver(outbox.key), "it")
    delivery.start()
    outbox.put("started", **STARTED, sources=[])
    server.stop()
    for step in range(5):
        points = {"steps": [step], "values": [float(step)], "timestamps": [NOW]}
        outbox.put("metrics", metrics={"training.loss": points})
        delivery.wake()
    server.start()
    outbox.put("failed", time=NOW, status="FAILED", fail_trace=["Traceback\n", "ValueError: x\n"])
    assert delivery.finish(30)
    (series,) = server.database["metrics"].find()
    assert series["steps"] == [0, 1, 2, 3, 4]
    (run,) = server.database["runs"].find()
    assert run["status"] == "FAILED" and run["fail_trace"][-1] == "ValueError: x\n"


def test_what_an_ended_run_left_behind_is_found(server: MongoServer, tmp_path: Path) -> None:
    outbox = filled(tmp_path)
    assert list(left_behind(tmp_path)) == [], "its run is alive"
    outbox.close()
    (again,) = left_behind(tmp_path)
    assert again.waiting == 11
    assert deliver(again, server)
    again.close()
    check(server)
    assert list(left_behind(tmp_path)) == []


KILLED = """
import os, sys
from pathlib import Path
from gpt_mesh.experiments.outbox import new_outbox
from tests.experiments.test_mongo import NOW, STARTED
outbox = new_outbox(Path(sys.argv[1]))
outbox.put("started", **STARTED, sources=[("child.py", outbox.copy(os.__file__))])
outbox.beat(info={}, captured_out="printed", beat_time=NOW, result=None)
print(flush=True)
while True:
    outbox.put("metrics", metrics={})
"""


@pytest.mark.parametrize("delivered", [False, True])
def test_a_killed_run_does_not_stay_running(server: MongoServer, tmp_path: Path, delivered: bool) -> None:
    """It could not report its end, whether or not the rest was delivered; nothing of it stays on this disk."""
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.kill()
    if delivered:
        (path,) = tmp_path.glob("*.sqlite")
        outbox = Outbox(path)
        assert deliver(outbox, server)
        outbox.close()
        assert path.exists(), "its end was not reported"
    (outbox,) = left_behind(tmp_path)
    assert outbox.waiting == 1 if delivered else outbox.waiting > 2
    assert deliver(outbox, server)
    outbox.close()
    (run,) = server.database["runs"].find()
    assert (run["status"], run["captured_out"], run["stop_time"].isoformat()) == ("INTERRUPTED", "printed", NOW)
    assert list(tmp_path.iterdir()) == []


def test_an_outbox_that_is_damaged_is_left_and_does_not_block(server: MongoServer, tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"no database" * 1000)
    filled(tmp_path).close()
    with logged() as messages:
        (outbox,) = left_behind(tmp_path)
    assert f"{tmp_path / 'a.sqlite'} cannot be read" in messages[0] and deliver(outbox, server)


def test_two_runs_get_two_numbers(server: MongoServer, tmp_path: Path) -> None:
    for _ in range(2):
        assert deliver(filled(tmp_path, batches=1), server)
    assert sorted(run["_id"] for run in server.database["runs"].find()) == [1, 2]
    assert sorted(one["run_id"] for one in server.database["metrics"].find()) == [1, 1, 2, 2]


def test_a_run_that_was_deleted_takes_nothing_and_blocks_nothing(server: MongoServer, tmp_path: Path) -> None:
    outbox = filled(tmp_path)
    receiver = Mongo(server.url).receiver(outbox.key)
    first = outbox._first()
    assert first is not None
    receiver.deliver(first, outbox)
    server.database["runs"].delete_many({})
    rest = Mongo(server.url).receiver(outbox.key)
    rest.deliver({"n": 2, "kind": "metrics", "metrics": {}}, outbox)
    rest.heartbeat({"info": {}, "captured_out": "", "beat_time": NOW, "result": None})
    assert server.database["runs"].count_documents({}) == 0


@pytest.mark.parametrize("url", ["localhost", "mongodb://a:b@", "mongodb://h:port"])
def test_a_url_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(InputError, match="the form is") as error:
        Mongo(url)
    assert str(error.value).startswith("--mongo_url: ")
