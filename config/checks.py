"""Checks that need more than one key."""

from __future__ import annotations

import difflib
import functools
import math

from gpt_mesh.config.config import Config
from gpt_mesh.config.data import DatasetUse
from gpt_mesh.config.dataset import DatasetConfig
from gpt_mesh.config.fields import Group, keys
from gpt_mesh.config.mesh import MeshConfig
from gpt_mesh.config.messages import one_line, refuse, show
from gpt_mesh.config.mlm import MlmConfig
from gpt_mesh.config.model import ModelConfig, repeated
from gpt_mesh.config.moe import MoeParams


def check(config: Config) -> None:
    """Raises InputError for the first combination of keys that cannot work."""
    check_model(config.source, config.model)
    if (config.training.objective == "masked") != config.mlm.mlm_training:
        problem = f"with mlm_training = {show(config.mlm.mlm_training)}; leave objective out, or change one of the two"
        refuse(config.source, "objective", config.training.objective, problem)
    _check_mlm(config.source, config.mlm, config.model.n_vocab)
    _check_preferences(config)
    _check_mesh(config.source, config.mesh)
    _check_datasets(config)
    steps = config.training.predict_max_steps
    if steps is not None and steps >= config.model.n_ctx:
        problem = f"leaves no room for a prompt; it must be less than n_ctx = {config.model.n_ctx}"
        refuse(config.source, "predict_max_steps", steps, problem)


def check_model(source: str, model: ModelConfig) -> None:
    """Raises InputError for the first combination of architecture keys that cannot work."""
    refused = functools.partial(refuse, source)
    _check_heads(source, model)
    if len(model.attention_types) != model.n_layer:
        refused(
            "attention_types", repeated(model.attention_types),
            f"describes {len(model.attention_types)} layers but n_layer = {model.n_layer}; make the two equal",
        )  # fmt: skip
    if model.n_positions != model.n_ctx:
        refused("n_positions", model.n_positions, f"must equal n_ctx = {model.n_ctx}; set it so or leave it out")
    if model.axial_pos_emb is not None and math.prod(model.axial_pos_emb) != model.n_ctx:
        product = math.prod(model.axial_pos_emb)
        axes = list(model.axial_pos_emb)
        refused("axial_pos_emb", axes, f"the product is {product}; choose two sizes with product n_ctx = {model.n_ctx}")
    _check_positions(source, model)
    if model.scalenorm and model.rezero:
        refused("scalenorm", True, "cannot be combined with rezero, which replaces the norms; choose one")
    _check_blocks(source, model)
    _check_original(source, model)
    _check_moe(source, model)


def _check_original(source: str, model: ModelConfig) -> None:
    """What the original has not, or cannot train."""
    if not model.gpt_neo_original:
        return
    reason = "cannot be combined with gpt_neo_original: EleutherAI's code has no such model (docs/gpt_neo.md); "
    for name in ("mlp_glu", "num_mem_kv", "moe_layers", "gpt_j_residual", "lm_head_bias", "embed_norm"):
        if value := getattr(model, name):
            refuse(source, name, list(value) if isinstance(value, tuple) else value, f"{reason}leave one of them out")
    for name, known in (("norm", ("layernorm", "scalenorm")), ("norm_placement", ("pre",))):
        if (value := getattr(model, name)) not in known:
            refuse(source, name, value, f"{reason}use {' or '.join(known)}")


def _check_heads(source: str, model: ModelConfig) -> None:
    """Heads have a size, keys and values are shared evenly, and the two keys about biases agree."""
    refused = functools.partial(refuse, source)
    if model.head_dim is None:  # its default, where it is not a whole number
        problem = f"not divisible by n_head = {model.n_head}; make n_embd a multiple of n_head, or set head_dim"
        refused("n_embd", model.n_embd, problem)
    if model.n_head % model.num_kv_heads:
        sizes = ", ".join(str(n) for n in range(1, model.n_head + 1) if model.n_head % n == 0)
        refused("num_kv_heads", model.num_kv_heads, f"must divide n_head = {model.n_head}; use one of {sizes}")
    if model.use_bias_in_attn_linear and not model.use_bias_in_qkv:
        problem = "contradicts use_bias_in_attn_linear = true; for a bias of the output alone, leave out both"
        refused("use_bias_in_qkv", False, problem)


def _check_positions(source: str, model: ModelConfig) -> None:
    """One position embedding, with its own settings and no others."""
    refused = functools.partial(refuse, source)
    if model.rotary_emb and model.axial_pos_emb is not None:
        refused("rotary_emb", True, "cannot be combined with axial_pos_emb; choose one position embedding")
    if model.rotary_emb and model.pos_emb != "rotary":
        refused("pos_emb", model.pos_emb, "cannot be combined with rotary_emb; choose one position embedding")
    if model.axial_pos_emb is not None and model.pos_emb != "axial":
        refused("pos_emb", model.pos_emb, "cannot be combined with axial_pos_emb; choose one position embedding")
    if model.pos_emb == "axial" and model.axial_pos_emb is None:
        refused("pos_emb", "axial", "needs axial_pos_emb; add it")
    if model.pos_emb == "alibi" and "linear" in model.attention_types:
        refused("pos_emb", "alibi", "linear attention has no logits to add a bias to; use global or local attention")
    if model.pos_emb == "rotary":
        _check_rotary(source, model)
        return
    for name in ("rotary_pct", "rotary_emb_base", "rotary_interleaved", "rope_scaling"):
        value = getattr(model, name)
        if value != ModelConfig.model_fields[name].default:
            shown = value.model_dump(exclude_defaults=True) if isinstance(value, Group) else value
            refused(name, shown, f'pos_emb = {show(model.pos_emb)} has none; remove it, or set pos_emb to "rotary"')


