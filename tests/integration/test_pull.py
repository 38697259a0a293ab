"""Pulling from a hub of our own: whole, interrupted and resumed, and every way in which it can fail.

The first half runs the real child, as the daemon does; the second half runs the child's own code in this process,
where a test can break the disk.
"""

import asyncio
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from tests.fakes.hub import HubServer, git_sha1, tiny_model
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model
from vllamad.domain.names import ModelRef
from vllamad.domain.operation import Progress
from vllamad.domain.ports import StagedModel
from vllamad.hub import children, fetch
from vllamad.hub.pull import HuggingFaceHub
from vllamad.hub.store import ModelStore
from vllamad.process.child import PosixLauncher

REF = ModelRef.parse("org/repo")
MODEL = tiny_model(rows=8000)  # a megabyte of weights
WEIGHTS = len(MODEL["model.safetensors"])
WEIGHTS_SHA256 = hashlib.sha256(MODEL["model.safetensors"]).hexdigest()
WANTED = {path: len(data) for path, data in MODEL.items() if path != "README.md"}
DEADLINE_S = 20.0


class Puller:
    """A hub, a store, and what the last download reported."""

    def __init__(self, server: HubServer, folder: Path, token: str = "", python: str = sys.executable) -> None:
        self.store = ModelStore(folder / "models")
        self.store.load()
        environ = {**os.environ, "NOTIFY_SOCKET": "/run/nowhere", "MY_SECRET": "x"}
        self.hub = HuggingFaceHub(
            PosixLauncher(str(folder)),
            python,
            server.url,
            token,
            4,
            environ,
            blobs=self.store.blobs,
            retries=2,
            retry_wait_s=0.01,
            timeout_s=10.0,
        )
        self.seen: list[Progress] = []
        self._on_progress: Callable[[Progress], None] = lambda _progress: None

    async def fetch(self, ref: ModelRef = REF) -> StagedModel:
        def take(progress: Progress) -> None:
            self.seen.append(progress)
            self._on_progress(progress)

        return await self.hub.fetch(self.hub.resolve(ref), self.store.staging(ref.key), take)

    async def pull(self, ref: ModelRef = REF) -> Model:
        return await asyncio.to_thread(self.store.commit, ref, await self.fetch(ref), self.hub.resolve(ref))

    async def fetch_until(self, is_enough: Callable[[Progress], bool]) -> "asyncio.Task[StagedModel]":
        """Start a download, and return it running once its progress is enough."""
        reached = asyncio.Event()
        self._on_progress = lambda progress: reached.set() if is_enough(progress) else None
        task = asyncio.create_task(self.fetch())
        try:
            async with asyncio.timeout(DEADLINE_S):
                await reached.wait()
        except TimeoutError:
            task.cancel()
            raise AssertionError(f"the download did not get there; last seen: {self.seen[-1:]}") from None
        return task


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine; afterwards no child of it is left."""
    try:
        return asyncio.run(work)
    finally:
        assert living_children() == []


def living_children() -> list[psutil.Process]:
    """Once a test had a launcher here, this process adopts what killed daemons of other tests leave behind: what has
    ended and waits for us to reap it is none of ours."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def weights_at(count: int) -> Callable[[Progress], bool]:
    return lambda progress: any(
        file.path == "model.safetensors" and file.completed_bytes >= count for file in progress.files
    )


def test_a_whole_pull_and_the_same_again(tmp_path: Path) -> None:
    with HubServer() as server:
        commit = server.add_repo("org/repo", MODEL)
        puller = Puller(server, tmp_path)
        model: Model = run(puller.pull())
        assert (model.source.repository, model.source.revision) == ("org/repo", commit)
        assert {file.path: file.size_bytes for file in model.files} == WANTED
        for path in WANTED:
            assert (Path(model.path) / path).read_bytes() == MODEL[path]
        assert server.served_bytes == WANTED

        phases = list(dict.fromkeys(progress.phase for progress in puller.seen))
        assert phases == ["resolving", "downloading", "verifying"]
        last = puller.seen[-1]
        assert last.completed_bytes == last.total_bytes == sum(WANTED.values())
        digests = {file.path: file.digest for file in last.files}
        sha256 = {file.path: file.sha256 for file in model.files}
        assert digests["model.safetensors"] == f"sha256:{sha256['model.safetensors']}"
        counts = [progress.completed_bytes for progress in puller.seen]
        assert counts == sorted(counts)

        again: Model = run(puller.pull())
        assert again.digest == model.digest
        assert server.served_bytes == WANTED, "pulling again what is complete is one look at the hub"


