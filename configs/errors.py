"""What is wrong with the configuration, and where does a person go to mend it?

Every error names a file (or an environment variable), a field and its value, and never shows what may be a secret.
It does not say what the field is for: the comments in the YAML files that ship do.
"""

from __future__ import annotations


class ConfigError(Exception):
    """A configuration that the service refuses to start with.

    Args:
        file: Path of the YAML file, or of the folder, or "environment".
        field: Path of the field inside the file, such as `keys[0].sha256`, or the name of the variable.
        value: The refused value, made printable and short; "" where there is none, or where it may be a secret.
        problem: What is wrong, and where it helps, what would be right.
    """

    def __init__(self, file: str, field: str, value: str, problem: str) -> None:
        # All of them reach Exception, so that the error survives pickling on its way out of a Ray worker.
        super().__init__(file, field, value, problem)
        self.file = file
        self.field = field
        self.value = value
        self.problem = problem

    def __str__(self) -> str:
        got = f" (got {self.value})" if self.value else ""
        return f"{self.file}: {self.field}: {self.problem}{got}"
