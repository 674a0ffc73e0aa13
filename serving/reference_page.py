"""The documentation of the HTTP interface as one page, made from the OpenAPI document: no script, nothing from other
hosts."""

import json
from html import escape


COMMON_ERRORS = ("400", "401", "403", "500")  # of every route
STYLE = """\
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2, h3 { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); padding-top: 1rem; }
h2 code, h3 code { font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; }
tr + tr { border-top: 1px solid color-mix(in srgb, currentColor 12%, transparent); }
td:first-child { white-space: nowrap; }
nav a { margin-right: 1rem; }
.required::after { content: " *"; color: #c33; }
"""


def reference_page(document: dict) -> str:
    """The page of an OpenAPI document."""
    info, schemas = document["info"], document["components"]["schemas"]
    routes = "".join(
        _operation(method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    models = "".join(_model(name, schemas[name]) for name in sorted(schemas))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}: HTTP interface</title>"
        '<link rel="stylesheet" href="docs/style.css"></head><body>'
        f"<h1>{escape(info['title'])}: HTTP interface</h1><p>{_text(info['description'])}</p>"
        '<nav><a href="#routes">Routes</a><a href="#models">Objects</a>'
        '<a href="openapi.json">OpenAPI document</a></nav>'
        '<h2 id="routes">Routes</h2><p>Beside the statuses below, every route may answer 400 (the request is wrong), '
        "401 (the API key is missing or wrong), 403 (the server's name, or the page that calls, is not allowed) and "
        f'500 (an error in the server), with an <a href="#ErrorBody">ErrorBody</a>.</p>{routes}'
        f'<h2 id="models">Objects</h2><p>Fields with a star are required.</p>{models}</body></html>'
    )


def _text(text: str) -> str:
    """Text whose `code` is marked with backticks."""
    pieces = escape(" ".join(text.split())).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _operation(method: str, path: str, operation: dict) -> str:
    body = operation.get("requestBody", {}).get("content", {})
    sent = "".join(f"<p>Body, <code>{escape(kind)}</code>: {_type(one['schema'])}</p>" for kind, one in body.items())
    rows = "".join(
        f"<tr><td><code>{escape(status)}</code></td>"
        f"<td>{_text(answer['description'].replace('Successful Response', ''))}</td>"
        f"<td>{_answer(answer)}</td></tr>"
        for status, answer in sorted(operation["responses"].items())
        if status not in COMMON_ERRORS
    )
    return (
        f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{_text(operation.get('description', ''))}</p>{sent}"
        f"<table>{rows}</table>"
    )


def _answer(answer: dict) -> str:
    kinds = [
        _type(one["schema"]) if kind == "application/json" and one.get("schema") else f"<code>{escape(kind)}</code>"
        for kind, one in answer.get("content", {}).items()
    ]
    return ", ".join(kinds)


def _model(name: str, schema: dict) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code{' class=required' if field in required else ''}>{escape(field)}</code></td>"
        f"<td>{_type(value)}</td><td>{_text(value.get('description', ''))}</td></tr>"
        for field, value in schema.get("properties", {}).items()
    )
    head = f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3><p>{_text(schema.get("description", ""))}</p>'
    return f"{head}<table>{rows}</table>"


def _type(schema: dict) -> str:
    """A type in words, with links to the objects."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[union])))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return escape(str(schema.get("type", "any")))
