"""The kill matrix: every state of a worker that can be held, times everything that can go wrong, and what has to be
true afterwards. ``python -m tests.soak.matrix`` prints it as a table; ``--patient`` leaves it to the health checks to
find hung engines, which takes up to half a minute more.

The cells are dealt to a few daemons that work side by side; each goes through many cells, so that what one of them
leaves behind shows in the next.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

from tests.soak.checks import Checks
from tests.soak.faults import (
    EITHER,
    FAULTS,
    HUNG_FOR_LONG,
    Case,
    Fault,
    fill_disk,
    freeze,
    hang_health,
    kill_daemon,
    leave,
)
from tests.soak.questions import Kind
from tests.soak.small_card import SmallCard, no_card
from tests.soak.small_disk import SmallDisk, unshare
from tests.soak.states import HOLDS, ON_CARD
from tests.soak.world import Character, World, play

LANES = 5
CARD_LANES = 7
ENVIRONMENT = {
    "VLLAMA_SCHEDULER_MAX_LOADED_MODELS": "3",
    "VLLAMA_ENGINE_START_TIMEOUT": "6s",
    "VLLAMA_ENGINE_TERM_GRACE": "1s",
    "VLLAMA_ENGINE_BACKOFF": "1s",
}
OTHER = Character("other", tokens=4)


def struck(name: str = "struck") -> Character:
    """The model whose worker is struck."""
    return Character(name, tokens=30, delay_s=0.05)


@dataclass
class Cell:
    """One field of the table."""

    state: str
    fault: Fault
    checks: Checks
    model: str
    """On the card each cell has its own: one that failed to sleep is not put to sleep again."""
    why_not: str = ""
    spent_s: float = 0.0

    @property
    def is_patient(self) -> bool:
        """True if it takes the health checks' time."""
        return self.fault.strike in {freeze, hang_health} and self.state in HUNG_FOR_LONG

    def __str__(self) -> str:
        return f"{self.state} × {self.fault.title}"


def all_cells(can_fill: bool) -> list[Cell]:
    cells: list[Cell] = []
    for state in HOLDS:
        for fault in FAULTS:
            why_not = "" if state in fault.needs else fault.why_not[state]
            if fault.strike is fill_disk and not can_fill:
                why_not = why_not or "neither root's mounts nor user namespaces are allowed here"
            if state in ON_CARD:
                why_not = why_not or no_card()
            model = f"struck-{len(cells)}" if state in ON_CARD else "struck"
            cells.append(Cell(state, fault, Checks(), model, why_not))
    return cells


async def run(cells: Sequence[Cell], wrapper: list[str] | None, *, is_patient: bool = False) -> None:
    """Run the cells; what did not hold is in their ``checks``."""
    due = [cell for cell in cells if not cell.why_not]
    patient = [cell for cell in due if is_patient and cell.is_patient]
    on_disk = [cell for cell in due if cell.fault.strike is fill_disk]
    on_card = [cell for cell in due if cell not in patient and cell.state in ON_CARD]
    others = [cell for cell in due if cell not in patient and cell not in on_disk and cell not in on_card]
    # The longest first: daemons that fall idle at the end are time lost.
    others.sort(key=lambda cell: cell.fault.strike in {freeze, hang_health}, reverse=True)
    lanes = [_lane(others, is_patient) for _ in range(min(LANES, len(others)))]
    lanes += [_lane([cell], is_patient) for cell in patient]
    if on_disk and wrapper:
        lanes.append(_lane(on_disk, is_patient, wrapper))
    await _side_by_side(lanes)
    # Not beside the others: some of those hold a state for a second only, which a busy machine would miss.
    await _side_by_side([_lane(on_card, is_patient) for _ in range(min(CARD_LANES, len(on_card)))])


