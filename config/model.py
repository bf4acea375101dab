"""The architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Interval
from pydantic import BeforeValidator, WithJsonSchema, field_serializer

from gpt_mesh.config.fields import (
    NUMBER,
    SMALL,
    WHOLE,
    Count,
    Flag,
    Group,
    Natural,
    Positive,
    Rate,
    Size,
    count,
    key,
    same_as,
)
from gpt_mesh.config.messages import Refused, one_of, show
from gpt_mesh.config.moe import MoeParams
from gpt_mesh.config.rope import RopeScaling

# Attention and activations by the names that a config gives them. models/ has a table of functions by these names.
AttentionType = Literal["global", "local", "linear", "none"]
ATTENTION_TYPES: tuple[AttentionType, ...] = get_args(AttentionType)
Activation = Literal[
    "gelu", "relu", "sigmoid", "tanh", "selu", "elu", "abs", "sin", "cos", "sign", "silu", "softplus", "lrelu001",
    "lrelu020", "id", "triangle_relax", "square_relax", "spike", "spike2", "tanhshrink", "softsign", "softmax",
    "logsoftmax", "bipolarsigmoid", "rrelu", "elish", "arcsinh", "aria", "prelu", "parcsinh", "psoftplus", "proottanh",
    "maxsig", "cosid", "minsin", "maxtanh", "mish", "tanhexp", "lisht", "seagull", "snake", "roottanh", "softplusmone",
    "gelu_exact",
]  # fmt: skip
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
PositionEmbedding = Literal["learned", "axial", "rotary", "alibi", "none"]
POSITION_EMBEDDINGS: tuple[PositionEmbedding, ...] = get_args(PositionEmbedding)
NormName = Literal["layernorm", "rmsnorm", "scalenorm", "none"]
NORMS: tuple[NormName, ...] = get_args(NormName)
NormPlacement = Literal["pre", "post", "both"]
GluColumns = Literal["interleaved", "separate"]

MAX_LAYERS = 10_000


def _attention_types(value: Any) -> tuple[str, ...]:
    """`[[["global", "local"], 2]]` -> `("global", "local", "global", "local")`."""
    shape = Refused('must be a list of [list of types, repeats] pairs such as [[["global", "local"], 12]]')
    if not isinstance(value, (list, tuple)) or not value:
        raise shape
    types: list[str] = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise shape
        names = pair[0]
        if not isinstance(names, (list, tuple)) or not names:
            raise shape
        repeats = count("number of repeats", pair[1])
        for name in names:
            if not isinstance(name, str):
                raise shape
            if name not in ATTENTION_TYPES:
                raise one_of(name, ATTENTION_TYPES, f"attention type {show(name)}")
        if len(types) + len(names) * repeats > MAX_LAYERS:
            raise Refused(f"describes more than {MAX_LAYERS} layers; the total must equal n_layer")
        types += list(names) * repeats
    return tuple(types)


def repeated(types: tuple[str, ...]) -> list[list[Any]]:
    """Attention types as the shortest list that gives them when repeated: what a config has under `attention_types`."""
    size = len(types)
    period = next(n for n in range(1, size + 1) if size % n == 0 and types[:n] * (size // n) == types)
    return [[list(types[:period]), size // period]]


def _axes(value: Any) -> tuple[int, int] | None:
    """`[d1, d2]`, or null for learned positions."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise Refused("must be a pair [d1, d2] with d1 * d2 = n_ctx, or null")
    first, second = (count("size", size) for size in value)
    return first, second


def _even_share(values: Mapping[str, Any]) -> int | None:
    """Features of a head if the heads divide `n_embd`; else None, which `check_model` refuses."""
    features, rest = divmod(values["n_embd"], values["n_head"])
    return None if rest else int(features)


def _follows_width(values: Mapping[str, Any]) -> bool:
    return bool(values["head_dim"] == _even_share(values))


def _has_mixtures(values: Mapping[str, Any]) -> bool:
    return bool(values["moe_layers"])


def _position_embedding(values: Mapping[str, Any]) -> PositionEmbedding:
    if values["rotary_emb"]:
        return "rotary"
    return "axial" if values["axial_pos_emb"] else "learned"


