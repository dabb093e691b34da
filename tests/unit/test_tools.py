"""Does a tool give what it may, to whom it may, and is everything else a result that tells nothing?"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import KeyValue
from actors.document_index import Passage
from actors.key_value import STORE_NAME
from configs.errors import ConfigError
from configs.tenant import ModelConfig, RetrievalConfig, TenantConfig, ToolsConfig
from deployments.chat_request import ToolCall
from deployments.documents import Found
from deployments.errors import VectorsUnavailable
from deployments.tool import ToolContext, tool_from
from deployments.toolbox import ERROR_CHARS_MAX, THREADS_MAX, ToolBox, ToolResult
from deployments.tools import check, toolbox_of
from tests.unit import own_tools
from tests.unit.handles import FailingObjects, Handle, tenant

CONTEXT = ToolContext(tenant="acme", session_id="s1", turn_id="t1")
SERVER = ModelConfig(base_url="http://127.0.0.1:1/v1", model="m", context_tokens=32_000)


def with_tools(*enabled: str, name: str = "acme", **fields: Any) -> TenantConfig:
    return tenant(name, model=SERVER, retrieval=RetrievalConfig(top_k=4), tools=ToolsConfig(enabled=enabled, **fields))


class Library:
    """Finds the passages it is given, and notes what it was asked for."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.asked: list[tuple[str, str, int | None]] = []

    async def find(self, tenant: str, query: str, *, top_k: int | None = None) -> Found:
        self.asked.append((tenant, query, top_k))
        return Found(self.passages, cached=False)


def passage(number: int, text: str) -> Passage:
    return {
        "id": f"c{number}",
        "document_id": f"d{number}",
        "title": "Title",
        "heading": "",
        "text": text,
        "start": 0,
        "end": len(text),
        "metadata": {"private": 1},
    }


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def search(library: Library) -> Handle:
    return Handle(library)


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, classes=[KeyValue])
    yield objects
    objects.close()


@pytest.fixture
def box(search: Handle, objects: FailingObjects) -> ToolBox:
    made = toolbox_of(with_tools("vector_search", "kv_get"), search=search, objects=objects)
    assert made is not None
    return made


def call(name: str, arguments: Any = None) -> ToolCall:
    return ToolCall(
        id="c1", name=name, arguments=arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    )


def own(name: str, *, timeout_s: float = 10.0, result_bytes_max: int = 1000) -> ToolBox:
    return ToolBox(
        [tool_from(getattr(own_tools, name), name=name)], timeout_s=timeout_s, result_bytes_max=result_bytes_max
    )


async def result_of(box: ToolBox, name: str, arguments: Any = None) -> Any:
    result = await box.run(call(name, arguments), CONTEXT)
    assert not result.is_error, result.content
    return json.loads(result.content)


async def error_of(box: ToolBox, name: str, arguments: Any = None) -> str:
    result = await box.run(call(name, arguments), CONTEXT)
    assert result.is_error
    shown = result.shown()
    assert shown == {"id": "c1", "name": name, "error": json.loads(result.content)["error"]}
    assert own_tools.SECRET not in result.content
    return str(shown["error"])


# The tools that come with the service


async def test_a_search_gives_passages_of_the_turns_tenant(box: ToolBox, library: Library) -> None:
    library.passages = [passage(1, "Because."), passage(2, "Or not.")]
    found = await result_of(box, "vector_search", {"query": "why"})
    assert found["passages"][0] == {
        "document_id": "d1", "chunk_id": "c1", "title": "Title", "heading": "", "text": "Because."
    }  # fmt: skip
    assert len(found["passages"]) == 2
    await result_of(box, "vector_search", {"query": "how", "top_k": 2})
    assert library.asked == [("acme", "why", 4), ("acme", "how", 2)]


@pytest.mark.parametrize("text", ["x" * 3_000, "é" * 3_000, '"' * 3_000])
async def test_a_search_gives_as_many_passages_as_a_result_may_hold(box: ToolBox, library: Library, text: str) -> None:
    library.passages = [passage(number, text) for number in range(9)]
    found = await result_of(box, "vector_search", {"query": "why"})
    assert 1 <= len(found["passages"]) <= 2
    library.passages = [passage(0, text * 10)]
    found = await result_of(box, "vector_search", {"query": "why"})
    assert 0 < len(found["passages"][0]["text"]) < len(text) * 10


async def test_a_small_context_has_small_results(search: Handle, objects: FailingObjects, library: Library) -> None:
    small = ModelConfig(base_url="http://127.0.0.1:1/v1", model="m", context_tokens=2_000)
    settings = ToolsConfig(enabled=("vector_search",), context_share=0.3)
    box = toolbox_of(tenant("acme", model=small, tools=settings), search=search, objects=objects)
    assert box is not None
    library.passages = [passage(number, "x" * 300) for number in range(9)]
    assert len((await result_of(box, "vector_search", {"query": "why"}))["passages"]) == 2


