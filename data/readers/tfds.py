"""Documents of tensorflow-datasets (https://www.tensorflow.org/datasets), which is imported when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gpt_mesh.data.readers.reader import Progress, Reading
from gpt_mesh.data.readers.roles import columns_of
from gpt_mesh.data.readers.values import text_of, utf8
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage

_NAME = re.compile(r"(?P<name>[\w.]+)(:(?P<config>[^/:]+))?(:(?P<version>[\d.]+))?/(?P<split>[^/]+)")


def check_name(name: str) -> None:
    """Raise InputError unless `name` is NAME[:CONFIG[:VERSION]]/SPLIT."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--tfds {name}: must be NAME/SPLIT or NAME:CONFIG/SPLIT, such as wikipedia:20220620.en/train[:10%]"
        )


def tfds_size(name: str, folder: str | None) -> int:
    """Bytes of the split, as its records say; downloads and prepares the dataset if `folder` does not have it."""
    return int(_prepared(name, folder).info.splits[_split(name)].num_bytes)


def tfds_documents(name: str, folder: str | None, reading: Reading, progress: Progress) -> Iterator[str]:
    """The feature `text_key` (`a.b` for a nested one) of each example of a split, in the order of its files.

    name: NAME[:CONFIG[:VERSION]]/SPLIT, where SPLIT may be sliced as tensorflow-datasets does it. folder: where
    datasets lie (None: ~/tensorflow_datasets). `progress` is told the length of each text.
    """
    builder = _prepared(name, folder)
    wanted = _wanted(f"--tfds {name}", builder.info.features, reading)
    for number, example in enumerate(_examples(name, builder, wanted)):
        where = f"--tfds {name}: example {number}"
        text = text_of(utf8(example, where, reading), where, reading)
        assert text is not None, "features are never null"
        yield text
        progress(len(text))


def _prepared(name: str, folder: str | None) -> Any:
    """The builder of a dataset that is on disk."""
    tfds = _library(name)
    parts = _NAME.fullmatch(name)
    assert parts, name
    full = "/".join(filter(None, (parts["name"], parts["config"])))
    full += f":{parts['version']}" if parts["version"] else ""
    try:
        builder = tfds.builder(full, data_dir=folder)
        if not builder.info.splits:
            builder.download_and_prepare()
        examples = builder.info.splits[parts["split"]].num_examples  # KeyError when there is no such split
    except Exception as error:  # tensorflow-datasets raises all kinds, and its users' modules more
        found = "" if folder is None else f" in --tfds_dir {folder}"
        raise InputError(
            f"--tfds {name}: cannot be had{found} ({type(error).__name__}: {storage.reason(error).rstrip('.')}); "
            "check name, config, split and --tfds_dir"
        ) from error
    if not examples:
        raise InputError(f"--tfds {name}: holds no example; take more of the split")
    return builder


def _split(name: str) -> str:
    return name.partition("/")[2]


def _library(name: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"--tfds {name}: needs tensorflow-datasets ({storage.reason(error)}); pip install tensorflow-datasets"
        ) from error
    return tfds


def _wanted(where: str, features: Any, reading: Reading) -> dict[str, Any]:
    """The features to be decoded, as {a: {b: True}}."""
    if reading.records != "text":
        return dict.fromkeys(columns_of(reading.records, sorted(features), where), True)
    wanted: Any = True
    for part in reversed(reading.text_key.split(".")):
        wanted = {part: wanted}
    found = features
    for part in reading.text_key.split("."):
        try:
            found = found[part]
        except (KeyError, TypeError) as error:
            names = ", ".join(sorted(features)) if hasattr(features, "keys") else str(features)
            raise InputError(
                f"{where}: has no feature {reading.text_key}, but {names}; name it with --text_key"
            ) from error
    return dict(wanted)


def _examples(name: str, builder: Any, wanted: dict[str, Any]) -> Iterator[Any]:
    tfds = _library(name)
    try:
        if builder.info.file_format is tfds.core.FileFormat.TFRECORD:
            # One file after the other: the default reads sixteen at a time, in turn.
            partial = tfds.decode.PartialDecoding(wanted)  # not even decoding images, say
            order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
            data = builder.as_dataset(split=_split(name), shuffle_files=False, read_config=order, decoders=partial)
            yield from tfds.as_numpy(data)
        else:
            source = builder.as_data_source(split=_split(name))
            yield from (_pick(source[i], wanted) for i in range(len(source)))
    except Exception as error:
        if not isinstance(error, (*storage.errors(), ValueError, RuntimeError)):  # the last two are ArrayRecord's
            raise
        raise InputError(f"--tfds {name}: cannot be read: {storage.reason(error)}; prepare it again") from error


def _pick(example: Any, wanted: Any) -> Any:
    return {key: _pick(example[key], inner) for key, inner in wanted.items()} if isinstance(wanted, dict) else example
