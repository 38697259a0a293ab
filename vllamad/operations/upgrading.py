"""The wish to be replaced by a newly installed daemon (floor 3): asked for by people, refused while it cannot be
fulfilled, and fulfilled by the daemon's own branch, which has to leave for it.

Everything that is known to be able to fail is tried before anything is given up: the new program is started to say that
it runs, that its configuration is valid, and that it reads what it would be handed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllama.reasons import Reason
from vllamad.config.places import Places
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import FORMAT

FIXED = ("state", "runtime", "worker_sockets")
"""Places that cannot be others afterwards: what is handed over lies there."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade is about to do, or would: ``version`` is that of the successor, ``models`` go on."""

    version: str
    models: tuple[str, ...]


class Upgrading:
    """``ask`` has the new program tell of itself; ``models`` names those whose workers go on, ``unkillable`` those
    whose processes do not end."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[Mapping[str, Any]]],
        places: Places,
        models: Callable[[], tuple[str, ...]],
        unkillable: Callable[[], tuple[str, ...]],
    ) -> None:
        self._ask = ask
        self._places = places
        self._models = models
        self._unkillable = unkillable
        self._wish: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._is_closed = False

    async def upgrade(self, drain_s: float, *, is_dry_run: bool = False) -> Upgrade:
        """Look whether it can be, and unless ``is_dry_run`` have it done: it begins after this has returned. Requests
        in flight get ``drain_s`` seconds. Raises CONFIG_INVALID, UNSUPPORTED, INTERNAL (the new program), DRAINING;
        nothing has changed then."""
        self._check_open()
        self._check_unkillable()
        told = await self._ask()
        self._check(told)
        self._check_open()  # it took a while
        upgrade = Upgrade(str(told["version"]), self._models())
        if not is_dry_run:
            self._wish.set_result(drain_s)
        return upgrade

    async def wished(self) -> float:
        """Return when somebody wants it, and it can be: how long requests in flight may take."""
        return await asyncio.shield(self._wish)

    def close(self) -> None:
        """Refuse every wish from now on: the daemon ends."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed or self._wish.done():
            what = "is being upgraded already" if self._wish.done() else "is stopping"
            hint = "see how it goes: vllamactl status"
            raise VllamaError(Reason.DRAINING, f"cannot upgrade: the daemon {what}", hint)

    def _check_unkillable(self) -> None:
        if stuck := self._unkillable():
            raise VllamaError(
                Reason.INTERNAL,
                f"cannot upgrade: processes of {', '.join(stuck)} do not end, and a new daemon would wait for that",
                "nothing has changed, and other models are served on; what hangs in a driver ends with a reboot",
            )

    def _check(self, told: Mapping[str, Any]) -> None:
        if told.get("problem"):
            raise VllamaError(
                Reason.CONFIG_INVALID,
                f"cannot upgrade: the new vllamad refuses its configuration: {told['problem']}",
                "nothing has changed: correct it, then run: vllamactl upgrade",
            )
        if told.get("handover") != FORMAT:
            raise VllamaError(
                Reason.UNSUPPORTED,
                f"cannot upgrade to vllamad {told.get('version', '?')}: it cannot take over from this one",
                "nothing has changed; models are loaded again after: systemctl restart vllamad",
            )
        for name in FIXED:
            now, then = str(getattr(self._places, name)), told.get(name)
            if then != now:
                place = {"state": "state folder", "runtime": "runtime folder"}.get(name, "folder of worker sockets")
                raise VllamaError(
                    Reason.CONFIG_INVALID,
                    f"cannot upgrade: the {place} would be {then}, and it is {now}",
                    "nothing has changed: that needs a restart, systemctl restart vllamad",
                )
