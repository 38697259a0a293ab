"""A short soak, and what longer ones have found. See ``tests/soak/soak.py``."""

import asyncio
import os
import signal
import subprocess
import sys

from tests.soak.questions import Kind, Outcome
from tests.soak.soak import report, soak_for
from tests.soak.victims import Victim
from tests.soak.world import Character, World, play, until

SEED = 11


def test_a_short_soak() -> None:
    soak = play(soak_for(seconds=20.0, seed=SEED, kills=8, is_patient=False))
    print(report(soak))
    assert not soak.checks.violations, "\n\n".join(soak.checks.violations)
    assert soak.havoc.kills >= 8 and soak.load.count(Kind.WHOLE) > 20, report(soak)


def test_who_has_no_marker_is_nobodys_victim() -> None:
    """Only what the daemon of a soak has started may be struck, however short of a marker it is for a moment."""
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        for pid in (other.pid, os.getpid(), 1):
            victim = Victim(pid)
            assert not victim.members()
            blows = (victim.kill_leader, victim.kill_core, victim.kill_both, victim.kill_everyone, victim.freeze)
            assert not any(blow() for blow in blows)
        assert other.poll() is None
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()


def test_no_model_is_denied_while_the_daemon_starts() -> None:
    async def scene() -> list[Outcome]:
        world = World([Character("tiny", tokens=4)], {})
        try:
            await world.start()
            question = world.models["tiny"].asked("are-you-there")
            assert (await world.ask(question).outcome()).kind is Kind.WHOLE
            (shown,) = await world.workers()
            # What an earlier daemon left behind holds up the start of the next one.
            Victim(shown.pid).freeze_tidier()
            await world.kill()
            starting = asyncio.create_task(world.start())
            outcomes: list[Outcome] = []

            async def is_served() -> bool:
                outcomes.append(await world.ask(question).outcome())
                return outcomes[-1].kind is Kind.WHOLE

            await until(is_served, 20.0)
            await starting
            return outcomes
        finally:
            await world.close()

    outcomes = play(scene())
    assert outcomes[-1].kind is Kind.WHOLE
    assert not [outcome for outcome in outcomes if outcome.kind is Kind.DENIED]