async def _side_by_side(lanes: Sequence[Coroutine[object, object, None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for lane in lanes:
            tasks.create_task(lane)


async def _lane(cells: list[Cell], is_patient: bool, wrapper: list[str] | None = None) -> None:
    """One daemon that takes cell after cell."""
    world: World | None = None
    models = (*map(struck, dict.fromkeys(cell.model for cell in cells)), OTHER)
    try:
        while cells:
            cell = cells.pop(0)
            if world is None:
                world = _new_world(cell, models, wrapper)
                await world.start()
            began = time.monotonic()
            try:
                async with asyncio.timeout(150.0):
                    await _run_cell(world, cell, is_patient)
            except Exception as error:  # noqa: BLE001 - a cell's failure is its own
                cell.checks.that(False, "the cell runs to its end", f"{error!r}")
            cell.spent_s = time.monotonic() - began
            if cell.checks.violations:
                cell.checks.violations.append(await world.describe())
                await _discard(world, cell)
                world = None
    finally:
        if world is not None:
            await world.close()


def _new_world(cell: Cell, models: Sequence[Character], wrapper: list[str] | None) -> World:
    if wrapper:
        return SmallDisk(models, ENVIRONMENT, wrapper)
    return (SmallCard if cell.state in ON_CARD else World)(models, ENVIRONMENT)


async def _discard(world: World, cell: Cell) -> None:
    """After something went wrong the next cell gets a new daemon."""
    try:
        await world.close()
    except Exception as error:  # noqa: BLE001 - one more thing to tell
        cell.checks.violations.append(f"and at its end: {str(error)[:500]}")


async def _run_cell(world: World, cell: Cell, is_patient: bool) -> None:
    checks, fault, model = cell.checks, cell.fault, cell.model
    held = await HOLDS[cell.state](world, model, fault.life if cell.state == "STARTING" else {})
    world.next_life(model)
    await fault.strike(Case(world, model, cell.state, held, checks, is_patient))
    if held.let_go is not None:
        await held.let_go()
    for number, ask in enumerate(held.asks):
        outcome = await ask.outcome()
        world.judge(checks, ask.question, outcome)
        expected = fault.tells.get(cell.state, EITHER)
        if fault.strike is leave and number == 0:
            expected = {Kind.LEFT}
        checks.that(outcome.kind in expected, "clients in flight get what is due", f"{ask.question}: {outcome}")
    for unloading in held.unloading:
        await unloading
    await world.check_serves(checks, model)
    await world.check_idle(checks)
    await world.check_nothing_left(checks)
    if fault.strike is kill_daemon:
        checks.that(not world.processes(), "the next daemon finds nobody", world.processes())


def table(cells: Sequence[Cell]) -> str:
    """States down, faults across; a field is the number of checks that held, or why there is none."""
    notes = {why: chr(ord("a") + at) for at, why in enumerate(dict.fromkeys(c.why_not for c in cells if c.why_not))}
    width = max(len(fault.title) for fault in FAULTS)
    rows = [["state", *(fault.title for fault in FAULTS)]]
    for state in HOLDS:
        row = [state]
        for cell in (cell for cell in cells if cell.state == state):
            count = cell.checks.total
            row.append(
                f"– ({notes[cell.why_not]})" if cell.why_not else f"{count} FAILED" if _bad(cell) else str(count)
            )
        rows.append(row)
    lines = ["  ".join([row[0].ljust(16), *(field.rjust(width) for field in row[1:])]) for row in rows]
    lines += [f"  ({letter}) {why}" for why, letter in notes.items()]
    return "\n".join(lines)


def _bad(cell: Cell) -> bool:
    return bool(cell.checks.violations)


def summary(cells: Sequence[Cell]) -> Checks:
    """All checks together."""
    together = Checks()
    for cell in cells:
        together.add(cell.checks, str(cell))
    return together


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.matrix", description=__doc__)
    parser.add_argument("--patient", action="store_true", help="let the health checks find hung engines")
    parser.add_argument("--only", default="", help="run the cells whose name contains this")
    options = parser.parse_args(arguments)
    wrapper = unshare()
    cells = [cell for cell in all_cells(wrapper is not None) if options.only in str(cell)]
    began = time.monotonic()
    play(run(cells, wrapper, is_patient=options.patient))
    together = summary(cells)
    print(table(cells))
    ran = sum(1 for cell in cells if not cell.why_not)
    print(f"{ran} cells, {together.total} checks, {len(together.violations)} violations", end="")
    print(f" in {time.monotonic() - began:.0f} s")
    for text in together.violations:
        print(f"\n✗ {text}")
    return 1 if together.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
