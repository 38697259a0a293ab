"""Download a repository in a process of its own: ``python -m vllamad.hub.fetch`` (floor 2).

A thread cannot be cancelled, a process can; and the daemon stays free of huggingface_hub. The request is one JSON
object on standard input (a token belongs neither in argv nor in a file); the answer is NDJSON on standard output: the
phase, the list of files, progress at most ten times a second, and at the end one line ``done`` or ``error``.

huggingface_hub finds the commit, lists its files and tells errors apart, but it throws a partial file away when its
process ends (seen in 2.4: the temporary name is unique to the process). So the bytes are fetched here, over its own
session, into a folder that outlives us::

    files/<path>            complete and verified
    partial/<identity>      growing; named by content, so another commit never continues the wrong file
    verified                one JSON line per verified file: what need not be hashed again

SIGTERM, which the launcher has the kernel send when the daemon dies, needs no handler: every byte is in the kernel's
hands as soon as it is received, and what a power failure leaves at the end of a partial file is found by its hash.
"""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # pyright: ignore[reportUnknownVariableType]

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.hub.faults import no_room, storage_fault
from vllamad.hub.selection import choose_files
from vllamad.hub.sink import File, Mismatch, Reporter, Sink
from vllamad.hub.solid import FILE_MODE, make_folder
from vllamad.hub.staging import Staging

T = TypeVar("T")

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 8.0

