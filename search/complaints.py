"""What is wrong with a study file, a line for each problem: where, what was given, what is allowed, how to mend it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from search.units import Quantity

_LONGEST_VALUE = 60

_ALLOWED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a number that is neither infinite nor NaN",
    "string_type": "text (put numbers in quotes)",
    "tuple_type": "a list, such as [a, b]",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', opening with a letter or digit",
    "string_too_short": "text that is not empty",
    "string_too_long": "{max_length} characters or fewer",
    "too_short": "a list with {min_length} entry or more",
}


def complaints(error: ValidationError, root: type[BaseModel], document: object) -> list[str]:
    """One line, "field: what, allowed, mend", for each problem that validating `document` as `root` met."""
    lines = [line for details in error.errors(include_url=False) for line in _lines(details, root)]
    return list(dict.fromkeys(lines)) or [f"{show(document)} given; this is not a study"]


def show(value: object) -> str:
    """A value as one short line, the way a study file would have it."""
    try:
        text = value.label if isinstance(value, Quantity) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def dotted(location: Sequence[int | str]) -> str:
    """("budgets", 1) as "budgets[1]", ("training", "momentum") as "training.momentum"."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


def fields_of(root: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a model and of its sections, as a path."""
    for name, field in root.model_fields.items():
        yield (*prefix, name)
        section = _section(field.annotation)
        if section is not None:
            yield from fields_of(section, (*prefix, name))


def field_at(root: type[BaseModel], path: Sequence[int | str]) -> FieldInfo | None:
    """The field at a path, or None where none is."""
    section = _section_at(root, path[:-1])
    return section.model_fields.get(str(path[-1])) if section is not None and path else None


def _lines(details: ErrorDetails, root: type[BaseModel]) -> Iterator[str]:
    location, kind, given = details["loc"], details["type"], details["input"]
    where = dotted(location)
    if kind == "value_error":
        # The rules of our own: a message of a section names the field below it, and the root's may be several lines.
        for line in str(details["ctx"]["error"]).split("\n"):
            if _section_at(root, location) is None:
                yield f"{where}: {show(given)} given; {line}"
            else:
                # "training.warmup: fraction and steps given" as well as "data.path: missing"
                field = line.partition(":")[0].partition(".")[0].partition("[")[0]
                known = _section_at(root, location)
                joint = "." if known is not None and field in known.model_fields else ": "
                yield f"{where}{joint}{line}" if where else line
    elif kind == "extra_forbidden":
        yield f"{where}: unknown field, {show(given)} given; {_near(location, root)}"
    elif kind == "missing":
        yield f"{where}: missing; add it{_describe(root, location)}"
    elif kind == "invalid_key":
        yield f"{where}: key is not text; allowed: {_names(_section_at(root, location[:-1]) or root)}; correct the key"
    elif kind == "model_type":
        section = _section_at(root, location) or root
        allowed = f"a section of fields ({_names(section)})"
        yield f"{where}: {show(given)} given; allowed: {allowed}; indent them below {where}:"
    else:
        context = {key: _plain(value) for key, value in details.get("ctx", {}).items()}
        if kind == "too_short" and isinstance(given, (list, tuple)) and len(given) >= int(details["ctx"]["min_length"]):
            return  # entries were refused, each with a line of its own, and pydantic counts those that are left
        allowed = _ALLOWED[kind].format_map(context) if kind in _ALLOWED else details["msg"]
        yield f"{where}: {show(given)} given; allowed: {allowed}; {_mend(root, location)}"


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _near(location: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """Name the field that was probably meant: in this section, or else the field of that name in another."""
    section, name = _section_at(root, location[:-1]) or root, str(location[-1])
    if close := difflib.get_close_matches(name.casefold().replace("-", "_"), section.model_fields, n=1):
        return f"did you mean {close[0]}? Allowed: {_names(section)}"
    elsewhere = [dotted(path) for path in fields_of(root) if path[-1] == name]
    if elsewhere:
        return f"move it to {elsewhere[0]}; allowed here: {_names(section)}"
    return f"remove it; allowed: {_names(section)}"


def _mend(root: type[BaseModel], location: tuple[int | str, ...]) -> str:
    field = field_at(root, tuple(part for part in location if isinstance(part, str)))
    if field is None or field.is_required():
        return "change it"
    default = field.get_default(call_default_factory=True, validated_data={})
    return f"change it, or leave it out for {show(default) if not isinstance(default, BaseModel) else 'the default'}"


def _describe(root: type[BaseModel], location: tuple[int | str, ...]) -> str:
    field = field_at(root, location)
    return f" ({field.description.rstrip('.')})" if field is not None and field.description else ""


def _names(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)


def _section_at(root: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """The section at a path; the root for the empty path; None where a plain value is."""
    section: type[BaseModel] | None = root
    for part in location:
        if isinstance(part, int):  # an entry of a list, whose fields are those of the list's sections
            continue
        field = section.model_fields.get(str(part)) if section is not None else None
        section = _section(field.annotation) if field is not None else None
    return section


def _section(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
