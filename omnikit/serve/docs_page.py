"""A plain page of the REST calls, made of the OpenAPI description without scripts and without anything from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.5 }}
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem }}
code {{ font-family: ui-monospace, monospace }}
td, th {{ text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0 }}
</style>
<h1>{title}</h1>
<p>The calls that this server answers; <a href="openapi.json">openapi.json</a> describes them for programs. The Realtime
protocol is a WebSocket at <code>/v1/realtime</code>.</p>
"""


def docs_page(openapi: dict[str, Any]) -> str:
    """Return the page (HTML) for an OpenAPI description."""
    title = escape(f"{openapi['info']['title']} {openapi['info']['version']}")
    return "\n".join([_HEAD.format(title=title), *_calls(openapi)])


def _calls(openapi: dict[str, Any]) -> Iterator[str]:
    for path, methods in sorted(openapi["paths"].items()):
        for method, about in methods.items():
            yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
            if words := about.get("description") or about.get("summary"):
                yield "".join(f"<p>{escape(part)}</p>" for part in words.split("\n\n"))
            if fields := [*_parameters(about), *_body(openapi, about)]:
                yield f"<table><tr><th>field<th>type<th>{''.join(fields)}</table>"


def _parameters(about: dict[str, Any]) -> Iterator[str]:
    for each in about.get("parameters", ()):
        yield _row(f"{each['name']} ({each['in']})", each.get("schema", {}), each.get("required", False))


def _body(openapi: dict[str, Any], about: dict[str, Any]) -> Iterator[str]:
    for content in about.get("requestBody", {}).get("content", {}).values():
        schema = _resolved(openapi, content.get("schema", {}))
        for name, field in schema.get("properties", {}).items():
            yield _row(name, field, name in schema.get("required", ()))


def _row(name: str, schema: dict[str, Any], required: bool) -> str:
    words = schema.get("description", "")
    if "default" in schema:
        words = f"{words} (default: {schema['default']})".strip()
    needed = " (required)" if required else ""
    return f"<tr><td><code>{escape(name)}</code>{needed}<td>{escape(_type(schema))}<td>{escape(words)}"


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(each) for each in schema[key])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("const") or schema.get("type") or "any")


def _resolved(openapi: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that a reference stands for."""
    if "$ref" not in schema:
        return schema
    return openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
