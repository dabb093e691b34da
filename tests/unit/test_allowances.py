"""Is a turn begun, and a model asked, only where the tenant may use more, and does what has ended keep none of it?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from actors import ObjectConflict, ObjectOverloaded, ObjectReset, TokenUsage
from actors.runtime.call import Call, Reply
from actors.runtime.object_id import ObjectId
from actors.token_usage import TURNS_PER_CLIENT, TURNS_PER_TENANT, USAGE_NAME, Allowance
from actors.turn_leases import LEASE_S
from configs.budgets import BudgetConfig, ConcurrencyConfig
from configs.limits import TenantLimits
from configs.service import ServiceConfig
from configs.tenant import ModelConfig, TenantConfig, ToolsConfig
from deployments import chat as chat_deployment
from deployments.allowances import Allowances
from deployments.chat import Chat
from deployments.chat_request import ChatRequest, Finished, ModelEvent, ToolCall
from deployments.errors import BudgetExceeded, BudgetTooSmall, ModelRefused, ModelUnavailable, TooManyTurns
from deployments.limit_changes import LimitChanges
from deployments.limit_counts import LimitCounts
from deployments.live_limits import LiveLimits
from deployments.question import Asked, Question
from deployments.tenant_files import TenantFiles
from tests.unit.handles import EchoModel, tenant
from tests.unit.objects_fixtures import ring
from tests.unit.talk import Talk, question, talk_at, until

ANSWER_TOKENS = 100
USAGE = "TokenUsage"


def limited(
    name: str,
    *,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    per_client: int | None = None,
    per_tenant: int | None = None,
    **more: Any,
) -> TenantConfig:
    """A tenant whose answers have up to 100 tokens, and its budgets for a day."""
    budget = BudgetConfig(name="daily", per="day", input_tokens=input_tokens, output_tokens=output_tokens or 10**6)
    return tenant(
        name,
        **{"model": ModelConfig(max_tokens=ANSWER_TOKENS), **more},
        budgets=(budget,) if input_tokens or output_tokens else (),
        concurrency=ConcurrencyConfig(per_client=per_client, per_tenant=per_tenant),
    )


def failing(fail: Literal["open", "closed"]) -> TenantLimits:
    """Soon, where nobody answers; later than a host that is busy."""
    return TenantLimits(fail=fail, fail_after_s=0.2)


SERVER = ModelConfig(base_url="http://127.0.0.1:1/v1", model="m", max_tokens=ANSWER_TOKENS)
TENANTS = {
    "acme": tenant("acme"),
    # Five answers at once.
    "frugal": limited("frugal", output_tokens=5 * ANSWER_TOKENS),
    "busy": limited("busy", per_client=2, per_tenant=3),
    "both": limited("both", output_tokens=10 * ANSWER_TOKENS, per_client=1),
    "tiny": limited("tiny", output_tokens=ANSWER_TOKENS - 1),
    "tooled": limited(
        "tooled",
        output_tokens=ANSWER_TOKENS + 50,
        model=SERVER,
        tools=ToolsConfig(enabled=("tests.unit.own_tools:whoami",)),
    ),
    "hasty": limited(
        "hasty",
        output_tokens=5 * ANSWER_TOKENS,
        model=SERVER,
        tools=ToolsConfig(enabled=("tests.unit.own_tools:whoami",)),
        limits=failing("closed"),
    ),
    # What the question comes to in bytes is more than one of sixteen parts of it.
    "counted": limited("counted", input_tokens=1_000),
    "rich": limited("rich", input_tokens=10**6),
    "open": limited("open", output_tokens=5 * ANSWER_TOKENS, per_client=2, limits=failing("open")),
    "closed": limited("closed", output_tokens=5 * ANSWER_TOKENS, per_client=2, limits=failing("closed")),
    "estimated": limited("estimated", input_tokens=10**6, model=SERVER),
}


class Counting(EchoModel):
    """Counts tokens, and how often it was asked to."""

    counted = 0

    async def count_tokens(self, texts: Any) -> list[int]:
        self.counted += 1
        return await super().count_tokens(texts)


class Calling(EchoModel):
    """Says its pieces, and has a tool run first."""

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        calls = sum(len(message.tool_calls) for message in request.messages)
        async for event in super().stream(request):
            if isinstance(event, Finished) and not calls:
                yield ToolCall(id="c1", name="whoami", arguments="{}")
            yield event


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    with talk_at(tmp_path, TENANTS) as talk:
        yield talk


@pytest.fixture
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.turn_runner.CLAIM_WAIT_S", 0.05)


def of(name: str, message: str = "Why?", **fields: Any) -> Question:
    return question(message, tenant=name, retrieve=False, asker="ann", **fields)


async def left(talk: Talk, name: str, client: str = "ann") -> Allowance:
    allowances = Allowances(talk.objects, TENANTS, EchoModel(), LiveLimits(TENANTS), LimitCounts(lambda *_: None))
    return await allowances.left(name, client)


async def spent(talk: Talk, name: str, kind: str = "output_tokens") -> tuple[int, int]:
    """Used and promised."""
    (state,) = (await left(talk, name))["budgets"]
    found = state["output_tokens"] if kind == "output_tokens" else state["input_tokens"]
    return found["used"], found["promised"]


async def in_flight(talk: Talk, name: str, client: str = "ann") -> tuple[int, int]:
    turns = (await left(talk, name, client))["turns_in_flight"]
    assert turns is not None
    return turns["client"], turns["tenant"]


@pytest.mark.parametrize(("accepts", "is_paid"), [(True, True), (False, False)])
async def test_a_prompt_that_was_read_is_paid_for_though_nothing_came_of_it(
    talk: Talk, accepts: bool, is_paid: bool
) -> None:
    model = EchoModel()
    model.accepts = accepts
    model.failure = ModelUnavailable("the answer broke off", 60.0)
    await talk.answer(talk.replica(model), of("rich"))

    async def is_settled() -> bool:
        used, promised = await spent(talk, "rich", "input_tokens")
        return promised == 0 and used == (model.requests[0].estimated_input_tokens() if is_paid else 0)

    await until(is_settled)


async def sessions_of(talk: Talk, name: str) -> int:
    return len((await talk.sessions.page(name, limit=100, after=None, user_id=None))["sessions"])


async def all_begun(chat: Chat, questions: list[Question]) -> tuple[list[Asked], list[TooManyTurns | BudgetExceeded]]:
    """At once."""
    found = await asyncio.gather(*(chat.begin(one) for one in questions), return_exceptions=True)
    begun = [one for one in found if isinstance(one, Asked)]
    refused = [one for one in found if isinstance(one, TooManyTurns | BudgetExceeded)]
    assert len(begun) + len(refused) == len(questions)
    return begun, refused


async def come_back(talk: Talk, name: str) -> None:
    """What is told after a call is on its way while the turn ends."""

    async def has_come_back() -> bool:
        now = await left(talk, name)
        turns = now["turns_in_flight"]
        promised = [state["output_tokens"]["promised"] for state in now["budgets"]]
        return not any(promised) and (turns is None or turns["tenant"] == 0)

    await until(has_come_back)


async def test_a_tenant_without_limits_is_not_asked_about(talk: Talk) -> None:
    await talk.answer(talk.replica(EchoModel("Because")), question())
    # What it has used is counted all the same.
    assert {method for name, method in talk.objects.calls if name == USAGE} <= {"add"}


@pytest.mark.parametrize(
    ("name", "questions", "counted"),
    [
        ("frugal", ["admit"], 0),
        ("busy", ["admit"], 0),
        ("both", ["admit"], 0),
        ("rich", ["admit"], 0),
        ("estimated", ["admit"], 0),
        ("counted", ["admit", "admit"], 1),
    ],
)
@pytest.mark.parametrize("has_history", [False, True])
async def test_a_model_is_asked_after_one_question_to_the_owner(
    talk: Talk, name: str, questions: list[str], counted: int, has_history: bool
) -> None:
    model = Counting("Because", stalls_at=0)
    session_id: str | None = None
    if has_history:
        session_id = await talk.new_session(name)
        await talk.sessions.append(name, session_id, "user", "Where were we?")
        if name == "counted":
            # Little is left, so that only what is known is promised first, and then what has come to be known.
            questions, counted = [*questions, "reserve"], 2
    asked = await talk.replica(model).begin(of(name, session_id=session_id))
    await model.stalled.wait()
    assert [method for of_class, method in talk.objects.calls if of_class == USAGE] == questions
    assert model.counted == counted
    model.may_go_on.set()
    await talk.ended(asked, name)
    await come_back(talk, name)


async def test_many_at_once_are_answered_no_more_than_the_budget_pays_for(talk: Talk) -> None:
    model = EchoModel("Because", stalls_at=0)
    begun, refused = await all_begun(talk.replica(model), [of("frugal") for _ in range(50)])
    assert len(begun) == 5
    assert {type(error) for error in refused} == {BudgetExceeded}
    assert {(error.policies, error.retry_after_s) for error in refused} == {(("daily",), 5.0)}
    assert await sessions_of(talk, "frugal") == 5
    assert await spent(talk, "frugal") == (0, 500)
    model.may_go_on.set()
    for asked in begun:
        await talk.ended(asked, "frugal")
    assert len(model.requests) == 5
    await come_back(talk, "frugal")
    assert await spent(talk, "frugal") == (5, 0)


async def test_what_turns_have_used_is_spent_once_before_and_after_it_is_counted(talk: Talk) -> None:
    asked = await (chat := talk.replica(EchoModel(*["word"] * 60))).begin(of("frugal"))
    await talk.ended(asked, "frugal")
    await come_back(talk, "frugal")
    assert await spent(talk, "frugal") == (60, 0)
    await ring(talk.objects, talk.clock)
    days = await talk.objects.namespace(TokenUsage).get("frugal", USAGE_NAME).days("0000", "9999")
    assert [day["output_tokens"] for day in days] == [60]
    assert await spent(talk, "frugal") == (60, 0)
    await chat.drain()


async def test_a_call_that_fails_gives_back_what_it_was_promised(talk: Talk) -> None:
    model = EchoModel("Because", failure=ModelRefused("no", None))
    model.failures = [ModelRefused("no", None)]
    for used in (0, 1):
        asked = await talk.replica(model).begin(of("both"))
        await talk.ended(asked, "both")
        await come_back(talk, "both")
        assert await spent(talk, "both") == (used, 0)


async def test_a_turn_that_is_stopped_keeps_what_it_used_and_nothing_else(talk: Talk) -> None:
    # It can't be counted for now: the calls themselves are what is known of it.
    talk.objects.failing[USAGE, "add"] = [ObjectOverloaded("TokenUsage/both:tokens", "too many calls", 2.0)] * 10
    model = EchoModel("Be", "cause", stalls_at=1)
    asked = await talk.replica(model).begin(of("both"))
    await model.stalled.wait()
    assert (await spent(talk, "both"), await in_flight(talk, "both")) == ((0, 100), (1, 1))
    await talk.turns.cancel("both", asked.session_id, asked.turn_id)
    await come_back(talk, "both")
    assert await spent(talk, "both") == (1, 0)
    assert await talk.objects.namespace(TokenUsage).get("both", USAGE_NAME).days("0000", "9999") == []


async def test_a_turn_that_needs_more_in_the_middle_than_there_is_ends_with_what_it_has(talk: Talk) -> None:
    model = Calling(*["word"] * 60)
    asked = await talk.replica(model).begin(of("tooled"))
    turn = await talk.ended(asked, "tooled")
    assert turn["status"] == "incomplete"
    assert turn["error"] is not None
    assert (turn["error"]["code"], turn["error"]["violated_policies"]) == ("BudgetExceeded", ["daily"])
    assert turn["error"]["message"] == "the token budget is used up (daily)"
    assert turn["error"]["retryable"]
    assert len(model.requests) == 1
    await come_back(talk, "tooled")
    assert await spent(talk, "tooled") == (60, 0)


async def test_a_step_may_use_what_the_one_before_has_left(talk: Talk) -> None:
    model = Calling(*["word"] * 25)
    turn = await talk.ended(await talk.replica(model).begin(of("tooled")), "tooled")
    assert (turn["status"], len(model.requests)) == ("completed", 2)
    await come_back(talk, "tooled")
    assert await spent(talk, "tooled") == (50, 0)


async def test_a_call_that_no_day_can_pay_for_is_refused_for_ever(talk: Talk) -> None:
    with pytest.raises(BudgetTooSmall) as refused:
        await talk.replica(EchoModel("Because")).begin(of("tiny"))
    assert (refused.value.policies, refused.value.output_tokens) == (("daily",), ANSWER_TOKENS)
    assert not refused.value.retryable
    assert await sessions_of(talk, "tiny") == 0
    asked = await talk.replica(EchoModel("Because")).begin(of("tiny", max_tokens=ANSWER_TOKENS - 1))
    assert (await talk.ended(asked, "tiny"))["status"] == "completed"


async def test_a_prompt_is_counted_where_little_is_left(talk: Talk) -> None:
    model = Counting("Because")
    prompts = []
    for _ in range(12):
        asked = await talk.replica(model).begin(of("counted"))
        await talk.ended(asked, "counted")
        prompts.append(model.counted)
    assert prompts == list(range(1, 13))
    with pytest.raises(BudgetTooSmall):
        await talk.replica(model).begin(of("counted", "word " * 1_000))


async def test_turns_in_flight_are_limited_by_client_and_for_all(talk: Talk) -> None:
    model = EchoModel("Because", stalls_at=0)
    chat = talk.replica(model)
    begun, refused = await all_begun(chat, [of("busy") for _ in range(20)])
    assert len(begun) == 2
    assert {(type(error), error.policies, error.retry_after_s) for error in refused} == {
        (TooManyTurns, (TURNS_PER_CLIENT,), 1.0)
    }
    bobs = question("Why?", tenant="busy", retrieve=False, asker="bob")
    more, refused = await all_begun(chat, [bobs for _ in range(20)])
    assert len(more) == 1
    assert {error.policies for error in refused} == {(TURNS_PER_TENANT,)}
    assert await in_flight(talk, "busy", "bob") == (1, 3)
    model.may_go_on.set()
    for asked in (*begun, *more):
        await talk.ended(asked, "busy")
    await come_back(talk, "busy")
    assert len((await all_begun(chat, [of("busy"), of("busy")]))[0]) == 2


@pytest.mark.usefixtures("without_waiting")
async def test_turns_that_wait_are_in_flight(talk: Talk) -> None:
    model = EchoModel("Because", stalls_at=0)
    chat = talk.replica(model)
    session_id = await talk.new_session("busy")
    begun, refused = await all_begun(chat, [of("busy", session_id=session_id) for _ in range(3)])
    assert (len(begun), len(refused)) == (2, 1)
    model.may_go_on.set()
    for asked in begun:
        assert (await talk.ended(asked, "busy"))["status"] == "completed"
    await come_back(talk, "busy")


async def test_a_request_that_joins_a_turn_is_charged_and_denied_nothing(talk: Talk) -> None:
    model = EchoModel("Because", stalls_at=0)
    chat = talk.replica(model)
    session_id = await talk.new_session("both")
    first = await chat.begin(of("both", session_id=session_id, key="k1"))
    await model.stalled.wait()
    second = await talk.replica(model).begin(of("both", session_id=session_id, key="k1"))  # one is all there may be
    assert (second.turn_id, second.joined) == (first.turn_id, True)
    assert (await spent(talk, "both"), await in_flight(talk, "both")) == ((0, 100), (1, 1))
    model.may_go_on.set()
    await talk.ended(first, "both")
    await come_back(talk, "both")
    assert (await chat.begin(of("both", session_id=session_id, key="k1"))).joined
    await come_back(talk, "both")
    assert len(model.requests) == 1


async def test_a_turn_that_is_not_begun_after_all_gives_everything_back(talk: Talk) -> None:
    session_id = await talk.new_session("both")
    talk.objects.failing["ChatSession", "begin"] = [ObjectConflict("ChatSession/both:s", "an answer is under way")]
    with pytest.raises(ObjectConflict):
        await talk.replica(EchoModel("Because")).begin(of("both", session_id=session_id))
    assert (await spent(talk, "both"), await in_flight(talk, "both")) == ((0, 0), (0, 0))


async def test_where_nobody_can_say_nothing_is_begun(talk: Talk) -> None:
    talk.objects.failing[USAGE, "admit"] = [ObjectOverloaded("TokenUsage/both:tokens", "too many calls", 2.0)]
    with pytest.raises(ObjectOverloaded):
        await talk.replica(EchoModel("Because")).begin(of("both"))
    assert await sessions_of(talk, "both") == 0


# Changed while it runs


def written(talk: Talk, name: str, more: str) -> None:
    """The tenant's file as it is from now on."""
    text = f"tenant: {name}\nkeys: [{{id: all, plain: sk-{name}, scopes: [chat]}}]\n"
    (talk.tenants_dir / f"{name}.yaml").write_text(f"{text}model: {{max_tokens: {ANSWER_TOKENS}}}\n{more}\n")


