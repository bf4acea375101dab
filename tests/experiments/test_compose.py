"""docker-compose.yml: it refuses to start without passwords, and nothing of it is open to other machines."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The Compose Specification's JSON schema, as docker-compose 1.29.2 has it (Apache License 2.0, beside it).
SCHEMA = ROOT / "tests" / "support" / "compose_spec" / "schema.json"
yaml = pytest.importorskip("yaml")


@pytest.fixture
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


def wrong(document: Any) -> list[str]:
    """What the specification does not allow, by its path."""
    from jsonschema import Draft201909Validator

    errors = Draft201909Validator(json.loads(SCHEMA.read_text())).iter_errors(document)
    return ["/".join(map(str, error.absolute_path)) for error in errors]


def test_the_files_agree_with_the_specification(compose: dict[str, Any]) -> None:
    assert wrong(compose) == []
    assert wrong(yaml.safe_load((ROOT / "docker" / "compose.npm.yml").read_text())) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("mongo", "health_check"), {"test": "true"}),
        (("mongo", "ports"), "127.0.0.1:27017:27017"),
        (("mongo", "healthcheck", "retries"), "often"),
        (("omniboard", "depends_on", "mongo", "condition"), "service_well"),
    ],
)
def test_the_specification_refuses_mistakes(compose: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    broken: Any = copy.deepcopy(compose)
    *way, last = place
    at = broken["services"]
    for name in way:
        at = at[name]
    at[last] = value
    assert [path.split("/")[:2] for path in wrong(broken)] == [["services", place[0]]]


def test_ports_are_on_loopback_only(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items()}
    assert ports == {"mongo": ["127.0.0.1:27017:27017"], "omniboard": ["127.0.0.1:8081:9000"]}


def test_there_is_no_default_password(services: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    secrets = re.findall(r"\$\{(\w+)[^}]*\}", text)
    required = set(re.findall(r"\$\{(\w+):\?[^}]+\}", text))
    assert set(secrets) == required == {"MONGO_ROOT_PASSWORD", "SACRED_USER", "SACRED_PASSWORD"}
    assert ":-" not in text
    example = dict(line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if line[0] != "#")
    assert example["MONGO_ROOT_PASSWORD"] == example["SACRED_PASSWORD"] == ""


def test_omniboard_waits_for_a_database_that_answers(services: dict[str, Any]) -> None:
    assert services["omniboard"]["depends_on"] == {"mongo": {"condition": "service_healthy"}}
    assert "ping" in services["mongo"]["healthcheck"]["test"][1]
    for mount in services["mongo"]["volumes"]:
        source = mount.split(":")[0]
        assert source == "mongo-data" or (ROOT / source).is_file()


def test_the_files_for_docker_are_whole() -> None:
    override = yaml.safe_load((ROOT / "docker" / "compose.npm.yml").read_text())
    assert (ROOT / override["services"]["omniboard"]["build"] / "Dockerfile").is_file()
    assert subprocess.run(["bash", "-n", str(ROOT / "docker" / "mongo-user.sh")]).returncode == 0
    assert (ROOT / "docker" / "mongo-user.sh").stat().st_mode & 0o100


def test_the_environment_names_the_database(tmp_path: Path) -> None:
    """The last line of .env.example, as a shell reads it."""
    text = (ROOT / ".env.example").read_text().replace("SACRED_PASSWORD=\n", "SACRED_PASSWORD=secret\n")
    (tmp_path / ".env").write_text(text)
    command = 'set -a; . ./.env; set +a; echo "$SACRED_MONGO_URL"'
    shown = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert shown == "mongodb://sacred:secret@127.0.0.1:27017/sacred?authSource=sacred"
