"""OpenAI's and Anthropic's routes through the real daemon to a real process that behaves like the engine."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.fakes.daemon import Daemon, running

HELLO: Any = [{"role": "user", "content": "hello there"}]
CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
ENDLESS = {"tokens": 100_000, "token_delay_s": 0.01}


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    models = {"tiny": {"has_audio": True}, "endless": ENDLESS, "org/far:q4": {}}
    environment = {"VLLAMA_MODELS_ALIASES": "gpt-4o=tiny,claude-x=tiny,tiny=endless"}
    # One model at a time, so that "the worker" of a scene is the one there is.
    environment["VLLAMA_SCHEDULER_MAX_LOADED_MODELS"] = "1"
    with running(models=models, environment=environment) as daemon:
        yield daemon


@pytest.fixture
def client(house: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(house: Daemon) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=house.url, api_key="unused", max_retries=0) as made:
        yield made


def asked(house: Daemon, which: str = "") -> list[dict[str, Any]]:
    """What the engine was asked, by itself."""
    from tests.e2e.real_engine import UnixConnection

    paths = list((house.runtime / "workers").glob("*/s"))
    (path,) = [each for each in paths if which in str(each)] or paths
    connection = UnixConnection(path)
    connection.request("GET", "/_fake/state")
    state = json.loads(connection.getresponse().read())
    connection.close()
    return state["requests"]


# --- OpenAI ----------------------------------------------------------------------------------------------------------


def test_a_request_loads_the_model_and_the_name_is_the_one_asked_for(house: Daemon, client: openai.OpenAI) -> None:
    for name in ("tiny", "tiny:latest", "TINY", "gpt-4o"):
        whole = client.chat.completions.create(model=name, messages=CAPITAL)
        assert (whole.model, whole.choices[0].message.content) == (name, PARIS)
        parts = list(client.chat.completions.create(model=name, messages=CAPITAL, stream=True))
        assert {part.model for part in parts} == {name}
        assert "".join(part.choices[0].delta.content or "" for part in parts) == PARIS
    assert len(house.workers()) == 1


def test_a_model_that_has_the_name_wins_over_an_alias(house: Daemon, client: openai.OpenAI) -> None:
    assert client.chat.completions.create(model="tiny", messages=CAPITAL).choices[0].message.content == PARIS
    assert house.workers()[0]["model"] == "tiny:latest"


def test_an_alias_works_on_every_face_and_removes_nothing(house: Daemon) -> None:
    body = {"model": "gpt-4o", "messages": CAPITAL, "stream": False}
    answer = house.request("POST", "/api/chat", body).json()
    assert (answer["model"], answer["message"]["content"]) == ("gpt-4o", PARIS)
    assert house.request("POST", "/api/show", {"model": "gpt-4o"}).status == 200
    assert house.ctl("run", "gpt-4o", "What is the capital of France?").stdout.strip() == PARIS
    assert house.request("DELETE", "/api/delete", {"model": "gpt-4o"}).status == 404
    assert "gpt-4o:latest" not in {model["name"] for model in house.json("list")["models"]}


def test_completions_and_unknown_fields(house: Daemon, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="gpt-4o", prompt="hello", max_tokens=3, extra_body={"keep_alive": "7m", "min_p": 0.1, "cache_salt": "s"}
    )
    assert answer.choices[0].text == "one two three" and answer.model == "gpt-4o"
    body = asked(house)[-1]["body"]
    assert (body["min_p"], body["cache_salt"], "keep_alive" in body) == (0.1, "s", False)
    ps = house.request("GET", "/api/ps").json()["models"][0]
    assert ps["name"] == "tiny:latest"


def test_headers_reach_the_engine_and_secrets_do_not(house: Daemon, client: openai.OpenAI) -> None:
    sent = {"X-Request-Id": "caller-9", "traceparent": "00-1", "X-Vllm-Priority": "5", "X-Cache-Salt": "z"}
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO, extra_headers=sent)
    assert raw.headers["X-Request-Id"] == "caller-9"
    headers = asked(house)[-1]["headers"]
    assert {name: headers[name.lower()] for name in sent} == sent
    assert "authorization" not in headers
    (line,) = [line for line in house.log_text().splitlines() if "http.request id=caller-9" in line]
    assert "model=tiny" in line and "hello there" not in house.log_text()


def test_structured_outputs_are_parsed(client: openai.OpenAI) -> None:
    class Reply(BaseModel):
        answer: int

    parsed = client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Reply)
    assert parsed.choices[0].message.parsed == Reply(answer=42)


def test_responses_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="gpt-4o", input="What is the capital of France?")
    assert (whole.model, whole.output_text, whole.status) == ("gpt-4o", PARIS, "completed")
    with client.responses.stream(model="gpt-4o", input="What is the capital of France?") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (final.model, final.output_text) == ("gpt-4o", PARIS)


def test_responses_are_not_stored(client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input="hello", store=True)
    for ask in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="responses are not stored here") as caught:
            ask(made.id)
        assert caught.value.code == "not_found"
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.create(model="tiny", input="hello", previous_response_id=made.id)


def test_models_are_listed_and_found_by_any_name(house: Daemon, client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"tiny:latest", "endless:latest", "org/far:q4"}
    far = listed["org/far:q4"]
    assert (far.object, far.owned_by, far.created > 1_700_000_000) == ("model", "org", True)
    assert (
        far.model_extra == {"shutdown_date": None, "context_length": 2048, "capabilities": ["completion"]}
        or (far.model_extra or {})["context_length"] == 2048
    )
    for name in ("org/far:q4", "hf.co/org/far:q4", "tiny", "gpt-4o"):
        assert client.models.retrieve(name).id == name
    assert house.request("GET", "/v1/models/org%2Ffar%3Aq4").json()["id"] == "org/far:q4"
    assert str(house.root) not in house.request("GET", "/v1/models").body.decode()
    with pytest.raises(openai.NotFoundError, match="model 'nope:latest' not found"):
        client.models.retrieve("nope")


def test_the_engines_own_routes(house: Daemon) -> None:
    tokens = house.request("POST", "/tokenize", {"model": "gpt-4o", "prompt": "a b c"}).json()
    assert tokens["count"] == 3
    assert house.request("POST", "/detokenize", {"model": "tiny", "tokens": [1, 2]}).json() == {"prompt": "t1 t2"}
    for path in ("/v1/rerank", "/rerank", "/v1/score", "/score"):
        answer = house.request("POST", path, {"model": "tiny", "query": "x", "documents": ["y"]})
        assert (answer.status, answer.json()["error"]["code"]) == (400, "unsupported")


# --- Anthropic -------------------------------------------------------------------------------------------------------


def test_messages_whole_streamed_and_counted(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model="claude-x", max_tokens=50, messages=CAPITAL)
    assert (whole.model, whole.content[0].text, whole.stop_reason) == ("claude-x", PARIS, "end_turn")  # type: ignore[union-attr]
    with claude.messages.stream(model="claude-x", max_tokens=50, messages=CAPITAL) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert (final.model, final.content[0].text) == ("claude-x", PARIS)  # type: ignore[union-attr]
    counted = claude.messages.count_tokens(model="claude-x", messages=CAPITAL)
    assert counted.input_tokens == whole.usage.input_tokens
    assert [model.id for model in claude.models.list()][:1] != []
    assert claude.models.retrieve("claude-x").display_name == "tiny:latest"


def test_errors_in_anthropics_envelope(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="nope", max_tokens=5, messages=HELLO)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"], body["error"]["code"]) == (
        "error", "not_found_error", "model_not_found",
    )  # fmt: skip
    assert body["request_id"] == caught.value.response.headers["x-request-id"]
    with pytest.raises(anthropic.NotFoundError):
        claude.models.retrieve("nope")
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="tiny", max_tokens=0, messages=HELLO)


# --- recordings and websockets ---------------------------------------------------------------------------------------


def test_a_recording_passes(house: Daemon, client: openai.OpenAI) -> None:
    sound = b"RIFF" + bytes(300_000)
    heard = client.audio.transcriptions.create(model="gpt-4o", file=("a.wav", sound), language="en")
    assert heard.text == f"{len(sound)} bytes"
    sent = asked(house)[-1]["body"]
    assert (sent["model"], sent["language"]) == ("gpt-4o", "en"), "the form is the client's own"
    with pytest.warns(DeprecationWarning):
        assert client.audio.translations.create(model="tiny", file=("a.wav", sound)).text == f"{len(sound)} bytes"


def test_a_form_whose_name_comes_behind_a_long_file(house: Daemon) -> None:
    """What waits for the name goes to the disk, not into memory."""
    before = house.request("GET", "/health").json()["daemon"]["memory_bytes"]
    sound = bytes(range(256)) * 4096 * 40
    body = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + sound
        + b'\r\n--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--B--\r\n'
    )
    most = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], house.request("GET", "/health").json()["daemon"]["memory_bytes"])

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=60)
        connection.request(
            "POST", "/v1/audio/transcriptions", body, {"Content-Type": "multipart/form-data; boundary=B"}
        )
        response = connection.getresponse()
        assert json.loads(response.read())["text"] == f"{len(sound)} bytes"
        connection.close()
    finally:
        done.set()
        watching.join()
    assert most[0] - before < 12_000_000, "40 MB passed"


def test_a_form_over_the_limit_is_413_also_when_nobody_said_how_long_it_is(new_house: Callable[..., Daemon]) -> None:
    house = new_house(models={"tiny": {"has_audio": True}}, VLLAMA_SERVER_MAX_BODY_BYTES="4MiB")

    async def pieces(count: int) -> AsyncIterator[bytes]:
        yield b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n'
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(count):
            yield bytes(100_000)
            await asyncio.sleep(0)
        yield b"\r\n--B--\r\n"

    async def send(count: int) -> tuple[int, Any]:
        head = {"Content-Type": "multipart/form-data; boundary=B"}
        url = f"{house.url}/v1/audio/transcriptions"
        async with aiohttp.ClientSession() as session, session.post(url, data=pieces(count), headers=head) as answer:
            return answer.status, await answer.json()

    assert asyncio.run(send(20)) == (200, {"text": "2000000 bytes", "usage": {"type": "duration", "seconds": 1}})
    status, body = asyncio.run(send(60))
    assert (status, body["error"]["code"]) == (413, "invalid_request")
    assert house.workers()[0]["state"] == "READY"


def test_the_death_of_an_engine_closes_its_websockets(new_house: Callable[..., Daemon]) -> None:
    house = new_house(models={"ears": {"has_audio": True, "die_after": 1.0}})

    async def talk() -> tuple[Any, int | None]:
        url = f"{house.url}/v1/realtime?model=ears"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as connection:
            assert (await connection.receive_json())["type"] == "session.created"
            told = await connection.receive_json()
            await connection.receive()
            return told, connection.close_code

    told, code = asyncio.run(talk())
    assert (told["type"], told["error"]["code"], code) == ("error", "engine_died", 1011)


def test_forms_that_are_none(house: Daemon) -> None:
    plain = house.request("POST", "/v1/audio/transcriptions", {"model": "tiny"})
    assert plain.status == 400 and "multipart" in plain.json()["error"]["message"]


def test_realtime_frames_pass_both_ways(house: Daemon) -> None:
    async def talk() -> None:
        url = f"{house.url}/v1/realtime?model=gpt-4o"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=["realtime"]) as socket:
            assert socket.protocol == "realtime"
            assert (await socket.receive_json())["type"] == "session.created"
            await socket.send_json({"type": "session.update", "model": "gpt-4o"})
            sound = base64.b64encode(bytes(100_000)).decode()
            await socket.send_json({"type": "input_audio_buffer.append", "audio": sound})
            await socket.send_json({"type": "input_audio_buffer.commit", "final": True})
            assert await socket.receive_json() == {"type": "transcription.delta", "delta": "100000 bytes"}
            assert (await socket.receive_json())["type"] == "transcription.done"
            await socket.send_bytes(b"\x00\xff" * 40_000)
            assert await socket.receive_bytes() == b"\x00\xff" * 40_000
            assert house.workers()[0]["leases"] == 1
        assert socket.close_code == 1000

    asyncio.run(talk())
    house.ctl("stop", "tiny")  # waits for leases


def test_realtime_is_refused_with_a_status(house: Daemon) -> None:
    async def talk() -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        async with aiohttp.ClientSession() as session:
            for query in ("", "?model=nope", "?model=org/far:q4"):
                async with session.get(
                    f"{house.url}/v1/realtime{query}",
                    headers={
                        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
                    },
                ) as answer:  # fmt: skip
                    found.append((answer.status, (await answer.json())["error"]["code"]))
            async with session.get(f"{house.url}/v1/realtime?model=tiny") as answer:
                found.append((answer.status, (await answer.json())["error"]["code"]))
        return found

    assert asyncio.run(talk()) == [
        (400, "invalid_request"), (404, "model_not_found"), (400, "unsupported"), (400, "invalid_request"),
    ]  # fmt: skip


# --- queueing, eviction, death ---------------------------------------------------------------------------------------


def test_however_many_ask_it_is_loaded_once_and_another_model_waits_its_turn(
    house: Daemon, client: openai.OpenAI
) -> None:
    if house.workers():
        house.ctl("stop", "tiny")

    def ask(name: str) -> str:
        return client.chat.completions.create(model=name, messages=CAPITAL).choices[0].message.content or ""

    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(ask, ["tiny"] * 4 + ["org/far:q4"] + ["gpt-4o"] * 4))
    assert answers == [PARIS] * 9
    assert len(house.workers()) == 1


def test_keep_alive_zero_unloads(house: Daemon, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"keep_alive": 0})
    house.wait_no_processes()
    client.chat.completions.create(model="tiny", messages=HELLO, extra_headers={"X-Keep-Alive": "0"})
    house.wait_no_processes()


def test_a_client_that_leaves_cancels_the_engines_work(house: Daemon, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="endless", messages=HELLO, max_tokens=2000, stream=True)
    assert next(iter(stream)).model == "endless"
    stream.close()
    house.ctl("stop", "endless")  # waits for leases: it could not end if the request went on


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_the_death_of_an_engine_in_mid_stream(new_house: Callable[..., Daemon], path: str) -> None:
    house = new_house(models={"frail": {"half_stream": 6}})
    body = {"model": "frail", "messages": HELLO, "input": "hello", "max_tokens": 16, "stream": True}
    answer = house.request("POST", path, body)
    text = answer.body.decode()
    assert answer.status == 200
    assert "engine_died" in text
    assert "[DONE]" not in text and "message_stop" not in text and "response.completed" not in text
    house.wait_log("error=ENGINE_DIED")
    (line,) = [line for line in house.log_text().splitlines() if "error=ENGINE_DIED" in line]
    assert f"POST {path}" in line and "status=200" in line


def test_the_clients_raise_what_a_stream_says(new_house: Callable[..., Daemon]) -> None:
    house = new_house(models={"frail": {"half_stream": 6}})
    client = openai.OpenAI(base_url=f"{house.url}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.APIError, match=r"has stopped unexpectedly|the connection broke"):
        list(client.chat.completions.create(model="frail", messages=HELLO, stream=True))
    with pytest.raises(openai.APIError, match=r"has stopped unexpectedly|the connection broke"):
        list(client.responses.create(model="frail", input="hello", stream=True))
    claude = anthropic.Anthropic(base_url=house.url, api_key="x", max_retries=0)
    with pytest.raises(anthropic.APIStatusError, match=r"has stopped unexpectedly|the connection broke"):
        list(claude.messages.create(model="frail", messages=HELLO, max_tokens=16, stream=True))


def test_a_dead_core_is_told_by_the_engine_itself(new_house: Callable[..., Daemon]) -> None:
    house = new_house(models={"frail": {"error_in_stream": 3}})
    text = house.request("POST", "/v1/chat/completions", {"model": "frail", "messages": HELLO, "stream": True}).body
    assert b'"type":"InternalServerError"' in text and text.endswith(b"data: [DONE]\n\n"), "the engine's own bytes"


def test_a_full_queue_and_what_the_clients_make_of_it(new_house: Callable[..., Daemon]) -> None:
    house = new_house(models={"slow": {"load_s": 3.0}}, VLLAMA_SCHEDULER_MAX_QUEUE="1")
    house.ctl("load", "slow")  # now it is known how long that takes
    house.ctl("stop", "slow")
    waiting = house.open_waiting("/v1/chat/completions", {"model": "slow", "messages": HELLO, "max_tokens": 2})
    house.wait_log("workers/slow-2")
    client = openai.OpenAI(base_url=f"{house.url}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="slow", messages=HELLO)
    assert caught.value.code == "queue_full"
    assert 2 <= int(caught.value.response.headers["Retry-After"]) <= 10
    claude = anthropic.Anthropic(base_url=house.url, api_key="x", max_retries=0)
    with pytest.raises(anthropic.APIStatusError) as full:
        claude.messages.create(model="slow", messages=HELLO, max_tokens=2)
    assert full.value.status_code == 529
    # The official client waits as long as it is told, and then it is served.
    patient = openai.OpenAI(base_url=f"{house.url}/v1", api_key="x", max_retries=3)
    assert patient.chat.completions.create(model="slow", messages=HELLO, max_tokens=2).choices
    assert waiting.result().status == 200


def test_a_derived_model_and_one_with_a_template(house: Daemon, client: openai.OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "Modelfile"
    file.write_text("FROM tiny\nSYSTEM Be brief.\nPARAMETER num_predict 2\nPARAMETER temperature 0.2\n")
    house.ctl("create", "brief", "-f", str(file))
    try:
        answer = client.chat.completions.create(model="brief", messages=HELLO)
        assert (answer.model, answer.choices[0].message.content) == ("brief", "one two")
        body = asked(house)[-1]["body"]
        assert body["messages"][0] == {"role": "system", "content": "Be brief."} and body["temperature"] == 0.2
        longer = client.chat.completions.create(model="brief", messages=HELLO, max_tokens=3)
        assert longer.choices[0].message.content == "one two three"
        file.write_text("FROM tiny\nTEMPLATE {{ .Prompt }}\n")
        house.ctl("create", "bare", "-f", str(file))
        with pytest.raises(openai.BadRequestError, match="has a TEMPLATE of its own"):
            client.chat.completions.create(model="bare", messages=HELLO)
        assert client.completions.create(model="bare", prompt="hello", max_tokens=1).choices[0].text == "one"
    finally:
        house.request("DELETE", "/api/delete", {"model": "brief"})
        house.request("DELETE", "/api/delete", {"model": "bare"})


def test_an_adapter_answers_under_the_name_of_its_model(house: Daemon, client: openai.OpenAI) -> None:
    folder = house.root / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (house.root / "Modelfile").write_text("FROM tiny\nADAPTER ./lora\n")
    house.ctl("create", "loud", "-f", str(house.root / "Modelfile"))
    try:
        loud = client.chat.completions.create(model="loud", messages=CAPITAL)
        assert (loud.model, loud.choices[0].message.content) == ("loud", PARIS.upper())
        parts = list(client.chat.completions.create(model="loud", messages=CAPITAL, stream=True))
        assert {part.model for part in parts} == {"loud"}
        assert client.chat.completions.create(model="tiny", messages=CAPITAL).choices[0].message.content == PARIS
    finally:
        house.request("DELETE", "/api/delete", {"model": "loud"})


# --- keys ------------------------------------------------------------------------------------------------------------


def test_clients_with_a_key_are_let_in_and_nobody_sees_it(tmp_path: Path) -> None:
    key = "sk-0123456789abcdef"
    (tmp_path / "api_keys").write_text(f"{key},another-key-of-ours\n")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    with running(models={"tiny": {}}, environment=environment) as daemon:
        base = f"{daemon.url}/v1"
        with openai.OpenAI(base_url=base, api_key=key, max_retries=0) as client:
            assert client.chat.completions.create(model="tiny", messages=CAPITAL).choices[0].message.content == PARIS
        with openai.OpenAI(base_url=base, api_key="sk-wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.models.list()
            assert refused.value.code == "unauthenticated"
        with anthropic.Anthropic(base_url=daemon.url, api_key=key, max_retries=0) as claude:
            assert claude.messages.create(model="tiny", max_tokens=8, messages=CAPITAL).content
        with (
            anthropic.Anthropic(base_url=daemon.url, api_key="sk-wrong", max_retries=0) as claude,
            pytest.raises(anthropic.AuthenticationError),
        ):
            claude.messages.create(model="tiny", max_tokens=8, messages=CAPITAL)
        assert "***" in daemon.ctl("config").stdout
        (worker,) = daemon.workers()
        seen = Path(f"/proc/{worker['pid']}/environ").read_bytes().decode(errors="replace")
        for text in (daemon.ctl("config", "--show").stdout, daemon.log_text(), seen):
            assert key not in text
