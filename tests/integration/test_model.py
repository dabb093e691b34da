"""Does the embedded model answer, many at once, stop when nobody listens, and do all that through Serve too?"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray import serve

from actors.message import Message
from deployments.chat_client import ChatClient
from deployments.chat_request import Accepted, ChatMessage, ChatRequest, Finished, ModelEvent, TextDelta
from deployments.embedded_client import EmbeddedAccess, EmbeddedClient
from deployments.embedded_model import MODEL_NAME, EmbeddedServer, EmbeddedSettings, packaged_weights
from deployments.errors import ModelRefused, ModelUnavailable
from deployments.model import ModelDeployment
from deployments.model_client import ModelClient
from deployments.prompt import build

SETTINGS = EmbeddedSettings(parallel=4, context_tokens=1024, waiting_max=2)
#: From the moment the stop was asked for.
STOPPED_WITHIN_S = 1.0


def question(text: str, *, max_tokens: int = 24) -> ChatRequest:
    return ChatRequest(
        messages=(
            ChatMessage(role="system", content="You are a helpful assistant."),
            ChatMessage(role="user", content=text),
        ),
        max_tokens=max_tokens,
        timeout_s=120,
        temperature=0.0,
    )


FRANCE = question("What is the capital of France?")
STORY = question("Count from one to one thousand.", max_tokens=900)


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(SETTINGS)
    yield server
    server.close()


@pytest.fixture
async def client() -> AsyncIterator[ChatClient]:
    client = ChatClient(environ={}, trust_environment=False)
    yield client
    await client.close()


async def answer(client: ChatClient, server: EmbeddedServer, request: ChatRequest) -> list[ModelEvent]:
    events = client.stream(request, base_url=server.base_url, model=server.model, api_key=server.api_key)
    return [event async for event in events]


async def first_of(stream: AsyncGenerator[ModelEvent, None]) -> ModelEvent:
    """The first that there is of the answer itself."""
    event = await anext(stream)
    return await anext(stream) if isinstance(event, Accepted) else event


def text_of(events: list[ModelEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_the_weights_are_found_without_running_their_package() -> None:
    assert packaged_weights().read_bytes()[:4] == b"GGUF"


async def test_the_model_answers_and_counts_its_tokens(client: ChatClient, embedded: EmbeddedServer) -> None:
    events = await answer(client, embedded, FRANCE)

    assert "Paris" in text_of(events)
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason == "stop"
    assert not end.estimated
    assert end.input_tokens > 10
    assert end.output_tokens > 3


async def test_an_answer_ends_at_the_tokens_asked_for(client: ChatClient, embedded: EmbeddedServer) -> None:
    events = await answer(client, embedded, replace(STORY, max_tokens=5))

    assert isinstance(events[-1], Finished)
    assert events[-1].finish_reason == "length"
    assert events[-1].output_tokens == 5


async def test_four_answers_are_generated_side_by_side(client: ChatClient, embedded: EmbeddedServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        answers = [
            await stack.enter_async_context(
                contextlib.aclosing(
                    client.stream(
                        replace(STORY, messages=(*STORY.messages, ChatMessage(role="user", content=f"From {n}."))),
                        base_url=embedded.base_url,
                        model=embedded.model,
                        api_key=embedded.api_key,
                    )
                )
            )
            for n in range(4)
        ]
        firsts = await asyncio.gather(*map(first_of, answers))

        assert all(isinstance(first, TextDelta) for first in firsts)
        assert embedded.answering() == 4


async def test_closing_an_answer_stops_its_generation(client: ChatClient, embedded: EmbeddedServer) -> None:
    stream = client.stream(STORY, base_url=embedded.base_url, model=embedded.model, api_key=embedded.api_key)
    assert isinstance(await first_of(stream), TextDelta)
    assert embedded.answering() >= 1

    async with asyncio.timeout(STOPPED_WITHIN_S):
        await stream.aclose()
        while await asyncio.to_thread(embedded.answering):
            pass


async def test_an_answer_is_stopped_while_its_question_is_read() -> None:
    server = EmbeddedServer(replace(SETTINGS, parallel=1, context_tokens=4096))
    access = EmbeddedAccess(
        node_id="here",
        base_url=server.base_url,
        tokenize_url=server.tokenize_url,
        health_url=server.health_url,
        model=server.model,
        api_key=server.api_key,
        places=1,
    )
    stream = EmbeddedClient(access).stream(question("word " * 3_900))
    reading = asyncio.ensure_future(first_of(stream))
    while not server.answering():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)

    asked_s = time.process_time()
    reading.cancel()
    while server.answering():
        await asyncio.sleep(0.01)

    # Of the cores, which others use as well: to read all of it takes more than ten.
    assert time.process_time() - asked_s < STOPPED_WITHIN_S
    with pytest.raises(asyncio.CancelledError):
        await reading
    server.close()


async def test_messages_that_do_not_fit_the_context_are_refused(client: ChatClient, embedded: EmbeddedServer) -> None:
    with pytest.raises(ModelRefused) as caught:
        await answer(client, embedded, question("word " * 2_000))

    assert caught.value.code == ModelRefused.CONTEXT_LENGTH


async def test_tokens_are_counted_as_the_model_reads_them(client: ChatClient, embedded: EmbeddedServer) -> None:
    texts = ["Hello world", "", "antidisestablishmentarianism", "日本語 😀", "a\ud800b", "<|im_start|>", "word " * 500]
    counts = await client.count_tokens(texts, url=embedded.tokenize_url, api_key=embedded.api_key, timeout_s=10)

    assert counts[1] == 0
    assert counts[5] == 1
    assert all(
        0 < count <= len(text.encode(errors="surrogatepass")) for text, count in zip(texts, counts, strict=True) if text
    )
    usages = []
    for text in ("", texts[0], texts[6]):
        end = (await answer(client, embedded, question(text, max_tokens=1)))[-1]
        assert isinstance(end, Finished)
        usages.append(end.input_tokens)
    # What one text more costs is what was counted of it.
    assert usages[1] - usages[0] == counts[0]
    assert abs(usages[2] - usages[0] - counts[6]) <= 1  # the space at its end joins what follows


async def test_a_prompt_is_never_larger_than_it_was_counted(client: ChatClient, embedded: EmbeddedServer) -> None:
    class Counter:
        async def count(self, texts: Sequence[str]) -> list[int]:
            return await client.count_tokens(texts, url=embedded.tokenize_url, api_key=embedded.api_key, timeout_s=10)

    history: list[Message] = [
        {
            "id": number,
            "role": ("user", "assistant")[number % 2],
            "content": f"{number}: {'naïve café 😀 ' * (number % 7)}{'and so on ' * (number % 5)}",
            "tokens": None,
            "data": None,
            "created_at": 0.0,
        }
        for number in range(60)
    ]
    prompt = await build(
        system="Be brief.",
        history=history,
        question="What was that?",
        passages=[],
        fence="<<0>>",
        passages_chars_max=1000,
        context_tokens=SETTINGS.context_tokens,
        max_tokens=64,
        counter=Counter(),
    )
    events = await answer(client, embedded, ChatRequest(messages=prompt.messages, max_tokens=1, timeout_s=60))

    room = SETTINGS.context_tokens - 64
    end = events[-1]
    assert isinstance(end, Finished)
    assert prompt.dropped.turns > 0
    # Below, by what the template is taken to add and does not, and by no more than another turn.
    assert room * 0.6 < end.input_tokens <= room


async def test_an_answer_is_gone_on_with_from_any_part_of_it(client: ChatClient, embedded: EmbeddedServer) -> None:
    planets = question("List the planets of the solar system in order, one per line.", max_tokens=24)
    pieces = [event.text for event in await answer(client, embedded, planets) if isinstance(event, TextDelta)]
    for told in (1, len(pieces) // 2):
        part = ChatMessage(role="assistant", content="".join(pieces[:told]))
        rest = replace(planets, messages=(*planets.messages, part), continues=True, max_tokens=24 - told)
        assert text_of(await answer(client, embedded, rest)) == "".join(pieces[told:])


async def test_counting_without_a_server_is_unavailable(client: ChatClient, embedded: EmbeddedServer) -> None:
    with pytest.raises(ModelUnavailable):
        await client.count_tokens(["a"], url="http://127.0.0.1:1/tokenize", api_key="x", timeout_s=5)
    with pytest.raises(ModelUnavailable):
        await client.count_tokens(["a"], url=embedded.tokenize_url, api_key="guess", timeout_s=5)
    with pytest.raises(ModelUnavailable):
        await client.count_tokens(["a"], url=embedded.health_url, api_key=embedded.api_key, timeout_s=5)


async def test_nobody_without_the_key_may_ask(client: ChatClient, embedded: EmbeddedServer) -> None:
    with pytest.raises(ModelRefused):
        _ = [e async for e in client.stream(FRANCE, base_url=embedded.base_url, model=embedded.model, api_key="guess")]


async def test_a_closed_server_is_unavailable(client: ChatClient) -> None:
    server = EmbeddedServer(replace(SETTINGS, parallel=1, context_tokens=256))
    assert await client.get_ok(server.health_url, timeout_s=5)
    server.close()

    assert not await client.get_ok(server.health_url, timeout_s=5)
    with pytest.raises(ModelUnavailable):
        await answer(client, server, FRANCE)


@pytest.fixture(scope="module")
def handle() -> Iterator[Any]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    yield serve.run(ModelDeployment.bind(embedded=SETTINGS), name="model", route_prefix=None)
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(params=["of its node", "of another node"])
def asker(handle: Any, request: pytest.FixtureRequest) -> ModelClient:
    """What asks the deployment's model: itself, or by way of the deployment."""
    if request.param == "of its node":
        return ModelClient.here(handle)
    return ModelClient(handle, node_id="another", environ={})


