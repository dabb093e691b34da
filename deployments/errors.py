"""What can a deployment tell its caller went wrong, and may the caller try again?

Promise: every error of the model, embedding and vector parts is one of these classes, with its facts in fields, and
survives pickling, so that it reaches a caller in another process as its own class. `retryable` says whether the same
call may succeed later, `retry_after_s` how long to wait first; nothing else in an error is meant to decide anything.

    ServiceError
    ├ RequestError                                  the request is at fault, or its sender
    │  ├ Unauthorized
    │  ├ Forbidden(scope)
    │  ├ BodyTooLarge(size_bytes_max)
    │  ├ QuotaExceeded(retry_after_s, policies)     retryable: the client's buckets can't pay yet
    │  ├ TooManyNewClients(retry_after_s)           retryable: so many clients wait that were not here of late
    │  ├ TooManyTurns(policies, retry_after_s)      retryable: others of the client or the tenant are in flight
    │  ├ BudgetExceeded(policies, retry_after_s)    retryable: the tenant's model tokens are used up, or promised
    │  ├ BudgetTooSmall(policies, …)                one call needs more tokens than the whole budget has
    │  ├ IdempotencyKeyMalformed(problem)
    │  ├ IdempotencyKeyReused(key)                  it came with another request before
    │  ├ IdempotencyKeyBusy(retry_after_s)          retryable: the first request with it is under way
    │  ├ EventsGone(turn_id)                        the turn has ended, and its events are no longer kept
    │  └ TurnConflict                               an answer is under way, and the message may not wait
    ├ ModelError
    │  ├ ModelUnavailable(problem, retry_after_s)      retryable: not reachable, overloaded, or broke off
    │  ├ ModelTimeout(timeout_s)                       retryable: no whole answer in time
    │  └ ModelRefused(problem, code)                   the request itself is at fault
    └ VectorsError
       ├ VectorStoreOwned(path, owner, retry_after_s)  retryable: another process still owns the directory
       └ VectorsUnavailable(problem, retry_after_s)    retryable: the owner is starting again

It does not turn errors into HTTP answers.

Fields that differ from error to error are set in `__init__` and have no default on the class: Ray raises an error as a
mixture of its own class and ours, whose fields are looked up on the original only where the classes know none.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Root of what the deployments raise. All arguments go to `Exception.__init__`: pickling repeats exactly those."""

    retryable: ClassVar[bool] = False
    retry_after_s: float | None


class RequestError(ServiceError):
    """The request can't be served as it is."""

    def __init__(self, *facts: object) -> None:
        super().__init__(*facts)
        self.retry_after_s = None


class Unauthorized(RequestError):
    """No key, or none that is known."""


class Forbidden(RequestError):
    """The key is known, and lacks the scope."""

    def __init__(self, scope: str) -> None:
        super().__init__(scope)
        self.scope = scope


class BodyTooLarge(RequestError):
    """The body is longer than a body may be. It was not read to its end."""

    def __init__(self, size_bytes_max: int) -> None:
        super().__init__(size_bytes_max)
        self.size_bytes_max = size_bytes_max


class QuotaExceeded(RequestError):
    """The client's buckets can't pay for the request yet: those of `policies`, by their names."""

    retryable = True

    def __init__(self, retry_after_s: float, policies: tuple[str, ...]) -> None:
        super().__init__(retry_after_s, policies)
        self.retry_after_s = retry_after_s
        self.policies = policies


class TooManyNewClients(RequestError):
    """The client was not here of late, and so many like it wait that its buckets were not asked."""

    retryable = True

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class TooManyTurns(RequestError):
    """As many turns are in flight as may be. `policies` are the limits that say so, by their names."""

    retryable = True

    def __init__(self, policies: tuple[str, ...], retry_after_s: float) -> None:
        super().__init__(policies, retry_after_s)
        self.policies = policies
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"too many turns are in flight ({', '.join(self.policies)})"


