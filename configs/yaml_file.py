"""How does a YAML file become a validated value, or an error that a person can act on?

`read` gives the value, or one `ConfigError` that names the file, the path of the field and its value. A field given
twice is refused, where YAML itself would take the last one in silence. Values that may be secrets are never shown:
not in the message, not in the error's fields, not in a chained error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs.base import Config
from configs.errors import ConfigError

#: Far above any real file; a service file that names a log or a database by mistake is not read into memory.
FILE_BYTES_MAX = 1024 * 1024
#: Enough of a value to recognise it.
VALUE_CHARS_MAX = 80
WHOLE_FILE = "(whole file)"

_SECRET_NAME = re.compile(r"key|secret|token|passw|credential|auth|plain|sha256", re.IGNORECASE)
_NO_SECRETS = frozenset({"max_tokens", "context_tokens", "tokenizer", "client_key"})
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_URL_WITH_USER = re.compile(r"//[^/]*@")

# Pydantic's "Input should be ...", "String should match ...": what comes before them is a field's path.
_SUBJECT = re.compile(r"^\w+ should ")

Model = TypeVar("Model", bound=Config)
Location = tuple[int | str, ...]


def read(path: Path, model: type[Model]) -> Model:
    """The file's content as a `model`.

    Raises:
        ConfigError: the file can't be read, is no YAML mapping, or does not say what the model asks for.
    """
    data = _parse(path, _text(path))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # An unknown name explains the missing one that it was meant to be, and never the other way round.
        details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    # Outside of the handler: a chained ValidationError would carry the refused input to wherever errors are logged.
    raise _config_error(path, model, details[0])


def shown(location: Location, value: object) -> str:
    """`value` as errors may show it: short, printable, and "" where it is a container or may be a secret."""
    if isinstance(value, (Mapping, list, tuple, set)) or _may_be_secret(location, value):
        return ""
    text = ascii(value)
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 3] + "..."


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(str(path), WHOLE_FILE, "", f"can't be read: {error.strerror or error}") from None
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(str(path), WHOLE_FILE, "", f"is larger than {FILE_BYTES_MAX} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(str(path), WHOLE_FILE, "", "is not UTF-8 text") from None


def _parse(path: Path, text: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                raise ConfigError(str(path), WHOLE_FILE, "", "must hold fields (name: value)")
            _refuse_repeated_fields(path, root, (), set())
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = _QUOTED.sub(_without_content, error.problem or "")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        # ValueError: a date that does not exist. TypeError: a mapping as a name. RecursionError: nested without end.
        where, problem = "", "it can't be understood"
    raise ConfigError(str(path), WHOLE_FILE, "", f"is not valid YAML{where}: {problem}")


def _without_content(quoted: re.Match[str]) -> str:
    """What YAML quotes from the file may be a piece of a key; single characters and its own <words> are none."""
    text = quoted[0][1:-1]
    return quoted[0] if len(text) <= 4 or text.startswith("<") else "(withheld)"


def _refuse_repeated_fields(path: Path, node: yaml.Node, location: Location, visited: set[int]) -> None:
    # Each node once: aliases can make a small file refer to itself, or to more than memory holds.
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_repeated_fields(path, item, (*location, index), visited)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                continue  # construction refuses it
            field = (*location, name.value)
            if name.value in seen:
                again = f"is given twice, again in line {name.start_mark.line + 1}"
                raise ConfigError(str(path), _dotted(field), "", again)
            seen.add(name.value)
            _refuse_repeated_fields(path, value, field, visited)


def _config_error(path: Path, model: type[Config], detail: ErrorDetails) -> ConfigError:
    location: Location = detail["loc"]
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        fields = _model_at(model, location[:-1]).model_fields
        known = ", ".join(sorted(field.alias or name for name, field in fields.items()))
        problem = f"is an unknown field; known here: {known}"
    elif kind == "missing":
        problem, value = "is required", ()
    elif kind == "value_error":
        problem = str(detail["ctx"]["error"])
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        problem = "must hold fields (name: value)"
    else:
        problem = _SUBJECT.sub("must ", detail["msg"])
    return ConfigError(str(path), _dotted(location), shown(location, value), problem)


def _dotted(location: Location) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or WHOLE_FILE


def _may_be_secret(location: Location, value: object) -> bool:
    """Under `keys` all but ids and scopes (`plian` is a typo of a secret), elsewhere what is named like one."""
    if location[:1] == ("keys",):
        return len(location) < 3 or location[2] not in ("id", "scopes")
    if isinstance(value, str) and _URL_WITH_USER.search(value):
        return True
    names = [part for part in location if isinstance(part, str) and part not in _NO_SECRETS]
    return any(_SECRET_NAME.search(name) for name in names)


def _model_at(model: type[Config], location: Location) -> type[Config]:
    """The model whose fields are at `location`; indexes of lists are passed over."""
    for part in location:
        if isinstance(part, str):
            model = next(_models_in(model.model_fields[part].annotation))
    return model


def _models_in(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
