"""Every Hugging Face architecture against transformers, in both versions and both ways: the same logits, the same
greedy text with our cache, the same bits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt_mesh import api
from gpt_mesh.config import GenerationSettings, load_config, parse_model
from gpt_mesh.generation.requests import GenerationRequest
from gpt_mesh.interop.architectures import ARCHITECTURES
from gpt_mesh.interop.export_model import export_model
from gpt_mesh.interop.import_model import import_model
from tests.peers.test_hugging_face import LARGE_TOLERANCE, TRAINED_TOLERANCE
from tests.support.families import FAMILIES, SHAPES
from tests.support.outside import TRANSFORMERS_5, ask
from tests.support.runs import Workspace

pytestmark = [pytest.mark.peers, pytest.mark.timeout(900)]

SITES = {4: None, 5: TRANSFORMERS_5}
TOKENS = np.random.default_rng(0).integers(2, 320, (2, 96)).tolist()
NEW = 64
QUESTION = {"tokens": TOKENS, "prompt": TOKENS[0][:16], "new": NEW}
SCALE = 0.15
Answers = dict[str, np.ndarray]


@dataclass(frozen=True)
class Models:
    """The models of all shapes in one version of transformers: folders, logits, and greedy continuations."""

    folder: Path
    answers: Answers

    def path(self, family: str, shape: str) -> Path:
        return self.folder / f"{family}-{shape}"

    def logits(self, family: str, shape: str) -> np.ndarray:
        return self.answers[f"{SHAPES.index((family, shape))}/logits"]

    def grown(self, family: str, shape: str) -> list[int]:
        found: list[int] = self.answers[f"{SHAPES.index((family, shape))}/grown"].tolist()
        return found


def asked(folder: Path, version: int, **more: Any) -> Models:
    """What a version makes of the models of all shapes in a folder. more: keys of each job, by shape."""
    jobs = [
        {"folder": str(folder / f"{family}-{shape}"), **QUESTION, **more.get(f"{family}-{shape}", {})}
        for family, shape in SHAPES
    ]
    question = folder.parent / f"{folder.name}-{version}"
    question.mkdir()
    answers = ask("families", {"models": jobs}, question, site=SITES[version], timeout=600)
    assert answers["version"] == version
    return Models(folder, answers)


@pytest.fixture(scope="module", params=[4, 5])
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, version: int) -> Models:
    """Random weights, written by that version."""
    folder = tmp_path_factory.mktemp(f"families{version}") / "theirs"
    configs = {
        f"{family}-{shape}": {"config": {"model_type": family, **FAMILIES[family][shape]}, "scale": SCALE}
        for family, shape in SHAPES
    }
    folder.mkdir()
    return asked(folder, version, **configs)


def imported(models: Models, family: str, shape: str, workspace: Workspace, folder: Path) -> api.Model:
    done = import_model(
        str(models.path(family, shape)), "came", config_dir=str(folder), model_path=str(folder / "run"),
        tokenizer=str(workspace.tokenizer),
    )  # fmt: skip
    return api.load(done.config)


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_their_models_run_here(
    workspace: Workspace, tmp_path: Path, theirs: Models, version: int, family: str, shape: str
) -> None:
    """Logits of whole passes, and of decoding with the cache."""
    model = imported(theirs, family, shape, workspace, tmp_path)
    logits = theirs.logits(family, shape)
    assert logits.std() > 0.5
    np.testing.assert_allclose(model.logits(np.array(TOKENS)), logits, rtol=0, atol=LARGE_TOLERANCE)
    if version == 5:  # the same model, from another form of config.json
        return
    prompts = [TOKENS[1][:30], QUESTION["prompt"]]  # one batch, in which the second is padded
    grown = [[*prompt, *new] for prompt, new in zip(prompts, continued(model, prompts), strict=True)]
    assert grown[1][len(prompts[1]) :] == theirs.grown(family, shape)
    whole = model.logits(np.array([[*row, *TOKENS[0][len(row) :]] for row in grown])).copy()
    whole[..., 0] = -np.inf  # no end of text before NEW tokens
    for prompt, row, logits in zip(prompts, grown, whole, strict=True):
        assert logits.argmax(-1)[len(prompt) - 1 : len(row) - 1].tolist() == row[len(prompt) :]


def continued(model: api.Model, prompts: list[list[int]]) -> list[list[int]]:
    """The tokens that follow prompts greedily, all in one batch."""
    settings = GenerationSettings(temperature=0, max_new_tokens=NEW, min_new_tokens=NEW)
    found = model.generator().generate([GenerationRequest(prompt, settings) for prompt in prompts])
    return [list(one.tokens) for one in found]


@pytest.fixture(scope="module")
def back(tmp_path_factory: pytest.TempPathFactory, theirs: Models, workspace: Workspace, version: int) -> Models:
    """The same models after an import and an export, in the other version."""
    folder = tmp_path_factory.mktemp(f"back{version}") / "back"
    folder.mkdir()
    for family, shape in SHAPES:
        place = folder.parent / f"{family}-{shape}"
        place.mkdir()
        done = import_model(
            str(theirs.path(family, shape)), "came", config_dir=str(place), model_path=str(place / "run"),
            tokenizer=str(workspace.tokenizer),
        )  # fmt: skip
        out = str(folder / f"{family}-{shape}")
        export_model(load_config(done.config), done.checkpoint, out, architecture=family, shard_bytes=100_000)
    return asked(folder, 9 - version)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for part in sorted(folder.glob("*.safetensors")) for name, array in load_file(part).items()}


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_they_go_back_as_they_came(theirs: Models, back: Models, family: str, shape: str) -> None:
    before, after = tensors(theirs.path(family, shape)), tensors(back.path(family, shape))
    assert before.keys() - {"lm_head.weight", "embed_out.weight"} <= after.keys() <= before.keys()
    assert all(after[name].tobytes() == before[name].tobytes() for name in after)
    np.testing.assert_allclose(back.logits(family, shape), theirs.logits(family, shape), rtol=0, atol=1e-5)
    assert back.grown(family, shape) == theirs.grown(family, shape)


FIRST = [(family, next(iter(shapes))) for family, shapes in FAMILIES.items()]


def train_and_export(rows: list[tuple[str, str]], workspace: Workspace, root: Path) -> list[api.Model]:
    """Models after 100 steps of training here, exported to folders `family-shape`."""
    found = []
    for family, shape in rows:
        keys = ARCHITECTURES[family].read(FAMILIES[family][shape], family)
        training = {"embed_dropout": 0, "attn_dropout": 0, "res_dropout": 0, "train_steps": 100}
        path = workspace.config(f"trained_{family}_{shape}", **{"attention_types": None, **keys, **training})
        config = load_config(str(path))
        result = api.train(config)
        export_model(config, result.checkpoint, str(root / f"{family}-{shape}"), architecture=family)
        found.append(api.Model(config, checkpoint=result.checkpoint))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, workspace: Workspace) -> tuple[Path, list[api.Model]]:
    """The first shape of each family."""
    root = tmp_path_factory.mktemp("trained")
    return root, train_and_export(FIRST, workspace, root)


def compare_trained(
    root: Path, rows: list[tuple[str, str]], models: list[api.Model], place: Path, version: int
) -> Answers:
    """The same logits, of models that have learned something."""
    jobs = [{"folder": str(root / f"{family}-{shape}"), **QUESTION} for family, shape in rows]
    answers = ask("families", {"models": jobs}, place, site=SITES[version], timeout=600)
    for number, ((family, shape), model) in enumerate(zip(rows, models, strict=True)):
        ours, wanted = model.logits(np.array(TOKENS)), answers[f"{number}/logits"]
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=TRAINED_TOLERANCE, err_msg=f"{family} {shape}")
        assert ours.std() > 0.8, f"{family} {shape} learned nothing"
    return answers


@pytest.mark.slow
def test_trained_models_run_there(trained: tuple[Path, list[api.Model]], tmp_path: Path, version: int) -> None:
    root, models = trained
    compare_trained(root, FIRST, models, tmp_path, version)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_other_trained_shapes_run_and_continue_texts_there(workspace: Workspace, tmp_path: Path) -> None:
    rows = [row for row in SHAPES if row not in FIRST]
    models = train_and_export(rows, workspace, tmp_path)
    answers = compare_trained(tmp_path, rows, models, tmp_path, 4)
    for number, (row, model) in enumerate(zip(rows, models, strict=True)):
        [new] = continued(model, [QUESTION["prompt"]])
        assert new == answers[f"{number}/grown"].tolist(), row


def test_missing_keys_have_their_defaults(tmp_path: Path, version: int) -> None:
    """Those of the architecture's config class, under its own names or the ones before them."""
    answers = ask("families", {"defaults": [*ARCHITECTURES]}, tmp_path, site=SITES[version])
    for family, kind in ARCHITECTURES.items():
        values = json.loads(str(answers[f"defaults/{family}"]))
        assert parse_model(kind.read(values, family), family) == parse_model(kind.read({}, family), family), family
