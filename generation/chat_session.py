"""A conversation at the terminal: a line in, the answer out as it comes. All but the answers is on standard error."""

from __future__ import annotations

import json
from typing import TextIO

from gpt_mesh.config import GenerationSettings
from gpt_mesh.data.chat_template import ChatTemplate
from gpt_mesh.errors import InputError
from gpt_mesh.generation.generator import Generator
from gpt_mesh.generation.session import Session

HELP = """A line is a message; end it with \\ to go on in the next. Ctrl-C stops the answer, Ctrl-D ends the session.
/new            begin another conversation
/again          another answer to the last message
/undo           take back the last message and its answer
/system TEXT    what the model is told before the conversation; without TEXT: nothing
/set KEY VALUE  such as /set temperature 0.7
/show           the settings and the conversation
/quit           end the session"""
ROOM = 0.25  # of the context, at least, for an answer


class ChatSession(Session):
    """Reads messages and commands until the input ends."""

    help = HELP

    def __init__(
        self, generator: Generator, settings: GenerationSettings, template: ChatTemplate, lines: TextIO, out: TextIO
    ) -> None:
        """`template`: of conversations. The others: as for `Session`."""
        super().__init__(generator, settings, lines, out)
        self._template, self._end = template, template.turn_end()
        self._system = ""
        self._messages: list[dict[str, str]] = []

    def _obey(self, line: str) -> None:
        command, _, rest = line.strip().partition(" ")
        if command == "/new":
            self._messages = []
        elif command == "/system":
            self._system, self._messages = rest.strip(), []
        elif command == "/undo":
            self._messages = self._messages[:-2]
        elif command == "/again":
            if not self._messages:
                raise InputError("/again: there is no message yet; give a line first")
            self._messages.pop()
            self._answer()
        elif command == "/show":
            super()._obey("/show")
            for message in self._conversation():
                self._say(json.dumps(message, ensure_ascii=False))
        elif command == "/set":
            super()._obey(line)
        elif command.startswith("/"):
            self._say(self.help)
        elif line:
            self._messages.append({"role": "user", "content": line})
            try:
                self._answer()
            except InputError:
                self._messages.pop()
                raise

    def _conversation(self) -> list[dict[str, str]]:
        before = [{"role": "system", "content": self._system}] if self._system else []
        return [*before, *self._messages]

    def _answer(self) -> None:
        """Write the answer to the last message, and remember it."""
        prompt = self._prompt()
        stop = (*self._settings.stop, *([self._end] if self._end else []))
        text = self._write(prompt, self._settings.model_copy(update={"stop": stop}))
        self._messages.append({"role": "assistant", "content": text.strip()})

    def _prompt(self) -> list[int]:
        """The conversation as ids. Its oldest messages are left out once they leave no room for an answer.

        Raises:
            InputError: the last message alone leaves none.
        """
        n_ctx, encoder = self._generator.defaults.n_ctx, self._generator.encoder
        wanted = self._settings.max_new_tokens or 1
        room = n_ctx - min(max(wanted, int(ROOM * n_ctx)), n_ctx // 2)
        dropped = 0
        while True:
            prompt = self._template.prompt(encoder, self._conversation())
            if len(prompt) <= room:
                break
            if len(self._messages) < 3:
                if len(prompt) < n_ctx:
                    break
                raise InputError(f"the message has {len(prompt)} tokens, and the context {n_ctx}; give a shorter one")
            self._messages, dropped = self._messages[2:], dropped + 2
        if dropped:
            self._say(f"(the conversation fills the context of {n_ctx} tokens: its first {dropped} messages are gone)")
        return prompt