async def test_a_value_is_read_from_the_turns_tenant_alone(box: ToolBox, objects: FailingObjects) -> None:
    stores = objects.namespace(KeyValue)
    await stores.get("acme", STORE_NAME).put("plan", {"seats": 5})
    await stores.get("globex", STORE_NAME).put("secret", "of globex")
    assert await result_of(box, "kv_get", {"key": "plan"}) == {"found": True, "value": {"seats": 5}}
    assert await result_of(box, "kv_get", {"key": "secret"}) == {"found": False}


@pytest.mark.parametrize("name", ["tenant", "context", "tenant_id", "session_id"])
async def test_a_tenant_that_the_model_names_is_refused_and_not_obeyed(
    box: ToolBox, library: Library, name: str
) -> None:
    assert name in await error_of(box, "kv_get", {"key": "secret", name: "globex"})
    assert name in await error_of(box, "vector_search", {"query": "secret", name: "globex"})
    assert library.asked == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON"),
        ("[]", "object"),
        ("null", "object"),
        ({}, "query: Field required"),
        ({"query": ""}, "query: "),
        ({"query": "x" * 5_000}, "query: "),
        ({"query": 7}, "query: "),
        ({"query": "x", "top_k": 1_000}, "top_k: "),
        ({"query": "x", "top_k": "many"}, "top_k: "),
        ({"query": "x", "y" * 5_000: 1}, "Extra"),
        ('{"query": "\\ud800"}', "JSON"),
    ],
)
async def test_arguments_that_do_not_fit_are_a_result_that_says_why(
    box: ToolBox, library: Library, arguments: Any, problem: str
) -> None:
    error = await error_of(box, "vector_search", arguments)
    assert problem in error or len(error) == ERROR_CHARS_MAX
    assert len(error) <= ERROR_CHARS_MAX
    assert library.asked == []


async def test_a_tool_that_does_not_exist_is_a_result_that_names_those_that_do(box: ToolBox) -> None:
    error = await error_of(box, "rm_rf", {"path": "/"})
    assert "vector_search, kv_get" in error


async def test_a_part_of_the_service_that_is_restarting_is_a_result_that_says_when(
    box: ToolBox, search: Handle
) -> None:
    search.errors["find"] = VectorsUnavailable(f"no {own_tools.SECRET}", 1.0)
    assert "later" in await error_of(box, "vector_search", {"query": "why"})


async def test_a_value_that_is_too_large_is_a_result_that_says_so(box: ToolBox, objects: FailingObjects) -> None:
    await objects.namespace(KeyValue).get("acme", STORE_NAME).put("large", "x" * 9_000)
    assert "8000" in await error_of(box, "kv_get", {"key": "large"})


def test_a_model_is_told_names_descriptions_and_schemas_without_the_context(box: ToolBox) -> None:
    search, get = box.specs
    assert (search.name, get.name) == ("vector_search", "kv_get")
    assert search.description.startswith("Searches the documents")
    assert search.parameters["additionalProperties"] is False
    assert search.parameters["required"] == ["query"]
    assert search.parameters["properties"]["top_k"] == {
        "default": 4, "description": "how many passages", "maximum": 20, "minimum": 1, "type": "integer"
    }  # fmt: skip
    assert list(get.parameters["properties"]) == ["key"]


def test_a_tenant_that_enables_none_has_no_box(search: Handle, objects: FailingObjects) -> None:
    assert toolbox_of(tenant("acme"), search=search, objects=objects) is None


# Tools of a tenant's own


async def test_a_function_by_import_path_becomes_a_tool(search: Handle, objects: FailingObjects) -> None:
    path = "tests.unit.own_tools:weather"
    box = toolbox_of(with_tools(path), search=search, objects=objects)
    assert box is not None
    assert box.specs[0].description == "The weather of a place."
    assert await result_of(box, "weather", {"place": "Ulm"}) == {"place": "Ulm", "days": 1, "for": "acme"}
    assert "days" in await error_of(box, "weather", {"place": "Ulm", "days": 8})


async def test_a_plain_function_runs_in_a_thread_with_names_that_pydantic_has_too() -> None:
    box = own("plain")
    assert list(box.specs[0].parameters["properties"]) == ["json", "copy"]
    assert await result_of(box, "plain", {"json": "x", "copy": ["1", 2]}) == ["x", [1, 2], False]
    assert await result_of(box, "plain") == ["none", None, False]


async def test_a_tool_is_told_for_whom_it_runs() -> None:
    assert await result_of(own("whoami"), "whoami") == "acme/s1/t1"


async def test_a_tool_may_tell_the_model_why_it_failed() -> None:
    assert await error_of(own("explains"), "explains") == "the shop is closed on Sundays"


