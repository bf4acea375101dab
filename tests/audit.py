"""Known faults of the locked dependencies, from a file of advisories: needs no network.

    python3 -m tests.audit advisories.zip

The file holds advisories in OSV's form, as osv.dev exports them for PyPI (all.zip), or is a folder of such .json files.
Every pinned version of requirements*.lock is compared. `accepted_advisories.json` beside this file lists advisories
that do not apply, each with the reason. The exit status is 1 if any other advisory matches, or if an accepted one no
longer does. With a network, `pip-audit --disable-pip --no-deps -r requirements.lock` asks PyPI instead.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
ACCEPTED = Path(__file__).with_name("accepted_advisories.json")
Pins = Mapping[str, set[tuple[str, str]]]


def pinned(locks: Iterable[Path]) -> Pins:
    """The versions in lock files with the names of the files, by package."""
    found: dict[str, set[tuple[str, str]]] = {}
    for lock in locks:
        for name, version in re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([\w.+!-]+)", lock.read_text(), re.MULTILINE):
            found.setdefault(normal(name), set()).add((version, lock.name))
    return found


def normal(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def advisories(path: Path) -> Iterator[Mapping[str, Any]]:
    """Those of an archive or a folder."""
    if path.is_dir():
        yield from (json.loads(one.read_bytes()) for one in sorted(path.glob("**/*.json")))
        return
    with zipfile.ZipFile(path) as archive:
        yield from (json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json"))


def matches(pins: Pins, found: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Advisory, package, version and lock file of each match, sorted."""
    hits = set()
    for advisory in found:
        if "withdrawn" in advisory:
            continue
        for part in advisory.get("affected", []):
            package = part.get("package", {})
            if package.get("ecosystem") == "PyPI":
                name = normal(package.get("name", ""))
                hits |= {(advisory["id"], name, *pin) for pin in pins.get(name, ()) if _is_affected(pin[0], part)}
    return sorted(hits)


def _is_affected(version: str, part: Mapping[str, Any]) -> bool:
    """Whether a version is listed, or lies in one of the ranges."""
    if version in part.get("versions", []):
        return True
    return any(
        _is_inside(Version(version), one.get("events", []))
        for one in part.get("ranges", [])
        if one.get("type") == "ECOSYSTEM"
    )


def _is_inside(version: Version, events: Iterable[Mapping[str, str]]) -> bool:
    """Whether a version is between an `introduced` and the `fixed` or `last_affected` after it."""
    inside = False
    for event in sorted(events, key=lambda event: _parsed(next(iter(event.values())))):
        at = _parsed(next(iter(event.values())))
        if "introduced" in event and version >= at:
            inside = True
        elif ("fixed" in event and version >= at) or ("last_affected" in event and version > at):
            inside = False
    return inside


def _parsed(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:  # a few old advisories have such; the version list beside them is exact
        return Version("0")


def main(arguments: list[str]) -> int:
    """Print the matches; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python3 -m tests.audit ADVISORIES (a .zip or a folder of OSV's .json files)", file=sys.stderr)
        return 2
    accepted: dict[str, str] = json.loads(ACCEPTED.read_text())
    pins = pinned(sorted(ROOT.glob("requirements*.lock")))
    hits = matches(pins, advisories(Path(arguments[0])))
    for identifier, name, version, lock in hits:
        print(f"{identifier}: {name} {version} ({lock}){': accepted: ' if identifier in accepted else ''}"
              f"{accepted.get(identifier, '')}")  # fmt: skip
    stale = sorted({*accepted} - {hit[0] for hit in hits})
    for identifier in stale:
        print(f"{identifier}: is accepted and matches nothing: remove it from {ACCEPTED.name}")
    wrong = {hit[0] for hit in hits} - {*accepted}
    print(f"{sum(map(len, pins.values()))} pinned versions, {len(wrong)} advisories apply")
    return 1 if wrong or stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
