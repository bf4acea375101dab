"""The commands of README.md and docs/, as a reader types them, one page after another in one folder.

Every block of shell or Python on these pages is run, unless a comment above it says why it is not:

    <!-- not run: needs a Cloud TPU -->
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpt_mesh.config import shipped_configs
from tests.support import hugging_face
from tests.support.mongo_server import MongoServer

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))
README = (ROOT / "README.md").read_text()
COMMANDS = ("bash", "python")
OTHER = ("text", "json", "jsonl", "diff", "yaml", "dockerfile")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `reason`: why it is not run, if that is said above it."""

    language: str
    text: str
    reason: str | None
    at: int


def blocks(page: str) -> list[Block]:
    """All of a page, in order, without their indentation."""
    text = (ROOT / page).read_text()
    fenced = re.finditer(
        r"^(?: *<!-- not run: ?(?P<reason>.*?) ?-->\n)?"
        r"(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
        text,
        re.MULTILINE | re.DOTALL,
    )
    return [
        Block(m["language"], re.sub(rf"^{m['indent']}", "", m["text"], flags=re.MULTILINE), m["reason"], m.start())
        for m in fenced
    ]


def to_run(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language in COMMANDS and block.reason is None]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are(page: str) -> None:
    """A block without a language is neither run nor left out; only commands are left out, and for a reason."""
    found = blocks(page)
    assert len(found) == len(re.findall(r"^ *```\w", (ROOT / page).read_text(), re.MULTILINE))
    for block in found:
        assert block.language in (*COMMANDS, *OTHER), block.text
        assert block.reason is None or (block.language in COMMANDS and len(block.reason) > 8), block


# --- The reader's part: files that a page takes for granted, and edits that it asks for ------------------------------


def _edit(folder: Path, name: str, **keys: object) -> None:
    path = folder / "configs" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def _keys(page: str, containing: str) -> dict[str, object]:
    """The keys that a page has for pasting into a config."""
    (block,) = [one for one in blocks(page) if one.language == "json" and containing in one.text]
    found: dict[str, object] = json.loads("{" + block.text + "}")
    return found


def _my_model(folder: Path) -> None:
    """`laptop` copied, and the keys set that the guide names; fewer steps, to save time."""
    shutil.copy(folder / "configs" / "laptop.json", folder / "configs" / "my_model.json")
    dataset = json.loads((folder / "configs" / "dataset_configs" / "my_text.json").read_text())
    keys = _keys("README.md", "my_text")
    _edit(folder, "my_model", **keys, n_vocab=dataset["n_vocab"], model_path="runs/my_model", train_steps=4)


def _downloaded(folder: Path) -> None:
    """A small GPT-Neo in place of the published one."""
    if not (folder / "gpt-neo-125m").exists():
        tokenizer = folder / "my_data" / "byte-level-bpe.tokenizer.json"
        n_vocab = json.loads((folder / "configs" / "my_model.json").read_text())["n_vocab"]
        hugging_face.write_folder(
            folder / "gpt-neo-125m", tokenizer, vocab_size=n_vocab, max_position_embeddings=64
        )


def _tuned(folder: Path) -> None:
    shutil.copy(folder / "configs" / "neo.json", folder / "configs" / "tuned.json")
    _edit(folder, "tuned", **_keys("docs/fine_tuning.md", "tuning_text"), train_steps=3, train_batch_size=4)


