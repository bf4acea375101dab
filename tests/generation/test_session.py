"""A session as a user has one: lines in, texts out."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from gpt_mesh import api
from gpt_mesh.config import GenerationSettings
from gpt_mesh.data.chat_template import ChatTemplate
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.generation.chat_session import ChatSession
from gpt_mesh.generation.generator import Defaults, Generator
from gpt_mesh.generation.requests import GenerationRequest
from gpt_mesh.generation.session import Session
from tests.support.corpora import TEXTS, make_tokenizer
from tests.support.counting import Counting
from tests.support.runs import Trained


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    encoder = load_encoder(str(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), n_vocab=260, texts=TEXTS)))
    return Generator(encoder, SpecialTokens(None, encoder.eos_ids), Defaults(1024, None, 1), Counting())


def texts(generator: Generator, *lines: str, **settings: object) -> str:
    """What a session of these lines writes."""
    out = io.StringIO()
    given = GenerationSettings(max_new_tokens=6, **settings)  # type: ignore[arg-type]
    Session(generator, given, io.StringIO("".join(f"{line}\n" for line in lines)), out).run()
    return out.getvalue()


def continued(generator: Generator, prompt: str, **settings: object) -> str:
    request = GenerationRequest(prompt, GenerationSettings(max_new_tokens=6, **settings))  # type: ignore[arg-type]
    return generator.generate([request])[0].text


def test_a_line_is_continued_and_more_goes_on_from_there(generator: Generator) -> None:
    first = continued(generator, "a", temperature=0.0)
    second = continued(generator, "a" + first, temperature=0.0)
    assert first and second and first != second
    assert texts(generator, "a", "/more", temperature=0.0) == f"{first}\n{second}\n"
    assert texts(generator, "a\\", "b", temperature=0.0) == continued(generator, "a\nb", temperature=0.0) + "\n"


def test_asked_again_it_says_something_else(generator: Generator) -> None:
    once, again = (continued(generator, "a", temperature=1.0, seed=seed) for seed in (3, 4))
    assert once != again
    assert texts(generator, "a", "a", temperature=1.0, seed=3) == f"{once}\n{again}\n"


def test_settings_hold_from_then_on(generator: Generator) -> None:
    short = generator.generate([GenerationRequest("a", GenerationSettings(temperature=0.0, max_new_tokens=2))])[0].text
    usual = continued(generator, "a", temperature=0.0)
    found = texts(generator, "a", "/set max_new_tokens 2", "a", "a", temperature=0.0)
    assert found == f"{usual}\n{short}\n{short}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/more", "/more: there is no text yet"),
        ("/set top_p 3", "/set: top_p = 3: must be"),
        ("/set seed " + "9" * 5000, "/set: seed = "),
        ("/set stop " + "[" * 100_000, ""),
        ("/set num_samples 3", "/set: num_samples: a session shows one text"),
        ("/set logprobs 0", "/set: logprobs: a session shows one text"),
        ("a\udc80", "half of a surrogate pair"),
    ],
    ids=lambda text: text[:12],
)
def test_what_cannot_be_done_is_told_and_the_session_goes_on(
    generator: Generator, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert texts(generator, line, "a", temperature=0.0) == continued(generator, "a", temperature=0.0) + "\n"
    assert message in capsys.readouterr().err


def test_settings_that_a_session_cannot_show_are_not_computed(
    generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    texts(generator, "/show", logprobs=2, num_samples=3)
    shown = capsys.readouterr().err
    assert '"logprobs": null' in shown and '"num_samples": null' in shown


@pytest.mark.slow
def test_a_session_of_a_process(trained: Trained, tmp_path: Path) -> None:
    flags = ["--interactive", "--max_new_tokens", "6", "--temperature", "0"]
    commands = "/more\nimport os\n/more\n/set top_p 3\n/set temperature 1\nimport os\nimport os\n/quit\nnever read\n"
    with trained.workspace.start("--model", trained.config, *flags, stdin=-1) as process:
        out, err = process.communicate(commands, timeout=240)
    assert process.returncode == 0, err
    assert "error: /more: there is no text yet" in err and "error: /set: top_p = 3: must be" in err
    assert "/set KEY VALUE" in err and "/set KEY VALUE" not in out
    [[first]] = api.load(str(trained.config)).generate(["import os"], max_new_tokens=6, temperature=0)
    assert out.startswith(first + "\n") and out.count("\n") >= 4, "four texts, each on lines of its own"


def test_lines_are_edited_and_come_back_on_a_terminal() -> None:
    code = (
        "import sys; from gpt_mesh.generation.session import ask\n"
        "for _ in range(3): print([ask(sys.stdin, '> ')])"
    )
    ours, theirs = os.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        shown = b""
        for typed in (b"abc\n", b"\x1b[Ad\n", b"\x04"):  # the arrow up, and at last Ctrl-D
            while not shown.endswith(b"> "):
                shown += os.read(ours, 4096)
            shown += b"|"
            os.write(ours, typed)
        with suppress(OSError):  # Linux's end of a terminal
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert b"['abc\\n']" in shown and b"['abcd\\n']" in shown and b"['']" in shown, shown


def conversed(generator: Generator, *lines: str, **settings: object) -> str:
    """What a conversation of these lines writes."""
    out = io.StringIO()
    given = GenerationSettings(**{"max_new_tokens": 6, "temperature": 0.0, **settings})  # type: ignore[arg-type]
    template = ChatTemplate("{% for m in messages %}{{ m.role[0] }}{{ m.content }};{% endfor %}", "a template")
    ChatSession(generator, given, template, io.StringIO("".join(f"{line}\n" for line in lines)), out).run()
    return out.getvalue()


def test_a_conversation_goes_on_from_its_messages(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    first = continued(generator, "ua;", temperature=0.0, stop=(";",))
    second = continued(generator, f"ua;a{first.strip()};ub;", temperature=0.0, stop=(";",))
    assert conversed(generator, "a", "b") == f"{first}\n{second}\n"
    assert conversed(generator, "a", "/new", "a", "/again", "/undo", "a") == f"{first}\n" * 4
    told = continued(generator, "sx;ua;", temperature=0.0, stop=(";",))
    assert conversed(generator, "/system x", "a", "/system", "a") == f"{told}\n{first}\n"
    assert conversed(generator, "/again", "/nothing", "a") == f"{first}\n"
    said = capsys.readouterr().err
    assert "error: /again: there is no message yet" in said and "/undo" in said


def test_a_long_conversation_loses_its_beginning(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    messages = ["x" * 300, "y" * 300, "z" * 300]
    written = conversed(generator, *messages)
    assert len(written.splitlines()) == 3
    assert "fills the context of 1024 tokens: its first 2 messages are gone)" in capsys.readouterr().err
    conversed(generator, "x" * 2000)
    assert "error: the message has 2002 tokens, and the context 1024; give a shorter one" in capsys.readouterr().err