@pytest.mark.parametrize(
    "name",
    ["raises", "raises_plainly", "leaves", "leaves_plainly", "gives_up", "nothing_json", "not_a_number"],
)
async def test_a_tool_that_fails_is_a_result_that_tells_nothing_of_how(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert await error_of(own(name), name) == "the tool failed"
    if name.startswith(("raises", "leaves")):
        assert own_tools.SECRET in caplog.text
        assert "tenant=acme" in caplog.text


async def test_half_a_character_in_a_result_becomes_what_utf_8_can_hold() -> None:
    assert await result_of(own("half"), "half") == "a\ufffd"


async def test_a_result_may_be_as_large_as_allowed_and_no_larger() -> None:
    box = own("much", result_bytes_max=1000)
    assert len(await result_of(box, "much", {"bytes": 998})) == 998
    assert "1001 bytes" in await error_of(box, "much", {"bytes": 999})


@pytest.mark.parametrize("name", ["sleeps", "stubborn"])
async def test_a_tool_that_takes_too_long_is_cancelled_and_a_result(name: str) -> None:
    async with asyncio.timeout(5):
        assert "longer than 0.05 s" in await error_of(own(name, timeout_s=0.05), name)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_a_caller_that_has_less_time_is_given_less() -> None:
    async with asyncio.timeout(5):
        result = await own("sleeps").run(call("sleeps"), CONTEXT, timeout_s=0.05)
    assert "0.05 s" in result.content


async def test_cancelling_the_caller_cancels_the_tool() -> None:
    running = asyncio.ensure_future(own("sleeps").run(call("sleeps"), CONTEXT))
    before = asyncio.all_tasks()
    while len(inner := asyncio.all_tasks() - before) < 1:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait(inner, timeout=5)
    assert all(task.cancelled() for task in inner)


async def test_plain_functions_that_never_return_keep_their_threads_and_nothing_else() -> None:
    may_end = threading.Event()

    def hangs(context: ToolContext) -> None:
        """Hangs."""
        may_end.wait()

    def quick(context: ToolContext) -> str:
        """Does not."""
        return "done"

    other = ToolBox([tool_from(quick, name="quick")], timeout_s=5, result_bytes_max=100)
    box = ToolBox(
        [tool_from(hangs, name="hangs"), tool_from(quick, name="quick")], timeout_s=0.05, result_bytes_max=100
    )
    try:
        hung = await asyncio.gather(*(box.run(call("hangs"), CONTEXT) for _ in range(THREADS_MAX + 2)))
        assert all("longer than" in result.content for result in hung)
        assert "longer than" in await error_of(box, "quick")
        assert await result_of(other, "quick") == "done"
    finally:
        may_end.set()
        box.close()
        other.close()


def test_two_tools_of_one_name_are_refused() -> None:
    tool = tool_from(own_tools.weather, name="weather")
    with pytest.raises(ValueError, match="weather"):
        ToolBox([tool, tool], timeout_s=1, result_bytes_max=1000)


def test_what_a_client_is_shown_of_a_result_is_its_value() -> None:
    assert ToolResult(id="c1", name="f", content='{"a":[1]}').shown() == {"id": "c1", "name": "f", "result": {"a": [1]}}


# What is refused at start


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no.such_module:tool", "can't import no.such_module (ModuleNotFoundError"),
        ("tests.unit.own_tools:missing", "has no missing"),
        ("tests.unit.own_tools:number", "is no function"),
        ("tests.unit.own_tools:without_context", "first parameter of the type ToolContext"),
        ("tests.unit.own_tools:without_parameters", "first parameter of the type ToolContext"),
        ("tests.unit.own_tools:undocumented", "needs a docstring"),
        ("tests.unit.own_tools:starred", "each argument needs a name"),
        ("tests.unit.own_tools:takes_functions", "JSON can't hold"),
    ],
)
def test_a_path_that_leads_to_no_tool_is_refused_by_file_and_field(path: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check({"acme": with_tools("kv_get", path)}, Path("/etc/tenants"))
    assert refused.value.file == "/etc/tenants/acme.yaml"
    assert refused.value.field == "tools.enabled[1]"
    assert refused.value.value == ascii(path)
    assert problem in refused.value.problem
    assert "\n" not in str(refused.value)


def test_tools_that_can_be_offered_pass_the_check() -> None:
    check({"acme": with_tools("kv_get", "tests.unit.own_tools:weather"), "none": tenant("none")}, Path("/etc"))


def test_a_parameter_without_a_type_is_refused() -> None:
    def untyped(context: ToolContext, place: str) -> str:
        """Takes anything."""
        return place

    del untyped.__annotations__["place"]
    with pytest.raises(ValueError, match="a type for its parameter place"):
        tool_from(untyped, name="untyped")
