"""One row of a batch as events: its text, where it ends, and its log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_mesh.config import GenerationSettings
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.generation.requests import Event, FinishReason, TokenLogprob
from gpt_mesh.generation.text import TextStream
from gpt_mesh.sample import Chunk


class Writer:
    """Takes the tokens of one request until it is `finished`."""

    def __init__(
        self,
        index: int,
        settings: GenerationSettings,
        prompt: Sequence[int],
        room: int,
        encoder: Encoder,
        special: SpecialTokens,
    ) -> None:
        """`index`: of the request. `prompt`: what the tokens follow. `room`: the number of tokens that ends it."""
        self.index, self.finished = index, False
        self._settings, self._room, self._encoder, self._eos_ids = settings, room, encoder, special.eos_ids
        begins = not prompt or prompt[-1] in (special.bos_id, *special.eos_ids)  # a text, without anything before it
        self._text, self._count = TextStream(encoder, settings.stop, () if begins else prompt), 0

    def take(self, chunk: Chunk, row: int) -> Event | None:
        """The event of what a call added to this row; None: there is nothing to say."""
        tokens = chunk.tokens[row].tolist()
        used, text, reason = self._read(tokens)
        if not used and reason is None:
            return None
        logprobs = self._logprobs(chunk, row, used) if self._settings.logprobs is not None else None
        return Event(self.index, tuple(tokens[:used]), text, logprobs, reason)

    def whole(self, tokens: Sequence[int], *, ended: bool) -> Event:
        """All tokens of a request at once. `ended`: by an end of text, which is not among them."""
        used, text, reason = self._read(tokens)
        if reason is None:
            reason, text = ("stop" if ended else "length"), text + self._text.finish()
        self.finished = True
        return Event(self.index, tuple(tokens[:used]), text, None, reason)

    def end(self, reason: FinishReason) -> Event:
        """The last event of a request for which no token comes any more."""
        self.finished = True
        return Event(self.index, (), self._text.finish(), None, reason)

    def _read(self, tokens: Sequence[int]) -> tuple[int, str, FinishReason | None]:
        """How many of the tokens belong to the text, what can be shown of it, and why it ended, if it did."""
        text = ""
        for used, token in enumerate(tokens):
            long_enough = self._count >= self._settings.min_new_tokens
            if token in self._eos_ids and long_enough:
                return used, text + self._finish(), "stop"
            self._count += 1
            long_enough = self._count >= self._settings.min_new_tokens
            text += self._text.add(token, may_stop=long_enough)
            if not self._text.stopped and self._count == self._room:
                text += self._finish()
                if not self._text.stopped:
                    return used + 1, text, "length"
            if self._text.stopped:
                self.finished = True
                return used + 1, text, "stop"
        return len(tokens), text, None

    def _finish(self) -> str:
        self.finished = True
        return self._text.finish(may_stop=self._count >= self._settings.min_new_tokens)

    def _logprobs(self, chunk: Chunk, row: int, used: int) -> tuple[TokenLogprob, ...]:
        assert chunk.logprobs is not None and chunk.top_ids is not None and chunk.top_logprobs is not None
        wanted = self._settings.logprobs or 0
        found = []
        for i in range(used):
            token = int(chunk.tokens[row, i])
            ids, values = chunk.top_ids[row, i, :wanted].tolist(), chunk.top_logprobs[row, i, :wanted].tolist()
            top = tuple((one, self._encoder.decode([one]), value) for one, value in zip(ids, values, strict=True))
            found.append(TokenLogprob(token, self._encoder.decode([token]), float(chunk.logprobs[row, i]), top))
        return tuple(found)