async def changes_heard_by(talk: Talk, chat: Chat) -> LimitChanges:
    """Those of an ingress, once the replica listens to what it tells."""
    await chat.check_health()
    async with asyncio.timeout(SOON_S):
        while talk.objects.calls.count(("LimitNews", "poll")) < 2:
            await asyncio.sleep(0.01)
    files = TenantFiles(ServiceConfig(tenants_dir=talk.tenants_dir), TENANTS)
    clock = talk.clock.monotonic
    return LimitChanges(talk.objects, files, LiveLimits(TENANTS), (), reader="ingress", monotonic=clock)


def daily(output_tokens: int, name: str = "daily") -> str:
    return f"budgets: [{{name: {name}, per: day, output_tokens: {output_tokens}}}]"


async def test_budgets_that_have_changed_hold_for_the_next_turn_and_give_nobody_tokens(talk: Talk) -> None:
    model = EchoModel(*["word"] * 60)
    chat = talk.replica(model)
    changes = await changes_heard_by(talk, chat)
    await talk.ended(await chat.begin(of("frugal")), "frugal")
    await come_back(talk, "frugal")
    model.stalls_at = 0
    under_way = await chat.begin(of("frugal"))
    # 60 are used, and 100 promised to a turn that was begun before: by whichever name, there is no room for 100 more.
    for more in (daily(259), daily(259, "other")):
        written(talk, "frugal", more)
        await changes.announce()
        with pytest.raises(BudgetExceeded):
            await chat.begin(of("frugal"))
    # What is used while there is no budget counts for the one that comes.
    written(talk, "frugal", "budgets: []")
    await changes.announce()
    unlimited = await chat.begin(of("frugal"))
    model.may_go_on.set()
    for asked in (under_way, unlimited):
        await talk.ended(asked, "frugal")
    await ring(talk.objects, talk.clock)
    written(talk, "frugal", daily(279))
    await changes.announce()
    with pytest.raises(BudgetExceeded):
        await chat.begin(of("frugal"))
    written(talk, "frugal", daily(280))
    await changes.announce()
    assert (await talk.ended(await chat.begin(of("frugal")), "frugal"))["status"] == "completed"
    await chat.drain()


