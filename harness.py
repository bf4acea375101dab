"""lm-evaluation-harness on our checkpoints: https://github.com/EleutherAI/lm-evaluation-harness.

    python3 -m gpt_mesh.harness run --model gpt_mesh --model_args config=demo --tasks hellaswag --batch_size 16

takes the flags of `lm_eval`, the harness's command. From Python, importing this module is enough:

    import lm_eval, gpt_mesh.harness
    lm_eval.simple_evaluate(model="gpt_mesh", model_args={"config": "demo"}, tasks=["hellaswag"], batch_size=16)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import numpy as np

from gpt_mesh import api
from gpt_mesh.config import GenerationSettings, generation_settings, keys
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.spans import SpanScorer, ending, rolling
from gpt_mesh.generation.requests import GenerationRequest
from gpt_mesh.objectives.registry import check_predicts_next
from gpt_mesh.storage.progress import log, set_up_logging

try:
    import lm_eval.models  # noqa: F401  (its own models must be registered first: they are only while there are no others)
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    _REMEDY = f"gpt_mesh.harness needs lm-evaluation-harness ({error}); pip install 'lm_eval>=0.4.13,<0.5'"
    if __name__ == "__main__":
        sys.exit(f"error: {_REMEDY}")
    raise ImportError(_REMEDY) from error

SETTINGS = {*keys(GenerationSettings)}
DEFAULT_DEVICE = "cuda:0"  # the harness's default
MAX_GEN_TOKS = 256  # default for tasks that do not set it, as in the harness's other models


@register_model("gpt_mesh")
class HarnessModel(TemplateLM):
    """A trained model for the harness. Contexts, truncation and windows are as in its Hugging Face model."""

    def __init__(
        self,
        config: str | api.Model | None = None,
        devices: str | Sequence[str] | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        pretrained: str | api.Model | None = None,
        **unknown: Any,
    ) -> None:
        """
        Args:
            config: what `api.load` takes: a config's name, a run's directory, a checkpoint; or the model itself.
            devices: such as "device:CPU:0 device:CPU:1"; default: every visible GPU, else the CPU.
            batch_size: texts scored at a time; "auto" or None: the config's `eval_batch_size`.
            max_batch_size: ignored.
            device: a PyTorch device, ignored with a warning.
            pretrained: the same as `config`, under the harness's own name, which it uses to name result files.

        Raises:
            InputError: no such model, it has no tokenizer, it does not predict the next token, or unknown arguments.
        """
        super().__init__()
        del max_batch_size
        if unknown:
            raise InputError(f"model_args {', '.join(unknown)}: unknown; use config and devices")
        config = pretrained if config is None else config
        if config is None:
            raise InputError("model_args: name the model, such as config=demo")
        if device not in (None, DEFAULT_DEVICE):
            log.warning("device = %s is PyTorch's; name devices with model_args devices=device:GPU:0", device)
        names = devices.split() if isinstance(devices, str) else devices
        self.model = config if isinstance(config, api.Model) else api.load(config, devices=names)
        check_predicts_next(self.model.config)
        self.encoder = self.model.encoder
        fixed = None if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        self._scorer = SpanScorer(self.model.engine, fixed)

    @property
    def batch_size(self) -> int:
        """Texts scored at a time."""
        return self._scorer.batch_size

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of context."""
        return self.model.config.model.n_ctx

    @property
    def eot_token_id(self) -> int:
        """The token that precedes a text without context."""
        if (prefix := self.model.special_tokens.prefix) is None:
            raise InputError(f"{self.encoder.where}: has no <|endoftext|>; set eos_id in the dataset config")
        return prefix

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in the harness's request cache."""
        return self.encoder.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text. Special tokens in the text become their ids; `bos_id` of the dataset config comes first,
        if it is set, unless `add_special_tokens` is false.
        """
        tokens = self.encoder.encode(string)
        return tokens if add_special_tokens is False else self.model.special_tokens.begun(tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation given its context, and whether greedy decoding would produce it."""
        ends = [ending(context, continuation, self.max_length) for _, context, continuation in requests]
        spans = [span for span, _ in ends]
        self._warn_of_cuts("loglikelihood", [cut for _, cut in ends])
        found = self._scorer.score(spans, "loglikelihood")
        answers = []
        for number, (span, (texts, *_)) in enumerate(zip(spans, requests, strict=True)):
            answers.append((float(found.logprobs[number]), bool(found.correct[number] == span.scored)))
            self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text after `prefix_token_id`, which is not added to one that begins with `bos_id`."""
        del disable_tqdm
        parts = [rolling(self.encoder.encode(r.args[0]), self.prefix_token_id, self.max_length) for r in requests]
        found = self._scorer.score([span for part in parts for span in part], "loglikelihood_rolling")
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        totals = [float(found.logprobs[end - len(part) : end].sum()) for end, part in zip(ends, parts, strict=True)]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to the first of its stop strings."""
        del disable_tqdm
        asked = [self._request(*request.args) for request in requests]
        self._warn_of_cuts("generate_until", [cut for _, cut in asked])
        found = self.model.generator().generate([request for request, _ in asked])
        for request, generated in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, generated.text)
        return [generated.text for generated in found]

    def _request(self, context: str, arguments: dict[str, Any]) -> tuple[GenerationRequest, bool]:
        """The end of a context that leaves room for `max_gen_toks`, with its settings; whether its start was cut off.

        Raises:
            InputError: `max_gen_toks` leaves no room for a context, or a key is unknown.
        """
        given = dict(normalize_gen_kwargs(arguments, MAX_GEN_TOKS))
        until, count = given.pop("until"), given.pop("max_gen_toks")
        room = self.max_length - count
        if room < 1:
            raise InputError(
                f"generation_kwargs: max_gen_toks = {count} leaves no room for a context: the model reads "
                f"{self.max_length} tokens; pass --gen_kwargs max_gen_toks=N with N below {self.max_length}"
            )
        given.pop("do_sample", None)  # without sampling, its temperature is 0
        if unknown := given.keys() - SETTINGS:
            raise InputError(f"generation_kwargs: {', '.join(sorted(unknown))}: not known here; leave it out")
        given |= {"max_new_tokens": count, "stop": [*filter(None, until)]}
        tokens = self.tok_encode(context)
        request = GenerationRequest(tokens[-room:], generation_settings(given, "generation_kwargs"))
        return request, len(tokens) > room

    def _warn_of_cuts(self, what: str, cut: Sequence[bool]) -> None:
        """Say how many contexts lost their start."""
        if any(cut):
            log.warning(
                "%s: %d of %d contexts are too long for the model's %d tokens and lose their start",
                what, sum(cut), len(cut), self.max_length,
            )  # fmt: skip


def main() -> int:
    """The harness's command, with `gpt_mesh` as one of its models."""
    from lm_eval.__main__ import cli_evaluate

    set_up_logging()
    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
