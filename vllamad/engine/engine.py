"""vLLM as the supervisor sees it (floor 2): fills ``Engine`` from its parts."""

from collections.abc import Callable
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.footprint import EngineSettings
from vllamad.domain.loaders import Loader
from vllamad.domain.model import Model
from vllamad.domain.ports import Command, EnginePlace, EngineVersion, LoadStep, Taken, WorkerPlaces
from vllamad.engine.client import UdsEngineClient
from vllamad.engine.command import (
    QUANTIZATIONS,
    EngineOptions,
    ModelOptions,
    build_command,
    identity_of,
    inherited_environment,
    loaders_for,
    memory_settings,
    self_test_command,
    zygote_command,
)
from vllamad.engine.phases import level, plain, read_phase
from vllamad.engine.taken import read_taken
from vllamad.engine.version import EngineProbe


class VllmEngine:
    """``for_model`` gives what is configured for a model; ``idle_s`` is how long a stream may be silent."""

    def __init__(
        self,
        options: EngineOptions,
        probe: EngineProbe,
        for_model: Callable[[Model], ModelOptions] = lambda _model: ModelOptions(),
        idle_s: float | None = None,
    ) -> None:
        self._options = options
        self._probe = probe
        self._for_model = for_model
        self._idle_s = idle_s

    def use(self, options: EngineOptions) -> None:
        """Start engines so from the next one on."""
        self._options = options

    async def version(self) -> EngineVersion:
        """See ``Engine.version``."""
        return await self._probe.version(inherited_environment(self._options))

    def identity(self, model: Model) -> str:
        """See ``Engine.identity``: the files, and everything that goes on the command line for their sake."""
        return identity_of(model, self._for_model(model))

    def quantizations(self) -> tuple[str, ...]:
        """See ``Engine.quantizations``."""
        return QUANTIZATIONS.get(self._probe.answer.device, ()) if self._probe.answer else ()

    def memory_settings(self, model: Model) -> EngineSettings:
        """See ``Engine.memory_settings``. Raises ENGINE_START_FAILED if there is no usable engine."""
        return memory_settings(self._options, self._for_model(model), model, self._usable(model).device)

    def loaders(self, model: Model) -> tuple[Loader, ...]:
        """See ``Engine.loaders``. ``version()`` has to have answered before."""
        return loaders_for(self._options, self._for_model(model), model, self._usable(model))

    def command(self, model: Model, places: WorkerPlaces, place: EnginePlace, loader: str = "") -> Command:
        """See ``Engine.command``. ``version()`` has to have answered before: it tells what to run on."""
        device = self._usable(model).device
        return build_command(self._options, self._for_model(model), model, places, device, place, loader)

    def zygote(self) -> Command | None:
        """What engines here are forked from; None where they are not, or there is no usable engine. Only after
        ``version()`` has answered."""
        answer = self._probe.answer
        return zygote_command(self._options, answer.device) if answer and not answer.problem else None

    def self_test(self) -> Command | None:
        """What tests the processor that engines compute with; None where that is a GPU, or there is no usable engine.
        Only after ``version()`` has answered."""
        answer = self._probe.answer
        is_cpu = answer is not None and not answer.problem and answer.device == "cpu"
        return self_test_command(self._options) if is_cpu else None

    def _usable(self, model: Model) -> EngineVersion:
        version = self._probe.answer
        if version is None:
            raise VllamaError(
                Reason.ENGINE_START_FAILED,
                f"cannot start {model.name}: the engine has not been looked at yet",
                "try again in a few seconds",
                model=model.name,
            )
        if version.problem:
            raise VllamaError(
                Reason.ENGINE_START_FAILED,
                f"cannot start {model.name}: {version.problem}",
                version.hint,
                model=model.name,
                python=version.python,
            )
        return version

    def read_phase(self, line: str) -> LoadStep | None:
        """See ``Engine.read_phase``."""
        return read_phase(line)

    def level(self, line: str) -> int:
        """See ``Engine.level``."""
        return level(line)

    def plain(self, line: str) -> str:
        """See ``Engine.plain``."""
        return plain(line)

    def read_taken(self, line: str) -> Taken | None:
        """See ``Engine.read_taken``."""
        return read_taken(line)

    def connect(self, socket: Path) -> UdsEngineClient:
        """See ``Engine.connect``."""
        return UdsEngineClient(socket, idle_s=self._idle_s, asks_for_lines=self._options.fast_path)