class BudgetExceeded(RequestError):
    """The tokens of the tenant's model are used up, or promised to calls under way. `policies` are the budgets' names,
    and with them those of other limits that deny the same turn.
    """

    retryable = True

    def __init__(self, policies: tuple[str, ...], retry_after_s: float) -> None:
        super().__init__(policies, retry_after_s)
        self.policies = policies
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"the token budget is used up ({', '.join(self.policies)})"


class BudgetTooSmall(RequestError):
    """One call needs more tokens than the whole budget has, however long it waits."""

    def __init__(self, policies: tuple[str, ...], input_tokens: int, output_tokens: int) -> None:
        super().__init__(policies, input_tokens, output_tokens)
        self.policies = policies
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens

    def __str__(self) -> str:
        return (
            f"a prompt of {self.input_tokens} tokens with an answer of up to {self.output_tokens} is more than the"
            f" whole budget ({', '.join(self.policies)})"
        )


class IdempotencyKeyMalformed(RequestError):
    """The header that names the request holds no key."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class IdempotencyKeyReused(RequestError):
    """The key came with another request before. Nothing was done."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class IdempotencyKeyBusy(RequestError):
    """A request with the key is under way, or was cut off a moment ago."""

    retryable = True

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class EventsGone(RequestError):
    """The turn has ended, and its events are no longer kept. Its messages are in the history."""

    def __init__(self, turn_id: str) -> None:
        super().__init__(turn_id)
        self.turn_id = turn_id


class TurnConflict(RequestError):
    """An answer is under way in the session, and the message may not wait for it, or too many wait already."""


class ModelError(ServiceError):
    """The language model gave no whole answer."""


class ModelUnavailable(ModelError):
    """The model's server can't be reached, is overloaded, or broke off in the middle."""

    retryable = True

    def __init__(self, problem: str, retry_after_s: float) -> None:
        super().__init__(problem, retry_after_s)
        self.problem = problem
        self.retry_after_s: float = retry_after_s

    def __str__(self) -> str:
        return f"model unavailable: {self.problem} (retry after {self.retry_after_s:g} s)"


class ModelTimeout(ModelError):
    """The whole answer was not there in time."""

    retryable = True

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s
        self.retry_after_s = None

    def __str__(self) -> str:
        return f"model timeout: no whole answer within {self.timeout_s:g} s"


class ModelRefused(ModelError):
    """The model's server says that the request is wrong; sending it again won't help.

    `code` is the server's own word for it where it has one, `CONTEXT_LENGTH` whenever the messages are too long, and
    `TOOLS` whenever it is the tools that the server or its model can't take.
    """

    CONTEXT_LENGTH: ClassVar[str] = "context_length_exceeded"
    TOOLS: ClassVar[str] = "tools_not_supported"

    def __init__(self, problem: str, code: str | None = None) -> None:
        super().__init__(problem, code)
        self.problem = problem
        self.code = code
        self.retry_after_s = None

    def __str__(self) -> str:
        return f"model refused: {self.problem}"


class VectorsError(ServiceError):
    """The vector index did not do what it was asked."""


class VectorStoreOwned(VectorsError):
    """Another process owns the directory; `owner` is what that process wrote of itself."""

    retryable = True

    def __init__(self, path: str, owner: str, retry_after_s: float) -> None:
        super().__init__(path, owner, retry_after_s)
        self.path = path
        self.owner = owner
        self.retry_after_s: float = retry_after_s

    def __str__(self) -> str:
        return f"vector store {self.path} is owned by another process: {self.owner}"


class VectorsUnavailable(VectorsError):
    """The process that owns the vectors is not there just now."""

    retryable = True

    def __init__(self, problem: str, retry_after_s: float) -> None:
        super().__init__(problem, retry_after_s)
        self.problem = problem
        self.retry_after_s: float = retry_after_s

    def __str__(self) -> str:
        return f"vectors unavailable: {self.problem} (retry after {self.retry_after_s:g} s)"
