"""WikiText's tokenisation undone, against a tokeniser written here that does it; and ftfy."""

from __future__ import annotations

import re

import pytest

from gpt_mesh.data.cleaning import Cleaning, detokenize

LINES = [
    "In 1990, some 1,200 people (most of them well-known) paid $3.5 million; half of it came back!",
    'He said: "It is late," and left. "Why?" she asked. "I don\'t know."',
    "It's the players' wages that weren't paid; they'll say so, and we've seen it.",
    "= Valkyria Chronicles III =",
    "== Reception ==",
    "=== Critical (and other) reception ===",
    "The N-terminal region is 12.5% longer [see below], i.e. 3.7 times.",
    "She wrote 'a short note' and 'another', he read \"the 'first' one\".",
    "Team N won. N is a number, <unk> is not...",
    "x = y",
    "",
]


def tokenize(line: str) -> str:
    """As WikiText-103 is published: Moses tokens with a space between, and at both ends of a line."""
    if heading := re.fullmatch(r"(=+) (.*) (=+)", line):
        marks = " ".join(heading[1])
        return f" {marks} {tokenize(heading[2]).strip()} {marks} "
    line = re.sub(r"(?<=\w)([-])(?=\w)|(?<=\d)([.,])(?=\d)", r" @\1\2@ ", line)
    line = re.sub(r"(?<![@.\w])([$])(?=\d)", r"\1 ", line)
    line = re.sub(r"(\.\.\.)", r" \1", line)
    line = re.sub(r"(?<!@)([,;:!?)\]%])(?!@)", r" \1", line)
    line = re.sub(r"([(\[])", r"\1 ", line)
    line = re.sub(r"(?<![@.i])\.(?=$| |[\"'])(?<!i\.e\.)", " .", line)
    line = re.sub(r"(?<=\w)'(?=(s|t|d|m|re|ve|ll)\b)", " '", line)
    line = re.sub(r"(?<!\w)(\"|'(?!(?:s|t|d|m|re|ve|ll)\b))(?=\w|')", r"\1 ", line)
    line = re.sub(r"(?<=\S)(\"|')(?!\w)", r" \1", line)
    return f" {line} " if line else ""


@pytest.mark.parametrize("line", LINES)
def test_there_and_back(line: str) -> None:
    assert detokenize(tokenize(line)) == line, tokenize(line)


def test_tokenised_lines_are_those_of_the_published_text() -> None:
    """Two lines of wiki.train.tokens, and what the tokeniser above makes of them."""
    assert tokenize("== Gameplay ==") == " = = Gameplay = = "
    assert tokenize("some 1,200 well-known (3.5%)") == " some 1 @,@ 200 well @-@ known ( 3 @.@ 5 % ) "


def test_published_line() -> None:
    published = (
        " The game began development in 2010 , carrying over a large portion of the work done on Valkyria Chronicles "
        "II . While it retained the standard features of the series , it also underwent multiple adjustments , such as "
        'making the game more forgiving for series newcomers . It met with positive sales . " Nameless " , a penal '
        "military unit , is <unk> 's foe . \n"
    )
    assert detokenize(published) == (
        "The game began development in 2010, carrying over a large portion of the work done on Valkyria Chronicles II. "
        "While it retained the standard features of the series, it also underwent multiple adjustments, such as "
        'making the game more forgiving for series newcomers. It met with positive sales. "Nameless", a penal '
        "military unit, is <unk>'s foe.\n"
    )


def test_lines_stay_lines() -> None:
    assert detokenize(" \n = A = \n \n a , b \n") == "\n= A =\n\na, b\n"


def test_plain_text_stays() -> None:
    text = 'Plain text, with "quotes", (brackets), 1,000.5 and N of them; well-known.'
    assert detokenize(text) == text


def test_nothing_unless_asked_for() -> None:
    text = " a , b â€œ "
    assert not Cleaning()
    assert Cleaning()(text) == text
    assert Cleaning(wikitext=True)(text) == "a, b â€œ"


def test_ftfy() -> None:
    assert Cleaning(ftfy=True)("âœ” No problems") == "✔ No problems"
    assert Cleaning(ftfy=True, wikitext=True)(" âœ” No , problems ") == "✔ No, problems"
