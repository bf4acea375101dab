"""A session at the terminal: a line in, its continuation out as it comes. All but the text is on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from gpt_mesh.config import GenerationSettings, generation_settings
from gpt_mesh.errors import InputError
from gpt_mesh.generation.generator import Generator
from gpt_mesh.generation.requests import GenerationRequest

HELP = """A line is continued; end it with \\ to go on in the next. Ctrl-C stops the text, Ctrl-D ends the session.
/more           continue the text so far
/set KEY VALUE  such as /set temperature 0.7
/show           the settings
/quit           end the session"""

NOT_SHOWN = ("num_samples", "logprobs")  # settings that mean nothing here


class Session:
    """Reads prompts and commands until the input ends."""

    def __init__(self, generator: Generator, settings: GenerationSettings, lines: TextIO, out: TextIO) -> None:
        """`lines`: where prompts come from. `out`: where their continuations go."""
        self._generator, self._lines, self._out = generator, lines, out
        self._settings = settings.model_copy(update={"num_samples": None, "logprobs": None})
        self._text = ""
        self._turns = 0

    help = HELP

    def run(self) -> None:
        """Until the end of input, or `/quit`."""
        self._say(self.help)
        while (line := self._read()) is not None and line.strip() != "/quit":
            try:
                self._obey(line)
            except InputError as error:
                self._say(f"error: {error}")

    def _read(self) -> str | None:
        """The next prompt or command; None at the end of input."""
        found, mark = "", "> "
        while True:
            try:
                line = ask(self._lines, mark)
            except KeyboardInterrupt:
                self._say("")
                return None
            if not line:
                self._say("")
                return found or None
            line = line.rstrip("\n")
            if not line.endswith("\\"):
                return found + line
            found, mark = found + line[:-1] + "\n", ". "

    def _obey(self, line: str) -> None:
        command, _, rest = line.strip().partition(" ")
        if command == "/set":
            self._set(rest)
        elif command == "/show":
            self._say(json.dumps(self._settings.model_dump(), ensure_ascii=False))
        elif command == "/more":
            if not self._text:
                raise InputError("/more: there is no text yet; give a line first")
            self._continue()
        elif command.startswith("/"):
            self._say(self.help)
        elif line:
            self._text = line
            self._continue()

    def _set(self, rest: str) -> None:
        """`KEY VALUE`, the value as JSON, or else as a text."""
        name, _, value = rest.strip().partition(" ")
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):  # a text; or digits, or brackets, beyond what Python reads
            parsed = value
        if name in NOT_SHOWN and parsed is not None:
            raise InputError(f"/set: {name}: a session shows one text, and no numbers; use --predict --prompts")
        self._settings = generation_settings({name: parsed}, "/set", self._settings)

    def _continue(self) -> None:
        """Write what follows the text so far, and remember it."""
        self._text += self._write(self._text, self._settings)

    def _write(self, prompt: str | Sequence[int], settings: GenerationSettings) -> str:
        """Write what follows a prompt; returns it."""
        seed = settings.seed if settings.seed is not None else self._generator.defaults.seed
        settings = settings.model_copy(update={"seed": seed + self._turns})  # asked again, it says something else
        self._turns += 1
        stream, written = self._generator.stream([GenerationRequest(prompt, settings)]), ""
        try:
            for event in stream:
                self._out.write(event.text)
                self._out.flush()
                written += event.text
        except KeyboardInterrupt:
            stream.close()
        self._out.write("\n")
        self._out.flush()
        return written

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def ask(lines: TextIO, mark: str) -> str:
    """The next line, with its newline; "" at the end. On a terminal a line can be edited, and the arrow keys bring back
    earlier ones.
    """
    if lines is sys.stdin and sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):  # not on every system; `input` edits lines once it is imported
            import readline  # noqa: F401
        try:
            return input(mark) + "\n"
        except EOFError:
            return ""
    print(mark, end="", file=sys.stderr, flush=True)
    return lines.readline()
