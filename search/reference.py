"""Every field of a study file in a Markdown table, from the same descriptions that the error messages use."""

from __future__ import annotations

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from search.complaints import field_at, fields_of, show
from search.study import Study


def reference() -> str:
    """The table: field, default, meaning; a field that a study must have is "required"."""
    rows = ["| field | default | meaning |", "| --- | --- | --- |"]
    for path in fields_of(Study):
        field = field_at(Study, path)
        assert field is not None
        default = field.get_default(call_default_factory=True, validated_data={})
        if field.is_required() or default is PydanticUndefined:
            value = "required"
        elif isinstance(default, BaseModel):
            value = "" if not default.model_fields_set else f"`{show(default.model_dump(exclude_unset=True))}`"
        else:
            value = f"`{show(default)}`"
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{'.'.join(path)}` | {value} | {meaning} |")
    return "\n".join(rows)
