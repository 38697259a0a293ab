"""Judgement of driver and engine (floor 4). Pure: what the daemon's program told, and what the kernel shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllamactl import human
from vllamactl.doctor.facts import Gpus, Part
from vllamactl.doctor.finding import Finding, State, fail, ok, skipped, warn

SUDO = "sudo vllamactl doctor"
NO_LIBRARY = "libnvidia-ml.so.1 was not found"
MISMATCH = "The driver was updated"
"""What the daemon adds to NVML's "Driver/library version mismatch"."""


def judge_driver(devices: Part, engine: Part, config: Part, gpus: Gpus, stand_in: bool = False) -> Finding:
    """Does NVIDIA's driver answer, with its devices and nodes? Without a GPU that is a note, unless CUDA is wanted."""
    wants_cuda = config.text("engine_device") == "cuda" or engine.text("device") == "cuda"
    if devices.missing:
        return skipped("driver", devices.missing)
    problem = devices.text("problem")
    if stand_in and "ermission" in problem:
        return skipped("driver", f"you may not ask it: {_short(problem)}", SUDO)
    if NO_LIBRARY in problem:
        return _no_library(gpus, wants_cuda)
    if MISMATCH in problem:
        loaded = f" (the kernel has {gpus.kernel_version})" if gpus.kernel_version else ""
        text = f"the driver was updated, its old kernel module is still loaded{loaded}"
        return fail("driver", text, "sudo reboot; or stop all GPU programs, then: sudo rmmod nvidia_uvm nvidia")
    if problem and not gpus.kernel_version:
        text = f"the driver's kernel module is not loaded: {_short(problem)}"
        state = fail if wants_cuda or gpus.pci else warn
        return state("driver", text, "sudo modprobe nvidia; if that fails: dkms status; dmesg | grep -i nvidia")
    if problem:
        return fail("driver", _short(problem), "nvidia-smi; dmesg | grep -i -e nvrm -e xid")
    return _answering(devices, gpus)


def _no_library(gpus: Gpus, wants_cuda: bool) -> Finding:
    install = "install NVIDIA's driver, then: nvidia-smi"
    if wants_cuda:
        return fail("driver", "models are to run on CUDA, and there is no NVIDIA driver", install)
    if gpus.pci:
        return warn("driver", f"{gpus.pci} NVIDIA GPU(s) on the PCI bus, and no driver for them", install)
    return skipped("driver", "no NVIDIA GPU and no driver: models run on CPU")


def _answering(devices: Part, gpus: Gpus) -> Finding:
    cards: Sequence[Mapping[str, Any]] = devices.told.get("gpus") or ()
    driver = f"driver {devices.text('driver')}" + (f", CUDA {cuda}" if (cuda := devices.text("cuda")) else "")
    if not cards:
        return warn("driver", f"{driver}: no GPU that can be used", "nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES")
    ill = [card for card in cards if card.get("problem")]
    if ill:
        more = f" and {len(ill) - 1} more" if len(ill) > 1 else ""
        return fail("driver", f"{ill[0]['name']}: {ill[0]['problem']}{more}", "nvidia-smi -q; dmesg | grep -i xid")
    closed = [path for path, is_open in gpus.nodes.items() if is_open is False]
    if closed:
        text = f"{driver}: the daemon's user may not use {closed[0]}"
        return fail("driver", text, "sudo usermod -aG video,render vllama && sudo systemctl restart vllamad")
    if not gpus.has_uvm or "/dev/nvidia-uvm" not in gpus.nodes:
        text = f"{driver}: nvidia_uvm is not loaded; CUDA finds no GPU without it"
        return warn("driver", text, "sudo nvidia-modprobe -u -c 0 && sudo systemctl restart vllamad")
    sizes = sorted({human.memory(int(card["bytes"])) for card in cards})
    return ok("driver", f"{driver}; {len(cards)} GPU{'s' * (len(cards) > 1)} of {', '.join(sizes)}")


def _short(problem: str) -> str:
    return problem.removeprefix("driver: ").removeprefix("silent: ")


def judge_engine(engine: Part, devices: Part, access: Finding | None, stand_in: bool = False) -> Finding:
    """Can the daemon's user run the engine, and does it fit the driver? ``access`` is the finding about the permissions
    of its interpreter, None if it is not known where that is. ``stand_in``: it was looked at by another user than the
    daemon's, so that what is refused says nothing."""
    if access is not None and access.state is State.FAIL:
        return access
    if engine.missing:
        return skipped("engine", engine.missing)
    python = engine.text("python")
    problem = engine.text("problem")
    if stand_in and problem.startswith("cannot execute"):
        return skipped("engine", f"you may not look at it: {problem}", SUDO)
    if problem:
        return fail("engine", problem, _remedy(engine.text("hint"), python))
    what = f"{engine.text('distribution')} {engine.text('version')} on {engine.text('device')}"
    if misfit := _misfit(engine, devices, what):
        return misfit
    supported: Sequence[str] = engine.told.get("supported") or ()
    series = ".".join(engine.text("version").partition("+")[0].split(".")[:2])
    if supported and series not in supported:
        text = f"{what} was not tested with this vllamad; {' and '.join(supported)} were"
        return warn("engine", text, f"{python} -m pip install 'vllm=={supported[-1]}.*'")
    if access is not None and access.state is State.WARN:
        return access
    return ok("engine", f"{what}, {python}")


def _remedy(hint: str, python: str) -> str:
    return hint or f"{python} -m pip list | grep -i vllm"


def _misfit(engine: Part, devices: Part, what: str) -> Finding | None:
    """A CUDA that the driver does not run: another major version never, a newer minor one with exceptions (CUDA's minor
    version compatibility leaves out code that the driver has to compile)."""
    built, runs = _version(engine.text("torch_cuda")), _version(devices.text("cuda"))
    if not built or not runs or engine.text("device") != "cuda" or built <= runs:
        return None
    text = f"{what}: its torch wants CUDA {engine.text('torch_cuda')}, the driver runs {devices.text('cuda')}"
    remedy = "update the driver, or install an engine that was built for the older CUDA"
    return fail("engine", text, remedy) if built[0] > runs[0] else warn("engine", text, remedy)


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()