async def events_of(asker: ModelClient, request: ChatRequest) -> list[ModelEvent]:
    return [event async for event in asker.stream(request)]


async def test_an_answer_streams_through_serve(asker: ModelClient) -> None:
    events = await events_of(asker, FRANCE)

    assert "Paris" in text_of(events)
    assert isinstance(events[-1], Finished)


async def test_an_error_is_of_its_own_class_with_its_fields(asker: ModelClient) -> None:
    with pytest.raises(ModelRefused) as refused:
        await events_of(asker, question("word " * 2_000))
    with pytest.raises(ModelUnavailable) as unavailable:
        await events_of(asker, replace(FRANCE, base_url="http://127.0.0.1:1/v1", model="m"))

    assert refused.value.code == ModelRefused.CONTEXT_LENGTH
    assert refused.value.retry_after_s is None
    assert not refused.value.retryable
    assert unavailable.value.retry_after_s > 0
    assert unavailable.value.retryable


async def test_a_server_that_is_named_needs_the_name_of_a_model(asker: ModelClient) -> None:
    with pytest.raises(ModelRefused, match="name of a model"):
        await events_of(asker, replace(FRANCE, base_url="http://127.0.0.1:1/v1"))


async def test_closed_answers_make_room_for_others(asker: ModelClient) -> None:
    async with asyncio.timeout(60):
        for _ in range(SETTINGS.parallel + SETTINGS.waiting_max + 2):
            async with contextlib.aclosing(asker.stream(STORY)) as stream:
                assert isinstance(await first_of(stream), TextDelta)

        assert "Paris" in text_of(await events_of(asker, FRANCE))


