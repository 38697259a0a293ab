"""Acceptors: the channel, leases over it, and the post that keeps a process there."""

import asyncio
import logging
import math
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.http_services import model
from vllama.reasons import Reason
from vllamad.acceptors import messages, post
from vllamad.acceptors.acceptors import bind_each, deal
from vllamad.acceptors.asking import Asking
from vllamad.acceptors.channel import Channel, Questions
from vllamad.acceptors.granting import Granting
from vllamad.acceptors.logs import to_message, write
from vllamad.acceptors.messages import Ask, Begin, Failure, Find, Found, Granted, Terms, encode
from vllamad.acceptors.post import Outfit, Post
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import Adapter, Model, ModelFile, Recipe
from vllamad.domain.ports import Command
from vllamad.host.logs import event, fields_of
from vllamad.http.services import Policy

ADAPTER = Adapter("ab" * 32, (ModelFile("x", "cd" * 32, 1),), "/adapters/x", 16)
KIND = model(
    "org/kind:v1",
    recipe=Recipe(("base",), {"temperature": 0.0, "top_k": 3, "stop": ("a", "b"), "raw": True}, system="Be brief."),
    adapter=ADAPTER,
    license="long",
)
TERMS = Terms(Policy(origins=("https://a.example",), api_keys=("sixteen-signs-ok",)), "info")
SOON_S = 5.0


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(SOON_S):
            return await work()

    return asyncio.run(bounded())


# --- what is said ---


@pytest.mark.parametrize(
    "said",
    [
        Ask(1, "m", None, ""),
        Ask(2, "m", 0.0, "127.0.0.1"),
        Ask(3, "m", math.inf, "key-1"),
        messages.Logged(1.5, logging.INFO, "vllamad.http", "x", {"a": 1, "b": math.inf, "c": None, "d": "é"}, ""),
    ],
)
def test_what_an_acceptor_says_is_what_is_heard(said: messages.FromAcceptor) -> None:
    assert messages.from_acceptor(encode(said)) == said


def test_a_model_crosses_as_it_is_but_for_its_files_and_licence() -> None:
    heard = messages.from_daemon(encode(Found(1, KIND)))
    assert heard == Found(1, KIND)
    heard = messages.from_daemon(encode(Begin((5, 6), "/run/x", None, TERMS)))
    assert heard == Begin((5, 6), "/run/x", None, TERMS)


def test_nobody_is_believed_to_say_what_is_the_others_to_say() -> None:
    with pytest.raises(ValueError, match="Find"):
        messages.from_daemon(encode(Find(1, "m")))
    with pytest.raises(ValueError, match="Granted"):
        messages.from_acceptor(encode(Granted(1, "/s", "m", "on", 1, 1, 1, None)))
    with pytest.raises(ValueError):
        messages.from_acceptor(b"\xff")


def test_a_failure_is_the_same_one_on_the_other_side() -> None:
    full = VllamaError(Reason.QUEUE_FULL, "server busy", "ask less often", waiting=3, retry_after_s=1.5, limit="x")
    there = Failure.of(full).error()
    assert repr(there) == repr(full) and there.retry_after_s == 2
    lost = Failure.of(ModelNotFound("nobody", "no such thing", "pull it")).error()
    assert isinstance(lost, ModelNotFound) and repr(lost) == repr(ModelNotFound("nobody", "no such thing", "pull it"))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 64))
def test_messages_arrive_whole_and_in_order_however_they_are_cut(said: list[bytes], cut: int) -> None:
    heard: list[bytes] = []
    channel = Channel(heard.append, lambda: None)
    wire = b"".join(len(one).to_bytes(4, "big") + one for one in said)
    for start in range(0, len(wire), cut):
        channel.data_received(wire[start : start + cut])
    assert heard == said


def test_answers_find_who_asked_and_an_end_finds_everyone() -> None:
    async def work() -> None:
        questions = Questions[str]()
        (first, one), (second, two), (_, three) = questions.begin(), questions.begin(), questions.begin()
        two.cancel()
        questions.answer(second, "nobody waits")
        questions.answer(first, "yes")
        assert await one == "yes"
        questions.end(ConnectionResetError("gone"))
        for each in (three, questions.begin()[1]):
            with pytest.raises(ConnectionResetError):
                await each

    run(work)


# --- leases ---