def _rotates(values: Mapping[str, Any]) -> bool:
    return bool(values["pos_emb"] == "rotary")


def _has_norms(values: Mapping[str, Any]) -> bool:
    return values["norm"] != "none"


def _has_norms_in_blocks(values: Mapping[str, Any]) -> bool:
    return _has_norms(values) and not values["rezero"]


AttentionTypes = Annotated[
    tuple[AttentionType, ...],
    BeforeValidator(_attention_types),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "array",
                "prefixItems": [
                    {"type": "array", "items": {"enum": [*ATTENTION_TYPES]}, "minItems": 1},
                    {"type": "integer", "minimum": 1},
                ],
                "minItems": 2,
                "maxItems": 2,
            },
            "minItems": 1,
        }
    ),
]
Axes = Annotated[
    tuple[int, int] | None,
    BeforeValidator(_axes),
    WithJsonSchema(
        {"type": ["array", "null"], "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
    ),
]


class ModelConfig(Group):
    """The architecture."""

    model: Literal["GPT"] = key("Model family.", default="GPT", touches="shapes")
    n_head: Size = key("Attention heads; must divide `n_embd` unless `head_dim` is given.", touches="function")
    n_embd: Size = key("Features of the residual stream.", touches="shapes")
    n_layer: Annotated[int, Interval(ge=1, le=MAX_LAYERS), WHOLE] = key("Transformer blocks.", touches="shapes")
    n_ctx: Annotated[int, Ge(2), WHOLE, SMALL] = key("Context length.", unit="tokens", touches="shapes")
    n_vocab: Size = key("Rows of the token embedding; at least every dataset's `n_vocab`.", touches="shapes")
    n_positions: Count = key(
        "Another name for the context length, for converters; must equal `n_ctx`.",
        unit="tokens",
        touches="shapes",
        **same_as("n_ctx"),
    )
    num_kv_heads: Size = key(
        "Heads of keys and values; must divide `n_head`. Each serves a group of `n_head` / `num_kv_heads` consecutive "
        "heads of queries (grouped-query attention, arXiv:2305.13245); 1: multi-query attention (arXiv:1911.02150).",
        touches="shapes",
        used=lambda values: values["num_kv_heads"] != values["n_head"],
        **same_as("n_head"),
    )
    head_dim: Size = key(
        "Features of an attention head.",
        touches="shapes",
        used=lambda values: not _follows_width(values),
        derive=_even_share,
        default_text="`n_embd` / `n_head`",
        null_is_default=True,
    )
    use_bias_in_attn_linear: Flag | None = key(
        "Biases of all four linear layers of attention, or of none of them; null: of the output alone, as in GPT-Neo.",
        default=None,
        touches="shapes",
        type_text="true, false or null",
    )
    use_bias_in_qkv: Flag = key(
        "Biases of queries, keys and values alone. Qwen 2 has them, and `use_bias_in_attn_linear` false.",
        touches="shapes",
        derive=lambda values: values["use_bias_in_attn_linear"] is True,
        default_text="whether `use_bias_in_attn_linear` is true",
        null_is_default=True,
    )
    qk_norm: Flag = key(
        "RMSNorm over the features of each head of queries and keys, before they rotate, as in Qwen 3.",
        default=False,
        touches="shapes",
    )
    scale_attn_weights: Flag = key(
        "Multiply the logits of softmax attention by `head_dim` ** -0.5. Without it, as in GPT-Neo, the factor is part "
        "of the initial weights of queries.",
        default=False,
        touches="function",
        used=lambda values: bool({"global", "local"} & {*values["attention_types"]}),
    )
    attention_types: AttentionTypes = key(
        'Attention of each layer: `[[["global", "local"], 12]]` repeats each list that often, and the total must equal '
        "`n_layer`. Types: " + ", ".join(f"`{name}`" for name in ATTENTION_TYPES) + ".",
        touches="function",
        adaptable=True,
        derive=lambda values: ("global",) * values["n_layer"],
        default_text="all `global`",
        type_text="list of [list of strings, integer]",
        null_is_default=True,
    )
    local_attention_radius: Count = key(
        "Window of `local` attention: the keys that a query sees, including its own.",
        default=256,
        unit="tokens",
        touches="function",
        adaptable=True,
        used=lambda values: "local" in values["attention_types"],
    )
    activation_function: Activation = key(
        "Activation of the feed-forward layers, one of the names below (alias `activation_fn`). `gelu` is the tanh "
        "form (Hugging Face's `gelu_new`), `gelu_exact` the exact one (Hugging Face's `gelu`).",
        default="gelu",
        touches="function",
    )
    embed_dropout: Rate = key("Dropout after the embeddings, in training only.", default=0.0)
    attn_dropout: Rate = key("Dropout of the attention weights, in training only.", default=0.0)
    res_dropout: Rate = key("Dropout of each residual branch, in training only.", default=0.0)
    scale_by_depth: Flag = key(
        "Divide the initial standard deviation of each block's last projection by sqrt(`n_layer`).", default=True
    )
    scale_by_in: Flag = key(
        "Divide the initial standard deviation of dense kernels by the square root of their inputs.", default=False
    )
    axial_pos_emb: Axes = key(
        "Axial position embeddings of sizes `[d1, d2]`, d1 x d2 = `n_ctx` (arXiv:1912.12180).",
        default=None,
        touches="shapes",
        type_text="[integer, integer] or null",
    )
    rotary_emb: Flag = key("Short for `pos_emb`: `rotary`.", default=False)
    pos_emb: PositionEmbedding = key(
        "How the model knows positions: a `learned` vector each, or `axial` ones (`axial_pos_emb`), added to the token "
        "embeddings; `rotary`: queries and keys rotate (arXiv:2104.09864); `alibi`: logits fall with distance, at a "
        "slope of each head (arXiv:2108.12409); `none`: only by what attention to earlier tokens shows.",
        touches="shapes",
        derive=_position_embedding,
        default_text="`rotary` with `rotary_emb`, `axial` with `axial_pos_emb`, else `learned`",
        null_is_default=True,
    )
    rotary_pct: Annotated[float, Interval(gt=0, le=1), NUMBER] = key(
        "Share of the features of a head that rotate, from the first on.",
        default=1.0,
        touches="function",
        used=_rotates,
    )
    rotary_emb_base: Annotated[float, Gt(1), NUMBER] = key(
        "Base of the frequencies: the i-th pair of n rotating features turns by base ** (-2 i / n) radians a token.",
        default=10000.0,
        touches="function",
        adaptable=True,
        used=_rotates,
    )
    rotary_interleaved: Flag = key(
        "Features 2 i and 2 i + 1 rotate together, as in GPT-J; else feature i of the first half and of the second.",
        default=False,
        touches="function",
        used=_rotates,
    )
    rope_scaling: RopeScaling | None = key(
        "Scaling of rotary positions for a longer context, from the table below.",
        default=None,
        touches="function",
        adaptable=True,
        type_text="object or null",
    )
    mlp_glu: Flag = key(
        "Gated linear units in the feed-forward layers (arXiv:2002.05202).", default=False, touches="shapes"
    )
    scalenorm: Flag = key("ScaleNorm in place of layer norm (arXiv:1910.05895).", default=False, touches="shapes")
    rezero: Flag = key("ReZero gains in place of norms (arXiv:2003.04887).", default=False, touches="shapes")
    macaron: Flag = key(
        "Half-weight feed-forward before attention and after it (arXiv:1906.02762).", default=False, touches="shapes"
    )
    share_parameters: Flag = key("One set of block weights for all layers.", default=False, touches="shapes")
    no_weight_tie: Flag = key(
        "An output projection of its own in place of the token embedding.", default=False, touches="shapes"
    )
    norm: NormName = key(
        "Normalisation: `layernorm` (arXiv:1607.06450), `rmsnorm` (arXiv:1910.07467), `scalenorm` (arXiv:1910.05895) "
        "or `none`. With `rezero` it applies to the last activations only.",
        touches="shapes",
        derive=lambda values: "scalenorm" if values["scalenorm"] else "layernorm",
        default_text="`scalenorm` with `scalenorm`, else `layernorm`",
        null_is_default=True,
    )
    norm_epsilon: Positive = key(
        "Added to the variance (`layernorm`) or the mean square (`rmsnorm`) before the root; the lower bound of the "
        "length (`scalenorm`).",
        default=1e-5,
        touches="function",
        used=lambda values: _has_norms(values) or bool(values["qk_norm"]),
    )
    norm_placement: NormPlacement = key(
        "Where a block normalises: the input of attention and feed-forward (`pre`), their output, before it is added "
        "to the residual stream (`post`, as OLMo 2), or `both` (as Gemma 2).",
        default="pre",
        touches="shapes",
        used=_has_norms_in_blocks,
    )
    use_bias_in_norms: Flag = key(
        "Biases of layer norms. Other norms have none.",
        default=True,
        touches="shapes",
        used=lambda values: values["norm"] == "layernorm",
    )
    intermediate_size: Size = key(
        "Features inside a feed-forward layer: with `mlp_glu`, of values and of gates each. This is Hugging Face's "
        "meaning; GPT-NeoX divides the size of a gated layer by three and rounds it.",
        touches="shapes",
        derive=lambda values: 4 * values["n_embd"],
        default_text="4 x `n_embd`",
        null_is_default=True,
    )
    glu_columns: GluColumns = key(
        "Kernels of gated feed-forward layers: one whose columns alternate between values and gates (`interleaved`), "
        "or one of values and one of gates (`separate`, as Hugging Face's models).",
        default="interleaved",
        touches="shapes",
        used=lambda values: bool(values["mlp_glu"]),
    )
    use_bias_in_mlp: Flag = key(
        "Biases of feed-forward layers. Experts of a mixture have none.", default=True, touches="shapes"
    )
    gpt_j_residual: Flag = key(
        "Attention and feed-forward both read the block's input, and the sum of their outputs is added to it.",
        default=False,
        touches="shapes",
    )
    gpt_j_tied: Flag = key(
        "With `gpt_j_residual`, one norm for the inputs of both, as GPT-J has it.", default=False, touches="shapes"
    )
    embed_norm: Flag = key("Normalise token embeddings, as BLOOM does.", default=False, touches="shapes")
    embedding_scale: Positive | None = key(
        "Multiply token embeddings by this number; Gemma and PaLM: sqrt(`n_embd`).", default=None, touches="function"
    )
    lm_head_bias: Flag = key("A bias of the logits, as GPT-J has it.", default=False, touches="shapes")
    reward_head: Flag = key(
        "One number for each position, a text's reward, in place of logits over the vocabulary.",
        touches="shapes",
        adaptable=True,  # a new head begins at random
        derive=lambda values: values.get("objective") == "reward",
        default_text="with `objective` `reward`",
        null_is_default=True,
    )
    final_logit_softcapping: Positive | None = key(
        "Bound logits smoothly to this number c: c x tanh(logits / c), as Gemma 2 does.",
        default=None,
        touches="function",
    )
    gpt_neo_original: Flag = key(
        "Compute what EleutherAI's code computes where the defaults here differ, with its names of weights: see "
        "docs/gpt_neo.md.",
        default=False,
        touches="shapes",
    )
    num_mem_kv: Natural = key(
        "Learned keys and values that every query sees (arXiv:1907.01470).", default=0, touches="shapes"
    )
    moe_layers: tuple[Natural, ...] = key(
        "Layers, counted from 0, whose feed-forward is a mixture of experts.",
        default=(),
        touches="shapes",
        null_is_default=True,
    )
    moe_params: MoeParams = key(
        "Settings of the mixtures, from the table below.",
        default=MoeParams(),
        used=_has_mixtures,
        type_text="object",
        default_text="`{}`",
        null_is_default=True,
    )
    moe_activation: Activation = key(
        "Activation inside the experts.", default="relu", touches="function", used=_has_mixtures
    )

    @property
    def heads_per_kv_head(self) -> int:
        """Heads of queries that share a head of keys and values."""
        return self.n_head // self.num_kv_heads

    @property
    def rotary_features(self) -> int:
        """Features of each head that rotate."""
        return int(self.head_dim * self.rotary_pct + 1e-6)  # what the product loses by rounding is no feature

    @field_serializer("attention_types")
    def _repeated(self, types: tuple[str, ...]) -> list[list[Any]]:
        return repeated(types)
