"""`vllamactl show`."""

import time
from collections.abc import Sequence

import click

from vllama.control.v1.models_pb2 import FitModelResponse, Model
from vllama.control.v1.workers_pb2 import Worker
from vllamactl import human
from vllamactl.client import Client
from vllamactl.exits import CtlError
from vllamactl.invocation import Invocation, Verb, complete_models
from vllamactl.plain import plain, seconds_of
from vllamactl.render import Column, pairs, table
from vllamactl.workers import failure_lines, state, until


@click.command("show", cls=Verb, short_help="Show what is known about a model.")
@click.argument("model", shell_complete=complete_models)
@click.option("--modelfile", "part", flag_value="modelfile", help="Print a Modelfile that makes it again.")
@click.option("--parameters", "part", flag_value="parameters", help="Print its parameters only.")
@click.option("--system", "part", flag_value="system", help="Print its system message only.")
@click.option("--template", "part", flag_value="template", help="Print its template only.")
@click.option("--license", "part", flag_value="license", help="Print its licence only.")
@click.option("--files", "part", flag_value="files", help="List its files only.")
@click.option("--fit", "part", flag_value="fit", help="Say where it fits on this machine, and load nothing.")
@click.pass_obj
def command(invocation: Invocation, model: str, part: str | None) -> None:
    """Show what is known about MODEL: its kind, its limits, what it can do and where it came from."""
    console = invocation.console

    async def work(client: Client) -> None:
        if part == "fit":
            fit = await client.fit_model(model)
            if console.is_json:
                console.document(plain(fit))
            else:
                for line in [fit.sentence] if console.is_quiet else fit_page(fit):
                    console.data(line)
            return
        shown = await client.get_model(model)
        workers = [worker for worker in await client.list_workers() if worker.model == shown.name]
        if console.is_json:
            console.document(plain(shown) | {"workers": [plain(worker) for worker in workers]})
            return
        if console.is_quiet:
            lines = [shown.name]
        elif part == "files":
            rows = [(file.path, human.size(file.size_bytes), file.digest) for file in shown.files]
            columns = (Column("PATH", is_elastic=True), Column("SIZE"), Column("DIGEST", drop=1))
            lines = table(columns, rows, console.width)
        elif part is not None:
            text: str = getattr(shown, part)
            if not text:
                raise CtlError("NOT_FOUND", f"{shown.name} has no {part}", f"all that is known: vllamactl show {model}")
            lines = text.rstrip("\n").split("\n")
        else:
            lines = page(shown, workers, time.time())
        for line in lines:
            console.data(line)

    invocation.run(f"show {model}", work)


def page(model: Model, workers: Sequence[Worker], now: float) -> list[str]:
    """Return the page about a model, in Ollama's sections, and what becomes of it now."""
    details = model.details
    origin = " ".join(part for part in (model.source, model.repository, model.revision[:12]) if part)
    if model.parent:
        origin = f"model {model.parent}"
    adapter = f"LoRA {model.adapter_digest[:12]}" if model.adapter_digest else ""
    sections = {
        "Model": pairs(
            [
                ("architecture", details.family),
                ("parameters", details.parameter_size),
                ("context length", str(details.context_length or "")),
                ("embedding length", str(details.embedding_length or "")),
                ("quantization", details.quantization_level),
                ("format", details.format),
            ],
            indent=4,
        ),
        "Parameters": [f"    {line}" for line in model.parameters.splitlines()],
        "System": _first_lines(model.system),
        "Capabilities": [f"    {capability}" for capability in model.capabilities],
        "Storage": pairs(
            [
                ("id", model.digest[:12]),
                ("size", human.size(model.size_bytes)),
                ("modified", human.instant(seconds_of(model.modify_time), now)),
                ("from", origin),
                ("adapter", adapter),
                ("path", model.path),
            ],
            indent=4,
        ),
        "License": _first_lines(model.license),
        "Worker": [f"    {line}" for worker in workers for line in _worker_lines(worker, now)],
    }
    lines: list[str] = []
    for title, rows in sections.items():
        if rows:
            lines += [f"  {title}", *rows, ""]
    return lines[:-1]


def _worker_lines(worker: Worker, now: float) -> list[str]:
    where = f" on {worker.device}" if worker.device else ""
    return [f"{state(worker)}{where}, {until(worker, now)}", *failure_lines(worker)]


def fit_page(fit: FitModelResponse) -> list[str]:
    """Return the sentence, and what it was reckoned from."""
    lines = [fit.sentence]
    if fit.footprints:
        columns = (
            Column("DEVICES"), Column("WEIGHTS"), Column("CACHE/1K TOKENS"), Column("BATCH"), Column("ENGINE"),
            Column("NUMBERS"),
        )  # fmt: skip
        rows = [
            (
                str(each.devices),
                human.memory(each.weights_bytes),
                human.memory(1000 * each.kv_bytes_per_token) if each.kv_bytes_per_token else "-",
                human.memory(each.activation_bytes),
                human.memory(each.overhead_bytes),
                each.origin,
            )
            for each in fit.footprints
        ]
        lines += ["", *table(columns, rows, None)]
    return lines + ([""] if fit.notes else []) + [f"note: {note}" for note in fit.notes]


def _first_lines(text: str) -> list[str]:
    filled = [line.strip() for line in text.splitlines() if line.strip()]
    return [f"    {line}" for line in filled[:2]] + (["    ..."] if len(filled) > 2 else [])