@dataclass(eq=False)
class FakeLease:
    model: Model
    socket: Path = Path("/run/workers/1/s")
    engine_name: str = "served"
    fast_path: str = "on"
    context_length: int = 2048
    load_ns: int = 7
    waited_ns: int = 5
    suspected: int = 0
    broken: VllamaError | None = None
    on_broken: Callable[[VllamaError], None] | None = None

    def suspect(self) -> None:
        self.suspected += 1

    def watch(self, on_broken: Callable[[VllamaError], None]) -> None:
        self.on_broken = on_broken
        if self.broken is not None:
            on_broken(self.broken)


@dataclass
class FakeGate:
    """``refusal`` is raised, else requests wait for ``opened``; counts who waits, holds, and has left."""

    refusal: Exception | None = None
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[tuple[str, float | None, str]] = field(default_factory=list[tuple[str, float | None, str]])
    waiting: int = 0
    held: list[FakeLease] = field(default_factory=list[FakeLease])
    kept: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    broken_from_the_start: VllamaError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def lease(
        self, model: Model, *, keep_alive_s: float | None = None, caller: str = ""
    ) -> AsyncGenerator[FakeLease, None]:
        self.asked.append((model.name, keep_alive_s, caller))
        if self.refusal is not None:
            raise self.refusal
        self.waiting += 1
        self.changed.set()
        try:
            await self.opened.wait()
        finally:
            self.waiting -= 1
            self.changed.set()
        lease = FakeLease(model, broken=self.broken_from_the_start)
        self.held.append(lease)
        self.changed.set()
        try:
            yield lease
        finally:
            self.held.remove(lease)
            self.changed.set()

    def set_keep_alive(self, model: Model, keep_alive_s: float) -> None:
        self.kept.append((model.name, keep_alive_s))

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self.changed.clear()
            await self.changed.wait()


class OneModel:
    """A catalogue."""

    def resolve(self, name: str) -> Model:
        if name not in {KIND.name, "alias"}:
            raise ModelNotFound(name)
        return KIND


@dataclass
class Line:
    """Both ends of a channel, with the services behind one and an acceptor behind the other."""

    asking: Asking
    granting: Granting
    gate: FakeGate
    acceptors_end: Channel
    daemons_end: Channel


@asynccontextmanager
async def line(gate: FakeGate) -> AsyncIterator[Line]:
    ours, theirs = socket.socketpair()
    made: dict[str, Any] = {}

    def hear(data: bytes) -> None:
        message = messages.from_daemon(data)
        assert isinstance(message, messages.Found | Granted | messages.Refused | messages.Broken | messages.Done)
        made["asking"].take(message)

    def serve(data: bytes) -> None:
        message = messages.from_acceptor(data)
        assert not isinstance(message, messages.Ready | messages.Done | messages.Logged)
        made["granting"].take(message)

    daemons = await Channel.over(ours, serve, lambda: made["granting"].close())
    acceptors = await Channel.over(theirs, hear, lambda: made["asking"].lose())
    made["granting"] = granting = Granting(OneModel(), gate, daemons.send)
    made["asking"] = asking = Asking(acceptors.send, None)
    try:
        yield Line(asking, granting, gate, acceptors, daemons)
    finally:
        await asking.close()
        acceptors.close()
        daemons.close()
        await gate.until(lambda: not gate.held and not gate.waiting)


def test_a_lease_is_what_the_gate_grants_and_returns_when_it_is_over() -> None:
    async def work() -> None:
        gate = FakeGate()
        gate.opened.set()
        async with line(gate) as over:
            found = await over.asking.catalog.find("alias")
            assert found == replace(KIND, files=(), license="")
            async with over.asking.gate.lease(found, keep_alive_s=math.inf, caller="me") as lease:
                assert gate.asked == [(KIND.name, math.inf, "me")]
                assert (lease.context_length, lease.load_ns, lease.waited_ns) == (2048, 7, 5)
                assert (lease.served_name, lease.engine_name) == (ADAPTER.name, "served")
                assert lease.has_fast_path
                assert lease.socket == Path("/run/workers/1/s")
                assert over.granting.active == len(gate.held) == 1
                lease.suspect()
                await over.asking.gate.unload(found)  # behind it on the same line
                assert gate.held[0].suspected == 1 and gate.kept == [(KIND.name, 0)]
            await gate.until(lambda: not gate.held)
            assert over.granting.active == 0

    run(work)


