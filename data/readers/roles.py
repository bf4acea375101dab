"""Records with roles: conversations, prompts with completions, instructions, preferences.

A reader checks such a record and hands it on as JSON in one form for each kind (`record_text`); `data.rendering` makes
tokens of it.
"""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from gpt_mesh.errors import InputError

RecordKind = Literal["text", "messages", "completion", "instruction", "preference", "kto"]
RECORD_KINDS: tuple[RecordKind, ...] = get_args(RecordKind)

# Of each kind, the sets of fields that records may have, best first; a name with "?" may be missing.
FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",), ("conversations",)),
    "completion": (("prompt", "completion"),),
    "instruction": (("instruction", "input?", "output"),),
    "preference": (("prompt?", "chosen", "rejected"),),
    "kto": (("prompt", "completion", "label"),),
}
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}  # ShareGPT's
SKIPPED = "skip"  # the key of a record that is left out; its value is the reason

Messages = list[dict[str, str]]


class _Unusable(Exception):
    """A well-formed record from which nothing can be learned. reason: for the account of such records."""

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(problem)
        self.reason = reason


def columns_of(kind: str, names: list[str], where: str) -> list[str]:
    """The columns or features to read for a kind of record.

    Raises:
        InputError: a needed one is missing.
    """
    for fields in FIELDS[kind]:
        needed = [name for name in fields if not name.endswith("?")]
        if all(name in names for name in needed):
            return [name.rstrip("?") for name in fields if name.rstrip("?") in names]
    raise InputError(f"{where}: has {', '.join(names[:8])}, {_needs(kind)}")


def record_text(record: Any, kind: str, where: str, *, skip_unusable: bool = False) -> str:
    """A record as JSON: `{"messages": …}`, `{"prompt": …, "completion": …}` or `{"prompt": …, "chosen": …, …}`.

    Args:
        kind: of `RECORD_KINDS`, but not "text".
        where: names the record.
        skip_unusable: a record that cannot be learned from becomes `{"skip": reason}`.

    Raises:
        InputError: the record has another form, or nothing can be learned from it.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: is no object, {_needs(kind)}")
    columns_of(kind, [str(name) for name in record], where)
    try:
        found = _MAKERS[kind](record, where)
    except _Unusable as error:
        if not skip_unusable:
            raise InputError(f"{where}: {error}; correct it, or leave such records out with --skip_unusable") from None
        found = {SKIPPED: error.reason}
    return json.dumps(found, ensure_ascii=False)


def _needs(kind: str) -> str:
    forms = " or ".join(", ".join(name.rstrip("?") for name in fields) for fields in FIELDS[kind])
    return f"and --records {kind} needs {forms}; name the kind that it is with --records"


def _messages(record: dict[str, Any], where: str) -> dict[str, Any]:
    messages = _checked(record.get("messages", record.get("conversations")), where, "messages")
    if not any(message["role"] == "assistant" for message in messages):
        raise _Unusable("has no message of the assistant, so nothing can be learned from it", "without an answer")
    empty = next((n for n, m in enumerate(messages, 1) if m["role"] == "assistant" and not m["content"].strip()), None)
    if empty is not None:
        raise _Unusable(f"message {empty} is an empty answer", "empty answers")
    return {"messages": messages}


def _completion(record: dict[str, Any], where: str) -> dict[str, Any]:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise _Unusable("its completion is empty", "empty answers")
        return {"prompt": prompt, "completion": completion}
    messages = [*_turns(prompt, where, "prompt", "user"), *_turns(completion, where, "completion", "assistant")]
    return _messages({"messages": messages}, where)


def _instruction(record: dict[str, Any], where: str) -> dict[str, Any]:
    parts = [_string(record.get(name) or "", where, name) for name in ("instruction", "input", "output")]
    question = "\n\n".join(filter(None, parts[:2]))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": parts[2]}]
    return _messages({"messages": messages}, where)


def _preference(record: dict[str, Any], where: str) -> dict[str, Any]:
    prompt, chosen, rejected = (record.get(name) for name in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str) and isinstance(prompt or "", str):
        if chosen == rejected:
            raise _Unusable("chosen and rejected are equal", "equal pairs")
        return {"prompt": prompt or "", "chosen": chosen, "rejected": rejected}
    sides = [_turns(side, where, name, "assistant") for side, name in ((chosen, "chosen"), (rejected, "rejected"))]
    if prompt is None:  # both sides begin with it
        same = next((n for n, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), min(map(len, sides)))
        before, sides = sides[0][:same], [side[same:] for side in sides]
    else:
        before = _turns(prompt, where, "prompt", "user")
    if sides[0] == sides[1]:
        raise _Unusable("chosen and rejected are equal", "equal pairs")
    if not before or not all(sides):
        raise _Unusable("has no prompt before chosen and rejected", "without a prompt")
    return {"prompt": before, "chosen": sides[0], "rejected": sides[1]}


def _kto(record: dict[str, Any], where: str) -> dict[str, Any]:
    label = record["label"]
    if label not in (True, False, 0, 1):
        raise InputError(f"{where}: label = {str(label)[:40]!r}: must be true (desirable) or false")
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(completion, str) and not completion.strip():
        raise _Unusable("its completion is empty", "empty answers")
    if not (isinstance(prompt, str) and isinstance(completion, str)):
        prompt, completion = (
            _turns(prompt, where, "prompt", "user"), _turns(completion, where, "completion", "assistant"),
        )  # fmt: skip
    return {"prompt": prompt, "completion": completion, "label": bool(label)}


_MAKERS = {
    "messages": _messages,
    "completion": _completion,
    "instruction": _instruction,
    "preference": _preference,
    "kto": _kto,
}


def _turns(value: Any, where: str, name: str, role: str) -> Messages:
    """Messages, or the one message that a text is."""
    return [{"role": role, "content": value}] if isinstance(value, str) else _checked(value, where, name)


def _checked(value: Any, where: str, name: str) -> Messages:
    """A list of messages: role and content, or ShareGPT's from and value; also one list of each, as in columns."""
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise InputError(f"{where}: {name} must be a list of messages, each with a role and content")
    found = []
    for number, message in enumerate(value, 1):
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        place = f"message {number} of {name}"
        if isinstance(content, list):  # parts of a text
            content = "".join(_string(_part(part, where, place), where, place) for part in content)
        found.append({
            "role": _ROLES.get(str(role), _string(role, where, f"the role of {place}")),
            "content": _string(content, where, f"the content of {place}"),
        })  # fmt: skip
    return found


def _part(part: Any, where: str, place: str) -> Any:
    if isinstance(part, dict) and part.get("type") == "text":
        return part.get("text")
    raise InputError(f"{where}: {place} has a part that is no text; only text can be learned")


def _string(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} is no string but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: character {error.start} of {name} is a lone surrogate; correct it") from None
    return value
