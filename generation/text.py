"""Text of tokens that come one by one: whole characters, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_mesh.data.encoders import Encoder

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes, so of byte-level tokens the last three can be an unfinished one.
UNFINISHED_TOKENS = 3


class TextStream:
    """Turns tokens into text as they come.

    `text` grows by what is certain: characters whose last byte has come, and that no stop string can begin with. What
    decodes to U+FFFD at the end is held back while the next tokens may complete it.
    """

    def __init__(self, encoder: Encoder, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        """`before`: the tokens that the text follows, which are not in it."""
        self._encoder, self._stop = encoder, tuple(stop)
        # The last token whose text is known, for context, and those after it. At first the last whole character: what
        # the tokens of half a one would become is not the prompt's text.
        run = self._run(before)
        tails = (list(before[-n:]) for n in range(1, min(UNFINISHED_TOKENS + 1, len(before)) + 1))
        whole = next((tail for tail in tails if INCOMPLETE not in encoder.decode(tail)), [])
        self._pending = list(before[len(before) - run :]) if run else whole
        self._context = len(self._pending)  # how many of _pending are only context
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.stopped = False

    def add(self, token: int, *, may_stop: bool = True) -> str:
        """The text that became certain with one more token. `stopped` is set once a stop string is complete, and
        `may_stop`.
        """
        if self.stopped:
            return ""
        self._pending.append(token)
        return self._release(self._decode(last=False), last=False, may_stop=may_stop)

    def finish(self, *, may_stop: bool = True) -> str:
        """What was held back, when no token comes any more."""
        return "" if self.stopped else self._release(self._decode(last=True), last=True, may_stop=may_stop)

    def _decode(self, *, last: bool) -> str:
        """New text of the pending tokens. What may still become a character stays pending."""
        decode, known = self._encoder.decode, self._pending[: self._context]
        text = decode(self._pending)
        run = 0 if last else self._run(self._pending[self._context :])
        ready = len(self._pending) - run
        if run:  # the next token decides what becomes of them
            text = decode(self._pending[:ready])
        elif text.endswith(INCOMPLETE) and not last:
            # Decoded apart, the parts of one character would give more signs than together.
            fresh = len(self._pending) - self._context
            tails = range(1, min(UNFINISHED_TOKENS, fresh) + 1)
            whole = (n for n in tails if decode(self._pending[:-n]) + decode(self._pending[-n:]) == text)
            ready -= next(whole, 0)
            text = decode(self._pending[:ready])
        new = text[len(decode(known)) :]
        # Some tokenizers write a token differently at the start of a text: one token, or a run of bytes, stays as
        # context.
        start = max(ready - max(self._run(self._pending[:ready]), 1), 0)
        self._pending, self._context = self._pending[start:], ready - start
        return new

    def _run(self, tokens: Sequence[int]) -> int:
        """How many tokens at the end are single bytes, which are decoded together. See `Encoder.fallback_bytes`."""
        fallback = self._encoder.fallback_bytes
        return next((n for n, token in enumerate(reversed(tokens)) if token not in fallback), len(tokens))

    def _release(self, fresh: str, *, last: bool, may_stop: bool = True) -> str:
        """`fresh` text joined to what is held, up to a stop string or to what may become one."""
        text = self._held + fresh
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found and may_stop:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
