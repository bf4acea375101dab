"""Chat templates: from messages with roles to the text of a conversation, and to its tokens.

A template is a Jinja program that comes with a tokenizer, written by whoever published it. It runs in Jinja's sandbox,
with the names, filters and tags that transformers gives it
(https://huggingface.co/docs/transformers/chat_templating_writing), bounded in time and output.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.tokenizer_errors import library_errors
from gpt_mesh.data.tokenizer_folders import read_object, read_text
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage

if TYPE_CHECKING:  # encoding, also on machines that have nothing else of this project, does without configs
    from gpt_mesh.config import DatasetConfig

Message = Mapping[str, Any]
"""`role`, such as "user" or "assistant", and `content`."""

TEMPLATE_FILE, SETTINGS_FILE = "chat_template.jinja", "tokenizer_config.json"
SECONDS = 10.0  # for one rendering
LARGEST_TEXT = 1 << 26  # characters
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

NAMED = ("alpaca", "chatml", "llama3", "mistral", "zephyr")
"""Templates of well-known forms, for tokenizers that come without one: `chat_templates/NAME.jinja`."""


@dataclass(frozen=True)
class Conversation:
    """Tokens of a conversation.

    Attributes:
        ids: of all tokens.
        learned: for each token, whether the assistant wrote it.
    """

    ids: list[int]
    learned: list[bool]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with what it is given.

    Attributes:
        text: the Jinja program.
        where: its source, for messages.
        special: `bos_token`, `eos_token` and so on, as the tokenizer's files name them.
        chosen: it was named, and did not come with the tokenizer.
    """

    text: str
    where: str
    special: Mapping[str, str] = field(default_factory=dict)
    chosen: bool = False

    @staticmethod
    def of(folder: str, encoder: Encoder) -> ChatTemplate | None:
        """The template in the folder of a tokenizer, or None.

        Raises:
            InputError: a file is damaged, or the template does not compile.
        """
        text = template_text(folder)
        if text is None:
            return None
        return ChatTemplate(text, shown(folder), special_names(folder, encoder)).checked()

    @staticmethod
    def named(name: str, encoder: Encoder) -> ChatTemplate:
        """A template by its name in `NAMED`, or from a file.

        Raises:
            InputError: no such template, or it does not compile.
        """
        special = special_names(encoder.source, encoder)
        if name in NAMED:
            path = os.path.join(os.path.dirname(__file__), "chat_templates", f"{name}.jinja")
            return ChatTemplate(read_text(path), f"chat template {name}", special, chosen=True).checked()
        if not storage.exists(name) or storage.is_folder(name):
            names = ", ".join(NAMED)
            raise InputError(f"{name}: neither a file nor one of {names}; name one of these, or a file")
        return ChatTemplate(read_text(name, LARGEST_TEXT), shown(name), special, chosen=True).checked()

    @staticmethod
    def of_dataset(dataset: DatasetConfig, encoder: Encoder) -> ChatTemplate | None:
        """The template that a dataset config names, else that of the tokenizer's folder; None if there is neither.

        Raises:
            InputError: see `of` and `named`.
        """
        if dataset.chat_template is None:
            return ChatTemplate.of(encoder.source, encoder)
        try:
            return ChatTemplate.named(dataset.resolve(dataset.chat_template), encoder)
        except InputError as error:
            raise InputError(f"{dataset.source}: chat_template: {error}") from None

    def checked(self) -> ChatTemplate:
        """Itself, once it compiles. Raises InputError if it does not."""
        _ = self._compiled
        return self

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            add_generation_prompt: end with what precedes the assistant's answer.

        Raises:
            InputError: the template refuses the messages, fails, or takes too long.
        """
        return self._rendered(messages, add_generation_prompt, "", "")

    def encode(
        self, encoder: Encoder, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> Conversation:
        """The tokens of a conversation, as transformers' `apply_chat_template` gives them.

        A token is learned if it lies in one of `spans`.

        Raises:
            InputError: see `render` and `spans`.
        """
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        with library_errors(encoder.where):
            encoding = encoder.tokenizer.encode(text, add_special_tokens=False)
        learned = [False] * len(encoding.ids)
        spans = self.spans(messages, text)
        for i, (begin, end) in enumerate(encoding.offsets):
            learned[i] = any((first < end and begin < last) or first <= begin == end < last for first, last in spans)
        return Conversation(list(encoding.ids), learned)

    def prompt(self, encoder: Encoder, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation, ready for the assistant's answer. Special tokens written out in the messages are
        text here: who writes a message must not be able to begin another role's turn.

        Raises:
            InputError: see `render`; or the special tokens of a message cannot be told from the template's.
        """
        text = self.render(messages, add_generation_prompt=True)
        special = [token.content for token in encoder.tokenizer.get_added_tokens_decoder().values()]
        contents = [str(message["content"]) for message in messages]
        if not any(token in content for token in special for content in contents):
            return encoder.encode(text)
        found: list[int] = []
        at = 0
        for content in filter(None, (content.strip() for content in contents)):
            place = text.find(content, at)
            if place < 0:
                raise InputError(f"{self.where}: the template changes a message with a special token; leave that out")
            found += encoder.encode(text[at:place]) + encoder.encode_documents([content])[0]
            at = place + len(content)
        return found + encoder.encode(text[at:])

    def turn_end(self) -> str:
        """The text that ends an assistant's message, without white space around it; may be empty.

        Raises:
            InputError: the template cannot render a question and its answer.
        """
        question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        before = self.render([question], add_generation_prompt=True)
        after = self.render([question, answer])
        rest = after[len(before) :] if after.startswith(before) else after.rpartition("b")[2]
        return rest.strip().removeprefix("b").strip()

    def encode_text(self, encoder: Encoder, text: str) -> list[int]:
        """The ids of a rendered text, special tokens included."""
        return encoder.encode(text)

    def spans(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """What the assistant wrote in `text`, the rendered messages: (begin, end) in characters.

        The template's own `{% generation %}` tags decide if it has any. Otherwise, an answer is what rendering its
        message adds to the rendered prompt, up to its last special token or visible character.

        Raises:
            InputError: an earlier part of the conversation renders differently when later messages follow.
        """
        if "generation" in self._tags:
            return self._tagged(messages, text)
        found = []
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before = self.render(messages[:number], add_generation_prompt=True) if number else ""
            after = self.render(messages[: number + 1])
            if not (text.startswith(after) and after.startswith(before)):
                raise InputError(
                    f"{self.where}: message {number + 1} renders differently when others follow, so what is learned "
                    "cannot be told; put the assistant's part between {% generation %} and {% endgeneration %}"
                )
            found.append((len(before), len(after.rstrip())))
        return found

    def _tagged(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        nonce = secrets.token_hex(8)
        begin, end = f"\ue000{nonce}\ue001", f"\ue002{nonce}\ue003"
        rest = self._rendered(messages, False, begin, end)
        found, at = [], 0
        while (start := rest.find(begin)) >= 0:
            inside, _, after = rest[start + len(begin) :].partition(end)
            at += start
            found.append((at, at + len(inside)))
            at, rest = at + len(inside), after
        return [(first, last) for first, last in found if last <= len(text)]

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool, begin: str, end: str) -> str:
        import jinja2

        given = {
            **self.special, "messages": [dict(message) for message in messages], "tools": None, "documents": None,
            "add_generation_prompt": add_generation_prompt, "__generation": (begin, end),
        }  # fmt: skip
        parts, size = [], 0
        try:
            with _limited(SECONDS):
                for part in self._compiled.generate(**given):
                    parts.append(part)
                    size += len(part)
                    if size > LARGEST_TEXT:
                        raise _Refused(f"its text is longer than {LARGEST_TEXT:,} characters")
        except _Refused as error:
            raise InputError(f"{self.where}: the chat template refuses the messages: {_short(error)}") from None
        except _TooLong:
            raise InputError(
                f"{self.where}: the chat template did not end within {SECONDS:g} seconds; use another (--chat_template)"
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, LookupError, ArithmeticError,
                MemoryError, RecursionError) as error:  # fmt: skip
            raise InputError(
                f"{self.where}: the chat template fails ({type(error).__name__}: {_short(error)}); it may need other "
                "roles or fields than these messages have, or name another with --chat_template"
            ) from None
        return "".join(parts)

    @cached_property
    def _compiled(self) -> Any:
        import jinja2

        try:
            return _environment().from_string(self.text)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            line = getattr(error, "lineno", None)
            place = f"line {line}: " if line else ""
            raise InputError(
                f"{self.where}: the chat template is no Jinja template ({place}{_short(error)}); correct it, or name "
                "another with --chat_template"
            ) from None

    @cached_property
    def _tags(self) -> set[str]:
        return {"generation"} if "endgeneration" in self.text else set()

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[Any, ...]]:
        return ChatTemplate, (self.text, self.where, dict(self.special), self.chosen)  # without the compiled program


