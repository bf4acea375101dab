"""Experts that read the tokens that chose them: every form, at every load, gives what computing all experts gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.config import ModelConfig
from gpt_mesh.meshes import native
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.experts import rows
from gpt_mesh.models.experts.dropless import Network
from tests.support.models import tiny_config

TOKENS, EMBD, HIDDEN, EXPERTS, CHOICES = 96, 16, 24, 4, 2


def model_of(**params: Any) -> ModelConfig:
    params = {"moe_num_experts": EXPERTS, "moe_gating": "top_k", "moe_dropless": True, "moe_glu": True, **params}
    return tiny_config(n_embd=EMBD, moe_layers=[0], moe_params=params, moe_activation="silu").model


def network(*, train: bool = True, dtype: tf.DType = tf.float64, in_c: bool = False, **params: Any) -> Network:
    model = model_of(**params)
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    seed = mtf.zeros(mesh, mtf.Shape([]), tf.int32) if train else None
    dims = Dims.of(model, 1, TOKENS)
    ctx = Context(mesh=mesh, dims=dims, model=model, dtype=dtype, axes={}, init_seed=0, seed=seed, cpu_kernels=in_c)
    return Network(ctx, 1 + model.moe_params.moe_glu)


def even(rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.permutation(EXPERTS)[:CHOICES] for _ in range(TOKENS)])


LOADS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "random": even,
    "all tokens to one expert": lambda rng: np.stack([[2, rng.choice([0, 1, 3])] for _ in range(TOKENS)]),
    "all tokens to two experts": lambda rng: np.tile([3, 1], (TOKENS, 1)),
    "the first expert unused": lambda rng: np.stack(
        [1 + rng.permutation(EXPERTS - 1)[:CHOICES] for _ in range(TOKENS)]
    ),
}


def operands(load: str, gated: bool = True) -> list[np.ndarray]:
    """x, ids, weights, own and the matrices, in float64."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal([1, TOKENS, EMBD]), rng.random([1, TOKENS, CHOICES])
    shapes = [[EXPERTS, EMBD, HIDDEN]] * (1 + gated) + [[EXPERTS, HIDDEN, EMBD]]
    matrices = [0.3 * rng.standard_normal(shape) for shape in shapes]
    ids = LOADS[load](rng)[None].astype(np.int32)
    return [x, ids, weights, np.arange(EXPERTS, dtype=np.int32), *matrices]


def pull() -> np.ndarray:
    return np.random.default_rng(1).standard_normal([1, TOKENS, EMBD])


def by_all_experts(given: list[np.ndarray]) -> list[np.ndarray]:
    """The output and the gradients, from every expert's output for every token, in float64."""
    x, ids, weights, _, *matrices = (tf.constant(array) for array in given)
    with tf.GradientTape() as tape:
        tape.watch([x, weights, *matrices])
        factors = tf.einsum("btk,btke->bte", weights, tf.one_hot(ids, EXPERTS, dtype=x.dtype))
        entered = [tf.einsum("btd,edh->bteh", x, matrix) for matrix in matrices[:-1]]
        inside = tf.nn.silu(entered[-1]) * (entered[0] if len(entered) == 2 else 1.0)
        y = tf.einsum("bteh,ehd,bte->btd", inside, matrices[-1], factors)
        objective = tf.reduce_sum(y * pull())
    return [array.numpy() for array in (y, *tape.gradient(objective, [x, weights, *matrices]))]


def by_choice(network: Network, given: list[np.ndarray], *, compiled: bool = True) -> list[np.ndarray]:
    """The output and the gradients of a network."""
    dtype = network_dtype(network)

    @tf.function(jit_compile=compiled)
    def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
        y, *residuals = network.forward(*tensors)
        gradients = network.gradient(*tensors, y, *residuals, tf.cast(pull(), y.dtype))
        return [y, *gradients]

    narrow = [tf.constant(array, dtype if array.dtype == np.float64 else None) for array in given]
    return [array.numpy().astype(np.float64) for array in run(*narrow)]


def network_dtype(network: Network) -> tf.DType:
    return tf.float32 if network._in_c else network._wide


def assert_close(found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float) -> None:
    assert [array.shape for array in found] == [array.shape for array in wanted]
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(
            one, other, rtol=0, atol=tolerance * np.abs(wanted[number]).max(), err_msg=str(number)
        )


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("slots", [8, 64])
def test_no_choice_is_lost_beyond_the_slots(load, slots, compiled, monkeypatch):
    monkeypatch.setattr(rows, "MIN_SLOTS", slots)
    monkeypatch.setattr(rows, "SPARE", 0.1)
    assert rows.slots_of(TOKENS, CHOICES, EXPERTS) == slots
    given = operands(load)
    assert_close(by_choice(network(), given, compiled=compiled), by_all_experts(given), 1e-12)


@pytest.mark.skipif(not native.known(), reason="no C compiler")
@pytest.mark.parametrize("load", LOADS)
def test_rows_sorted_in_c_have_no_limit(load):
    given = operands(load)
    assert_close(by_choice(network(dtype=tf.float32, in_c=True), given), by_all_experts(given), 2e-6)


@pytest.mark.skipif(not native.known(), reason="no C compiler")
def test_an_expert_that_does_not_exist_is_refused_in_c():
    run = tf.function(lambda ids: rows.SortedRows(ids, EXPERTS).place, jit_compile=True)
    np.testing.assert_array_equal(run(tf.constant([[2, 0], [0, 3]])), [2, 0, 1, 3])
    for wrong in (-1, EXPERTS):
        with pytest.raises(tf.errors.OpError, match="no expert has this id"):
            run(tf.constant([[2, 0], [0, wrong]]))


@pytest.mark.parametrize("in_c", [False, True])
def test_experts_without_gates(in_c):
    given = operands("random", gated=False)
    found = by_choice(network(dtype=tf.float32 if in_c else tf.float64, in_c=in_c, moe_glu=False), given)
    assert_close(found, by_all_experts(given), 2e-6 if in_c else 1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 3, 40])
def test_a_few_tokens_give_what_many_give(tokens):
    given = operands("random")
    wanted = by_all_experts(given)[0][:, :tokens]
    few = [tf.constant(array[:, :tokens]) if i < 3 else tf.constant(array) for i, array in enumerate(given)]
    for compiled in (True, False):
        found = tf.function(network(train=False).forward, jit_compile=compiled)(*few)[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("train, slots", [(True, 8), (False, 64)])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_the_parts_of_devices_add_up(train, slots, tokens, monkeypatch):
    """Each with half of the experts, and a third of their hidden features."""
    monkeypatch.setattr(rows, "MIN_SLOTS", slots)
    given = operands("all tokens to one expert")
    wanted = by_all_experts(given)[0][:, :tokens]
    first = [array[:, :tokens] for array in given[:3]]
    found = np.zeros_like(wanted)
    for own in (slice(0, 2), slice(2, 4)):
        for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
            up, gate, down = (array[own] for array in given[4:])
            parts = [*first, given[3][own], up[..., part], gate[..., part], down[:, part]]
            found += tf.function(network(train=train).forward)(*[tf.constant(array) for array in parts])[0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_slots_have_room_to_spare():
    assert rows.slots_of(8192, 2, 8) == 2560
    assert rows.slots_of(10, 2, 8) == 10  # an expert gets no token twice
    assert rows.slots_of(1000, 1, 64) == rows.MIN_SLOTS
