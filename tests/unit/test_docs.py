"""The papers: every link inside the repository leads somewhere, and every decision is on the architecture page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_every_decision_is_on_the_architecture_page() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    missing = [path.name for path in (ROOT / "docs/decisions").glob("*.md") if path.name not in text]
    assert not missing


def test_events_that_the_pages_name_are_logged() -> None:
    sources = "".join(path.read_text() for path in ROOT.glob("vllamad/**/*.py"))
    logged = set(re.findall(r'"([a-z]+\.[a-z_]+)[ :"]', sources))
    named = {name for page in PAGES for name in re.findall(r"EVENT=([a-z._]+)", page.read_text())}
    assert named, "the pattern finds nothing any more"
    assert named <= logged
