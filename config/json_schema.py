"""The JSON Schema of a model config, from which editors complete and check keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from gpt_mesh.config.config import GROUPS
from gpt_mesh.config.fields import required
from gpt_mesh.config.names import ALIASES, BASE_KEY, SCHEMA_KEY


class _WithoutTitles(GenerateJsonSchema):
    """Keys speak for themselves: no title is made of their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def encode_default(self, dft: Any) -> Any:
        """A default as a config would have it."""
        return dft.model_dump(mode="json") if isinstance(dft, BaseModel) else super().encode_default(dft)


def json_schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12). It knows each key by itself; checks across keys are left to `load_config`."""
    properties: dict[str, Any] = {
        SCHEMA_KEY: {"type": "string", "description": "This schema, for editors."},
        BASE_KEY: {"type": "string", "minLength": 1, "description": "A config whose keys this takes: name or path."},
    }
    definitions: dict[str, Any] = {}
    for group in GROUPS.values():
        schema = group.model_json_schema(schema_generator=_WithoutTitles)
        definitions |= schema.get("$defs", {})
        properties |= schema["properties"]
    for alias, name in ALIASES.items():
        properties[alias] = properties[name] | {"description": f"Another name of {name}."}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "A model config",
        "type": "object",
        "properties": properties,
        "if": {"not": {"required": [BASE_KEY]}},
        "then": {"required": [name for group in GROUPS.values() for name in required(group)]},
        "additionalProperties": False,
        "$defs": definitions,
    }