async def test_more_than_may_wait_are_turned_away_at_once(asker: ModelClient) -> None:
    places = SETTINGS.parallel + SETTINGS.waiting_max
    streams = [asker.stream(STORY) for _ in range(places + 3)]

    async def first(stream: Any) -> ModelEvent | ModelUnavailable:
        try:
            event = await first_of(stream)
        except ModelUnavailable as error:
            return error
        return event

    waiting = [asyncio.ensure_future(first(stream)) for stream in streams]
    turned_away = 0
    for done in asyncio.as_completed(waiting):
        turned_away += isinstance(await done, ModelUnavailable)
        if turned_away == 3:
            break

    assert turned_away == 3
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for stream in streams:
        await stream.aclose()


async def test_a_model_that_went_elsewhere_is_found_again(handle: Any) -> None:
    asker = ModelClient.here(handle)
    assert "Paris" in text_of(await events_of(asker, FRANCE))
    assert asker._near is not None
    # What the address of a model that has ended is worth.
    gone = replace(asker._near.access, base_url="http://127.0.0.1:1/v1", tokenize_url="http://127.0.0.1:1/tokenize")
    for ask in (lambda: events_of(asker, FRANCE), lambda: asker.count_tokens(["Hello"])):
        asker._near = EmbeddedClient(gone)
        with pytest.raises(ModelUnavailable):
            await ask()
        assert "Paris" in text_of(await events_of(asker, FRANCE))


async def test_tokens_are_counted(asker: ModelClient) -> None:
    assert await asker.count_tokens(["Hello world", "Hi"]) == [2, 1]


async def test_the_deployment_says_that_it_is_ready(asker: ModelClient) -> None:
    assert await asker.ready()


def test_the_embedded_model_has_a_name() -> None:
    assert SETTINGS.name == MODEL_NAME