async def test_turns_of_a_tenant_that_had_no_limits_are_limited_when_its_file_says_so(talk: Talk) -> None:
    model = EchoModel("Because", stalls_at=0)
    chat = talk.replica(model)
    changes = await changes_heard_by(talk, chat)
    begun = [await chat.begin(of("acme"))]
    written(talk, "acme", "concurrency: {per_client: 1}\nlimits: {fail: open}")
    await changes.announce()
    # One that was begun without a lease is not counted.
    begun.append(await chat.begin(of("acme")))
    with pytest.raises(TooManyTurns):
        await chat.begin(of("acme"))
    talk.objects.failing[USAGE, "admit"] = [UNHEARD] * 1_000
    begun.append(await chat.begin(of("acme")))
    written(talk, "acme", "concurrency: {per_client: null}")
    await changes.announce()
    begun.append(await chat.begin(of("acme")))
    model.may_go_on.set()
    for asked in begun:
        assert (await talk.ended(asked, "acme"))["status"] == "completed"
    await chat.drain()


#: Far less than a call of an object has by itself.
SOON_S = 5.0
UNHEARD = ObjectReset("TokenUsage/open:tokens", "its host was lost")


@pytest.fixture(params=["lost", "hangs"])
def is_away(request: pytest.FixtureRequest, talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of budgets can't be asked for anything."""
    send = talk.objects.send

    async def hang(object_id: ObjectId, call: Call) -> Reply:
        if (object_id.class_name, call[3]) in ((USAGE, "admit"), (USAGE, "reserve")):
            await asyncio.Event().wait()
        return await send(object_id, call)

    if request.param == "hangs":
        monkeypatch.setattr(talk.objects, "send", hang)
    else:
        talk.objects.failing.update({(USAGE, method): [UNHEARD] * 1_000 for method in ("admit", "reserve")})


@pytest.mark.usefixtures("is_away")
async def test_where_the_owner_is_away_a_tenant_that_fails_closed_is_refused_when_it_says_and_that_is_counted(
    talk: Talk,
) -> None:
    chat = talk.replica(EchoModel("Because"))
    async with asyncio.timeout(SOON_S):
        for _ in range(2):
            with pytest.raises(ObjectReset):
                await chat.begin(of("closed"))
    assert await sessions_of(talk, "closed") == 0
    await chat.drain()
    assert talk.counted == {("refused", "closed", "budgets"): 2}


@pytest.mark.usefixtures("is_away")
async def test_where_the_owner_is_away_a_tenant_that_fails_open_is_let_through_when_it_says_and_that_is_counted(
    talk: Talk,
) -> None:
    model = EchoModel("Because")
    chat = talk.replica(model)
    async with asyncio.timeout(SOON_S):
        for _ in range(2):
            asked = await chat.begin(of("open"))
            assert (await talk.ended(asked, "open"))["status"] == "completed"
    assert len(model.requests) == 2
    await chat.drain()
    assert talk.counted == {("let_through", "open", "budgets"): 2}


async def test_who_overloads_the_owner_is_refused_whatever_its_tenant_says(talk: Talk) -> None:
    talk.objects.failing[USAGE, "admit"] = [ObjectOverloaded("TokenUsage/open:tokens", "too many calls", 2.0)]
    chat = talk.replica(EchoModel("Because"))
    with pytest.raises(ObjectOverloaded):
        await chat.begin(of("open"))
    assert await sessions_of(talk, "open") == 0
    await chat.drain()
    assert talk.counted == {("refused", "open", "budgets"): 1}


async def test_a_call_does_not_wait_for_long_until_what_the_one_before_has_used_is_told(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = talk.objects.send

    async def hang(object_id: ObjectId, call: Call) -> Reply:
        if (object_id.class_name, call[3]) == (USAGE, "settle"):
            await asyncio.Event().wait()
        return await send(object_id, call)

    monkeypatch.setattr(talk.objects, "send", hang)
    model = Calling(*["word"] * 25)
    async with asyncio.timeout(SOON_S):
        turn = await talk.ended(await talk.replica(model).begin(of("hasty")), "hasty")
    assert (turn["status"], len(model.requests)) == ("completed", 2)


async def test_the_lease_of_a_turn_that_runs_is_renewed(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_deployment, "Allowances", lambda *given: Allowances(*given, renew_every_s=0.01))
    model = EchoModel("Because", stalls_at=0)
    asked = await talk.replica(model).begin(of("both"))
    await model.stalled.wait()
    for _ in range(3):
        talk.clock.advance(LEASE_S - 1)
        talk.objects.calls.clear()
        async with asyncio.timeout(10):
            while (USAGE, "renew") not in talk.objects.calls:
                await asyncio.sleep(0)
        await asyncio.sleep(0.02)
    assert await in_flight(talk, "both") == (1, 1)
    model.may_go_on.set()
    await talk.ended(asked, "both")
    await come_back(talk, "both")


async def test_a_lost_turn_holds_its_lease_for_its_client_when_another_runs_it(talk: Talk) -> None:
    lost = EchoModel("Because", stalls_at=0)
    asked = await talk.replica(lost).begin(of("both"))
    await lost.stalled.wait()
    talk.clock.advance(LEASE_S)  # its runner is not heard of any more, as far as anybody knows
    assert await in_flight(talk, "both") == (0, 0)
    other = EchoModel("Because", stalls_at=0)
    replica = talk.replica(other)
    await ring(talk.objects, talk.clock)
    await replica.check_health()
    await other.stalled.wait()

    async def is_held() -> bool:
        return await in_flight(talk, "both") == (1, 1)

    await until(is_held)
    other.may_go_on.set()
    await talk.ended(asked, "both")
    await replica.drain()


async def test_a_question_that_nobody_waits_for_any_more_gives_everything_back(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, entering = talk.replica(EchoModel("Because")), asyncio.Event()

    async def enter(*_: object) -> None:
        entering.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(chat, "_enter", enter)
    asking = asyncio.create_task(chat.begin(of("both")))
    await entering.wait()
    assert await in_flight(talk, "both") == (1, 1)
    asking.cancel()
    await asyncio.wait({asking})
    await come_back(talk, "both")
