"""Records of tracked runs that were killed before they could write how they ended."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt_mesh.errors import shown
from gpt_mesh.storage import files, strict_json
from gpt_mesh.storage.progress import log


def end_abandoned(sacred_dir: str, model_path: str) -> None:
    """Mark Sacred's records that still say RUNNING as INTERRUPTED, at the time of their last heartbeat.

    Only records of this `model_path` are touched. The caller holds its lease, so none of these runs is alive.
    """
    where = files.absolute(model_path)
    for path in sorted(Path(sacred_dir).glob("*/run.json")):
        with suppress(OSError, ValueError):
            record, info = _read(path), _read(path.with_name("info.json"))
            if record.get("status") == "RUNNING" and info.get("model_path") == where:
                ended = {"status": "INTERRUPTED", "stop_time": record.get("heartbeat") or record.get("start_time")}
                strict_json.write(str(path), {**record, **ended})
                log.info("%s: was killed while it ran: it is marked as interrupted", shown(path.parent))


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_bytes())
    return found if isinstance(found, dict) else {}
