"""Imports a config of GPT-NeoX: `python3 -m gpt_mesh.interop.neox_config FILE [FILE …]` writes ours.

Every key is mapped, named as without effect here, or refused. GPT-NeoX's own page of arguments describes them:
https://github.com/EleutherAI/gpt-neox/blob/main/configs/neox_arguments.md
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from gpt_mesh.config import load_config
from gpt_mesh.config.files import YAML_SUFFIXES, parse_json, parse_yaml
from gpt_mesh.config.messages import nearest, refuse
from gpt_mesh.errors import InputError
from gpt_mesh.interop.neox_model import GATED, hidden_features
from gpt_mesh.interop.neox_unused import UNUSED
from gpt_mesh.storage import strict_json

_VOCABULARIES = {"GPT2BPETokenizer": 50257, "HFGPT2Tokenizer": 50257, "CharLevelTokenizer": 512}
_ACTIVATIONS = {
    "gelu": "gelu_exact", "relu": "relu", "swish": "silu", "silu": "silu", "mish": "mish", "softsign": "softsign",
}  # fmt: skip
# Keys that change the model or its training in ways that are not known here: what they may be nevertheless.
_ONLY: dict[str, tuple[Any, ...]] = {
    "soft_prompt_tuning": (), "train_label_data_paths": (), "valid_label_data_paths": (), "test_label_data_paths": (),
    "reset_attention_mask": (False,), "reset_position_ids": (False,), "mlp_type": ("regular",),
    "opt_pos_emb_offset": (0,), "mlp_multiple_of": (1,), "gmlp_attn_dim": (64,), "rpe_num_buckets": (32,),
    "rpe_max_distance": (128,), "eod_mask_loss": (False,), "use_mup": (False,), "moe_num_experts": (0, 1),
    "use_qk_layernorm": (False,), "weight_by_num_documents": (False,),
}  # fmt: skip
_DECAYS = {"cosine": "cosine", "linear": "linear", "constant": "none"}


@dataclass
class Converted:
    """What became of a config.

    Attributes:
        values: keys of ours.
        dataset: keys of its dataset config.
        notes: what differs here, one line each.
        unused: keys without effect here.
    """

    values: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def convert(given: Mapping[str, Any], source: str, name: str) -> Converted:
    """The keys of a GPT-NeoX config as ours.

    Args:
        given: its keys, with `-` or `_`.
        source: its file, for messages.
        name: of our config, its dataset config and its run.

    Raises:
        InputError: a key is missing, unknown, or has a meaning that there is no key for here.
    """
    return _Conversion(given, source, name).run()


class _Conversion:
    """One conversion: `take` gives a key's value and counts it as dealt with."""

    def __init__(self, given: Mapping[str, Any], source: str, name: str) -> None:
        self.left = {str(key).replace("-", "_"): value for key, value in given.items()}
        self.source, self.name = source, name
        self.out = Converted()

    def run(self) -> Converted:
        for part in (self._size, self._attention, self._positions, self._norms, self._feed_forward, self._optimizer,
                     self._training, self._data, self._precision):  # fmt: skip
            part()
        for key, allowed in _ONLY.items():
            known = f"must be {' or '.join(map(repr, allowed))}" if allowed else "cannot be set"
            self._refuse_unless(key, allowed, f"{known} here: nothing does that; write the config by hand")
        for key, value in self.left.items():
            if key not in UNUSED:
                self._refuse(key, value, f"unknown key of GPT-NeoX{nearest(key, UNUSED) or '; remove it'}")
        self.out.unused = list(self.left)
        return self.out

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key; null is the default."""
        value = self.left.pop(key, None)
        return default if value is None else value

    def _required(self, key: str) -> Any:
        value = self.take(key)
        if value is None:
            self._refuse(key, None, "required but missing; add it")
        return value

    def _number(self, key: str, default: float | None = None) -> Any:
        value = self._required(key) if default is None else self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(key, value, "must be a number")
        return value

    def _refuse(self, key: str, value: Any, problem: str) -> NoReturn:
        refuse(self.source, key, value, problem)

    def _refuse_unless(self, key: str, allowed: tuple[Any, ...], problem: str) -> None:
        """Take a key that may only have one of these values, or none."""
        value = self.take(key)
        if value is not None and value not in allowed:
            self._refuse(key, value, problem)

    def _size(self) -> None:
        values, width = self.out.values, self._number("hidden_size")
        values |= {"n_layer": self._number("num_layers"), "n_embd": width}
        values["n_head"] = self._number("num_attention_heads")
        values["n_ctx"] = self._number("seq_length")
        positions = self._number("max_position_embeddings", values["n_ctx"])
        if positions != values["n_ctx"] and self.left.get("pos_emb", "learned") == "learned":
            self._refuse("max_position_embeddings", positions, f"must equal seq_length = {values['n_ctx']} here")
        kind = self.take("tokenizer_type", "GPT2BPETokenizer")
        vocabulary, merges = self.take("vocab_file"), self.take("merge_file")
        self.out.dataset["n_vocab"] = self._vocabulary(kind, vocabulary)
        if vocabulary is not None:
            self.out.dataset["tokenizer_path"] = os.path.dirname(vocabulary) if merges is not None else vocabulary
        unit = self._number("make_vocab_size_divisible_by", 128) * self._number("model_parallel_size", 1)
        values["n_vocab"] = math.ceil(self.out.dataset["n_vocab"] / unit) * unit

    def _vocabulary(self, kind: str, path: str | None) -> int:
        """Tokens of a tokenizer."""
        if kind in _VOCABULARIES:
            return _VOCABULARIES[kind]
        if kind != "HFTokenizer":
            self._refuse("tokenizer_type", kind, f"use one of {', '.join([*_VOCABULARIES, 'HFTokenizer'])}")
        if path is None:
            self._refuse("vocab_file", None, "required with HFTokenizer; name its tokenizer.json")
        from gpt_mesh.data.encoders import load_encoder

        return load_encoder(path).n_vocab

    def _attention(self) -> None:
        values = self.out.values
        if (kv_heads := self.take("num_kv_heads")) is not None:
            values["num_kv_heads"] = kv_heads
        biases = bool(self.take("use_bias_in_attn_linear", True))
        values |= {"scale_attn_weights": True, "use_bias_in_attn_linear": biases}
        self._refuse_unless("sliding_window_width", (), "name layers of local attention in attention_types by hand")
        layers: list[Any] = []
        for types, repeats in self.take("attention_config", [[["global"], values["n_layer"]]]):
            for kind in types:
                if kind not in ("global", "flash", "local"):
                    self._refuse("attention_config", kind, "only global, flash and local attention are known here")
            count = repeats if isinstance(repeats, int) else values["n_layer"] // len(types)  # or "all"
            layers.append([["local" if kind == "local" else "global" for kind in types], count])
        values["attention_types"] = layers
        sparsity = self.take("sparsity_config", {})
        if "local" in {kind for types, _ in layers for kind in types}:
            blocks = sparsity.get("num_sliding_window_blocks", 3)
            values["local_attention_radius"] = sparsity.get("block", 16) * (blocks // 2 + 1)
            self.out.notes.append("local attention: a window of tokens here, of blocks there")
        values["attn_dropout"] = self.take("attention_dropout", 0.0)
        values["res_dropout"] = values["embed_dropout"] = self.take("hidden_dropout", 0.0)
        values["no_weight_tie"] = bool(self.take("no_weight_tying", False))

    def _positions(self) -> None:
        kind = self.take("pos_emb", "learned")
        if kind not in ("learned", "rotary", "alibi", "none"):
            self._refuse("pos_emb", kind, "must be learned, rotary, alibi or none here")
        self.out.values["pos_emb"] = kind
        share, base = self._number("rotary_pct", 1.0), self._number("rotary_emb_base", 10000)
        interleaved = self.take("rotary_interleaved", False)
        if kind == "rotary":
            self.out.values |= {"rotary_pct": share, "rotary_emb_base": base, "rotary_interleaved": bool(interleaved)}

    def _norms(self) -> None:
        kind, values = self.take("norm", "layernorm"), self.out.values
        if kind not in ("layernorm", "rmsnorm", "scalenorm"):
            self._refuse("norm", kind, "must be layernorm, rmsnorm or scalenorm here")
        epsilons = {
            "layernorm": self._number("layernorm_epsilon", 1e-5), "rmsnorm": self._number("rms_norm_epsilon", 1e-8),
            "scalenorm": self._number("scalenorm_epsilon", 1e-8),
        }  # fmt: skip
        values |= {"norm": kind, "norm_epsilon": epsilons[kind]}
        if not self.take("use_bias_in_norms", True):
            values["use_bias_in_norms"] = False
        values["gpt_j_residual"] = bool(self.take("gpt_j_residual", False))
        values["gpt_j_tied"] = values["gpt_j_residual"] and bool(self.take("gpt_j_tied", False))

    def _feed_forward(self) -> None:
        values, kind = self.out.values, self.take("activation", "gelu")
        fused = bool(self.take("bias_gelu_fusion", False))
        width = self.take("intermediate_size")
        factor = self.take("expansion_factor", 4)
        inner = int(factor * values["n_embd"]) if width is None else width
        if kind in GATED:
            values |= {"activation_function": GATED[kind], "mlp_glu": True, "glu_columns": "separate"}
            values["intermediate_size"] = hidden_features(inner)
            self.out.notes.append(
                f"activation = {kind}: intermediate_size = {values['intermediate_size']} of a gated layer was derived; "
                "compare it with the shapes in a checkpoint, if there is one"
            )
        elif kind in _ACTIVATIONS:
            values["activation_function"] = "gelu" if kind == "gelu" and fused else _ACTIVATIONS[kind]
            values["intermediate_size"] = inner
        else:
            self._refuse("activation", kind, f"must be one of {', '.join([*_ACTIVATIONS, *GATED])} here")
        values["use_bias_in_mlp"] = bool(self.take("use_bias_in_mlp", True))

    def _optimizer(self) -> None:
        values = self.out.values
        optimizer = self._required("optimizer")
        kind, settings = str(optimizer.get("type", "Adam")), dict(optimizer.get("params", {}))
        if kind.lower() not in ("adam", "adamw", "cpu_adam"):
            self._refuse("optimizer", kind, "must be Adam or AdamW; choose an optimizer of docs/parameters.md by hand")
        lr = settings.pop("lr", None)
        if lr is None:
            self._refuse("optimizer", None, "has no lr in its params; add it")
        values |= {"opt_name": "adam", "lr": lr}
        values["beta1"], values["beta2"] = settings.pop("betas", [0.9, 0.999])
        values["epsilon"] = settings.pop("eps", 1e-8)
        decay = settings.pop("weight_decay", None)
        if settings:
            self._refuse("optimizer", next(iter(settings)), "unknown parameter of Adam; remove it")
        values["weight_decay"] = self.take("weight_decay", 0.1 if decay is None else decay)
        values["gradient_clipping"] = self._number("gradient_clipping", 1.0) or None
        values["z_loss"] = 0.0
        style = self.take("lr_decay_style", "linear")
        if style not in _DECAYS:
            self._refuse("lr_decay_style", style, f"must be one of {', '.join(_DECAYS)} here")
        steps = self._number("train_iters")
        end = self._number("lr_decay_iters", steps)
        values |= {"lr_decay": _DECAYS[style], "lr_decay_end": end, "train_steps": steps}
        values["warmup_steps"] = int(self._number("warmup", 0.01) * end)
        lowest = self._number("min_lr", 0.0)
        if style != "constant" and not math.isclose(lowest, 0.1 * lr, rel_tol=0.02):
            self.out.notes.append(f"min_lr = {lowest}: the learning rate decays to 0.1 x lr = {0.1 * lr:g} here")

    def _training(self) -> None:
        values = self.out.values
        micro, parts = self._number("train_micro_batch_size_per_gpu", 0), self._number("gradient_accumulation_steps", 1)
        whole = self._number("train_batch_size", 0)
        if not (whole or micro):
            self._refuse("train_batch_size", None, "required but missing; add it, or train_micro_batch_size_per_gpu")
        values["train_batch_size"] = whole or micro * parts
        if not whole:
            self.out.notes.append(
                f"train_batch_size = {micro * parts} is of one GPU: multiply it by the number of replicas"
            )
        if micro:
            values["tokens_per_mb_per_replica"] = micro * values["n_ctx"]
        values["eval_steps"] = self._number("eval_iters", 100)
        values["iterations"] = self._number("log_interval", 100)
        values["seed"] = self._number("seed", 1234)
        values["recompute_grad"] = bool(self.take("checkpoint_activations", False))
        values["model_path"] = self.take("save", f"runs/{self.name}")
        every = self.take("save_interval", self.take("checkpoint_factor"))
        if every is not None:
            self.out.notes.append(f"a checkpoint every {every} steps: train with --steps_per_checkpoint {every}")
        if (load := self.take("load")) is not None:
            self.out.notes.append(f"load = {load}: convert its weights, and begin the run with --init_from")
        for key in ("pipe_parallel_size", "model_parallel_size"):
            if self.left.get(key, 1) not in (0, 1):
                self.out.notes.append(f"{key}: mesh_shape and layout split the model (main.py --auto_layout finds one)")

    def _data(self) -> None:
        dataset = self.out.dataset
        train, valid = self.take("train_data_paths"), self.take("valid_data_paths")
        path = self.take("data_path")
        if train is None and path is None:
            self._refuse("data_path", None, "required but missing; add it, or train_data_paths")
        self._refuse_unless("data_impl", ("mmap", "cached", "lazy", "infer"), "must be mmap: pairs of .bin and .idx")
        dataset["path"] = [path] if train is None else list(train)
        dataset["eval_path"] = list(valid or [])
        if not valid:
            self.out.values["eval_steps"] = 0
            self.out.notes.append("no valid_data_paths: nothing is evaluated; `split` holds nothing out here")
        self.take("split")
        weights = self.take("train_data_weights", [1.0] * len(dataset["path"]))
        if len(set(weights)) > 1:
            problem = "write a dataset config for each path, with its weight in datasets"
            self._refuse("train_data_weights", weights, problem)
        self.out.values["datasets"] = [[self.name, 25, "documents_random", 1.0]]
        if "tokenizer_path" not in dataset and dataset["n_vocab"] == _VOCABULARIES["GPT2BPETokenizer"]:
            dataset["eos_id"] = dataset["n_vocab"] - 1

    def _precision(self) -> None:
        half = self.take("fp16", {})
        brain = self.take("bf16", self.take("bfloat16", {}))
        named = self.take("precision")
        enabled = [one for one, settings in (("fp16", half), ("bfloat16", brain)) if settings.get("enabled")]
        kind = named or (enabled[0] if enabled else "fp32")
        if kind not in ("fp16", "bfloat16", "fp32"):
            self._refuse("precision", kind, "must be fp16, bfloat16 or fp32")
        self.out.values["precision"] = "float32" if kind == "fp32" else "bfloat16"
        if kind == "fp16":
            self.out.notes.append("fp16: activations are bfloat16 here, which needs no loss scale")


def read(paths: list[str]) -> dict[str, Any]:
    """The keys of one or several files, as GPT-NeoX merges them: a key may be in one of them only.

    Raises:
        InputError: a file cannot be read, or two have a key.
    """
    found: dict[str, Any] = {}
    for path in paths:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None
        parse: Callable[[bytes, str], Any] = parse_yaml if path.endswith(YAML_SUFFIXES) else parse_json
        values = parse(data, path)
        if not isinstance(values, Mapping):
            raise InputError(f"{path}: must hold keys and values")
        for key, value in values.items():
            if key in found:
                refuse(path, key, value, "is in another of the files too; remove one")
            found[key] = value
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 success, 1 invalid input."""
    parser = argparse.ArgumentParser(prog="python3 -m gpt_mesh.interop.neox_config", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="GPT-NeoX configs, which are merged")
    parser.add_argument("--output", metavar="FILE", help="default: configs/NAME.json, after the first file's name")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    arguments = parser.parse_args(argv)
    name = os.path.splitext(os.path.basename(arguments.output or arguments.files[0]))[0]
    output = arguments.output or os.path.join("configs", f"{name}.json")
    try:
        done = convert(read(arguments.files), " + ".join(arguments.files), name)
        dataset = os.path.join(os.path.dirname(output), "dataset_configs", f"{name}.json")
        for path in (output, dataset):
            if os.path.exists(path) and not arguments.overwrite:
                raise InputError(f"{path}: already exists; add --overwrite, or name another --output")
        os.makedirs(os.path.dirname(dataset) or ".", exist_ok=True)
        strict_json.write(dataset, done.dataset)
        strict_json.write(output, done.values)
        load_config(output)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in done.notes:
        print(f"differs: {note}")
    if done.unused:
        print(f"without effect here: {', '.join(done.unused)}")
    print(f"wrote {output} and {dataset}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
