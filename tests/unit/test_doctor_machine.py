"""What `vllamactl doctor` makes of engine, driver, disk, memory, network, clock and leftovers, and its report."""

import errno

import pytest

from vllamactl.doctor import report
from vllamactl.doctor.facts import (
    Clock,
    Disk,
    Gpus,
    Identity,
    Knock,
    Leftovers,
    Limits,
    Listener,
    Memory,
    Part,
    Process,
    Reach,
    Service,
    Unit,
)
from vllamactl.doctor.finding import Finding, State, fail, ok, skipped, warn
from vllamactl.doctor.judge_engine import judge_driver, judge_engine
from vllamactl.doctor.judge_machine import (
    judge_clock,
    judge_disk,
    judge_hub,
    judge_leftovers,
    judge_limits,
    judge_memory,
    judge_ollama,
    judge_port,
)

GIB = 1 << 30
UNIT = Unit("system", "", {"Id": "vllamad.service", "MainPID": "812"})
NO_UNIT = Unit()
CPU = Part({"engine_device": "auto"})
SERVICE = Service(("/usr/bin/vllamad",), {}, "/", Identity("vllama", 990, 990))


# --- driver

NO_DRIVER = Part({"problem": "no NVIDIA driver: libnvidia-ml.so.1 was not found", "gpus": []})
ON_CPU = Part({"device": "cpu"})
NODES = {"/dev/nvidiactl": True, "/dev/nvidia0": True, "/dev/nvidia-uvm": True}
LOADED = Gpus(1, "570.86.15", True, NODES)


def devices(**more: object) -> Part:
    card = {"name": "GPU 0", "bytes": 80 * GIB, "problem": ""}
    return Part({"problem": "", "driver": "570.86.15", "cuda": "12.8", "gpus": [card]} | more)


def test_a_machine_without_a_gpu_is_no_failure_unless_cuda_is_wanted() -> None:
    assert judge_driver(NO_DRIVER, ON_CPU, CPU, Gpus()).state is State.SKIPPED
    wanted = judge_driver(NO_DRIVER, ON_CPU, Part({"engine_device": "cuda"}), Gpus())
    assert wanted.state is State.FAIL and "install NVIDIA's driver" in wanted.remedy
    idle = judge_driver(NO_DRIVER, ON_CPU, CPU, Gpus(pci=2))
    assert idle.state is State.WARN and "2 NVIDIA GPU" in idle.text


def test_a_driver_that_was_updated_needs_a_reboot() -> None:
    problem = "driver: Driver/library version mismatch The driver was updated"
    found = judge_driver(devices(problem=problem), ON_CPU, CPU, LOADED)
    assert found.state is State.FAIL and "570.86.15" in found.text and "reboot" in found.remedy


@pytest.mark.parametrize(
    ("told", "gpus", "state", "says"),
    [
        (devices(), LOADED, State.OK, "driver 570.86.15, CUDA 12.8; 1 GPU of 80.0 GiB"),
        (devices(problem="driver: Driver Not Loaded"), Gpus(pci=1), State.FAIL, "kernel module is not loaded"),
        (devices(problem="driver: Driver Not Loaded"), Gpus(), State.WARN, "kernel module is not loaded"),
        (devices(problem="silent: no answer in 3 s"), LOADED, State.FAIL, "no answer in 3 s"),
        (devices(gpus=[]), LOADED, State.WARN, "no GPU that can be used"),
        (devices(gpus=[{"name": "GPU 1", "bytes": 1, "problem": "lost"}]), LOADED, State.FAIL, "GPU 1: lost"),
        (devices(), Gpus(1, "570", True, NODES | {"/dev/nvidia0": False}), State.FAIL, "not use /dev/nvidia0"),
        (devices(), Gpus(1, "570", False, NODES), State.WARN, "nvidia_uvm is not loaded"),
        (devices(), Gpus(1, "570", True, {"/dev/nvidia0": None}), State.WARN, "nvidia_uvm"),
    ],
)
def test_driver(told: Part, gpus: Gpus, state: State, says: str) -> None:
    found = judge_driver(told, ON_CPU, CPU, gpus)
    assert found.state is state and says in found.text


