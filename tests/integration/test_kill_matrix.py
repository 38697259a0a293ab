"""Everything that can go wrong, in every state of a worker. See ``tests/soak/matrix.py``."""

from collections.abc import Sequence

import pytest

from tests.soak.checks import Checks
from tests.soak.matrix import Cell, all_cells, run, summary, table
from tests.soak.small_card import no_card
from tests.soak.small_disk import unshare
from tests.soak.states import ON_CARD
from tests.soak.world import play


def test_whatever_goes_wrong_nobody_is_left_and_nobody_is_lied_to() -> None:
    wrapper = unshare()
    hold([cell for cell in all_cells(wrapper is not None) if cell.state not in ON_CARD], wrapper)


def test_nor_on_a_card_that_returns_memory_late_and_is_too_small_for_two_who_are_awake() -> None:
    if why := no_card():
        pytest.skip(why)
    hold([cell for cell in all_cells(can_fill=False) if cell.state in ON_CARD], None)


def hold(cells: Sequence[Cell], wrapper: list[str] | None) -> None:
    play(run(cells, wrapper))
    # Cells run side by side, and some hold a state for a second: on a machine without that second they strike too late.
    # What is at fault is at fault again, alone.
    for cell in cells:
        if cell.checks.violations:
            print("again, alone:", *cell.checks.violations, sep="\n")
            cell.checks = Checks()
            play(run([cell], wrapper))
    print(table(cells))
    together = summary(cells)
    assert not together.violations, "\n\n".join(together.violations)
    assert all(cell.checks.total for cell in cells if not cell.why_not), "every cell has checked something"
