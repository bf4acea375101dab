"""What a run reports reaches MongoDB once and in order, over a real socket, whatever happens to the server."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.errors import InputError
from gpt_mesh.experiments import outbox as outboxes
from gpt_mesh.experiments.mongo import Mongo
from gpt_mesh.experiments.outbox import Outbox, Postman, Unreachable, left_behind, new_outbox
from tests.support.mongo_server import Document, MongoServer

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
    assert not outbox.folder.exists()


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


def test_a_crash_before_the_number_is_kept_repeats_nothing(
    server: MongoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, folder = filled(tmp_path), None
    replace = outboxes._replace

    def crash(path: Path, text: str) -> None:
        if path.name == "delivered" and int(text) % 2 and int(text) not in crashed:
            crashed.add(int(text))
            raise SystemExit
        replace(path, text)

    crashed: set[int] = set()
    monkeypatch.setattr(outboxes, "_replace", crash)
    for _ in range(30):
        try:
            assert deliver(outbox, server)
            break
        except SystemExit:
            folder = outbox.folder
            outbox._lock_file.close()  # as the death of its process does
            outbox = Outbox(folder)
    assert len(crashed) > 4
    check(server)


def test_a_server_that_dies_and_returns_gets_the_rest(server: MongoServer, tmp_path: Path) -> None:
    outbox = new_outbox(tmp_path)
    postman = Postman(outbox, Mongo(server.url).receiver(outbox.key), "it")
    postman.start()
    outbox.put("started", **STARTED, sources=[])
    server.stop()
    for step in range(5):
        points = {"steps": [step], "values": [float(step)], "timestamps": [NOW]}
        outbox.put("metrics", metrics={"training.loss": points})
        postman.wake()
    server.start()
    outbox.put("failed", time=NOW, status="FAILED", fail_trace=["Traceback\n", "ValueError: x\n"])
    assert postman.finish(30)
    (series,) = server.database["metrics"].find()
    assert series["steps"] == [0, 1, 2, 3, 4]
    (run,) = server.database["runs"].find()
    assert run["status"] == "FAILED" and run["fail_trace"][-1] == "ValueError: x\n"


def test_what_an_ended_run_left_behind_is_found(server: MongoServer, tmp_path: Path) -> None:
    outbox = filled(tmp_path)
    assert list(left_behind(tmp_path)) == [], "its run is alive"
    outbox.close()
    with (outbox.folder / "events.jsonl").open("a") as file:
        file.write('{"n": 12, "ki')  # a kill in the middle of a line
    (again,) = left_behind(tmp_path)
    assert again.waiting == 11
    assert deliver(again, server)
    again.close()
    check(server)
    assert list(left_behind(tmp_path)) == []


def test_two_runs_get_two_numbers(server: MongoServer, tmp_path: Path) -> None:
    for _ in range(2):
        assert deliver(filled(tmp_path, batches=1), server)
    assert sorted(run["_id"] for run in server.database["runs"].find()) == [1, 2]
    assert sorted(one["run_id"] for one in server.database["metrics"].find()) == [1, 1, 2, 2]


def test_a_run_that_was_deleted_takes_nothing_and_blocks_nothing(server: MongoServer, tmp_path: Path) -> None:
    outbox = filled(tmp_path)
    receiver = Mongo(server.url).receiver(outbox.key)
    first = json.loads((outbox.folder / "events.jsonl").read_text().splitlines()[0])
    receiver.deliver(first, outbox.files)
    server.database["runs"].delete_many({})
    rest = Mongo(server.url).receiver(outbox.key)
    rest.deliver({"n": 2, "kind": "metrics", "metrics": {}}, outbox.files)
    rest.heartbeat({"info": {}, "captured_out": "", "beat_time": NOW, "result": None})
    assert server.database["runs"].count_documents({}) == 0


@pytest.mark.parametrize("url", ["localhost", "mongodb://a:b@", "mongodb://h:port"])
def test_a_url_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(InputError, match="the form is") as error:
        Mongo(url)
    assert str(error.value).startswith("--mongo_url: ")