def _check_rotary(source: str, model: ModelConfig) -> None:
    """Features rotate in pairs."""
    size, features, scaling = model.head_dim, model.rotary_features, model.rope_scaling
    if model.rotary_pct == 1 and size % 2:
        problem = f"needs an even head size, but head_dim = {size}; change n_head or head_dim"
        name = "rotary_emb" if model.rotary_emb else "pos_emb"
        refuse(source, name, getattr(model, name), problem)
    if features % 2 or not features:
        problem = f"{features} of the {size} features of a head would rotate; choose a share that gives an even number"
        refuse(source, "rotary_pct", model.rotary_pct, problem)
    if scaling is not None and scaling.rope_type == "dynamic" and features == 2:
        shown = scaling.model_dump(exclude_defaults=True)
        refuse(source, "rope_scaling", shown, "dynamic needs 4 rotating features or more; change n_head or rotary_pct")


def _check_blocks(source: str, model: ModelConfig) -> None:
    """Norms, their places and the form of the residual branches agree."""
    refused = functools.partial(refuse, source)
    if model.scalenorm and model.norm != "scalenorm":
        refused("norm", model.norm, "contradicts scalenorm = true; remove one of the two")
    if model.rezero and model.norm_placement != "pre":
        refused("norm_placement", model.norm_placement, "rezero replaces the norms of blocks; remove one of the two")
    if model.embed_norm and model.norm == "none":
        refused("embed_norm", True, 'norm = "none" leaves none to apply; choose a norm or remove this')
    if model.gpt_j_tied:
        if not model.gpt_j_residual:
            refused("gpt_j_tied", True, "needs gpt_j_residual; set gpt_j_residual or remove gpt_j_tied")
        if model.rezero or model.norm == "none" or model.norm_placement == "post":
            refused("gpt_j_tied", True, "no norm comes before attention and feed-forward here; remove gpt_j_tied")


def _check_moe(source: str, model: ModelConfig) -> None:
    """The layers listed for mixtures of experts exist, once each, and agree with parameter sharing."""
    listed = list(model.moe_layers)
    outside = [layer for layer in listed if layer >= model.n_layer]
    if outside:
        problem = f"layer {outside[0]} does not exist; use layers from 0 to {model.n_layer - 1}"
        refuse(source, "moe_layers", listed, problem)
    if len(set(listed)) != len(listed):
        refuse(source, "moe_layers", listed, "names a layer twice; list each once")
    if model.share_parameters and listed and len(listed) != model.n_layer:
        problem = "with share_parameters all layers are the same; list every layer or none"
        refuse(source, "moe_layers", listed, problem)
    if listed:
        _check_gating(source, model.moe_params)


def _check_gating(source: str, moe: MoeParams) -> None:
    """Settings that belong to another `moe_gating` keep their defaults, and others fit together."""
    refused = functools.partial(refuse, source, "moe_params")
    of_gating = {
        "top_2": [name for name in keys(MoeParams) if "_second_" in name],
        "top_k": ["moe_top_k", "moe_norm_topk_prob", "moe_dropless"],
    }
    for gating, names in of_gating.items():
        for name in names:
            value, default = getattr(moe, name), MoeParams.model_fields[name].default
            if gating != moe.moe_gating and value != default:
                refused({name: value}, f"no effect with moe_gating = {moe.moe_gating}; remove it, or use {gating}")
    if moe.moe_gating == "top_k" and moe.moe_top_k > moe.moe_num_experts:
        problem = f"more than moe_num_experts = {moe.moe_num_experts}; lower it, or add experts"
        refused({"moe_top_k": moe.moe_top_k}, problem)
    if not moe.moe_dropless:
        return
    for name in ("moe_capacity_factor_train", "moe_capacity_factor_eval"):
        value, default = getattr(moe, name), MoeParams.model_fields[name].default
        if value != default:
            refused({name: value}, "limits what moe_dropless leaves without limits; remove one of the two")
    if moe.moe_dropout_rate:
        refused({"moe_dropout_rate": moe.moe_dropout_rate}, "not available with moe_dropless; remove one of the two")


