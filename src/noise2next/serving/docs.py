"""The page at /docs, from the OpenAPI document: one file that loads nothing, from nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # what the browser is told to allow
PLAIN: dict[str, Any] = {
    "description": "Prometheus' text form.",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}


def page(openapi: dict[str, Any]) -> str:
    """HTML: every endpoint with its parameters, examples and answers, and every schema."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    environment.filters["kind"] = _kind
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.render(openapi=openapi, schemas=openapi["components"]["schemas"])


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words: `list of Query, 1 to 1000 long`, `text or null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(one) for one in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("format") or schema.get("type", "anything"))
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    bounds = {"minimum": "at least", "maximum": "at most", "minItems": "at least", "maxItems": "at most"}
    said = [f"{word} {schema[key]:,.0f}" for key, word in bounds.items() if key in schema]
    return ", ".join([kind, *said])
