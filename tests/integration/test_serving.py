"""Requests through the real daemon to a real process that behaves like the engine."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ollama
import pytest

from tests.fakes.daemon import Daemon, make_model_folder

HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture(autouse=True)
def unloaded(house: Daemon) -> None:
    """Each test finds nothing loaded."""
    if house.workers():
        house.ctl("stop", "tiny")


def test_a_request_loads_the_model_and_streams(house: Daemon) -> None:
    stream = house.open_stream("/api/chat", {"model": "tiny", "messages": HELLO, "options": {"num_predict": 4}})
    lines = stream.rest()
    assert stream.status == 200
    assert "".join(line["message"]["content"] for line in lines) == "one two three four"
    last = lines[-1]
    assert last["done"] and last["done_reason"] == "length"
    assert last["eval_count"] == 4 and last["eval_duration"] > 0
    assert last["load_duration"] > 1_000_000, "it was loaded for this request"
    (worker,) = house.workers()
    assert worker["state"] == "READY"


def test_however_many_ask_it_is_loaded_once(house: Daemon) -> None:
    body = {"model": "tiny", "messages": HELLO, "stream": False, "options": {"num_predict": 2}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: house.request("POST", "/api/chat", body), range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    (worker,) = house.workers()
    assert worker["incarnation"] == 1


def test_the_official_client_lists_shows_runs_and_sees_it_loaded(house: Daemon) -> None:
    client = ollama.Client(host=house.url)
    assert {model.model for model in client.list().models} == {"tiny:latest", "endless:latest"}
    assert client.show("tiny").modelinfo
    answer = client.generate("tiny", "hello", options={"num_predict": 3})
    assert answer.response == "one two three"
    assert answer.eval_count == 3
    assert [model.model for model in client.ps().models] == ["tiny:latest"]


def test_an_empty_prompt_loads_and_keep_alive_zero_unloads(house: Daemon) -> None:
    loaded = house.request("POST", "/api/generate", {"model": "tiny"})
    assert loaded.json()["done_reason"] == "load"
    assert house.workers()[0]["state"] == "READY"
    unloaded = house.request("POST", "/api/generate", {"model": "tiny", "keep_alive": 0})
    assert unloaded.json()["done_reason"] == "unload"
    house.ctl("stop", "tiny")
    assert house.workers() == []


def test_the_same_request_id_is_in_the_answer_and_the_log(house: Daemon) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=30)
    body = json.dumps({"model": "tiny", "prompt": "secret words", "options": {"num_predict": 1}, "stream": False})
    connection.request("POST", "/api/generate", body, {"X-Request-Id": "caller-7"})
    response = connection.getresponse()
    response.read()
    connection.close()
    assert response.headers["X-Request-Id"] == "caller-7"
    house.wait_log("http.request id=caller-7")  # with several processes it comes behind the answer
    (line,) = [line for line in house.log_text().splitlines() if "http.request id=caller-7" in line]
    assert "model=tiny" in line and "tokens=1" in line
    assert "secret words" not in house.log_text()


def test_run_streams_to_the_terminal_and_reads_a_pipe(house: Daemon) -> None:
    spoken = house.ctl("run", "tiny", "hello", "--num-predict", "3", "--verbose")
    assert spoken.stdout.strip() == "one two three"
    assert "tokens/s" in spoken.stderr
    assert house.ctl("run", "tiny", "--num-predict", "2", stdin="hello from a pipe").stdout.strip() == "one two"


def test_logs_show_what_the_engine_said(house: Daemon) -> None:
    house.ctl("load", "tiny")
    assert "Loading weights took" in house.ctl("logs", "tiny").stdout
    assert "worker.state" in house.ctl("logs").stdout


def test_logs_follow_an_engine_over_its_restarts(house: Daemon) -> None:
    follower = subprocess.Popen(
        [sys.executable, "-m", "vllamactl", f"--socket={house.socket}", "logs", "tiny", "-f"],
        env=house.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout is not None
        for _ in range(2):
            house.ctl("load", "tiny")
            while "Application startup complete" not in follower.stdout.readline():
                assert follower.poll() is None
            house.ctl("stop", "tiny")
            while "shutdown triggered" not in follower.stdout.readline():
                assert follower.poll() is None
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 130
        follower.communicate()


def test_a_client_that_hangs_up_cancels_the_engines_work(house: Daemon) -> None:
    stream = house.open_stream("/api/chat", {"model": "endless", "messages": HELLO, "options": {"num_predict": 2000}})
    assert stream.line()["message"]["content"]
    stream.hang_up()
    house.ctl("stop", "endless")  # waits for leases: it could not end if the request went on
    assert house.workers() == []


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "missing request body"),
        (b"{", 400, "unexpected EOF"),
        (b'{"model": "tiny", "messages": "x"}', 400, "messages"),
        (b'{"model": "tiny", "stream": "yes"}', 400, "stream"),
        (b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', 404, "model 'nobody' not found"),
        (b'{"model": "a b", "messages": []}', 400, "invalid model name"),
    ],
)
def test_bad_input_gets_a_clear_error(house: Daemon, body: bytes, status: int, text: str) -> None:
    answer = house.request("POST", "/api/chat", body)
    assert answer.status == status, answer
    assert text in answer.json()["error"]


def test_a_body_over_the_limit_is_refused_by_its_size(house: Daemon) -> None:
    answer = house.request("POST", "/api/generate", b'{"prompt": "' + b"x" * (65 << 20) + b'"}')
    assert answer.status in {400, 413}
    assert "64" in answer.json()["error"] or "67108864" in answer.json()["error"]


def test_names_copy_and_remove(house: Daemon) -> None:
    house.ctl("cp", "tiny", "copy:v1")
    assert {model["name"] for model in house.json("list")["models"]} == {"tiny:latest", "endless:latest", "copy:v1"}
    house.ctl("load", "copy:v1")
    # Both names are served by one worker, which outlives the loss of one of them.
    house.ctl("rm", "copy:v1")
    assert {model["name"] for model in house.json("list")["models"]} == {"tiny:latest", "endless:latest"}
    assert [worker["model"] for worker in house.workers()] == ["tiny:latest"]
    refused = house.ctl("rm", "tiny", check=False)
    assert refused.returncode == 6
    assert "it is loaded" in refused.stderr and "--force" in refused.stderr
    house.ctl("stop", "tiny")


def test_a_model_of_a_modelfile_says_what_it_says_on_its_parents_worker(house: Daemon) -> None:
    folder = house.root / "recipe"
    folder.mkdir()
    make_model_folder(folder / "weights", "base")
    (folder / "Modelfile").write_text(
        "FROM ./weights\nPARAMETER temperature 0\nPARAMETER stop END\n"
        'SYSTEM """Be brief.\nBe kind."""\nMESSAGE user Hi\n'
    )
    house.ctl("create", "base", "--from", str(folder / "weights"))
    house.ctl("create", "kind", "-f", str(folder / "Modelfile"))
    house.ctl("create", "child", "--from", "kind")
    shown = house.json("show", "kind")
    assert shown["system"] == "Be brief.\nBe kind."
    assert "temperature                    0" in shown["parameters"]
    house.ctl("load", "base")
    answer = house.request(
        "POST", "/api/chat", {"model": "kind", "messages": HELLO, "stream": False, "options": {"num_predict": 1}}
    )
    assert answer.status == 200
    assert [worker["model"] for worker in house.workers()] == ["base:latest"]
    # What it shows makes the same model again.
    again = folder / "again"
    again.write_text(house.ctl("show", "child", "--modelfile").stdout)
    house.ctl("create", "twin", "-f", str(again))
    twin = house.json("show", "twin")
    assert [twin[part] for part in ("system", "parameters", "messages")] == [
        shown[part] for part in ("system", "parameters", "messages")
    ]
    for name in ("twin", "child", "kind"):
        house.ctl("rm", name)
    house.ctl("rm", "--force", "base")
    assert house.workers() == []


def test_a_modelfile_with_a_fault_is_refused_by_its_line(house: Daemon) -> None:
    file = house.root / "Modelfile"
    for text, told in (
        ("FROM tiny\nTEMPRATURE 1\n", "(line 2): command must be one of"),
        ("SYSTEM x\n", "no FROM line"),
        ("FROM tiny\nPARAMETER num_ctx many\n", "invalid int value [many]"),
        ("FROM tiny\nTEMPLATE {{ .Nope\n", "template error: template: :1: unclosed action"),
        ("FROM tiny\nADAPTER ./lora\n", "it has no adapter_config.json"),
        ("FROM ./not-there.gguf\n", "not-there.gguf"),
    ):
        file.write_text(text)
        result = house.ctl("create", "x", "-f", str(file), check=False)
        assert result.returncode == 2, result
        assert told in result.stderr
    assert "x:latest" not in {model["name"] for model in house.json("list")["models"]}


def test_an_adapter_is_a_model_of_its_own_on_its_bases_worker(house: Daemon) -> None:
    folder = house.root / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 20}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (house.root / "Modelfile").write_text("FROM tiny\nADAPTER ./lora\n")

    def say(model: str) -> str:
        body = {"model": model, "messages": HELLO, "stream": False, "options": {"num_predict": 2}}
        return house.request("POST", "/api/chat", body).json()["message"]["content"]

    before = say("tiny")
    house.ctl("create", "loud", "-f", str(house.root / "Modelfile"))
    assert (say("loud"), say("tiny"), say("loud")) == (before.upper(), before, before.upper())
    (worker,) = house.workers()
    argv = Path(f"/proc/{worker['pid']}/cmdline").read_text().split("\0")
    assert argv[argv.index("--max-lora-rank") + 1] == "32"
    # What it shows makes the same model again.
    (house.root / "Modelfile").write_text(house.ctl("show", "loud", "--modelfile").stdout)
    house.ctl("create", "loudest", "-f", str(house.root / "Modelfile"))
    assert house.json("show", "loudest")["adapter_digest"] == house.json("show", "loud")["adapter_digest"]
    # Over HTTP, as Ollama's clients send one.
    client = ollama.Client(host=house.url)
    files = {f"lora/{path.name}": client.create_blob(path) for path in folder.iterdir()}
    client.create("louder", from_="tiny", adapters=files, system="Shout.", stream=False)
    assert say("louder") == before.upper()
    assert len(house.workers()) == 1
    for name in ("louder", "loudest", "loud"):
        house.ctl("rm", name)
    # Nothing needs the room for adapters any more, and the next worker does not make it.
    assert say("tiny") == before
    (worker,) = house.workers()
    assert "--enable-lora" not in Path(f"/proc/{worker['pid']}/cmdline").read_text().split("\0")


def test_models_are_made_over_http_as_ollamas_clients_do(house: Daemon) -> None:
    client = ollama.Client(host=house.url)
    made = client.create("spoken", from_="tiny", system="Be brief.", parameters={"temperature": 0.5}, stream=False)
    assert made.status == "success"
    assert client.show("spoken").model_dump()["parameters"] == "temperature                    0.5"
    statuses = [part.status for part in client.create("spoken", from_="tiny", system="Be loud.", stream=True)]
    assert statuses[-2:] == ["writing manifest", "success"]
    assert [status.split(" sha256:")[0] for status in statuses[:-2]] == ["using existing layer", "creating new layer"]
    with pytest.raises(ollama.ResponseError, match="neither 'from' or 'files'"):
        client.create("nothing")
    folder = make_model_folder(house.root / "sent", "sent")
    files = {path.name: client.create_blob(path) for path in folder.iterdir()}
    assert [part.status for part in client.create("sent", files=files, stream=True)][-1] == "success"
    assert not list((house.state / "models" / "uploads").iterdir())
    for name in ("spoken", "sent"):
        client.delete(name)
