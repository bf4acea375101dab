"""Random model configs over the whole key space, on tiny sizes.

A config is one choice from each of three tables. `FEATURES` hold what changes the graph; `covering_rows` combines them
so that every pair of choices occurs. `SIZES` and `SETTINGS` hold the rest. Any choices together make a config that the
product accepts; `SLIPS` make it one that must be refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from gpt_mesh.config import ACTIVATIONS, TENSOR_DIMENSIONS

Keys = Mapping[str, Any]
# Flat keys, or how to make them from those that came before.
Choice = Keys | Callable[[Keys], Keys]
Table = Mapping[str, Sequence[Choice]]


def _attention(*types: str) -> Keys:
    return {"attention_types": [[list(types), 1]], "n_layer": len(types)}


def _mesh(mesh_shape: str, layout: str) -> Keys:
    return {"mesh_shape": mesh_shape, "layout": layout}


def _mixtures(**params: Any) -> Callable[[Keys], Keys]:
    """A mixture in the last layer, or in all of them where layers share weights."""

    def keys(given: Keys) -> Keys:
        last = given["n_layer"] - 1
        return {"moe_layers": [*range(last), last] if given["share_parameters"] else [last], "moe_params": params}

    return keys


def _top_k(**params: Any) -> Callable[[Keys], Keys]:
    """Gated top-k experts, where there is a mixture; without the settings of other gates."""

    def keys(given: Keys) -> Keys:
        if "moe_params" not in given:
            return {}
        refused = ("second", "capacity", "dropout") if "moe_dropless" in params else ("second",)
        kept = {k: v for k, v in given["moe_params"].items() if not any(word in k for word in refused)}
        more = {"moe_gating": "top_k", "moe_glu": True, "moe_shared_expert_size": 4}
        return {"moe_params": {**kept, **more, **params}}

    return keys


def _head_size(features: int) -> Callable[[Keys], Keys]:
    return lambda given: {"n_embd": given["n_head"] * features}


def _by_heads(given: Keys) -> Keys:
    """A layout that splits heads, where there are heads to split."""
    kinds = {kind for types, _ in given["attention_types"] for kind in types}
    return _mesh("a:2", "heads:a") if given["n_head"] % 2 == 0 and kinds != {"none"} else {}


def _axial(given: Keys) -> Keys:
    rows = next(n for n in range(2, given["n_ctx"] + 1) if given["n_ctx"] % n == 0)
    return {"axial_pos_emb": [rows, given["n_ctx"] // rows]}


def _unless_rezero(**keys: Any) -> Callable[[Keys], Keys]:
    return lambda given: {} if given.get("rezero") else keys


def _tied(given: Keys) -> Keys:
    """Parallel branches, with one norm where there is one to share."""
    normed = not given.get("rezero") and given.get("norm") != "none" and given.get("norm_placement") != "post"
    return {"gpt_j_residual": True, "gpt_j_tied": normed}


def _alibi(given: Keys) -> Keys:
    """No positions in place of ALiBi where linear attention has no logits."""
    linear = any("linear" in types for types, _ in given["attention_types"])
    return {"pos_emb": "none" if linear else "alibi"}


def _share(given: Keys) -> Keys:
    """Two features of each head rotate."""
    head_dim = given.get("head_dim", given["n_embd"] // given["n_head"])
    return {"pos_emb": "rotary", "rotary_pct": 2 / head_dim, "rotary_emb_base": 100}


def _off_or_on(name: str) -> list[Choice]:
    return [{name: False}, {name: True}]


YARN = {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 2}
ROTARY: list[Choice] = [_share, {"pos_emb": "rotary", "rotary_interleaved": True, "rope_scaling": YARN}]
MLM = {"mlm_training": True, "mlm_mask_id": 3, "mlm_mask_prob": 0.4}
# In this order, for the choices that look at earlier ones.
SIZES: Table = {
    "heads": [{"n_head": 2}, {"n_head": 1}, {"n_head": 4}],
    "head size": [_head_size(n) for n in (2, 4, 6)],
    "context": [{"n_ctx": n} for n in (4, 6, 10, 16)],
    "vocabulary": [{"n_vocab": n} for n in (16, 22, 64)],
    "batch": [{"train_batch_size": 2}, {"train_batch_size": 4}],
}
FEATURES: Table = {
    "attention": [
        _attention("global"),
        _attention("local"),
        _attention("linear"),
        _attention("none"),
        _attention("linear", "local"),
        _attention("none", "global"),
    ],
    "shared heads": [
        {},
        {"num_kv_heads": 1},
        lambda k: {"num_kv_heads": max(1, k["n_head"] // 2)},
    ],
    "head_dim": [{}, {"head_dim": 6}],
    "attention biases": [
        {},
        {"use_bias_in_attn_linear": True},
        {"use_bias_in_attn_linear": False},
        {"use_bias_in_attn_linear": False, "use_bias_in_qkv": True},
    ],
    "qk_norm": _off_or_on("qk_norm"),
    "scale_attn_weights": _off_or_on("scale_attn_weights"),
    "precision": [{"precision": "float32"}, {"precision": "bfloat16"}],
    "dropout": [
        {},
        {"attn_dropout": 0.2},
        {"embed_dropout": 0.1, "res_dropout": 0.3},
    ],
    "optimizer": [
        {"opt_name": "adam"},
        {"opt_name": "adam", "beta1": 0.0, "beta2": 0.99, "epsilon": 1e-6},
        {"opt_name": "adafactor"},
        {"opt_name": "adafactor", "beta1": 0.0, "ada_epsilon1": "1e-20", "ada_epsilon2": 0.01, "ada_decay_rate": 0.5},
    ],
    "schedule": [
        {},
        {"lr_decay": "linear", "warmup_steps": 3, "lr_decay_end": 2},
        {"lr_decay": "none", "warmup_steps": 100},
    ],
    "weight decay": [{}, {"weight_decay": 0.1}],
    "clipping": [{}, {"gradient_clipping": None}, {"gradient_clipping": 0.01}],
    "recompute_grad": _off_or_on("recompute_grad"),
    "microbatches": [
        {},
        lambda k: {"tokens_per_mb_per_replica": k["n_ctx"]},
        lambda k: {"tokens_per_mb_per_replica": 2 * k["n_ctx"] + 1},
    ],
    "objective": [
        {},
        MLM,
        MLM | {"mlm_cls_token_id": 1, "mlm_mask_ignore_ids": [5, 7], "mlm_mask_prob": 1.0},
        MLM | {"mlm_same_token_prob": 0.6, "mlm_random_token_prob": 0.4, "mlm_mask_prob": 0.01},
    ],
    "share_parameters": _off_or_on("share_parameters"),
    "mixture": [
        {},
        _mixtures(moe_num_experts=4, moe_capacity_factor_train=0.1),
        _mixtures(moe_num_experts=2, moe_dropout_rate=0.2, moe_group_size=3, moe_use_second_place_loss=True),
        _mixtures(
            moe_num_experts=4, moe_hidden_size=10, moe_second_policy_train="threshold", moe_second_policy_eval="none"
        ),
    ],
    "gating": [
        {},
        _top_k(moe_dropless=True),
        _top_k(moe_norm_topk_prob=False, moe_top_k=1),
    ],
    "positions": [{}, _axial, {"rotary_emb": True}, _alibi, *ROTARY],
    "norm": [
        {},
        {"scalenorm": True},
        {"rezero": True},
        {"norm": "rmsnorm", "norm_epsilon": 1e-6},
        {"norm": "none"},
        {"use_bias_in_norms": False},
    ],
    "norm_placement": [{}, _unless_rezero(norm_placement="post"), _unless_rezero(norm_placement="both")],
    "residual": [{}, {"gpt_j_residual": True}, _tied],
    "mlp_glu": [{"mlp_glu": False}, {"mlp_glu": True}, {"mlp_glu": True, "glu_columns": "separate"}],
    "intermediate_size": [{}, {"intermediate_size": 6}],
    "use_bias_in_mlp": _off_or_on("use_bias_in_mlp"),
    "embedding": [{}, {"embedding_scale": 3.0}, lambda k: {"embed_norm": k.get("norm") != "none"}],
    "head": [{}, {"lm_head_bias": True}, {"lm_head_bias": True, "final_logit_softcapping": 4.0}],
    "macaron": _off_or_on("macaron"),
    "no_weight_tie": _off_or_on("no_weight_tie"),
    "memory": [{}, {"num_mem_kv": 3}],
    "loss": [{}, {"z_loss": 0.0}, {"entmax_loss": True}],
    "log_grads": _off_or_on("log_grads"),
    "scale_by_depth": _off_or_on("scale_by_depth"),
    "scale_by_in": _off_or_on("scale_by_in"),
}
SETTINGS: Table = {
    "mesh": [
        {},
        {"mesh_shape": "a:1", "layout": "batch:a"},
        _mesh("a:2", "batch:a"),
        _mesh("a:2", "vocab:a,intermediate_expanded:a"),
        _mesh("a:2", "embd:a,memory_length:a"),
        _mesh("a:2", "sequence:a"),
        _by_heads,
        _mesh("a:2", "batch:a,experts:a"),
        _mesh("a:2", "expert_hidden:a,embed_sequence:a,vocab:a"),
    ],
    "activation": [
        {alias: name}
        for name, alias in zip(ACTIVATIONS, itertools.cycle(["activation_function", "activation_fn"]), strict=False)
    ],
    "moe_activation": [{"moe_activation": name} for name in ACTIVATIONS],
    "radius": [{"local_attention_radius": n} for n in (3, 1, 5, 256)],
    "lr": [{"lr": 1e-3}, {"lr": 0.01}],
    "train_steps": [{"train_steps": 4}, {"train_steps": 1}],
    "seed": [{}, {"seed": 0}, {"seed": 2**31 - 1}],
    "n_positions": [{}, lambda k: {"n_positions": k["n_ctx"]}],
    "loop": [
        {},
        {"iterations": 1, "eval_steps": 3, "predict_steps": 1, "predict_max_steps": 2, "eval_batch_size": 3},
        {"remove_partial_sequences": True, "shuffle_input_filenames": False, "predict_batch_size": 3},
    ],
}
TABLES: Table = {**SIZES, **FEATURES, **SETTINGS}
FIXED = {"model": "GPT", "datasets": ["tiny"], "model_path": "unused"}


def assemble(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """The flat config of one choice from each table."""
    keys: dict[str, Any] = dict(FIXED)
    for name in TABLES:
        choice = choices[name]
        keys.update(choice(keys) if callable(choice) else choice)
    return keys


def configs(**tables: Sequence[Choice]) -> st.SearchStrategy[dict[str, Any]]:
    """Flat configs that must be accepted. tables: replace those of that name."""
    every = {**TABLES, **tables}
    return st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in every.items()}).map(assemble)


def layouts() -> st.SearchStrategy[Keys]:
    """Layouts of any tensor dimensions over two mesh dimensions; not all of them fit."""
    names = st.sampled_from(TENSOR_DIMENSIONS)
    rules = st.dictionaries(names, st.sampled_from("ab"), min_size=1, max_size=4)
    layout = rules.map(lambda found: ",".join(f"{name}:{axis}" for name, axis in found.items()))
    shapes = st.sampled_from(["a:2,b:1", "a:2,b:2", "a:1,b:2", "a:4,b:1", "a:3,b:1"])
    return st.fixed_dictionaries({"mesh_shape": shapes, "layout": layout})


def covering_rows(seed: int = 0) -> list[dict[str, Any]]:
    """Flat configs in which every two choices of different features occur together.

    A greedy covering array: each row begins with a pair not seen yet, and adds, feature by feature, the choice that
    makes the most new pairs. What is no feature is drawn.
    """
    rng = np.random.default_rng(seed)
    counts = {name: len(choices) for name, choices in FEATURES.items()}
    unseen = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(counts, 2)
        for i in range(counts[a])
        for j in range(counts[b])
    }
    rows: list[dict[str, Any]] = []
    while unseen:
        row = dict(sorted(unseen)[rng.integers(len(unseen))])
        for name in rng.permutation([name for name in counts if name not in row]).tolist():
            new = [sum(_pair(name, i, *other) in unseen for other in row.items()) for i in range(counts[name])]
            row[name] = int(rng.choice(np.flatnonzero(np.array(new) == max(new))))
        unseen -= {_pair(*one, *other) for one, other in itertools.combinations(row.items(), 2)}
        rows.append(assemble({**_drawn(rng, len(rows)), **{name: FEATURES[name][i] for name, i in row.items()}}))
    return rows


_ORDER = {name: place for place, name in enumerate(FEATURES)}


def _pair(a: str, i: int, b: str, j: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return ((a, i), (b, j)) if _ORDER[a] < _ORDER[b] else ((b, j), (a, i))


def _drawn(rng: np.random.Generator, number: int) -> dict[str, Choice]:
    """A choice of everything that is no feature; of activations, that of this number. One row in four has a mesh."""
    drawn = {name: TABLES[name][int(rng.integers(len(TABLES[name])))] for name in TABLES if name not in FEATURES}
    meshes = TABLES["mesh"]
    drawn["mesh"] = meshes[number // 4 % len(meshes)] if number % 4 == 0 else meshes[0]
    for place, name in enumerate(("activation", "moe_activation")):
        drawn[name] = TABLES[name][(number + 20 * place) % len(ACTIVATIONS)]
    return drawn


# ---------------------------------------------------------------------------------------------------------------------
# What must be refused
# ---------------------------------------------------------------------------------------------------------------------

# A word of advice, or of what a value has to be.
REMEDY = re.compile(
    r"\b(must|use|set|make|choose|change|give|list|lower|raise|add|remove|leave|put|write|create|correct|mean|sizes "
    r"that)\b"
)


NO_POSITIONS = {"rotary_emb": False, "axial_pos_emb": None, "pos_emb": None, "rope_scaling": None, "rotary_pct": 1,
                "rotary_emb_base": 10000, "rotary_interleaved": False}  # fmt: skip
# By the key that the refusal has to name: what makes any accepted config one that cannot work.
SLIPS: Sequence[tuple[str, Choice]] = [
    ("n_embd", lambda k: {"n_head": 2, "n_embd": 2 * k["n_embd"] + 1, "head_dim": None}),
    ("num_kv_heads", lambda k: {"num_kv_heads": k["n_head"] + 1}),
    ("use_bias_in_qkv", {"use_bias_in_attn_linear": True, "use_bias_in_qkv": False}),
    ("n_ctx", {"n_ctx": 1}),  # no room for a token after a prompt
    ("n_positions", lambda k: {"n_positions": k["n_ctx"] + 1}),
    ("attention_types", lambda k: {"n_layer": k["n_layer"] + 1}),
    ("attention_types", {"attention_types": [[["global", "dense"], 1]]}),
    ("axial_pos_emb", lambda k: {**NO_POSITIONS, "axial_pos_emb": [k["n_ctx"], 2]}),
    ("rotary_emb", lambda k: {**NO_POSITIONS, "axial_pos_emb": [1, k["n_ctx"]], "rotary_emb": True}),
    ("rotary_emb", lambda k: {**NO_POSITIONS, "rotary_emb": True, "head_dim": 3}),
    ("pos_emb", {**NO_POSITIONS, "rotary_emb": True, "pos_emb": "learned"}),
    ("pos_emb", {**NO_POSITIONS, **_attention("linear"), "pos_emb": "alibi"}),
    ("rotary_pct", {**NO_POSITIONS, "pos_emb": "none", "rotary_pct": 0.5}),
    ("rotary_pct", {**NO_POSITIONS, "pos_emb": "rotary", "head_dim": 4, "rotary_pct": 0.25}),
    ("rope_scaling", {**NO_POSITIONS, "pos_emb": "rotary", "rope_scaling": {**YARN, "rope_type": "longrope"}}),
    ("scalenorm", {"scalenorm": True, "rezero": True}),
    ("norm", {"scalenorm": True, "rezero": False, "norm": "layernorm"}),
    ("norm_placement", {"scalenorm": False, "norm": "layernorm", "rezero": True, "norm_placement": "post"}),
    ("gpt_j_tied", {"gpt_j_residual": False, "gpt_j_tied": True}),
    ("moe_layers", lambda k: {"moe_layers": [k["n_layer"]]}),
    ("moe_layers", {"moe_layers": [0, 0]}),
    ("moe_layers", lambda k: {**_attention("local", "local"), "moe_layers": [1], "share_parameters": True}),
    ("moe_params", {"moe_params": {"moe_num_expert": 4}}),
    ("moe_params", {"moe_params": {"moe_second_policy_eval": "random"}}),
    ("moe_params", {"moe_layers": [0], "share_parameters": False, "moe_params": {"moe_top_k": 3}}),
    (
        "moe_params",
        {"moe_layers": [0], "share_parameters": False, "moe_params": {"moe_gating": "top_k", "moe_top_k": 17}},
    ),
    ("mlm_mask_id", {"mlm_training": True, "mlm_mask_id": None}),
    ("mlm_mask_id", lambda k: {"mlm_mask_id": k["n_vocab"]}),
    ("mlm_mask_ignore_ids", lambda k: {"mlm_mask_ignore_ids": [0, k["n_vocab"]]}),
    ("mlm_random_token_prob", {"mlm_same_token_prob": 0.6, "mlm_random_token_prob": 0.5}),
    ("predict_max_steps", lambda k: {"predict_max_steps": k["n_ctx"]}),
    ("n_vocab", {"n_vocab": 15, "mlm_mask_id": None, "mlm_training": False, "mlm_mask_ignore_ids": []}),
    ("layout", {"mesh_shape": "a:2", "layout": "batch:b"}),
    ("layout", {"mesh_shape": "a:2", "layout": "batch:a,embd:a"}),
    ("mesh_shape", {"mesh_shape": "a:2,b:1", "layout": "batch:b"}),
    ("layout", {"mesh_shape": "a:2", "layout": "batch:a", "train_batch_size": 3}),
    ("layout", {"mesh_shape": "a:2", "layout": "features:a"}),
    ("layout", lambda k: {"mesh_shape": "a:2", "layout": "vocab:a", "n_vocab": k["n_vocab"] + 1}),
    ("eval_tasks", {"eval_tasks": ["lambda"]}),
    ("datasets", {"datasets": ["tyni"]}),
    ("activation_fn", {"activation_fn": "gelu", "activation_function": "gelu"}),
    ("dropout", {"dropout": 0.1}),
]


def slips() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """The key to be named, and a flat config with one slip in it."""

    def slip(keys: dict[str, Any], slip: tuple[str, Choice]) -> tuple[str, dict[str, Any]]:
        name, choice = slip
        return name, {**keys, **(choice(keys) if callable(choice) else choice)}

    return st.builds(slip, configs(), st.sampled_from(SLIPS))
