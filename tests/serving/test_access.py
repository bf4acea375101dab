"""The key of the server, and the names that it answers to."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_mesh.errors import InputError
from gpt_mesh.serving.access import API_KEY, API_KEY_FILE, AllowedHosts, api_key, is_key
from gpt_mesh.serving.address import host, listen


@pytest.mark.parametrize(
    ("header", "loopback", "everywhere"),
    [
        ("127.0.0.1:8000", True, True),
        ("127.1.2.3", True, True),
        ("[::1]:8000", True, True),
        ("LocalHost.:80", True, True),
        ("model.localhost", True, True),
        ("given.example:8000", True, True),
        ("10.0.0.7:8000", False, True),
        ("[fe80::1]", False, True),
        ("attacker.example:8000", False, False),
        ("127.0.0.1.attacker.example", False, False),
        ("localhost@attacker.example", False, False),
        ("localhost:8000:1", False, False),
        ("", False, False),
    ],
)
def test_a_name_of_another_site_is_not_answered(header: str, loopback: bool, everywhere: bool) -> None:
    for address, allowed in (("127.0.0.1:0", loopback), ("0.0.0.0:0", everywhere)):
        with listen(address) as bound:
            assert AllowedHosts(bound, ["given.example"]).allows(header) is allowed


def test_the_machine_is_called_by_its_name_where_others_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "workshop")
    with listen("0.0.0.0:0") as bound:
        assert AllowedHosts(bound).allows("Workshop:80")
    with listen("127.0.0.1:0") as bound:
        assert not AllowedHosts(bound).allows("workshop:80")


def test_the_host_of_an_address() -> None:
    found = [host(address) for address in ("8000", ":8000", "localhost:8000", "[::1]:80")]
    assert found == [None, None, "localhost", "::1"]


def test_the_key_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    monkeypatch.delenv(API_KEY_FILE, raising=False)
    assert api_key() is None
    monkeypatch.setenv(API_KEY, "open sesame")
    assert api_key() == "open sesame"
    path = tmp_path / "key"
    path.write_text("clé-1\n")
    monkeypatch.setenv(API_KEY_FILE, str(path))
    with pytest.raises(InputError, match="are both set"):
        api_key()
    monkeypatch.delenv(API_KEY)
    assert api_key() == "clé-1"


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"\xff", b"x" * 5000, None])
def test_a_file_without_a_key_does_not_open_the_server(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.delenv(API_KEY, raising=False)
    monkeypatch.setenv(API_KEY_FILE, str(path))
    with pytest.raises(InputError, match=f"^{API_KEY_FILE} = .*key") as caught:
        api_key()
    assert "\n" not in str(caught.value)


def test_only_the_key_is_the_key() -> None:
    sent = "clé".encode().decode("latin-1")  # how ASGI hands on the bytes of a header
    assert is_key(sent, "clé") and is_key("abc", "abc")
    assert not any(is_key(given, "abc") for given in ("", "ab", "abcd", "ABC"))