def test_what_is_refused_to_a_stand_in_says_nothing_of_the_daemon() -> None:
    problem = devices(problem="driver: Insufficient Permissions")
    assert judge_driver(problem, ON_CPU, CPU, LOADED, stand_in=True).state is State.SKIPPED
    broken = Part({"problem": "cannot execute /opt/e/python: not executable"})
    assert judge_engine(broken, devices(), None, stand_in=True).state is State.SKIPPED
    assert judge_engine(broken, devices(), None).state is State.FAIL


# --- engine


def engine(version: str = "0.33.0", torch_cuda: str = "", device: str = "cuda") -> Part:
    return Part(
        {
            "python": "/opt/engine/bin/python",
            "distribution": "vllm",
            "version": version,
            "device": device,
            "torch_cuda": torch_cuda,
            "supported": ["0.32", "0.33"],
        }
    )


@pytest.mark.parametrize(
    ("built", "runs", "state"),
    [
        ("12.8", "12.8", State.OK),
        ("12.4", "13.0", State.OK),
        ("13.0", "12.8", State.FAIL),
        ("12.9", "12.4", State.WARN),
        ("12.10", "12.9", State.WARN),
        ("", "12.8", State.OK),
        ("12.8", "", State.OK),
    ],
)
def test_the_cuda_of_torch_against_the_drivers(built: str, runs: str, state: State) -> None:
    found = judge_engine(engine(torch_cuda=built), devices(cuda=runs), None)
    assert found.state is state
    if state is not State.OK:
        assert built in found.text and runs in found.text


def test_engine() -> None:
    assert judge_engine(engine("0.32.0+cpu", device="cpu"), NO_DRIVER, None).state is State.OK
    old = judge_engine(engine("0.9.2"), devices(), None)
    assert old.state is State.WARN and "0.32 and 0.33" in old.text
    none = judge_engine(Part({"problem": "it has no vllm", "hint": "run 'make engine'"}), devices(), None)
    assert (none.state, none.text, none.remedy) == (State.FAIL, "it has no vllm", "run 'make engine'")
    closed = fail("engine", "vllama cannot pass /root", "move it")
    assert judge_engine(Part({"problem": "cannot execute"}), devices(), closed) is closed
    assert judge_engine(Part(missing="not known"), devices(), None).state is State.SKIPPED


# --- disk, limits, memory


@pytest.mark.parametrize(("free", "state"), [(5 * 10**8, State.FAIL), (5 * 10**9, State.WARN), (10**11, State.OK)])
def test_disk(free: int, state: State) -> None:
    disks = [Disk("cache", "/c", 10**12, 10**12), Disk("state", "/s", 10**12, free)]
    found = judge_disk(disks)
    assert found.state is state and (state is State.OK or "/s" in found.text)


def test_a_disk_without_room_for_files_is_full() -> None:
    assert "more files" in judge_disk([Disk("state", "/s", 10**12, 10**12, 3)]).text
    assert judge_disk([], "no configuration").text == "no configuration"


def test_limits() -> None:
    assert judge_limits(Limits(), NO_UNIT, ON_CPU).state is State.SKIPPED
    assert judge_limits(Limits("pid 9", None, None), NO_UNIT, engine()).state is State.OK
    few = judge_limits(Limits("pid 9", 1024, None), UNIT, ON_CPU)
    assert few.state is State.WARN and "LimitNOFILE=" in few.remedy
    assert "ulimit -n" in judge_limits(Limits("pid 9", 1024, None), NO_UNIT, ON_CPU).remedy
    wide = Unit("system", "", {"LimitNOFILESoft": "524288"})
    assert "container" in judge_limits(Limits("pid 9", 20_000, None), wide, ON_CPU).remedy
    pinned = Limits("pid 9", 524_288, 8 << 20)
    assert judge_limits(pinned, UNIT, engine()).state is State.WARN
    assert judge_limits(pinned, UNIT, ON_CPU).state is State.OK