def test_who_is_refused_learns_why() -> None:
    full = VllamaError(Reason.QUEUE_FULL, "server busy", "ask less often", retry_after_s=3)

    async def work() -> None:
        gate = FakeGate(refusal=full)
        async with line(gate) as over:
            with pytest.raises(ModelNotFound, match="model 'nobody' not found"):
                await over.asking.find("nobody")
            for refusal, reason in ((full, Reason.QUEUE_FULL), (RuntimeError("oops"), Reason.INTERNAL)):
                gate.refusal = refusal
                with pytest.raises(VllamaError) as told:
                    async with over.asking.lease(KIND):
                        raise AssertionError("it was refused")
                assert told.value.reason is reason
            with pytest.raises(ModelNotFound):
                await over.asking.unload(replace(KIND, ref=replace(KIND.ref, tag="gone")))

    run(work)


def test_who_leaves_the_queue_has_left_it() -> None:
    async def work() -> None:
        gate = FakeGate()
        async with line(gate) as over:

            async def wait() -> None:
                async with over.asking.lease(KIND):
                    raise AssertionError("nothing is granted here")

            waiting = asyncio.create_task(wait())
            await gate.until(lambda: gate.waiting == 1)
            waiting.cancel()
            await gate.until(lambda: gate.waiting == 0)
            with pytest.raises(asyncio.CancelledError):
                await waiting
            # Granted in the very moment in which it leaves: nobody keeps that lease.
            waiting = asyncio.create_task(wait())
            await gate.until(lambda: gate.waiting == 1)
            gate.opened.set()
            waiting.cancel()
            await gate.until(lambda: not gate.waiting and not gate.held)

    run(work)


def test_who_leaves_in_the_moment_of_asking_leaves_nothing() -> None:
    async def work() -> None:
        gate, said = FakeGate(), list[messages.FromDaemon]()
        granting = Granting(OneModel(), gate, said.append)
        granting.take(Ask(1, KIND.name, None, ""))
        granting.take(messages.Over(1))
        granting.take(messages.Over(2))
        (holder,) = granting._holders.values()
        with pytest.raises(asyncio.CancelledError):
            await holder
        await asyncio.sleep(0)
        assert not granting._holders and not gate.asked and not said

    run(work)


@pytest.mark.parametrize("is_early", [False, True])
def test_a_lease_that_breaks_there_is_broken_here(is_early: bool) -> None:
    died = VllamaError(Reason.ENGINE_DIED, "the engine has stopped", "see its last lines", model="m")

    async def work() -> None:
        gate = FakeGate(broken_from_the_start=died if is_early else None)
        gate.opened.set()
        async with line(gate) as over, over.asking.lease(KIND) as lease:
            if not is_early:
                assert gate.held[0].on_broken is not None and lease.broken is None
                gate.held[0].on_broken(died)
                await over.asking.unload(KIND)  # behind it on the same line
            assert repr(lease.broken) == repr(died)
            with pytest.raises(VllamaError, match="the engine has stopped"):
                await lease.open("/v1/chat/completions", b"{}")

    run(work)


def test_an_acceptor_that_is_gone_gives_everything_back() -> None:
    async def work() -> None:
        gate = FakeGate()
        async with line(gate) as over:

            async def wait() -> None:
                async with over.asking.lease(KIND):
                    await asyncio.Event().wait()

            gate.opened.set()
            tasks = [asyncio.create_task(wait())]
            await gate.until(lambda: len(gate.held) == 1)
            gate.opened.clear()
            tasks.append(asyncio.create_task(wait()))
            await gate.until(lambda: gate.waiting == 1)
            over.acceptors_end.close()
            await gate.until(lambda: not gate.held and not gate.waiting)
            for task in tasks:
                task.cancel()

    run(work)


def test_a_daemon_that_is_gone_breaks_every_lease() -> None:
    async def work() -> None:
        gate = FakeGate()
        gate.opened.set()
        async with line(gate) as over, over.asking.lease(KIND) as lease:
            broken: asyncio.Future[VllamaError] = asyncio.get_running_loop().create_future()
            lease.watch(broken.set_result)
            over.daemons_end.close()
            assert (await broken).reason is Reason.DRAINING
            with pytest.raises(VllamaError, match="the daemon has ended"):
                await over.asking.find("m")

    run(work)


# --- lines of the log ---


