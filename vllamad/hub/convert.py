"""Other formats to what the engine loads (floor 2, fills ``ports.Converter``): a child of the engine's interpreter does
the work, so the daemon imports no torch, and the child can be killed."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Source, SourceKind
from vllamad.domain.operation import Progress
from vllamad.domain.ports import Launcher, StagedModel
from vllamad.hub.children import Line, child_environment, run_child
from vllamad.hub.faults import storage_fault, storage_faults
from vllamad.hub.solid import make_folder, remove_tree

_MAGIC = b"GGUF"
_SCRIPT = Path(__file__).parent / "convert_gguf.py"


class GgufConverter:
    """Converts with ``python``, the interpreter that has the engine; ``child_env`` is the daemon's environment, of
    which the child sees an allow-list. ``script`` is what it runs; tests put another one there."""

    def __init__(
        self, launcher: Launcher, python: str, child_env: Mapping[str, str], *, script: Path = _SCRIPT
    ) -> None:
        self._launcher = launcher
        self._python = python
        self._env = child_environment(child_env, with_network=False)
        self._script = script

    async def convert_gguf(self, file: Path, staging: Path, on_progress: Callable[[Progress], None]) -> StagedModel:
        """See ``ports.Converter``. Phases: ``reading``, ``converting``, ``writing``, with a fraction.

        A conversion does not resume: what an interrupted one left in ``staging`` is removed first. Raises
        ENGINE_START_FAILED, too, if the interpreter cannot be executed.
        """
        doing = f"convert {file.name}"
        _check(file, doing)
        folder = staging / "files"
        with storage_faults(doing, folder):
            remove_tree(folder)
            make_folder(folder)

        def show(line: Line) -> None:
            if line.get("type") == "phase":
                fraction = float(line.get("fraction", 0.0))
                on_progress(Progress(phase=str(line["phase"]), detail=str(line.get("detail", "")), fraction=fraction))

        on_progress(Progress(phase="reading", detail=file.name))
        request: Line = {"file": os.fspath(file), "folder": os.fspath(folder)}
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            await run_child(
                self._launcher,
                [self._python, os.fspath(self._script)],
                env=self._env | offline,
                cwd=folder,
                request=request,
                doing=doing,
                on_line=show,
            )
        except VllamaError as error:
            if error.reason is not Reason.ENGINE_START_FAILED:
                raise
            raise VllamaError(
                Reason.ENGINE_START_FAILED,
                f"cannot {doing}: {error.message.partition(': ')[2]}",
                "install the engine (vllamactl engine install), or set engine.python to an interpreter that has it",
            ) from error
        return StagedModel(folder=folder, source=Source(SourceKind.GGUF))


def _check(file: Path, doing: str) -> None:
    """Refuse at once what no child needs to look at."""
    hint = "name a GGUF file of a language model by its absolute path; the daemon's user must be able to read it"
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_MAGIC))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise VllamaError(Reason.INVALID_REQUEST, f"cannot {doing}: {file}: {error.strerror}", hint) from error
    except OSError as error:
        raise storage_fault(doing, file, error) from error
    if magic != _MAGIC:
        raise VllamaError(Reason.INVALID_REQUEST, f"cannot {doing}: supplied file was not in GGUF format", hint)