def _two_hosts(folder: Path) -> None:
    shutil.copy(folder / "configs" / "my_model.json", folder / "configs" / "two_hosts.json")
    keys = {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y", "model_path": "runs/two_hosts", "eval_steps": 0}
    _edit(folder, "two_hosts", **keys, train_steps=2)


def _texts(folder: Path) -> None:
    """Files to score and prompts, under the names that the pages give them."""
    passages = ["The cat sat on the mat", "He opened the door and saw the door"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in passages)
    (folder / "lambada_test.jsonl").write_text(lines)
    (folder / "wiki.test.raw").write_text(" = Title = \n \n A line of an article .\n")
    for name in ("story.txt", "prompt.txt"):
        (folder / name).write_text("import os\n")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    chats = [{"messages": [messages[0] | {"content": f"Hi {n}"}, messages[1]]} for n in range(40)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (prompts,) = [block.text for block in blocks("docs/generation.md") if block.language == "jsonl"]
    (folder / "prompts.jsonl").write_text(prompts)


# Called before a block that contains the key.
BEFORE: Mapping[str, Callable[[Path], None]] = {
    "--steps_per_checkpoint 500 --experiment_name": lambda folder: _edit(folder, "my_model", train_steps=6),
    "--profile 100:110": lambda folder: _edit(folder, "my_model", train_steps=112),
    "--replay_step 6": lambda folder: _edit(folder, "my_model", train_steps=6),
    "import gpt-neo-125m": _downloaded,
    "--model tuned --init_from": _tuned,
    "--cluster localhost": _two_hosts,
}
SECONDS = 300


# --- Running ---------------------------------------------------------------------------------------------------------


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with a folder of text beside it."""
    copy = tmp_path_factory.mktemp("guides") / "checkout"
    for path in ROOT.glob("*.py"):
        shutil.copy(path, _made(copy) / path.name)
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    for name in ("configs", *rooms):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    library = Path(sysconfig.get_paths()["stdlib"])
    for source in sorted(library.glob("[a-z]*.py"))[:80]:
        shutil.copy(source, _made(copy / "my_text") / f"{source.stem}.txt")
    (copy / "some.txt").write_text((library / "shlex.py").read_text()[:4000])
    return copy


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": ""}


def _command(block: Block, given: Mapping[str, str]) -> list[str]:
    """given: what to put in place of addresses and placeholders."""
    text = block.text
    for name, value in given.items():
        text = text.replace(name, value)
    return [sys.executable, "-c", text] if block.language == "python" else ["bash", "-ec", text]


def follow(folder: Path, block: Block, given: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a block; it must succeed."""
    command = _command(block, given or {})
    done = subprocess.run(
        command, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done


@contextmanager
def serving(folder: Path, block: Block, given: Mapping[str, str], address: str) -> Iterator[None]:
    """Run a block that serves until it is told to end."""
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(_command(block, given), cwd=folder, env=_environment(), stderr=output)
    try:
        begin = time.monotonic()
        while not _answers(address):
            assert process.poll() is None and time.monotonic() - begin < SECONDS, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in bound]


@pytest.fixture(scope="module")
def guided(checkout: Path) -> Path:
    """The folder after the README's guide. The guide itself is held against what it says."""
    guide = range(README.index("## Train on your own text"), README.index("## As a library"))
    steps = [block for block in to_run("README.md") if block.at in guide]
    assert len(steps) == 4, steps
    unedited = Block("bash", "python3 main.py --model laptop", None, 0)
    done = subprocess.run(
        _command(unedited, {}), cwd=checkout, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "put NAME into datasets of the model's config" in done.stderr, done.stderr
    for block in steps:
        if "main.py" in block.text and not (checkout / "configs" / "my_model.json").exists():
            _my_model(checkout)
        done = follow(checkout, block)
    check = follow(checkout, Block("bash", "python3 main.py --model my_model --check_dataset", None, 0))
    assert "my_text (eval_path: " in check.stdout and "the data fits the model" in check.stdout
    assert "asks for 160 windows of held-out text" not in check.stderr
    return checkout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_guide_and_the_example(guided: Path) -> None:
    rows = (guided / "runs" / "my_model" / "eval.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] == 4
    in_memory, example = [block for block in to_run("README.md") if "gpt_mesh.train" in block.text]
    assert len(in_memory.text.splitlines()) <= 10
    saved = guided / "runs" / "characters" / "model.ckpt-200"
    assert f"at step 200, context 64: {saved}>" in follow(guided, in_memory).stdout
    n_vocab = json.loads((guided / "configs" / "my_model.json").read_text())["n_vocab"]
    assert f"(1, 3, {n_vocab})" in follow(guided, example).stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)])
def test_pages(guided: Path, page: str) -> None:
    """Blocks of the README's guide were run already."""
    _texts(guided)
    port, another, first, second = _free_ports(4)
    address = f"127.0.0.1:{port}"
    with ExitStack() as resources:
        mongo = resources.enter_context(MongoServer())
        given = {
            "--serve\n": f"--serve {address}\n",
            "127.0.0.1:8000": address,
            "127.0.0.1:8001": f"127.0.0.1:{another}",
            "DIR": "runs/my_model/sacred",
            "URL": f"mongodb://127.0.0.1:{mongo.port}/sacred",
            "--maximum_size 2049": "--maximum_size 65",
            "train_steps=500": "train_steps=3",
            "localhost:2222": f"localhost:{first}",
            "localhost:2223": f"localhost:{second}",
        }
        if "--cluster localhost" in (ROOT / page).read_text():
            given["my_model"] = "two_hosts"  # "a config whose mesh_shape is x:2,y:2"
        guide = range(README.index("## Train on your own text"), README.index("## As a server"))
        for block in to_run(page):
            if page == "README.md" and block.at in guide:
                continue
            for part, prepare in BEFORE.items():
                if part in block.text:
                    prepare(guided)
            if block.text.endswith("--serve\n"):
                resources.enter_context(serving(guided, block, given, address))
            else:
                follow(guided, block, given)


def test_every_file_that_the_readme_names_is_there() -> None:
    names = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [name for name in names if "://" not in name and not (ROOT / name).exists()]
    assert len(names) > 8 and not missing


def test_every_config_is_in_the_table() -> None:
    listed = set(re.findall(r"`([\w-]+)`", README[README.index("## Configs") :]))
    assert {*shipped_configs()} <= listed