def template_text(folder: str) -> str | None:
    """The text of the chat template in a folder with a tokenizer; None if there is none.

    Raises:
        InputError: a file is damaged.
    """
    if not storage.is_folder(folder):
        return None
    whole, settings = f"{folder}/{TEMPLATE_FILE}", f"{folder}/{SETTINGS_FILE}"
    if storage.exists(whole):
        return read_text(whole)
    found = read_object(settings).get("chat_template") if storage.exists(settings) else None
    if isinstance(found, list):  # several, with their names
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def special_names(folder: str, encoder: Encoder) -> dict[str, str]:
    """The texts of special tokens by their names: those in the tokenizer's settings, else those of the encoder."""
    found: dict[str, str] = {}
    for name in (SETTINGS_FILE, "special_tokens_map.json"):
        path = os.path.join(folder, name)
        if storage.is_folder(folder) and storage.exists(path):
            values = read_object(path)
            for key in _SPECIAL:
                value = values.get(key)
                value = value.get("content") if isinstance(value, dict) else value
                if isinstance(value, str):
                    found.setdefault(key, value)
    for key, token in (("bos_token", encoder.bos_id), ("eos_token", encoder.eos_id), ("pad_token", encoder.padding_id)):
        text = None if token is None else encoder.tokenizer.id_to_token(token)
        if text is not None:
            found.setdefault(key, text)
    return found


