"""The hub as a source of models (floor 2, fills ``ports.Hub``): names to repositories, and downloads in a child."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Source, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.operation import FileProgress, Progress
from vllamad.domain.ports import HubSource, Launcher, StagedModel
from vllamad.hub import library
from vllamad.hub.children import Line, child_environment, run_child

DEFAULT_ENDPOINT = "https://huggingface.co"


class HuggingFaceHub:
    """Downloads with the interpreter ``python``, which has huggingface_hub (the daemon's own).

    ``blobs`` is the store's folder of contents: what is there is linked, not downloaded, so pulling again what is
    complete costs one look at the hub. ``child_env`` is the daemon's environment; the child sees an allow-list of it.
    """

    def __init__(
        self,
        launcher: Launcher,
        python: str,
        endpoint: str,
        token: str,
        workers: int,
        child_env: Mapping[str, str],
        *,
        blobs: Path | None = None,
        retries: int = 5,
        retry_wait_s: float = 1.0,
        timeout_s: float = 30.0,
    ) -> None:
        self._launcher = launcher
        self._python = python
        self.use(endpoint, token, workers)
        self._env = child_environment(child_env, with_network=True)
        self._blobs = blobs
        self._retries = retries
        self._retry_wait_s = retry_wait_s
        self._timeout_s = timeout_s

    def use(self, endpoint: str, token: str, workers: int) -> None:
        """Fetch so from the next pull on. ``endpoint`` "" is Hugging Face's."""
        self._endpoint = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
        self._token = token
        self._workers = workers

    def resolve(self, ref: ModelRef) -> HubSource:
        """See ``library.resolve``."""
        return library.resolve(ref)

    async def fetch(self, source: HubSource, staging: Path, on_progress: Callable[[Progress], None]) -> StagedModel:
        """See ``ports.Hub``. Phases: ``resolving``, ``downloading``, ``verifying``."""
        what = f"{source.repository}:{source.revision}" if source.revision else source.repository
        request: Line = {
            "repository": source.repository,
            "revision": source.revision,
            "folder": os.fspath(staging),
            "endpoint": self._endpoint,
            "token": self._token,
            "workers": self._workers,
            "retries": self._retries,
            "retry_wait_s": self._retry_wait_s,
            "timeout_s": self._timeout_s,
            "reuse": os.fspath(self._blobs) if self._blobs else "",
        }
        view = _View(on_progress)
        on_progress(view.progress)
        try:
            done = await run_child(
                self._launcher,
                [self._python, "-P", "-m", "vllamad.hub.fetch"],
                env=self._env | {"HF_ENDPOINT": self._endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"},
                cwd=staging,
                request=request,
                doing=f"pull {what}",
                on_line=view.take,
            )
        except VllamaError as error:
            if error.reason is not Reason.ENGINE_START_FAILED:
                raise
            raise VllamaError(
                Reason.INTERNAL,
                f"cannot pull {what}: {error.message.partition(': ')[2]}",
                "the daemon's own Python environment is damaged: install vllama again",
            ) from error
        return StagedModel(
            folder=staging / "files",
            source=Source(SourceKind.HUB, source.repository, str(done["commit"])),
            sha256=dict(done["sha256"]),
        )


@dataclass(slots=True)
class _View:
    """The child's lines as snapshots of progress; the child sends at most ten a second."""

    on_progress: Callable[[Progress], None]
    progress: Progress = field(default_factory=lambda: Progress(phase="resolving"))

    def take(self, line: Line) -> None:
        match line.get("type"):
            case "phase":
                self.progress = replace(self.progress, phase=str(line["phase"]), detail=str(line.get("detail", "")))
            case "files":
                files = tuple(
                    FileProgress(path, done, size, f"sha256:{sha256}" if sha256 else "")
                    for path, size, sha256, done in line["files"]
                )
                self._show(files)
            case "progress":
                files = list(self.progress.files)
                for index, count in line["bytes"].items():
                    files[int(index)] = replace(files[int(index)], completed_bytes=count)
                self._show(tuple(files))
            case _:
                return
        self.on_progress(self.progress)

    def _show(self, files: tuple[FileProgress, ...]) -> None:
        self.progress = replace(
            self.progress,
            files=files,
            completed_bytes=sum(file.completed_bytes for file in files),
            total_bytes=sum(file.total_bytes for file in files),
        )