def _check_mlm(source: str, mlm: MlmConfig, n_vocab: int) -> None:
    """Masked language modelling has a mask token, its ids are in the vocabulary, and its shares add up."""
    if mlm.mlm_training and mlm.mlm_mask_id is None:
        refuse(source, "mlm_mask_id", None, "required with mlm_training; give the id of the mask token")
    for name in ("mlm_mask_id", "mlm_cls_token_id", "mlm_mask_ignore_ids"):
        value = getattr(mlm, name)
        ids = value if isinstance(value, tuple) else () if value is None else (value,)
        if any(number >= n_vocab for number in ids):
            refuse(source, name, value, f"outside the vocabulary; ids must be less than n_vocab = {n_vocab}")
    if mlm.mlm_training and mlm.mlm_cls_token_id == mlm.mlm_mask_id:
        refuse(source, "mlm_cls_token_id", mlm.mlm_cls_token_id, "is mlm_mask_id too; give each an id of its own")
    if mlm.mlm_training and len({mlm.mlm_mask_id, *mlm.mlm_mask_ignore_ids}) >= n_vocab:
        problem = "with mlm_mask_id these are all ids of the vocabulary; leave some to be learned"
        refuse(source, "mlm_mask_ignore_ids", mlm.mlm_mask_ignore_ids, problem)
    share = mlm.mlm_same_token_prob + mlm.mlm_random_token_prob
    if share > 1:
        problem = f"with mlm_same_token_prob = {mlm.mlm_same_token_prob} the sum exceeds 1; lower one of the two"
        refuse(source, "mlm_random_token_prob", mlm.mlm_random_token_prob, problem)


def _check_preferences(config: Config) -> None:
    """Settings that belong to another loss keep their defaults, and what an objective needs is there."""
    refused, settings, training = functools.partial(refuse, config.source), config.preferences, config.training
    if config.model.reward_head != (training.objective == "reward"):
        problem = f"with objective = {training.objective}; leave it out, for it follows from the objective"
        refused("reward_head", config.model.reward_head, problem)
    if settings.dpo_label_smoothing and settings.dpo_loss != "sigmoid":
        problem = f"no effect with dpo_loss = {settings.dpo_loss}; remove it, or use sigmoid"
        refused("dpo_label_smoothing", settings.dpo_label_smoothing, problem)
    if training.objective == "kto":
        sizes = [("train_batch_size", training.train_batch_size), ("eval_batch_size", training.eval_batch_size)]
        for name, size in (*sizes, *(("batch_ramp", size) for size, _ in training.batch_ramp)):
            if size < 2:
                refused(name, size, "kto compares each prompt with the completion of another; use at least 2")


def _check_mesh(source: str, mesh: MeshConfig) -> None:
    """Every mesh dimension that the layout names is in the mesh shape."""
    for tensor_dimension, mesh_dimension in mesh.rules.items():
        if mesh_dimension not in mesh.shape:
            shape = f"mesh_shape = {show(mesh.mesh_shape)}"
            near = difflib.get_close_matches(mesh_dimension, mesh.shape, n=1, cutoff=0) or [""]
            correct = ((name, near[0] if axis not in mesh.shape else axis) for name, axis in mesh.rules.items())
            layout = ",".join(f"{name}:{axis}" for name, axis in correct if axis)
            refuse(
                source, "layout", mesh.layout, f"splits {tensor_dimension} over mesh dimension {mesh_dimension}, which "
                f"{shape} does not have; add {mesh_dimension} to mesh_shape or correct the layout, to {show(layout)}",
            )  # fmt: skip


def _check_whole_documents(config: Config, use: DatasetUse) -> None:
    """Windows of whole samples carry marks that `sft` alone understands, and attention has to keep samples apart."""
    if not use.whole_documents:
        return
    refused = functools.partial(refuse, config.source, "datasets", use.sampling_mode)
    if config.training.objective != "sft":
        refused(f'of dataset {use.id}: needs "objective": "sft"; add it, or use documents_random')
    if use.sampling_mode == "documents_packed" and "linear" in config.model.attention_types:
        refused(f"of dataset {use.id}: linear attention cannot keep samples apart; use documents_padded")


def _check_datasets(config: Config) -> None:
    """The model's vocabulary covers each dataset's, and its special ids."""
    n_vocab = config.model.n_vocab
    for use in config.data.datasets:
        _check_whole_documents(config, use)
        dataset = use.dataset
        if n_vocab < dataset.n_vocab:
            file = one_line(dataset.source)
            problem = f"less than n_vocab = {dataset.n_vocab} of {file}; raise it to at least {dataset.n_vocab}"
            refuse(config.source, "n_vocab", n_vocab, problem)
        # padding_id may lie outside the vocabulary: GPT-2's is 50257 of 50257, and padding never reaches the model.
        if dataset.eos_id is not None and dataset.eos_id >= dataset.n_vocab:
            source = config.source if dataset.eos_id == config.data.eos_id else dataset.source
            refuse(source, "eos_id", dataset.eos_id, _outside(dataset))
        for name, ids in (("bos_id", [dataset.bos_id or 0]), ("stop_token_ids", dataset.stop_token_ids or ())):
            for token in ids:
                if token >= dataset.n_vocab:
                    refuse(dataset.source, name, token, _outside(dataset))


def _outside(dataset: DatasetConfig) -> str:
    return f"outside the vocabulary; it must be less than the dataset's n_vocab = {dataset.n_vocab}"
