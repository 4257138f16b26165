"""The keys of a config model as a person writes them: dotted, explained, and named when they are wrong."""

import difflib
import json
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import ErrorDetails


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key a YAML may set, dotted."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from dotted_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def describe_keys(config: BaseModel) -> str:
    """Every key with its value and its doc line."""
    return "\n".join(_describe(config, "")) + "\n"


def _describe(section: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _describe(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} = {json.dumps(section.model_dump(mode='json')[name])}\n    {field.description}"


def explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    """One mistake in one line that names its dotted key, and the nearest valid one."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_did_you_mean(key, list(dotted_keys(model)))}"
    expected = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{key}: got {error.get('input')!r}: {expected}"


def _did_you_mean(key: str, known: list[str]) -> str:
    section = difflib.get_close_matches(key, {k.split(".")[0] for k in known}, n=1) if "." not in key else []
    same_name = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = same_name or section or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(near[:3])}?"
    parent = key.rpartition(".")[0]
    inside = [k for k in known if k.rpartition(".")[0] == parent] or sorted({k.split(".")[0] for k in known})
    return f"; valid here: {', '.join(inside)}"