@pytest.mark.parametrize(
    ("memory", "state", "says"),
    [
        (Memory(64 * GIB, 32 * GIB, 0, 32 * GIB, 32 * GIB), State.OK, "32.0 GiB of 64.0 GiB available, no swap"),
        (Memory(64 * GIB, 32 * GIB, 0, 64 << 20, 64 << 20), State.WARN, "Bus error"),
        (Memory(64 * GIB, 32 * GIB, 0, 32 * GIB, GIB), State.WARN, "/dev/shm is full"),
        (Memory(64 * GIB, 32 * GIB, 0, 32 * GIB, 32 * GIB, 2 * GIB), State.WARN, "control group limits it to 2.0 GiB"),
        (Memory(64 * GIB, 32 * GIB, 0, 32 * GIB, 32 * GIB, 0, 2), State.WARN, "vm.overcommit_memory is 2"),
        (Memory(64 * GIB, GIB // 2, 0, 32 * GIB, 32 * GIB), State.WARN, "512 MiB of 64.0 GiB"),
        (Memory(), State.SKIPPED, "does not tell"),
    ],
)
def test_memory(memory: Memory, state: State, says: str) -> None:
    found = judge_memory(memory)
    assert found.state is state and says in found.text


# --- port, Ollama, hub, clock

CONFIG = Part({"host": "127.0.0.1", "port": 11434})
DOWN = Reach((Knock("/run/x", errno.ENOENT),))


def port(*listeners: Listener, unit: Unit = UNIT, reach: Reach = DOWN, config: Part = CONFIG) -> Finding:
    return judge_port(listeners, config, reach, unit)


def test_port() -> None:
    assert port().text == "127.0.0.1:11434 is free"
    assert port(reach=Reach((), {"http_url": "http://x:1"})).text == "http://x:1 is the daemon's"
    taken = port(Listener("127.0.0.1", 11434, 0, "ollama", 700, "ollama"))
    assert taken.state is State.FAIL and "ollama (pid 700, user ollama)" in taken.text
    assert "systemctl disable --now ollama" in taken.remedy and "server.port" in taken.remedy
    hidden = port(Listener("0.0.0.0", 11434, 33, "www-data"))
    assert hidden.state is State.FAIL and "user www-data" in hidden.text and "ss -ltnp" in hidden.remedy
    assert "kill 700" in port(Listener("::", 11434, 0, "root", 700, "nginx")).remedy


def test_a_port_that_is_held_for_the_daemon_is_fine() -> None:
    assert port(Listener("127.0.0.1", 11434, 990, "vllama", 812, "python3")).state is State.OK
    assert port(Listener("127.0.0.1", 11434, 1000, "ann", 5, "vllamad")).state is State.OK
    by_systemd = Unit("system", "", {}, "active")
    assert "vllamad.socket" in port(Listener("127.0.0.1", 11434, 0, "root"), unit=by_systemd).text
    assert port(Listener("192.168.0.7", 11434, 0, "root", 9, "nginx")).state is State.OK, "another address"
    assert port(config=Part(missing="no")).state is State.SKIPPED


def test_ollama_beside_it() -> None:
    assert judge_ollama([], UNIT).state is State.OK
    by_hand = judge_ollama([Process(700, "ollama")], UNIT)
    assert by_hand.state is State.WARN and by_hand.remedy == "kill 700"
    served = judge_ollama([], Unit("system", "", {}, "", "active"))
    assert served.state is State.WARN and served.remedy == "sudo systemctl disable --now ollama"


def hub(**told: object) -> Part:
    return Part({"endpoint": "https://hub.example", "has_token": False, "status": 401} | told)


@pytest.mark.parametrize(
    ("told", "state", "says"),
    [
        (hub(), State.OK, "no token is set"),
        (hub(problem="[Errno -2] Name or service not known"), State.WARN, "answer: Name or service not known"),
        (hub(status=503), State.WARN, "status 503"),
        (hub(has_token=True, token_source="HF_TOKEN"), State.FAIL, "refuses the token of HF_TOKEN"),
        (hub(has_token=True, status=200, user="ann"), State.OK, "knows the token of ann"),
        (hub(has_token=True, status=404), State.OK, "does not say"),
        (Part(missing="not known"), State.SKIPPED, "not known"),
    ],
)
def test_hub(told: Part, state: State, says: str) -> None:
    found = judge_hub(told, SERVICE)
    assert found.state is state and says in found.text


def test_a_token_that_only_the_daemon_sees_is_not_called_missing() -> None:
    service = Service(("vllamad",), {}, "/", SERVICE.who, unseen="secrets, which only the daemon gets")
    assert "no token is set" not in judge_hub(hub(), service).text


@pytest.mark.parametrize(
    ("clock", "state", "says"),
    [
        (Clock(True, 0.4), State.OK, "synchronised"),
        (Clock(), State.SKIPPED, "nobody"),
        (Clock(None, 2.0), State.OK, "within 60 s"),
        (Clock(False), State.WARN, "not synchronised"),
        (Clock(True, 120.0), State.WARN, "2 minutes ahead of"),
        (Clock(False, -86_400.0), State.FAIL, "24 hours behind"),
    ],
)
def test_clock(clock: Clock, state: State, says: str) -> None:
    found = judge_clock(clock)
    assert found.state is state and says in found.text


# --- leftovers


def test_leftovers() -> None:
    assert judge_leftovers(Leftovers(), False, UNIT).state is State.OK
    left = Leftovers((Process(9, "VLLM::EngineCor"),), ("/dev/shm/psm_1",), 400_000_000, ("/run/w/1-1",))
    found = judge_leftovers(left, False, UNIT)
    assert found.state is State.WARN
    assert "1 processes, 1 worker folders, 1 files in /dev/shm (400 MB), such as pid 9" in found.text
    assert found.remedy.startswith("sudo systemctl start vllamad")
    assert judge_leftovers(left, True, UNIT).remedy.startswith("sudo systemctl restart")
    stuck = judge_leftovers(Leftovers((Process(9, "python", "D"),)), False, UNIT)
    assert stuck.state is State.FAIL and "hangs in the kernel" in stuck.text
    assert judge_leftovers(Leftovers(unseen="3 processes"), False, UNIT).state is State.SKIPPED


# --- the report

FINDINGS = [
    ok("unit", "vllamad.service is active and enabled"),
    warn("hub", "https://huggingface.co does not answer: Name or service not known; " * 2, "curl -sI https://x"),
    skipped("clock", "nobody here tells if it is right"),
    skipped("driver", "nobody here tells if it is right"),
    fail("socket", "bob may not open /run/vllama/vllamad.sock: not in group vllama", "sudo usermod -aG vllama bob"),
]


def test_problems_come_first_and_nothing_is_wider_than_the_screen() -> None:
    lines = report.page(FINDINGS)
    assert lines[:2] == [
        "✗ socket  bob may not open /run/vllama/vllamad.sock: not in group vllama",
        "          → sudo usermod -aG vllama bob",
    ]
    assert max(map(len, lines)) <= 80
    assert [line[0] for line in lines[:-1] if line[0] != " "] == ["✗", "!", "-", "-", "✓"]
    assert lines[-1] == "1 problem, 1 warning; 2 skipped"
    assert "- driver  as for clock" in lines
    assert max(map(len, report.page(FINDINGS, width=50))) <= 50


def test_quiet_shows_problems_only() -> None:
    lines = report.page(FINDINGS, only_problems=True)
    assert not any(line.startswith(("-", "✓")) for line in lines)
    assert lines[-1] == "1 problem, 1 warning; 2 skipped"
    assert report.page([ok("unit", "x"), skipped("clock", "y")], only_problems=True) == []
    assert report.summary([ok("unit", "x")]) == "no problems"


def test_the_document_keeps_the_order_of_the_checks() -> None:
    document = report.document(FINDINGS)
    assert document["failed"] == 1 and document["warnings"] == 1 and document["skipped"] == 2
    assert [one["id"] for one in document["checks"]] == ["unit", "hub", "clock", "driver", "socket"]  # type: ignore
    assert report.has_failed(FINDINGS) and not report.has_failed(FINDINGS[:4])
