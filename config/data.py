"""What is read, in which proportions and order."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema, model_serializer

from gpt_mesh.config.dataset import DatasetConfig
from gpt_mesh.config.fields import Flag, Group, Natural, Positive, Size, Text, key
from gpt_mesh.config.messages import Refused

SamplingMode = Literal["documents_random", "documents_fixed", "chunks", "documents_packed", "documents_padded"]
SAMPLING_MODES: tuple[SamplingMode, ...] = get_args(SamplingMode)
SAMPLING_MODE_ALIASES = {"random_sample": "documents_random"}


def _mode(value: Any) -> Any:
    return SAMPLING_MODE_ALIASES.get(value, value) if isinstance(value, str) else value


# The dataset's own config is read once all keys are known.
_UNREAD: Any = Field(default=None, exclude=True)


class DatasetUse(Group):
    """One entry of `datasets`: a dataset, how its documents become sequences, and its share of the batch."""

    id: Text
    stitch: Size = 25
    sampling_mode: Annotated[SamplingMode, BeforeValidator(_mode)] = "documents_random"
    weight: Positive = 1.0
    dataset: DatasetConfig = _UNREAD

    @property
    def whole_documents(self) -> bool:
        """Whether a sample is one whole document, and windows hold whole samples."""
        return self.sampling_mode in ("documents_packed", "documents_padded")

    @model_serializer
    def _as_list(self) -> list[Any]:
        return [self.id, self.stitch, self.sampling_mode, self.weight]


_NAMES = ("id", "stitch", "sampling_mode", "weight")


def _entries(value: Any) -> list[dict[str, Any]]:
    """`[[id, stitch, sampling_mode, weight], ...]` or `[id, ...]` as objects; null stands for a default."""
    shape = Refused('must be a list such as [["my_dataset", 25, "documents_random", 1.0]] or ["my_dataset"]')
    if not isinstance(value, (list, tuple)) or not value:
        raise shape
    entries = []
    for entry in value:
        given = [entry] if isinstance(entry, str) else entry
        if not isinstance(given, (list, tuple)) or not 1 <= len(given) <= len(_NAMES):
            raise shape
        if not isinstance(given[0], str) or not given[0]:
            raise shape
        entries.append({name: item for name, item in zip(_NAMES, given, strict=False) if item is not None})
    return entries


def _entry_schema() -> dict[str, Any]:
    modes = {"enum": [*SAMPLING_MODES, *SAMPLING_MODE_ALIASES, None]}
    given = [
        {"type": "string", "minLength": 1},
        {"type": ["integer", "null"], "minimum": 1},
        modes,
        {"type": ["number", "null"], "exclusiveMinimum": 0},
    ]
    listed = {"type": "array", "prefixItems": given, "minItems": 1, "maxItems": len(given)}
    return {"type": "array", "items": {"anyOf": [given[0], listed]}, "minItems": 1}


Datasets = Annotated[tuple[DatasetUse, ...], BeforeValidator(_entries), WithJsonSchema(_entry_schema())]
_DEFAULTS = [DatasetUse.model_fields[name].default for name in _NAMES[1:]]


class DataConfig(Group):
    """What is read, in which proportions and order."""

    datasets: Datasets = key(
        "`[[id, stitch, sampling_mode, weight], ...]` or `[id, ...]`. An id names `dataset_configs/<id>.json` beside "
        "the model config, else in `configs/` of the working directory, else of this package. Stitch (>= 1): documents "
        "joined before a window is taken. Modes: "
        + ", ".join(f"`{mode}`" for mode in SAMPLING_MODES)
        + ". Weight (> 0): relative share of the batch. Left out or null: "
        + ", ".join(f"`{value}`" for value in _DEFAULTS)
        + ".",
        type_text="list",
    )
    shuffle_input_filenames: Flag = key(
        "Shuffle the records; false with `chunks`: read them in file order.", default=True
    )
    eos_id: Natural | None = key(
        "`eos_id` of the datasets whose own config gives none (published configs have it here).", default=None
    )
    padding_id: Natural | None = key("`padding_id` of the datasets whose own config gives none.", default=None)
