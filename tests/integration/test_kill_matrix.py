"""Everything that can go wrong, in every state of a worker. See ``tests/soak/matrix.py``."""

from tests.soak.matrix import all_cells, run, summary, table
from tests.soak.small_disk import unshare
from tests.soak.world import play


def test_whatever_goes_wrong_nobody_is_left_and_nobody_is_lied_to() -> None:
    wrapper = unshare()
    cells = all_cells(wrapper is not None)
    play(run(cells, wrapper))
    print(table(cells))
    together = summary(cells)
    assert not together.violations, "\n\n".join(together.violations)
    assert all(cell.checks.total for cell in cells if not cell.why_not), "every cell has checked something"
