"""Ray's own validation of a cluster file, with each of its complaints as one line. Contacts nothing."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from clusters.keys import PROVIDERS, nearest

LONGEST_VALUE: Final = 40


def of_schema(config: dict[str, Any]) -> Iterator[str]:
    """All that Ray's schema has against a file's sections, keys and kinds of values."""
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    given = dict(config)
    provider = config.get("provider")
    if isinstance(provider, dict) and provider.get("type") == "local":
        given.pop("min_workers", None)  # Ray takes it out before it validates
    validator = jsonschema.Draft7Validator(schema)
    for error in sorted(validator.iter_errors(given), key=lambda error: list(map(str, error.absolute_path))):
        yield from _lines(error)


def _lines(error: Any) -> Iterator[str]:
    where = _dotted(error.absolute_path)
    if error.validator == "additionalProperties":
        allowed = error.schema.get("properties", {})
        for key in error.instance:
            if key not in allowed:
                near = nearest(key, allowed)
                mend = f"did you mean {near}?" if near else f"remove it; allowed: {', '.join(allowed)}"
                yield f"{_join(where, key)}: unknown key; {mend}"
    elif error.validator == "required":
        for key in error.validator_value:
            misspelt = any(nearest(given, {key}) and given not in _known(error) for given in error.instance)
            if key not in error.instance and not misspelt:
                yield f"{_join(where, key)}: missing; add it"
    elif error.validator in ("type", "enum", "minimum"):
        allowed = {
            "type": lambda: _named(error.validator_value),
            "enum": lambda: ", ".join(map(str, error.validator_value)),
            "minimum": lambda: f"{error.validator_value} or more",
        }[error.validator]()
        yield f"{where or 'the file'}: {_shown(error.instance)} given; allowed: {allowed}; change it"
    else:
        yield f"{where or 'the file'}: {' '.join(error.message.split())}; mend it"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _known(error: Any) -> dict[str, Any]:
    known: dict[str, Any] = error.schema.get("properties", {})
    return known


def _named(kinds: str | list[str]) -> str:
    words = {
        "object": "a section of keys", "array": "a list", "string": "text", "integer": "a whole number",
        "number": "a number", "boolean": "true or false", "null": "nothing",
    }  # fmt: skip
    return " or ".join(words[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))


def of_preparation(config: dict[str, Any]) -> Iterator[str]:
    """What Ray stumbles on when it prepares and validates a file that its schema has nothing against."""
    kind = config["provider"]["type"]
    if kind not in PROVIDERS:
        near = nearest(kind, PROVIDERS)
        mend = f"use {near}" if near else "change it"
        yield f"provider.type: {kind!r} given; allowed: {', '.join(PROVIDERS)}; {mend}"
        return
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = io.StringIO()
    logger = logging.getLogger("ray.autoscaler")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            validate_config(prepare_config(copy.deepcopy(config)))
    except (KeyError, AttributeError, TypeError) as error:
        near = f" (near {error})" if isinstance(error, KeyError) else ""
        yield f"Ray cannot read it{near}, and does not say where it errs; compare it with clusters/*.yaml"
    except Exception as error:  # it raises what it likes: click's, its own, ValueError, AssertionError
        text = " ".join(str(error).split()) or type(error).__name__
        yield f"Ray refuses it: {text}"
    finally:
        logger.setLevel(level)


def _dotted(path: Any) -> str:
    text = ""
    for part in path:
        text = f"{text}[{part}]" if isinstance(part, int) else _join(text, part)
    return text


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
