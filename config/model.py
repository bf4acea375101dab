"""The architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Interval
from pydantic import BeforeValidator, WithJsonSchema, field_serializer

from gpt_mesh.config.fields import NUMBER, SMALL, WHOLE, Count, Flag, Group, Natural, Rate, Size, count, key, same_as
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
]  # fmt: skip
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
PositionEmbedding = Literal["learned", "axial", "rotary", "alibi", "none"]
POSITION_EMBEDDINGS: tuple[PositionEmbedding, ...] = get_args(PositionEmbedding)

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


def _has_mixtures(values: Mapping[str, Any]) -> bool:
    return bool(values["moe_layers"])


def _position_embedding(values: Mapping[str, Any]) -> PositionEmbedding:
    if values["rotary_emb"]:
        return "rotary"
    return "axial" if values["axial_pos_emb"] else "learned"


def _rotates(values: Mapping[str, Any]) -> bool:
    return bool(values["pos_emb"] == "rotary")


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
    n_head: Size = key("Attention heads; must divide `n_embd`.", touches="function")
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
        "Activation of the feed-forward layers, one of the names below (alias `activation_fn`).",
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
    def head_size(self) -> int:
        """Features per attention head."""
        return self.n_embd // self.n_head

    @property
    def rotary_features(self) -> int:
        """Features of each head that rotate."""
        return int(self.head_size * self.rotary_pct + 1e-6)  # what the product loses by rounding is no feature

    @field_serializer("attention_types")
    def _repeated(self, types: tuple[str, ...]) -> list[list[Any]]:
        return repeated(types)
