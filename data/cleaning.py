"""What can be done to the text of a document before it is encoded; nothing is, unless asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cleaning:
    """ftfy: mend text that was decoded wrongly (Speer, ftfy: https://ftfy.readthedocs.io), its settings as they come.
    wikitext: undo the tokenisation of WikiText, see detokenize().
    """

    ftfy: bool = False
    wikitext: bool = False

    def __bool__(self) -> bool:
        return self.ftfy or self.wikitext

    def __call__(self, text: str) -> str:
        if self.ftfy:
            import ftfy  # a fifth of a second, and not needed otherwise

            text = ftfy.fix_text(text)
        return detokenize(text) if self.wikitext else text


def detokenize(text: str) -> str:
    """Text of WikiText-2 and WikiText-103 (Merity et al. 2016, https://arxiv.org/abs/1609.07843) as it was before the
    Moses tokenizer and the marks of its makers: no space before a comma, `@-@` `@,@` `@.@` inside words and numbers
    taken out, quotes and brackets closed up, headings ` = = Title = = ` as `== Title ==`.

    Line by line; whatever does not look like that tokenizer's work stays, `<unk>` and ` N ` too.
    """
    return "\n".join(_line(line) for line in text.split("\n"))


_HEADING = re.compile(r"((?:= )+)(.*?\S)((?: =)+)")
_INSIDE = re.compile(r" @([-,.])@ ")
_BEFORE = re.compile(r" (?=(?:[,.:;!?)\]}%]|\.\.\.)(?: |$))")  # no space before these
_AFTER = re.compile(r"(?:(?<=^)|(?<= ))([(\[{]|[£$€](?= \d)) ")  # nor after these
_SUFFIX = re.compile(r"(?<=[\w>]) '(?=(?:s|t|d|m|re|ve|ll|S|T|D|M|RE|VE|LL)\b)")  # it 's, don 't
_DOUBLE = re.compile(r'(?:(?<=^)|(?<= ))"(?= |$|[,.:;!?)\]}])')
_SINGLE = re.compile(r"(?:(?<=^)|(?<=[ (\[{\"]))'(?= |$|[,.:;!?)\]}\"])")


def _line(line: str) -> str:
    bare = line.strip(" ")
    if (heading := _HEADING.fullmatch(bare)) and len(heading[1]) == len(heading[3]):
        marks = heading[1].replace(" ", "")
        return f"{marks} {_words(heading[2])} {marks}"
    return _words(bare)


def _words(text: str) -> str:
    text = _INSIDE.sub(r"\1", text)
    text = _BEFORE.sub("", text)
    text = _BEFORE.sub("", text)  # `. )`: the first pass has looked at the space that the second takes
    text = _AFTER.sub(r"\1", text)
    text = _SUFFIX.sub("'", text)
    return _quotes(_quotes(text, _DOUBLE), _SINGLE)


def _quotes(text: str, quote: re.Pattern[str]) -> str:
    """Close up quotation marks that stand alone: the first of a line opens, the next closes, and so on.

    An apostrophe after a plural (`the players ' wages`) closes nothing, and belongs to the word before it.
    """
    parts: list[str] = []
    end, inside = 0, False
    for mark in quote.finditer(text):
        before = text[end : mark.start()]
        if inside or (mark[0] == "'" and before.endswith("s ")):
            parts += [before.removesuffix(" "), mark[0]]
            end = mark.end()
            inside = False
        else:
            parts += [before, mark[0]]
            end = mark.end() + (text[mark.end() : mark.end() + 1] == " ")
            inside = True
    return "".join(parts) + text[end:]
