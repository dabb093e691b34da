"""Does OpenAI's package get completions, models and embeddings from the running service?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.integration.calls import contents, eventually, new_session, unique
from tests.integration.conftest import Service
from tests.integration.openai_client import TOOL, openai_client
from tests.integration.scripted_model import KEY, MODEL, ScriptedModel, answer, question

#: For the upstream server to notice, from the moment its client goes away.
STOPPED_WITHIN_S = 1.0
TOOLS: Any = [{"type": "function", "function": TOOL}]


@pytest.fixture
def embedded(service: Service) -> Iterator[openai.OpenAI]:
    with openai_client(service) as client:
        yield client


@pytest.fixture
def scripted(service: Service) -> Iterator[openai.OpenAI]:
    with openai_client(service, KEY) as client:
        yield client


def said(message: str) -> Any:
    return [{"role": "user", "content": message}]


def test_the_embedded_model_answers_whole_and_in_a_stream(embedded: openai.OpenAI) -> None:
    asked: Any = {"model": "embedded", "messages": said("Say hello."), "max_tokens": 8, "temperature": 0}
    whole = embedded.chat.completions.create(**asked)
    ChatCompletion.model_validate(whole.model_dump())
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 8
    stream: Any = embedded.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [ChatCompletionChunk.model_validate(chunk.model_dump()) for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_tool_of_the_client_is_called_and_its_result_answered(scripted: openai.OpenAI) -> None:
    tag = unique("tool")
    messages = said(question(tag, pieces=1, call="look_up"))
    for stream in (False, True):
        asked: Any = {"model": MODEL, "messages": messages, "tools": TOOLS, "tool_choice": "auto"}
        if stream:
            with scripted.chat.completions.stream(**asked) as streamed:
                message: Any = streamed.get_final_completion().choices[0].message
        else:
            message = scripted.chat.completions.create(**asked).choices[0].message
        (call,) = message.tool_calls
        assert (call.id, call.function.name) == (f"call_{tag}", "look_up")
        assert call.function.arguments == f'{{"word": "{tag}"}}'
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "found"}
        after = scripted.chat.completions.create(
            model="default", messages=[*messages, message.to_dict(), result], tools=TOOLS
        )
        assert (after.choices[0].finish_reason, after.choices[0].message.content) == ("stop", answer(tag, 1))


def test_how_an_answer_is_to_be_made_reaches_the_models_server(
    service: Service, scripted: openai.OpenAI, model: ScriptedModel
) -> None:
    tag = unique("options")
    options: Any = {
        "top_p": 0.5,
        "seed": 7,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "stop": ["a", "b"],
        "response_format": {"type": "json_object"},
    }
    asked = said(question(tag, pieces=1, call="look_up"))
    with service.client(KEY) as http:
        metadata = {"session_id": new_session(http).rpartition("/")[2]}
    scripted.chat.completions.create(model=MODEL, messages=asked, metadata=metadata, user=tag, **options)
    assert {name: model.told[tag][name] for name in options} == options
    more: Any
    for more in ({"n": 2}, {"logit_bias": {"1": 1}}):
        with pytest.raises(openai.BadRequestError) as refused:
            scripted.chat.completions.create(model=MODEL, messages=asked, **more)
        assert refused.value.param in more


def test_the_embedded_model_stops_where_it_is_told_to(embedded: openai.OpenAI) -> None:
    asked: Any = {"model": "embedded", "messages": said("Count from 1 to 9."), "max_tokens": 20, "temperature": 0}
    whole = embedded.chat.completions.create(**asked).choices[0].message.content
    assert whole
    middle = whole[len(whole) // 2]
    cut = embedded.chat.completions.create(**asked, stop=middle).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole.partition(middle)[0], "stop")


def test_a_client_that_goes_away_stops_the_model_and_leaves_nothing(
    service: Service, scripted: openai.OpenAI, model: ScriptedModel
) -> None:
    tag = unique("gone")
    stream: Any = scripted.chat.completions.create(
        model=MODEL, messages=said(question(tag, pieces=1000, pause_s=0.05)), stream=True
    )
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    left_s = time.monotonic()
    stream.close()
    eventually(lambda: tag in model.gone, within_s=5)
    assert model.gone[tag] - left_s < STOPPED_WITHIN_S
    with service.client(KEY) as http:
        titles = http.get("/chat/sessions").text
    assert tag not in titles


def test_a_session_is_asked_and_goes_on_without_its_client(service: Service, scripted: openai.OpenAI) -> None:
    tags = [unique("first"), unique("second")]
    with service.client(KEY) as http:
        session = new_session(http)
        metadata = {"session_id": session.rpartition("/")[2]}
        whole = scripted.chat.completions.create(
            model=MODEL, messages=said(question(tags[0], pieces=3)), metadata=metadata
        )
        stream: Any = scripted.chat.completions.create(
            model=MODEL, messages=said(question(tags[1], pieces=20, pause_s=0.02)), metadata=metadata, stream=True
        )
        next(iter(stream))
        stream.close()
        assert whole.choices[0].message.content == answer(tags[0], 3)
        eventually(lambda: len(contents(http, session)) == 4)
        assert contents(http, session)[1::2] == [answer(tags[0], 3), answer(tags[1], 20)]


def test_a_tool_of_the_client_is_called_in_a_session_and_its_result_answered(
    service: Service, scripted: openai.OpenAI, model: ScriptedModel
) -> None:
    for stream in (False, True):
        tag = unique("session_tool")
        with service.client(KEY) as http:
            session = new_session(http)
        asked: Any = {"model": MODEL, "metadata": {"session_id": session.rpartition("/")[2]}, "tools": TOOLS}

        def create(*messages: Any, key: str, stream: bool = stream, asked: Any = asked) -> Any:
            more: Any = {**asked, "messages": messages, "extra_headers": {"Idempotency-Key": key}}
            if not stream:
                return scripted.chat.completions.create(**more).choices[0]
            with scripted.chat.completions.stream(**more) as streamed:
                return streamed.get_final_completion().choices[0]

        first = create(*said(question(tag, pieces=1, call="look_up")), key="k1")
        assert first.finish_reason == "tool_calls"
        (call,) = first.message.tool_calls
        assert (call.id, call.function.arguments) == (f"call_{tag}", f'{{"word": "{tag}"}}')
        with pytest.raises(openai.BadRequestError) as unknown:
            create({"role": "tool", "tool_call_id": "call_0", "content": "found"}, key="k2")
        assert unknown.value.param == "messages"
        answers = [
            create({"role": "tool", "tool_call_id": call.id, "content": "found"}, key=key) for key in ("k3", "k3")
        ]
        assert {(one.finish_reason, one.message.content) for one in answers} == {("stop", answer(tag, 1))}
        assert model.asked.count(tag) == 2
        assert [message["role"] for message in model.told[tag]["messages"][1:]] == ["user", "assistant", "tool"]
        with service.client(KEY) as http:
            assert contents(http, session)[2:] == ["found", answer(tag, 1)]


def test_models_are_listed_and_found(embedded: openai.OpenAI, scripted: openai.OpenAI) -> None:
    assert "embedded" in [model.id for model in embedded.models.list()]
    assert MODEL in [model.id for model in scripted.models.list()]
    assert scripted.models.retrieve("default").id == MODEL
    with pytest.raises(openai.NotFoundError):
        embedded.models.retrieve(MODEL)


def test_embeddings_are_those_that_documents_are_searched_with(embedded: openai.OpenAI) -> None:
    texts = ["The cat sat on the mat.", "A feline was sitting on a rug.", "Interest rates rose."]
    packed = embedded.embeddings.create(model="all-MiniLM-L6-v2", input=texts)
    floats = embedded.embeddings.create(model="all-MiniLM-L6-v2", input=texts, encoding_format="float", dimensions=384)
    vectors = [one.embedding for one in packed.data]
    assert [len(vector) for vector in vectors] == [384] * 3
    assert np.allclose(vectors, [one.embedding for one in floats.data], atol=1e-6)

    def nearness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert nearness(vectors[0], vectors[1]) > nearness(vectors[0], vectors[2]) + 0.3
    # Words, and what the model puts around each text.
    assert 20 < packed.usage.prompt_tokens < 40


def test_what_is_refused_is_told_as_the_package_knows_it(service: Service, embedded: openai.OpenAI) -> None:
    with openai_client(service, "sk-nobody") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with openai_client(service, "sk-chat-only") as talker, pytest.raises(openai.PermissionDeniedError):
        talker.embeddings.create(model="default", input="x")
    with pytest.raises(openai.BadRequestError) as too_long:
        embedded.chat.completions.create(model="default", messages=said("word " * 20_000))
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        embedded.chat.completions.create(model="gpt-6", messages=said("x"))
    assert missing.value.code == "model_not_found"


def test_a_client_that_used_up_its_bucket_is_told_when_to_come_again(service: Service) -> None:
    with openai_client(service, "sk-small", default_headers={"x-client": unique("hasty")}) as hasty:
        for _ in range(30):
            hasty.models.list()
        with pytest.raises(openai.RateLimitError) as limited:
            hasty.models.list()
    assert limited.value.code == "rate_limit_exceeded"
    assert int(limited.value.response.headers["retry-after"]) >= 1