def test_a_cancelled_pull_ends_its_child_and_resumes_where_it_was(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.pause_after("model.safetensors", 500_000)
        puller = Puller(server, tmp_path)

        async def scenario() -> Model:
            task = await puller.fetch_until(weights_at(500_000))
            (child,) = living_children()
            assert "MY_SECRET" not in child.environ()
            assert "NOTIFY_SOCKET" not in child.environ()
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - started < children.TERM_S, "it had to be killed"
            assert not child.is_running()
            server.heal()
            return await puller.pull()

        model: Model = run(scenario())
        assert model.size_bytes == sum(WANTED.values())
        assert server.served_bytes == WANTED, "every byte went out once"


def test_a_hub_that_goes_down_in_mid_download_is_told_and_resumed(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.pause_after("model.safetensors", 300_000)
        puller = Puller(server, tmp_path)

        async def scenario() -> Model:
            task = await puller.fetch_until(weights_at(300_000))
            await asyncio.to_thread(server.stop)
            with pytest.raises(VllamaError) as caught:
                await task
            assert caught.value.reason is Reason.HUB_UNREACHABLE
            assert "finished bytes are kept" in (caught.value.hint or "")
            server.heal()
            server.start()
            return await puller.pull()

        model: Model = run(scenario())
        assert model.size_bytes == sum(WANTED.values())
        assert server.served_bytes == WANTED, "every byte went out once"


def test_a_child_that_is_killed_is_told_with_its_signal(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.pause_after("model.safetensors", 1000)
        puller = Puller(server, tmp_path)

        async def scenario() -> None:
            task = await puller.fetch_until(weights_at(1000))
            (child,) = living_children()
            child.send_signal(signal.SIGKILL)
            with pytest.raises(VllamaError) as caught:
                await task
            assert caught.value.reason is Reason.INTERNAL
            assert "signal 9" in caught.value.message

        run(scenario())


def test_a_child_dies_with_the_daemon(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.pause_after("model.safetensors", 1000)
        (tmp_path / "staging").mkdir()
        # A stand-in for the daemon: it starts the child, says its pid, and waits to be killed.
        parent = subprocess.Popen(
            [sys.executable, "-c", _PARENT, json.dumps(_request(server, tmp_path))],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            assert server.paused.wait(DEADLINE_S), "the download did not begin"
            parent.kill()
            assert psutil.wait_procs([child], timeout=DEADLINE_S)[1] == [], f"still there: {child.status()}"
        finally:
            if child.is_running():
                child.kill()
            parent.kill()
            parent.wait()
            parent.stdout.close()


_PARENT = """
import asyncio, os, sys
from pathlib import Path
from vllamad.domain.ports import Command
from vllamad.process.child import PosixLauncher

async def main():
    argv = [sys.executable, "-m", "vllamad.hub.fetch"]
    command = Command(argv, dict(os.environ), Path.cwd(), "stand-in", sys.argv[1].encode())
    child = PosixLauncher("stand-in").spawn(command, lambda line: None)
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with HubServer() as server, pytest.raises(VllamaError) as caught:
        run(Puller(server, tmp_path, python="/nowhere/python").fetch())
    assert "/nowhere/python" in caught.value.message


# --- the child's own code, in this process ---------------------------------------------------------------------------


def _request(server: HubServer, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "repository": "org/repo",
        "revision": "",
        "folder": str(folder / "staging"),
        "endpoint": server.url,
        "token": "",
        "workers": 2,
        "retries": 2,
        "retry_wait_s": 0.01,
        "timeout_s": 10.0,
        "reuse": "",
    } | changes


def _fetch_here(server: HubServer, folder: Path, **changes: Any) -> dict[str, str]:
    """Run the child's work in this process: path -> sha256, or the VllamaError that its last line would tell."""
    request = fetch.Request(**_request(server, folder, **changes))
    lines: list[dict[str, Any]] = []
    before, fetch.emit = fetch.emit, lambda **fields: lines.append(fields)
    try:
        work = fetch.Fetch(request)
        try:
            work.run()
        except fetch.FORESEEN as error:
            raise fetch.explain(error, request, work.what) from error
    finally:
        fetch.emit = before
        for thread in threading.enumerate():  # the real child simply ends
            if thread.name.startswith("download"):
                thread.join(DEADLINE_S)
    return lines[-1]["sha256"]


def _fails(server: HubServer, folder: Path, **changes: Any) -> VllamaError:
    with pytest.raises(VllamaError) as caught:
        _fetch_here(server, folder, **changes)
    assert caught.value.hint, caught.value
    return caught.value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"repository": "org/absent"}, Reason.MODEL_NOT_FOUND),
        ({"revision": "nosuch"}, Reason.MODEL_NOT_FOUND),
        ({"repository": "no--good/..x"}, Reason.MODEL_NOT_FOUND),
        ({"token": "broken"}, Reason.HUB_FORBIDDEN),
        ({"endpoint": "http://127.0.0.1:9"}, Reason.HUB_UNREACHABLE),
        ({"endpoint": "nonsense"}, Reason.HUB_UNREACHABLE),
        ({"repository": "org/gguf"}, Reason.UNSUPPORTED),
    ],
)
def test_what_can_be_wrong_with_a_name_or_a_hub(tmp_path: Path, changes: dict[str, str], reason: Reason) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.add_repo("org/gguf", {"README.md": b"", "model-Q4_K_M.gguf": b"GGUF"})
        error = _fails(server, tmp_path, **changes)
        assert error.reason is reason
        if reason is Reason.MODEL_NOT_FOUND:
            assert error.message == "pull model manifest: file does not exist"
        else:
            assert error.message.startswith("cannot ")
        assert server.served_bytes == {}


def test_a_gated_repository_says_where_to_accept_and_opens_to_the_token(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL, gated=True, token="hf_right")
        for token, why in (("", "no token is set"), ("hf_wrong", "has no access")):
            error = _fails(server, tmp_path, token=token)
            assert error.reason is Reason.HUB_FORBIDDEN
            assert why in error.message
            assert f"{server.url}/org/repo" in (error.hint or "")
            assert "HF_TOKEN" in (error.hint or "")
            assert "hf_wrong" not in f"{error!r}"
        assert set(_fetch_here(server, tmp_path, token="hf_right")) == set(WANTED)


def test_passing_faults_are_sat_out_and_lasting_ones_told(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.faults.status = [503, 429]
        assert set(_fetch_here(server, tmp_path / "a")) == set(WANTED)
        server.faults.status = [500] * 3
        error = _fails(server, tmp_path / "b")
        assert (error.reason, "500" in error.message) == (Reason.HUB_UNREACHABLE, True)


def test_a_connection_that_breaks_goes_on_behind_the_last_byte(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.fail_after("model.safetensors", 200_000)  # every connection: the file comes in pieces of that size
        assert set(_fetch_here(server, tmp_path)) == set(WANTED)
        assert server.served_bytes == WANTED
        pieces = [line for line in server.requests if line.endswith("/model.safetensors")]
        assert len(pieces) == -(-WEIGHTS // 200_000)


def test_a_connection_that_gives_no_byte_is_given_up(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.fail_after("model.safetensors", 0)
        assert _fails(server, tmp_path).reason is Reason.HUB_UNREACHABLE


@pytest.mark.parametrize("path", ["model.safetensors", "LICENSE"])
def test_wrong_contents_are_refused_and_not_kept(tmp_path: Path, path: str) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.faults.corrupt.add(path)
        error = _fails(server, tmp_path)
        assert error.reason is Reason.HUB_UNREACHABLE
        assert "digest mismatch" in error.message
        assert path in error.message
        assert not (tmp_path / "staging" / "files" / path).exists()
        server.heal()
        assert set(_fetch_here(server, tmp_path)) == set(WANTED)


def test_a_damaged_beginning_is_fetched_anew(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.fail_after("model.safetensors", 200_000)
        _fails(server, tmp_path, retries=0)
        partial = tmp_path / "staging" / "partial" / f"sha256-{WEIGHTS_SHA256}"
        assert partial.stat().st_size == 200_000
        partial.write_bytes(b"\0" * 200_000)  # what a power failure may leave
        server.heal()
        assert set(_fetch_here(server, tmp_path)) == set(WANTED)
        assert (tmp_path / "staging" / "files" / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_finished_file_that_was_changed_is_fetched_anew(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        _fetch_here(server, tmp_path)
        served = server.served_bytes.copy()
        (tmp_path / "staging" / "files" / "config.json").write_bytes(b"x" * WANTED["config.json"])
        (tmp_path / "staging" / "verified").write_text("{cut off by a cra")  # then all is hashed again, not fetched
        _fetch_here(server, tmp_path)
        assert server.served_bytes - served == {"config.json": WANTED["config.json"]}


def test_a_newer_commit_fetches_what_changed_and_drops_what_went(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL | {"vocab.txt": b"gone later"})
        _fetch_here(server, tmp_path)
        server.served_bytes.clear()
        server.add_repo("org/repo", MODEL | {"config.json": MODEL["config.json"] + b" "})
        assert set(_fetch_here(server, tmp_path)) == set(WANTED)
        assert server.served_bytes == {"config.json": WANTED["config.json"] + 1}
        assert not (tmp_path / "staging" / "files" / "vocab.txt").exists()


def test_a_disk_that_is_too_small_is_seen_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _path: usage._replace(free=1000))  # pyright: ignore
        error = _fails(server, tmp_path)
        assert error.reason is Reason.STORAGE_FULL
        assert error.facts["free_bytes"] == 1000
        assert error.facts["needed_bytes"] == sum(WANTED.values())
        assert "1.0 MB" in error.message
        assert server.served_bytes == {}


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, Reason.STORAGE_FULL), (errno.EDQUOT, Reason.STORAGE_FULL), (errno.EACCES, Reason.STORAGE_FAILED)],
)
def test_a_disk_that_fails_in_mid_download_keeps_what_it_has(
    tmp_path: Path, number: int, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object, _block: bytes) -> NoReturn:
        raise OSError(number, os.strerror(number), str(tmp_path / "staging" / "partial" / "x"))

    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        with monkeypatch.context() as patch:
            patch.setattr(fetch.Sink, "write", fail)
            error = _fails(server, tmp_path)
        assert error.reason is reason
        assert str(tmp_path) in error.message
        assert set(_fetch_here(server, tmp_path)) == set(WANTED)


def test_a_staging_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "staging").write_text("in the way")
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        error = _fails(server, tmp_path)
        assert error.reason is Reason.STORAGE_FAILED
        assert str(tmp_path / "staging") in error.message


def test_contents_that_are_here_under_another_model_are_linked(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        first = _fetch_here(server, tmp_path / "a")
        blobs = tmp_path / "blobs"
        blobs.mkdir()
        for path, sha256 in first.items():
            (tmp_path / "a" / "staging" / "files" / path).rename(blobs / f"sha256-{sha256}")
        server.served_bytes.clear()
        assert _fetch_here(server, tmp_path / "b", reuse=str(blobs)) == first
        assert server.served_bytes == {}


def test_files_with_the_same_contents_are_fetched_once(tmp_path: Path) -> None:
    twins = {
        f"{number}_Twin/{name}": b"same" * size for number in range(8) for name, size in (("a.json", 9), ("b", 500))
    }
    with HubServer() as server:
        server.add_repo("org/repo", MODEL | twins)
        fetched = _fetch_here(server, tmp_path, workers=8)
        assert set(fetched) == {*WANTED, *twins}
        assert sum(server.served_bytes[path] for path in twins) == 4 * 9 + 4 * 500
        for path, data in twins.items():
            assert (tmp_path / "staging" / "files" / path).read_bytes() == data


def test_a_failure_leaves_the_bytes_of_the_other_files(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_repo("org/repo", MODEL)
        server.pause_after("model.safetensors", 300_000)
        server.faults.corrupt.add("LICENSE")
        assert "LICENSE" in _fails(server, tmp_path, timeout_s=0.5).message
        partial = tmp_path / "staging" / "partial" / f"sha256-{WEIGHTS_SHA256}"
        assert partial.stat().st_size == 300_000
        server.heal()
        assert set(_fetch_here(server, tmp_path)) == set(WANTED)
        assert server.served_bytes["model.safetensors"] == WEIGHTS


def test_gits_name_of_a_file() -> None:
    assert git_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # what `git hash-object` says


def test_a_file_that_is_no_python_environment_is_told_by_its_last_line(tmp_path: Path) -> None:
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\necho 'no module named vllamad' >&2\nexit 3\n")
    script.chmod(0o755)
    with HubServer() as server, pytest.raises(VllamaError) as caught:
        run(Puller(server, tmp_path, python=str(script)).fetch())
    assert (caught.value.reason, "no module named vllamad" in caught.value.message) == (Reason.INTERNAL, True)


def test_a_deaf_child_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "TERM_S", 0.05)
    script = tmp_path / "deaf"
    script.write_text('#!/bin/sh\ntrap "" TERM\necho \'{"type":"phase","phase":"deaf"}\'\nwhile :; do read x; done\n')
    script.chmod(0o755)
    with HubServer() as server:
        puller = Puller(server, tmp_path, python=str(script))

        async def scenario() -> None:
            task = await puller.fetch_until(lambda progress: progress.phase == "deaf")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(scenario())