# huggingface_hub 1.x stands on httpx, 2.x on httpx2: take the base of their transport errors from where it is used.
_HttpError = cast(type[Exception], next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError"))


@dataclass(frozen=True, slots=True)
class Request:
    """What the daemon asks for; the JSON object on standard input."""

    repository: str
    revision: str
    folder: str
    endpoint: str
    token: str
    workers: int
    retries: int
    retry_wait_s: float
    timeout_s: float
    reuse: str
    """A folder of contents that may be linked instead of downloaded, see staging.py; "" if there is none."""


class Fetch:
    """One download, from the listing to the last hash. ``what`` is its name in messages."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._staging = Staging(Path(request.folder), Path(request.reuse) if request.reuse else None)
        self.what = f"{request.repository}:{request.revision}" if request.revision else request.repository
        self._headers = {**build_hf_headers(token=request.token or None), "Accept-Encoding": "identity"}
        self._stopping = threading.Event()

    def run(self) -> None:
        """Do it all; raises VllamaError."""
        emit(type="phase", phase="resolving", detail=self.what)
        commit, files = self._list()
        self._staging.prepare(files)
        emit(type="files", files=[[f.path, f.size, f.sha256, f.done_bytes] for f in files])
        self._check_room(files)
        emit(type="phase", phase="downloading", detail=self.what)
        waiting = sorted((f for f in files if not self._staging.is_finished(f)), key=lambda f: f.size, reverse=True)
        with Reporter(files, emit):
            self._download(waiting, commit)
        emit(type="phase", phase="verifying", detail=self.what)
        for file in files:
            if (self._staging.files / file.path).stat().st_size != file.size or not file.sha256:
                raise AssertionError(f"{file.path} was not verified")
        emit(type="done", commit=commit, sha256={f.path: f.sha256 for f in files})

    # --- what there is -----------------------------------------------------------------------------------------------

    def _list(self) -> tuple[str, list[File]]:
        request = self._request
        api = huggingface_hub.HfApi(endpoint=request.endpoint, token=request.token or None)

        def ask() -> huggingface_hub.ModelInfo:
            return api.model_info(
                request.repository,
                revision=request.revision or None,
                files_metadata=True,
                timeout=request.timeout_s,
            )

        try:
            info = self._persist(ask, retries=min(2, request.retries))
        except (HFValidationError, HfHubHTTPError):
            raise  # some of these are ValueErrors, too
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreachable("its answer is not a hub's", "check HF_ENDPOINT: is it a hub?") from error
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        files: list[File] = []
        for path in choose_files(siblings, self.what):
            sibling = siblings[path]
            lfs = sibling.lfs
            size = lfs.size if lfs else sibling.size
            if size is None or not (sibling.blob_id or lfs):
                raise self._unreachable("its list of files has no sizes", "check HF_ENDPOINT: is it a hub?")
            files.append(File(path, size, sibling.blob_id or "", lfs.sha256 if lfs else ""))
        return info.sha or request.revision, files

    def _check_room(self, files: list[File]) -> None:
        needed = sum(f.size - f.done_bytes for f in files)
        free = shutil.disk_usage(self._request.folder).free
        if needed > free:
            raise no_room(f"pull {self.what}", Path(self._request.folder), needed, free)

    # --- the bytes ---------------------------------------------------------------------------------------------------

    def _download(self, files: list[File], commit: str) -> None:
        """Several files at once. The first failure ends it all, without waiting for threads that wait for the network:
        their bytes are on disk."""
        pool = ThreadPoolExecutor(max(1, self._request.workers), thread_name_prefix="download")
        twins: dict[str, list[File]] = {}
        for file in files:
            twins.setdefault(file.identity, []).append(file)
        futures = [pool.submit(self._download_twins, same, commit) for same in twins.values()]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            self._stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _download_twins(self, files: list[File], commit: str) -> None:
        """Files with the same contents: the first is downloaded, the others are links to it."""
        self._download_file(files[0], commit)
        for twin in files[1:]:
            self._staging.link(self._staging.files / files[0].path, twin, files[0].sha256)

    def _download_file(self, file: File, commit: str) -> None:
        partial = self._staging.partials / file.identity
        url = huggingface_hub.hf_hub_url(
            self._request.repository, file.path, revision=commit, endpoint=self._request.endpoint
        )
        was_resumed = partial.exists() and partial.stat().st_size > 0
        try:
            sha256 = self._download_once(file, url, partial)
        except Mismatch:
            if not was_resumed:
                raise
            # The beginning came from an earlier try; perhaps a power failure damaged it. Once more from nothing.
            sha256 = self._download_once(file, url, partial)
        place = self._staging.files / file.path
        make_folder(place.parent)
        partial.replace(place)
        self._staging.note(file, place, sha256)

    def _download_once(self, file: File, url: str, partial: Path) -> str:
        with partial.open("ab", buffering=0) as out:
            os.fchmod(out.fileno(), FILE_MODE)
            if out.tell() > file.size:
                out.truncate(0)
            sink = Sink(out, file, partial)
            if file.done_bytes < file.size:
                self._persist(lambda: self._stream(url, sink), retries=self._request.retries, progress=sink)
            os.fsync(out.fileno())
        sha256, git = sink.sha256.hexdigest(), sink.git.hexdigest()
        want, got = (file.sha256, sha256) if file.sha256 else (file.git_sha1, git)
        if want != got:
            partial.unlink()
            file.done_bytes = 0
            raise Mismatch(f"digest mismatch, file must be downloaded again: want {want}, got {got} ({file.path})")
        return sha256

    def _stream(self, url: str, sink: Sink) -> None:
        headers = dict(self._headers)
        start = sink.file.done_bytes
        if start:
            headers["Range"] = f"bytes={start}-"
        session = huggingface_hub.get_session()
        with session.stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=self._request.timeout_s
        ) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            if start and response.status_code != 206:
                sink.restart()  # a server or proxy that does not know ranges sends it all again
            for chunk in response.iter_bytes():  # as they arrive: a chunk size would hold bytes back from the disk
                if self._stopping.is_set():
                    raise ConnectionAbortedError("another file failed")
                sink.write(chunk)
        if sink.file.done_bytes < sink.file.size:
            raise ConnectionResetError(f"{sink.file.path} ended early")

    def _persist(self, work: Callable[[], T], *, retries: int, progress: "Sink | None" = None) -> T:
        """Do it again on passing faults; every received byte gives new patience."""
        attempt = 0
        while True:
            before = progress.file.done_bytes if progress else 0
            try:
                return work()
            except HfHubHTTPError as error:
                if error.response.status_code not in _TRANSIENT:
                    raise
                failure: Exception = error
            except (_HttpError, ConnectionError) as error:
                failure = error
            attempt = 1 if progress and progress.file.done_bytes > before else attempt + 1
            if attempt > retries:
                raise failure
            if self._stopping.wait(min(_LONGEST_WAIT_S, self._request.retry_wait_s * 2 ** (attempt - 1))):
                raise failure

    def _unreachable(self, why: str, hint: str) -> VllamaError:
        return unreachable(self.what, self._request.endpoint, why, hint)


# --- the protocol ----------------------------------------------------------------------------------------------------

_OUT_LOCK = threading.Lock()


def emit(**fields: Any) -> None:
    """One line of NDJSON. If nobody reads it any more, there is nothing left to do here."""
    with _OUT_LOCK:
        try:
            sys.stdout.write(json.dumps(fields, separators=(",", ":")) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            os._exit(1)


def unreachable(what: str, endpoint: str, why: str, hint: str = "") -> VllamaError:
    """HUB_UNREACHABLE with the remedy that fits."""
    host = urlsplit(endpoint).netloc or endpoint
    return VllamaError(
        Reason.HUB_UNREACHABLE,
        f"cannot pull {what}: {host}: {why}",
        hint or "check the network, proxies and HF_ENDPOINT, then pull again: finished bytes are kept",
        endpoint=endpoint,
    )


# Everything that can go wrong outside; what is not among these is a bug, and its traceback goes to standard error.
FORESEEN = (VllamaError, Mismatch, HfHubHTTPError, HFValidationError, _HttpError, OSError)


def explain(error: Exception, request: Request, what: str) -> VllamaError:
    """Say in the house's words what huggingface_hub, the network or the disk said."""
    page = f"{request.endpoint}/{request.repository}"
    match error:
        case VllamaError():
            return error
        case Mismatch():
            return unreachable(what, request.endpoint, str(error), "pull again; if it stays, the hub's copy is damaged")
        case GatedRepoError():
            return VllamaError(
                Reason.HUB_FORBIDDEN,
                f"cannot pull {what}: it is gated, and this token has no access to it"
                if request.token
                else f"cannot pull {what}: it is gated, and no token is set",
                f"accept its licence at {page} and set HF_TOKEN to a token of that account",
                url=page,
            )
        case RevisionNotFoundError():
            return VllamaError(
                Reason.MODEL_NOT_FOUND,
                "pull model manifest: file does not exist",
                f"{request.repository} has no branch, tag or commit {request.revision!r}; its main one needs no tag",
                model=what,
            )
        case RepositoryNotFoundError():
            token = "" if request.token else "; if it is private, set HF_TOKEN"
            return VllamaError(
                Reason.MODEL_NOT_FOUND,
                "pull model manifest: file does not exist",
                f"there is no repository {request.repository} at {request.endpoint}{token}",
                model=what,
            )
        case HFValidationError():
            return VllamaError(
                Reason.MODEL_NOT_FOUND,
                "pull model manifest: file does not exist",
                f"{request.repository} is no name that the hub allows",
                model=what,
            )
        case HfHubHTTPError():
            return _explain_status(error, request, what, page)
        case _:
            pass
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return storage_fault(f"pull {what}", Path(request.folder), error)
    return unreachable(what, request.endpoint, str(error) or type(error).__name__)


def _explain_status(error: HfHubHTTPError, request: Request, what: str, page: str) -> VllamaError:
    status = error.response.status_code
    if status == 401:
        return VllamaError(
            Reason.HUB_FORBIDDEN,
            f"cannot pull {what}: the hub does not accept the token",
            "set HF_TOKEN to a valid token, or unset it for public models",
            url=page,
        )
    if status == 403:
        return VllamaError(
            Reason.HUB_FORBIDDEN,
            f"cannot pull {what}: the hub refuses access",
            f"look at {page} with the token's account; a fine-grained token needs read access to gated repositories",
            url=page,
        )
    if status == 404:
        return VllamaError(
            Reason.MODEL_NOT_FOUND,
            "pull model manifest: file does not exist",
            f"{request.endpoint} knows no such file; is it a hub?",
            model=what,
        )
    return unreachable(what, request.endpoint, f"HTTP status {status}")


def main() -> int:
    """Read the request, do it, end with one line; exit status 0 if it is ``done``."""
    request = Request(**json.load(sys.stdin))
    fetch = Fetch(request)
    try:
        fetch.run()
    except FORESEEN as error:
        failure = explain(error, request, fetch.what)
        emit(type="error", reason=failure.reason, message=failure.message, hint=failure.hint, facts=failure.facts)
        os._exit(1)  # an ordinary exit would wait for the threads that still download
    return 0


if __name__ == "__main__":
    sys.exit(main())
