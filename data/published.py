"""Texts that users train on, as their makers published them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A text, and how it is commonly used.

    Attributes:
        file: name of the file to fetch; a .zip holds the text.
        urls: where it is, tried in turn.
        size, sha256: of the file, in bytes and in hex.
        train, valid: the part to train on and the part held out: a member of the archive, or a range of bytes of the
            text (None: from its beginning, or to its end).
        tokenizer: what it is usually encoded by: "characters", "bytes", or a name on the Hugging Face hub.
        about: one line.
    """

    file: str
    urls: tuple[str, ...]
    size: int
    sha256: str
    train: str | tuple[int | None, int | None]
    valid: str | tuple[int | None, int | None]
    tokenizer: str
    about: str


_MAHONEY = ("https://mattmahoney.net/dc/{}", "http://mattmahoney.net/dc/{}")
_WIKITEXT = "wikitext-103-raw-v1.zip"

PUBLISHED = {
    "tiny_shakespeare": Published(
        file="input.txt",
        urls=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
        size=1_115_394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        train=(None, 1_003_854),
        valid=(1_003_854, None),
        tokenizer="characters",
        about="1.1 MB of Shakespeare's plays; the last tenth is held out",
    ),
    "enwik8": Published(
        file="enwik8.zip",
        urls=tuple(url.format("enwik8.zip") for url in _MAHONEY),
        size=36_445_475,
        sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        train=(None, 90_000_000),
        valid=(90_000_000, 95_000_000),
        tokenizer="bytes",
        about="100 MB of Wikipedia's XML; 90 MB to train on, the next 5 MB held out, the last 5 MB kept for tests",
    ),
    "text8": Published(
        file="text8.zip",
        urls=tuple(url.format("text8.zip") for url in _MAHONEY),
        size=31_344_016,
        sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        train=(None, 90_000_000),
        valid=(90_000_000, 95_000_000),
        tokenizer="characters",
        about="100 MB of Wikipedia in 27 letters; parts as of enwik8",
    ),
    "wikitext_103": Published(
        file=_WIKITEXT,
        urls=(
            f"https://wikitext.smerity.com/{_WIKITEXT}",
            f"https://s3.amazonaws.com/research.metamind.io/wikitext/{_WIKITEXT}",
        ),
        size=191_984_949,
        sha256="91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
        train="wikitext-103-raw/wiki.train.raw",
        valid="wikitext-103-raw/wiki.valid.raw",
        tokenizer="gpt2",
        about="WikiText-103, raw: 540 MB of good articles of Wikipedia",
    ),
}
