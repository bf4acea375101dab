"""Records with roles as tokens, those that are not learned marked (`data.marks`).

A conversation is rendered by a chat template; plain prompts and completions are put together as they are, with the end
of text after the completion. Every rendered record begins with the token that begins texts, if the tokenizer has one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt_mesh.data.chat_template import ChatTemplate, Message
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.marks import marked, unmarked
from gpt_mesh.data.readers.roles import SKIPPED
from gpt_mesh.errors import InputError

Ids = npt.NDArray[np.int32]

_NOTHING = np.array([-1], np.int32)  # one token that is not learned: the side that a `kto` record lacks


class Rendered(NamedTuple):
    """One record.

    Attributes:
        parts: the ids of its sequences: one, or the chosen and the rejected one.
        dropped: why it is left out; empty: it is not.
        cut: the number of tokens that were cut off its end.
    """

    parts: tuple[Ids, ...]
    dropped: str = ""
    cut: int = 0

    @property
    def ids(self) -> Ids:
        """The ids of all parts."""
        return np.concatenate(self.parts) if self.parts else np.empty(0, np.int32)


@dataclass(frozen=True)
class Rendering:
    """How records of one kind become tokens.

    Attributes:
        kind: of the records, of `readers.roles.RECORD_KINDS`.
        encoder: the tokenizer.
        template: of conversations; None: there is none.
        maximum_size: tokens of a sequence; a longer conversation is cut after an answer, any other record left out.
    """

    kind: str
    encoder: Encoder
    template: ChatTemplate | None = None
    maximum_size: int | None = None

    def __call__(self, text: str) -> Rendered:
        """The tokens of a record as a reader hands it on.

        Raises:
            InputError: it needs a chat template and there is none, or the template refuses it.
        """
        record = self._parsed(text)
        if SKIPPED in record:
            return Rendered((), record[SKIPPED])
        if "messages" in record:
            return self._conversation(record["messages"])
        if "completion" in record:
            ids = self._sequence(record["prompt"], record["completion"])
            parts: tuple[Ids, ...] = (ids,)
            if "label" in record:
                parts = (ids, _NOTHING) if record["label"] else (_NOTHING, ids)
        else:
            parts = tuple(self._sequence(record["prompt"], record[side]) for side in ("chosen", "rejected"))
        if self.maximum_size is not None and max(map(len, parts)) > self.maximum_size:
            return Rendered(parts, f"longer than --maximum_size {self.maximum_size}")
        return Rendered(parts)

    def shown(self, text: str, *, colour: bool) -> str:
        """A record as a reader is to see it: what is learned in colour, or between « and »."""
        begin, end = ("\x1b[32m", "\x1b[0m") if colour else ("«", "»")
        lines = []
        for ids in self(text).parts:
            edges = np.flatnonzero(np.diff(ids >= 0)) + 1
            runs = np.split(ids, edges)
            texts = [(self.encoder.decode(unmarked(run).tolist()), bool(len(run) and run[0] >= 0)) for run in runs]
            lines.append("".join(f"{begin}{text}{end}" if learned else text for text, learned in texts))
        return "\n---\n".join(lines)

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InputError(
                f"--records {self.kind}: a file of plain text holds no such records; name the files with --file_type"
            )
        return record

    def _conversation(self, messages: Sequence[Message]) -> Rendered:
        found = self._templated(messages)
        if self.maximum_size is None or len(found) <= self.maximum_size:
            return Rendered((found,)) if (found >= 0).any() else Rendered((found,), "nothing learned")
        ends = [number for number, message in enumerate(messages, 1) if message["role"] == "assistant"]
        for end in reversed(ends[:-1] if ends[-1] == len(messages) else ends):
            shorter = self._templated(messages[:end])
            if len(shorter) <= self.maximum_size and (shorter >= 0).any():
                return Rendered((shorter,), cut=len(found) - len(shorter))
        return Rendered((found,), f"longer than --maximum_size {self.maximum_size}")

    def _templated(self, messages: Sequence[Message]) -> Ids:
        found = self._needed().encode(self.encoder, messages)
        return self._begun(marked(found.ids, found.learned))

    def _sequence(self, prompt: str | Sequence[Message], completion: str | Sequence[Message]) -> Ids:
        """A prompt that is not learned, and a completion that is."""
        if isinstance(prompt, str) and isinstance(completion, str):
            if self.template is not None and self.template.chosen:
                prompt = [{"role": "user", "content": prompt}]
                completion = [{"role": "assistant", "content": completion}]
            else:
                before, after = self.encoder.encode_documents([prompt, completion])
                after += [] if self.encoder.eos_id is None else [self.encoder.eos_id]
                return self._begun(marked([*before, *after], [False] * len(before) + [True] * len(after)))
        assert not isinstance(prompt, str) and not isinstance(completion, str)
        template = self._needed()
        start = template.render(prompt, add_generation_prompt=True)
        whole = template.encode(self.encoder, [*prompt, *completion])
        answer = template.encode_text(self.encoder, start)
        if whole.ids[: len(answer)] != answer:
            raise InputError(
                f"{template.where}: a prompt renders differently when its completion follows; use another template "
                "(--chat_template)"
            )
        end = len(whole.ids)
        while end > len(answer) and not self.encoder.decode([whole.ids[end - 1]]).strip():
            end -= 1  # white space after the answer's end
        return self._begun(marked(whole.ids, [len(answer) <= place < end for place in range(len(whole.ids))]))

    def _begun(self, ids: Ids) -> Ids:
        bos_id = self.encoder.bos_id
        if bos_id is None or (len(ids) and unmarked(ids[:1])[0] == bos_id):
            return ids
        return np.concatenate([np.array([~bos_id], np.int32), ids])

    def _needed(self) -> ChatTemplate:
        if self.template is None:
            raise InputError(
                f"{self.encoder.where}: has no chat template, which records of messages need; name one with "
                "--chat_template (alpaca, chatml, llama3, mistral, zephyr, or a file)"
            )
        return self.template
