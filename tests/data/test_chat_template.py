"""Chat templates, held against transformers' own rendering of them."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer

from gpt_mesh.data import chat_template
from gpt_mesh.data.chat_template import NAMED, ChatTemplate
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.errors import InputError
from tests.support.tokenizers import byte_level

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
USER, ANSWER = {"role": "user", "content": "Say hé. "}, {"role": "assistant", "content": "hé hé"}
SYSTEM = {"role": "system", "content": "Be short."}
CONVERSATIONS = [[USER], [USER, ANSWER], [SYSTEM, USER, ANSWER, {"role": "user", "content": "Again"}, ANSWER]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as transformers saves it."""
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer: Tokenizer = byte_level()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(path / "tokenizer.json"))
    end = {"__type": "AddedToken", "content": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": end}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(str(folder))


def judge(folder: Path, template: str, messages: list[dict[str, Any]], **settings: Any) -> tuple[str, list[int]]:
    """transformers' text and ids."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **settings)
    ids = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False, **settings)
    return text, list(ids)


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_render_and_encode_as_transformers_does(name: str, folder: Path, encoder: Encoder) -> None:
    template = ChatTemplate.named(name, encoder)
    for messages in CONVERSATIONS:
        for add in (False, True):
            text, ids = judge(folder, template.text, messages, add_generation_prompt=add)
            assert template.render(messages, add_generation_prompt=add) == text
            assert template.encode(encoder, messages, add_generation_prompt=add).ids == ids


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("chatml", ["hé hé<|im_end|>"] * 2),
        ("llama3", ["hé hé<|eot_id|>"] * 2),
        ("mistral", ["hé hé</s>"] * 2),
        ("zephyr", ["hé hé</s>"] * 2),
        ("alpaca", ["hé hé</s>"] * 2),
    ],
)
def test_answers_are_learned_with_their_end(name: str, learned: list[str], encoder: Encoder) -> None:
    found = ChatTemplate.named(name, encoder).encode(encoder, CONVERSATIONS[2])
    parts: list[list[int]] = []
    inside = False
    for token, marked in zip(found.ids, found.learned, strict=True):
        if marked:
            parts[len(parts) - inside :] = [[*(parts[-1] if inside else []), token]]
        inside = marked
    assert [encoder.decode(part).strip() for part in parts] == learned


def test_tags_of_the_template_say_what_is_learned(encoder: Encoder) -> None:
    text = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}|{% endfor %}"
    )
    template = ChatTemplate(text, "a template")
    rendered = template.render(CONVERSATIONS[1])
    assert [rendered[a:b] for a, b in template.spans(CONVERSATIONS[1], rendered)] == ["hé hé"]
    assert rendered == "user:Say hé. |assistant:hé hé|"


def test_the_template_lies_in_either_file(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    assert ChatTemplate.of(str(folder), encoder) is None
    for name, content in (
        ("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}"),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ eos_token }}!", "eos_token": "</s>"})),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "default", "template": "{{ eos_token }}!"}], "eos_token": "</s>"}),
        ),
    ):
        own = tmp_path / str(len(content))
        own.mkdir()
        (own / name).write_text(content)
        found = ChatTemplate.of(str(own), encoder)
        assert found is not None
        assert pickle.loads(pickle.dumps(found)).render([USER]) in ("Say hé. ", "</s>!")


@pytest.mark.parametrize(
    ("text", "messages", "words"),
    [
        ("{{ raise_exception('no system here') }}", [USER], "refuses the messages: no system here"),
        ("{{ messages[0].content.nothing.more }}", [USER], "the chat template fails (UndefinedError"),
        ("{{ 'x' * 10000000000 }}", [USER], "too large a text"),
        ("{{ 7 ** 99999999 }}", [USER], "too large a power"),
        ("{{ '%9999999999d' % 1 }}", [USER], "too large a text"),
        ("{{ ''.__class__.__mro__ }}", [USER], "the chat template fails (SecurityError"),
        ("{{ messages.append(1) }}", [USER], "the chat template fails (SecurityError"),
        ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", [USER], "longer than"),
        (
            "{% if messages | length > 1 %}!{% endif %}{{ messages[0].content }}",
            [USER, ANSWER],
            "message 2 renders differently when others follow",
        ),
    ],
)
def test_what_goes_wrong_is_one_line(text: str, messages: list[Any], words: str, encoder: Encoder) -> None:
    with pytest.raises(InputError) as error:
        ChatTemplate(text, "a template").encode(encoder, [*messages, *messages])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_template_that_loops_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    begin = time.monotonic()
    with pytest.raises(InputError, match="did not end within"):
        ChatTemplate(endless, "a template").render([USER])
    assert time.monotonic() - begin < 5


def test_a_template_that_is_none_names_the_line(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("{{ bos_token }}\n{% for %}")
    with pytest.raises(InputError, match=r"bad\.jinja: the chat template is no Jinja template \(line 2: "):
        ChatTemplate.named(str(tmp_path / "bad.jinja"), encoder)
    with pytest.raises(InputError, match="nothing: neither a file nor one of alpaca, chatml"):
        ChatTemplate.named("nothing", encoder)
