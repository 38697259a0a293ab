"""The claims about an engine, on the fake: what the other tests build on is true of it."""

import asyncio
from pathlib import Path

from tests.contract import engine_claims as claims
from vllamad.domain.model import Capability

FAKE_PYTHON = Path(__file__).parents[1] / "fakes" / "fake_python"


def test_the_fake_keeps_every_claim(short_folder: Path) -> None:
    async def scene() -> None:
        # Slow enough that a stream can be closed before its end.
        environment = {"FAKE_ENGINE": "--token-delay-s 0.001"} | claims.DEVELOPMENT
        model = claims.make_model(short_folder)
        async with claims.running(FAKE_PYTHON, model, short_folder, deadline_s=10, environment=environment) as engine:
            for claim in (*claims.CLAIMS, *claims.SLEEP_CLAIMS):
                try:
                    await claim(engine)
                except Exception as error:
                    error.add_note(f"claim: {claim.__name__}")
                    raise
            await claims.sigterm_ends_it(engine)

    asyncio.run(scene(), debug=True)


def test_the_fake_keeps_every_claim_about_one_that_pools(short_folder: Path) -> None:
    async def scene() -> None:
        model = claims.make_model(short_folder, "minilm", capabilities=(Capability.EMBEDDING,))
        async with claims.running(
            FAKE_PYTHON, model, short_folder, deadline_s=10, environment=claims.DEVELOPMENT
        ) as engine:
            for claim in (*claims.POOLING_CLAIMS, claims.one_that_pools_sleeps_too):
                try:
                    await claim(engine)
                except Exception as error:
                    error.add_note(f"claim: {claim.__name__}")
                    raise

    asyncio.run(scene(), debug=True)