def test_a_line_of_an_acceptor_is_a_line_of_the_daemon(caplog: pytest.LogCaptureFixture) -> None:
    theirs = logging.getLogger("vllamad.http")
    with caplog.at_level(logging.INFO):
        event(theirs, logging.INFO, "http.request", status=200, path=Path("/x"), level_=Reason.INTERNAL)
        try:
            raise RuntimeError("oops")
        except RuntimeError:
            theirs.exception("http.bug id=%s", "7")
        first, second = caplog.records
        caplog.clear()
        for record in (first, second):
            write(messages.from_acceptor(encode(to_message(record))))  # pyright: ignore[reportArgumentType]
        one, two = caplog.records
    assert (one.name, one.levelno, one.getMessage()) == ("vllamad.http", logging.INFO, "http.request")
    assert one.created == first.created
    assert fields_of(one) == {"status": 200, "path": "/x", "level": "INTERNAL"}
    assert two.getMessage() == "http.bug id=7" and "RuntimeError: oops" in (two.stack_info or "")


# --- sockets ---


def test_sockets_are_dealt_out_and_none_is_left_over() -> None:
    async def work() -> None:
        sockets = await bind_each("127.0.0.1", 0, 3)
        try:
            assert len({each.getsockname() for each in sockets}) == 1
            assert deal(sockets, 3) == [[sockets[0]], [sockets[1]], [sockets[2]]]
            assert deal(sockets, 2) == [[sockets[0], sockets[2]], [sockets[1]]]
            assert deal(sockets[:1], 2) == [[sockets[0]], [sockets[0]]]
            assert deal(sockets[:2], 3) == [[sockets[0]], [sockets[1]], [sockets[0]]]
            with pytest.raises(VllamaError, match="the port is taken"):
                await bind_each("127.0.0.1", sockets[0].getsockname()[1], 2)
        finally:
            for each in sockets:
                each.close()

    run(work)


# --- the post ---


@dataclass
class FakeChild:
    """``end`` is its end of the channel. It ends when it is told to, or by ``crash``."""

    end: socket.socket
    pid: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> int:
        await self.ended.wait()
        return -9

    def terminate(self) -> None:
        self.crash()

    def crash(self) -> None:
        self.end.close()
        self.ended.set()

    async def kill_tree(self) -> None:
        self.crash()

    def memory_bytes(self) -> int:
        return 1 << 20


class FakeLauncher:
    """Its children say that they are ready, unless they are to be stillborn."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []
        self.is_stillborn = False
        self.spawned = asyncio.Event()

    def spawn(self, command: Command, on_line: Callable[[str], None]) -> Any:
        child = FakeChild(socket.socket(fileno=socket.dup(command.descriptors[0])), 100 + len(self.children))
        self.children.append(child)
        if self.is_stillborn:
            on_line("ImportError: no such module")
            child.crash()
        else:
            data = encode(messages.Ready())
            child.end.sendall(len(data).to_bytes(4, "big") + data)
        self.spawned.set()
        return child


def make_post(launcher: FakeLauncher, gate: FakeGate) -> Post:
    outfit = Outfit(Path("/run/http"), None, {}, Path("/"))
    return Post(1, [], outfit, lambda: TERMS, launcher, OneModel(), gate)


def test_the_next_one_comes_when_one_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "FIRST_PAUSE_S", 0.001)

    async def work() -> None:
        launcher, gate = FakeLauncher(), FakeGate()
        gate.opened.set()
        place = make_post(launcher, gate)
        keeping = asyncio.create_task(place.keep())
        await place.is_up.wait()
        first = launcher.children[0]
        data = encode(Ask(1, KIND.name, None, ""))
        first.end.sendall(len(data).to_bytes(4, "big") + data)
        await gate.until(lambda: len(gate.held) == 1)
        assert (place.view().pid, place.view().requests, place.view().is_ready) == (100, 1, True)
        order = place.tell(lambda number: messages.LetGo(number))
        launcher.spawned.clear()
        first.crash()
        await gate.until(lambda: not gate.held)
        await order  # nobody is there any more who could do it
        await launcher.spawned.wait()
        while not place.view().is_ready:  # noqa: ASYNC110 - it is told by a message, which is read soon
            await asyncio.sleep(0)
        assert (place.view().pid, place.view().starts) == (101, 2)
        place.leave()
        launcher.children[1].crash()
        await keeping
        assert place.is_over.is_set() and len(launcher.children) == 2
        assert (place.view().pid, place.view().is_ready) == (0, False)

    run(work)


def test_a_first_one_that_does_not_come_up_is_told() -> None:
    async def work() -> None:
        launcher = FakeLauncher()
        launcher.is_stillborn = True
        with pytest.raises(VllamaError, match=r"cannot start HTTP process 1: signal 9: ImportError") as told:
            await make_post(launcher, FakeGate()).keep()
        assert told.value.reason is Reason.INTERNAL and "server.processes" in (told.value.hint or "")

    run(work)
