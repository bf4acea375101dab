"""Text coloured by the surprisal of each token, as a self-contained HTML page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence

from gpt_mesh.data.encoders import Encoder
from gpt_mesh.evaluation.scoring import Score

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 8  # maximum number of tokens per character
_STRONGEST = 12.0  # bits at which the colour saturates

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ font: 14px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
span {{ background: rgb(214 69 65 / calc(var(--s) * 1%)); border-radius: 2px; }}
span:hover {{ outline: 1px solid; }}
</style>
<h1>{title}</h1>
<p>The darker a token, the less likely it was: white is 0 bits, the strongest colour {strongest:g} bits or more. A
pointer on a token shows its bits and its probability. The first token of a text is not predicted.</p>
{texts}
</html>
"""


def page(title: str, scores: Sequence[Score], encoder: Encoder) -> str:
    """A self-contained HTML page of scored texts."""
    texts = []
    for number, score in enumerate(scores, 1):
        count = max(len(score.tokens) - 1, 1)
        mean = -score.sum / count / math.log(2)
        head = f"<h2>{number}: {len(score.tokens):,} tokens, {mean:.3f} bits a token</h2>" if len(scores) > 1 else (
            f"<p>{len(score.tokens):,} tokens, {mean:.3f} bits a token</p>"
        )  # fmt: skip
        body = "".join(_span(text, bits) for text, bits in pieces(score, encoder))
        texts.append(f"{head}\n<pre>{body}</pre>")
    return _PAGE.format(title=html.escape(title), strongest=_STRONGEST, texts="\n".join(texts))


def pieces(score: Score, encoder: Encoder) -> Iterator[tuple[str, float | None]]:
    """(text, bits) of each token in order. Tokens that share a character are merged."""
    before: list[int] = []
    pending: list[int] = []
    bits: float | None = None
    for number, (token, logprob) in enumerate(zip(score.tokens, score.logprobs, strict=True), 1):
        pending.append(token)
        if logprob is not None:
            bits = (bits or 0.0) - logprob / math.log(2)
        # Decoded after its predecessor, since some tokenizers drop a leading space.
        text = encoder.decode([*before, *pending])[len(encoder.decode(before)) :]
        if text.endswith(_UNKNOWN) and len(pending) < _LONGEST and number < len(score.tokens):
            continue
        yield text, bits
        before, pending, bits = pending[-1:] if not text.endswith(_UNKNOWN) and len(pending) == 1 else [], [], None


def _span(text: str, bits: float | None) -> str:
    shown = html.escape(text)
    if bits is None:
        return shown
    strength = min(bits / _STRONGEST, 1.0) * 70
    title = f"{bits:.2f} bits, probability {2**-bits:.3g}"
    return f'<span style="--s:{strength:.0f}" title="{title}">{shown}</span>'
