"""What was asked for on the command line, checked and made into a bench (floor 4)."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vllamactl.bench.answers import Api
from vllamactl.bench.comparing import FEWEST_PAIRS
from vllamactl.bench.figures import Limits
from vllamactl.bench.http import Target, base_url
from vllamactl.bench.plan import Level
from vllamactl.bench.running import Bench
from vllamactl.bench.workload import BadWorkload, Workload, question, read_rows, stories
from vllamactl.exits import CtlError

MAX_TOKENS = 128
STARTS = 3
TIMEOUT_S = 600.0
"""Official clients give up after ten minutes."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options, by their names in the command. What is None was not given."""

    users: tuple[int, ...] | None = None
    rates: tuple[float, ...] | None = None
    requests: int | None = None
    rounds: int | None = None
    warmups: int | None = None
    prompt: str | None = None
    prompt_file: str | None = None
    workload: str | None = None
    max_tokens: int | None = None
    is_distinct: bool | None = None
    seed: int | None = None
    api: Api = "ollama"
    url: str | None = None
    against: tuple[Api, str] | None = None
    against_model: str | None = None
    limits: Limits | None = None
    timeout_s: float | None = None
    is_start: bool = False
    repeat: int | None = None
    swap_with: str | None = None

    def check(self) -> None:
        """Refuse options that do not go together. Raises INVALID_REQUEST."""
        given = {
            "--concurrency": self.users,
            "--rate": self.rates,
            "--requests": self.requests,
            "--rounds": self.rounds,
            "--warmup": self.warmups,
            "--workload": self.workload,
            "--max-tokens": self.max_tokens,
            "--distinct": self.is_distinct,
            "--seed": self.seed,
            "--against": self.against,
            "--goodput": self.limits,
            "--repeat": self.repeat,
            "--swap-with": self.swap_with,
        }
        for name, value in given.items():
            needs_start = name in {"--repeat", "--swap-with"}
            if value is not None and needs_start != self.is_start:
                raise _refused(f"{name} {'needs' if needs_start else 'does not go with'} --start")
        if self.seed is not None and not self.rates:
            raise _refused("--seed needs --rate: nothing else is drawn")
        if self.users and self.rates:
            raise _refused("--rate and --concurrency do not go together: a rate does not wait for answers")
        if self.against_model and not self.against:
            raise _refused("--against-model needs --against")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise _refused("--timeout must be more than nothing, such as 90s or 10m")

    def asked(self) -> Workload:
        """Return what is asked. A workload that somebody brings is sent as it is, unless it shall be made distinct: its
        prompts are meant. Raises INVALID_REQUEST."""
        if sum(each is not None for each in (self.prompt, self.prompt_file, self.workload)) > 1:
            raise _refused("of --prompt, --prompt-file and --workload only one may be there")
        max_tokens = self.max_tokens or MAX_TOKENS
        if self.workload is not None:
            try:
                rows = read_rows(_read(self.workload), max_tokens, self.workload)
            except BadWorkload as problem:
                raise _refused(
                    str(problem), 'a line is like {"prompt": "Why is the sky blue?", "max_tokens": 64}'
                ) from problem
            return Workload(rows, f"{len(rows)} rows of {self.workload}", bool(self.is_distinct))
        is_distinct = self.is_distinct is not False
        if self.prompt is None and self.prompt_file is None:
            return Workload(stories(max_tokens), "prompts for long stories", is_distinct)
        text = self.prompt if self.prompt is not None else _read(self.prompt_file or "")
        if not text.strip():
            raise _refused("the prompt is empty", "leave it out to ask for long stories")
        return Workload((question(text, max_tokens),), "one prompt", is_distinct)

    def target(self, model: str, told_url: str) -> Target:
        """Return whom to measure; ``told_url`` is where the daemon says that it listens, "" without a daemon."""
        key = os.environ.get("VLLAMA_API_KEY", "")
        if self.url is None:
            if not told_url:
                raise _refused("the daemon does not say where it listens", "name its address: --url")
            return Target("vllama", self.api, _reachable(told_url), model, key)
        url = _address("--url", self.url, self.api)
        return Target("vllama" if told_url else urlsplit(url).netloc, self.api, url, model, key)

    def others(self, model: str) -> list[Target]:
        """Return whom to compare it with: one, or nobody."""
        if self.against is None:
            return []
        api, url = self.against
        key = os.environ.get("VLLAMA_AGAINST_API_KEY", "")
        return [Target(api, api, _address("--against", url, api), self.against_model or model, key)]

    def bench(self, targets: list[Target], asked: Workload) -> Bench:
        """Return the whole plan."""
        levels = [Level(rate=rate) for rate in self.rates or ()] or [Level(users=count) for count in self.users or (1,)]
        usual = [len(asked.asks) if self.workload is not None else level.usual_requests for level in levels]
        return Bench(
            targets=tuple(targets),
            workload=asked,
            levels=tuple(levels),
            requests=tuple(self.requests or count for count in usual),
            rounds=self.rounds or (FEWEST_PAIRS if len(targets) > 1 else 1),
            warmups=self.warmups,
            limits=self.limits,
            timeout_s=self.timeout_s or TIMEOUT_S,
            seed=self.seed or 0,
            nonce=secrets.randbits(32),
        )


def _refused(words: str, hint: str = "") -> CtlError:
    return CtlError("INVALID_REQUEST", words, hint or "vllamactl bench --help")


def _read(place: str) -> str:
    try:
        return Path(place).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _refused(f"cannot read {place}: it is no UTF-8 text") from error
    except OSError as error:
        raise _refused(f"cannot read {place}: {error.strerror}") from error


def _address(option: str, url: str, api: Api) -> str:
    try:
        return base_url(url, api)
    except ValueError as error:
        raise _refused(f"{option}: {error}") from error


def _reachable(url: str) -> str:
    """The daemon's address as one that can be connected to: it may listen on all of them."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
