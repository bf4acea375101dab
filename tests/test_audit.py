"""Which pinned versions an advisory is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import audit


def advisory(name: str, **part: Any) -> dict[str, Any]:
    return {"id": "PYSEC-1", "affected": [{"package": {"ecosystem": "PyPI", "name": name}, **part}]}


def between(*events: dict[str, str]) -> dict[str, Any]:
    return {"ranges": [{"type": "ECOSYSTEM", "events": list(events)}]}


@pytest.mark.parametrize(
    ("version", "part", "applies"),
    [
        ("1.10", between({"introduced": "0"}), True),
        ("1.10", between({"introduced": "0"}, {"fixed": "1.9"}), False),
        ("1.10", between({"introduced": "0"}, {"fixed": "1.11"}), True),
        ("1.10", between({"introduced": "1.11"}), False),
        ("1.10", between({"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "1.5"}, {"fixed": "2"}), True),
        ("1.10", between({"introduced": "0"}, {"last_affected": "1.10"}), True),
        ("1.10", between({"introduced": "0"}, {"last_affected": "1.9"}), False),
        ("1.10", {"versions": ["1.10"]}, True),
        ("1.10", {"versions": ["1.1"]}, False),
    ],
)
def test_versions(version: str, part: dict[str, Any], applies: bool) -> None:
    pins = {"some-package": {(version, "a.lock")}}
    hits = audit.matches(pins, [advisory("Some.Package", **part)])
    assert hits == ([("PYSEC-1", "some-package", version, "a.lock")] if applies else [])
    assert audit.matches(pins, [{**advisory("Some.Package", **part), "withdrawn": "2020-01-01T00:00:00Z"}]) == []


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pins = audit.pinned(audit.ROOT.glob("requirements*.lock"))
    assert {"tensorflow", "numpy", "absl-py"} <= {*pins}
    (tmp_path / "one.json").write_text(json.dumps(advisory("absl_py", **between({"introduced": "0"}))))
    accepted = tmp_path / "accepted"
    monkeypatch.setattr(audit, "ACCEPTED", accepted)
    for reasons, status, said in (
        ({}, 1, "1 advisories apply"),
        ({"PYSEC-1": "not used here"}, 0, "accepted: not used here"),
        ({"PYSEC-1": "x", "PYSEC-2": "y"}, 1, "PYSEC-2: is accepted and matches nothing"),
    ):
        accepted.write_text(json.dumps(reasons))
        assert audit.main([str(tmp_path)]) == status
        assert said in capsys.readouterr().out
    assert audit.main([]) == 2