class _Refused(Exception):
    """What a template says by `raise_exception`."""


class _TooLong(Exception):
    """Raised in a thread whose rendering takes too long."""


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _TooLong here if what is inside takes longer than that. Python code alone can be ended so."""
    thread, lock, done = threading.get_ident(), threading.Lock(), False

    def end() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TooLong))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()


def _environment() -> Any:
    """The environment in which transformers renders chat templates, with multiplication bounded."""
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} … {% endgeneration %}`: what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            number = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_marked", [nodes.Name("__generation", "load")])
            return nodes.CallBlock(call, [], [], body).set_lineno(number)

        def _marked(self, marks: tuple[str, str], caller: Any) -> str:
            return f"{marks[0]}{caller()}{marks[1]}"

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            long = next((len(x) for x in (left, right) if isinstance(x, (str, list, tuple))), None)
            times = next((x for x in (left, right) if isinstance(x, int)), 1)
            if long is not None and (operator == "%" or long * times > LARGEST_TEXT):
                raise SecurityError("too large a text")
            if operator == "**" and (abs(left) > 1 << 16 or abs(right) > 64):
                raise SecurityError("too large a power")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: object) -> None:
        raise _Refused(str(message))

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    for name in ("center", "wordwrap", "urlize", "pprint", "random"):
        environment.filters.pop(name, None)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    assert isinstance(environment, jinja2.Environment)
    return environment
