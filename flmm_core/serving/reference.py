"""/docs: the OpenAPI document as one page that loads nothing."""

from __future__ import annotations

from typing import Any

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ api.info.title }} API</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.5 ui-monospace, monospace } pre { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0;
  border-top: 1px solid #8884 }
h2 { margin-top: 2.5rem } h2 code { font-size: 1.1rem }
</style>
<h1>{{ api.info.title }} {{ api.info.version }}</h1>
<p>{{ api.info.description }} As a document for tools: <a href="openapi.json">openapi.json</a>.</p>
{%- if api.security %}<p>Requests need the header <code>Authorization: Bearer TOKEN</code>.</p>
{%- endif %}
{% macro kind(schema) -%}
{%- if schema["$ref"] %}<a href="#{{ schema["$ref"].rpartition("/")[2] }}">
{{- schema["$ref"].rpartition("/")[2] }}</a>
{%- elif schema.anyOf %}{% for one in schema.anyOf %}{{ kind(one) }}{{ " or " if not loop.last }}
{%- endfor %}
{%- elif schema.enum %}{{ schema.enum | join(" or ") }}
{%- elif schema.const is defined %}{{ schema.const }}
{%- elif schema.type == "array" %}array of {{ kind(schema["items"] or {}) }}
{%- else %}{{ schema.type or "any" }}{% endif %}
{%- endmacro %}
{% for path, methods in api.paths.items() %}{% for method, route in methods.items() %}
<h2><code>{{ method | upper }} {{ path }}</code></h2>
<p>{{ route.summary }}. {{ route.description or "" }}</p>
{%- for type, content in (route.requestBody or {}).get("content", {}).items() %}
<p>Body <code>{{ type }}</code>: {{ kind(content.schema) }}
{%- if content.schema.properties %} with the fields
<code>{{ content.schema.properties | join("</code>, <code>" | safe) }}</code>{% endif %}.
{{ content.schema.description or "" }}</p>
{%- endfor %}
{%- for code, answer in route.responses.items() if code == "200" %}
{%- for type, content in (answer.content or {}).items() if content.schema %}
<p>Answer <code>{{ type }}</code>: {{ kind(content.schema) }}.</p>
{%- endfor %}{% endfor %}
{% endfor %}{% endfor %}
<h2>Schemas</h2>
{% for name, schema in (api.components or {}).get("schemas", {}).items() %}
<h3 id="{{ name }}">{{ name }}</h3><p>{{ schema.description or "" }}</p>
<table><tr><th>field<th>type<th>default<th></tr>
{%- for field, of in (schema.properties or {}).items() %}
<tr><td><code>{{ field }}</code><td>{{ kind(of) }}<td>
{%- if field in (schema.required or []) %}required
{%- elif of.default is defined and of.default is not none %}{{ of.default | tojson }}{% endif %}
<td>{{ of.description or "" }}</tr>
{%- endfor %}
</table>
{% endfor %}
</html>
"""


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The OpenAPI document for readers."""
    environment = jinja2.Environment(autoescape=True)
    api: dict[str, Any] = request.app.openapi()
    page = environment.from_string(PAGE).render(api=api)
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; "
                                       "style-src 'unsafe-inline'"})  # fmt: skip
