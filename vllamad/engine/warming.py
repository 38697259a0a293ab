"""A first request that is nobody's (floor 2): what an engine does slowly once is done before somebody waits for it.

The first request imports and compiles: the chat template, the draw among probable tokens, the kernel that ranks their
probabilities (vLLM 0.32, ``v1/sample/ops``; where ``torch.compile`` is not turned off). Which it is differs by device
and version, so the questions go the ways that people's go, instead of naming what is warmed.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.engine.sleep import Asking

WARM_UP_DEADLINE_S = 300.0
"""For each question: kernels that are compiled with nothing cached take minutes on GPUs."""

TEXT = "Say hello."
_DRAW: Mapping[str, Any] = {"max_tokens": 2, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 1}
"""As Ollama's defaults draw; a second token is made otherwise than the first."""

QUESTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], **_DRAW}),
    ("/v1/completions", {"prompt": TEXT, "logprobs": 1, **_DRAW}),
    ("/v1/embeddings", {"input": TEXT}),
    ("/score", {"text_1": TEXT, "text_2": TEXT}),
)
"""What generates answers the first two, the first only if it has a template for chats; encoders one of the others."""


async def warm_up(ask: Asking) -> None:
    """See ``EngineClient.warm_up``; ``ask`` is ``EngineClient.open``. A route that is not there, or refuses, is left
    out."""
    refusals: list[str] = []
    for path, body in QUESTIONS:
        try:
            async with asyncio.timeout(WARM_UP_DEADLINE_S):
                stream = await ask("POST", path, json.dumps(body).encode())
                await stream.read()
        except TimeoutError as error:
            raise _failed(f"it did not answer {path} in {WARM_UP_DEADLINE_S:g} s") from error
        if stream.status != 200:
            refusals.append(f"{path} {stream.status}")
    if len(refusals) == len(QUESTIONS):
        raise _failed(f"it refused every question ({', '.join(refusals)})")


def _failed(why: str) -> VllamaError:
    return VllamaError(
        Reason.ENGINE_DIED,
        f"cannot warm up the engine: {why}",
        "the first request may be slow; vllamactl logs shows what the engine said",
    )
