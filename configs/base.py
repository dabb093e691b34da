"""What do all configuration values have in common?

Values never change after loading, hold no unknown field, and are what the YAML says: `"8000"` is no port, `yes` is no
number, and infinity is no limit. They pickle, since they travel to Ray actors and Serve replicas. Reading files is not
done here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Config(BaseModel):
    """A frozen, strict value. Its validation errors never quote the input, which may hold a key."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


def _whole_path(value: Any) -> Any:
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError("must be a path")
        if value.startswith("~"):
            # Expanding it would depend on who runs the process, and Ray's workers may run as somebody else.
            raise ValueError("'~' is not expanded: write the whole path")
    return value


#: A path as written, relative or not.
ConfigPath = Annotated[Path, Field(strict=False), BeforeValidator(_whole_path)]
