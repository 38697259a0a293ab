"""Domain objects as messages of the control protocol (floor 4): every field once, and nothing decided."""

import math
from collections.abc import Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from vllama.control.v1 import daemon_pb2, models_pb2, operations_pb2, workers_pb2
from vllamad.dialects.modelfile import show_parameters
from vllamad.dialects.ollama_models import modelfile_of
from vllamad.domain.errors import VllamaError
from vllamad.domain.fit import Fit, Fitting
from vllamad.domain.footprint import Footprint
from vllamad.domain.model import Model
from vllamad.domain.operation import Operation, Progress
from vllamad.domain.ports import OutputLine
from vllamad.domain.view import DeviceView, WorkerView
from vllamad.domain.worker import State


def timestamp(time: float) -> Timestamp:
    """Wall time in seconds as a Timestamp."""
    stamp = Timestamp()
    stamp.FromNanoseconds(int(time * 1e9))
    return stamp


def failure(error: VllamaError) -> operations_pb2.Failure:
    facts = {key: str(value) for key, value in error.facts.items()}
    return operations_pb2.Failure(reason=error.reason, message=error.message, hint=error.hint or "", facts=facts)


def progress(now: Progress) -> operations_pb2.Progress:
    return operations_pb2.Progress(
        phase=now.phase,
        detail=now.detail,
        completed_bytes=now.completed_bytes,
        total_bytes=now.total_bytes,
        fraction=now.fraction,
        files=[
            operations_pb2.FileProgress(
                path=file.path,
                digest=file.digest,
                completed_bytes=file.completed_bytes,
                total_bytes=file.total_bytes,
            )
            for file in now.files
        ],
    )


def operation(one: Operation) -> operations_pb2.Operation:
    message = operations_pb2.Operation(
        name=one.name,
        kind=one.kind.value,
        model=one.model,
        progress=progress(one.progress),
        done=one.is_done,
        create_time=timestamp(one.create_time),
    )
    if one.error is not None:
        message.failure.CopyFrom(failure(one.error))
    if one.is_done:
        message.end_time.CopyFrom(timestamp(one.end_time))
    return message


def model(one: Model, source: str = "") -> models_pb2.Model:
    """``source`` is the name to make it from again; "" leaves the Modelfile out, which no list needs."""
    details, recipe = one.details, one.recipe
    return models_pb2.Model(
        name=one.name,
        digest=one.digest,
        size_bytes=one.size_bytes,
        modify_time=timestamp(one.modified_time),
        capabilities=[str(capability) for capability in one.capabilities],
        details=models_pb2.ModelDetails(
            format=details.format,
            family=details.family,
            families=details.families,
            parameter_size=details.parameter_size,
            quantization_level=details.quantization_level,
            parameter_count=details.parameter_count,
            context_length=details.context_length,
            embedding_length=details.embedding_length,
            block_count=details.block_count,
            feed_forward_length=details.feed_forward_length,
            head_count=details.head_count,
            head_count_kv=details.head_count_kv,
            vocab_size=details.vocab_size,
        ),
        source=str(one.source.kind),
        repository=one.source.repository,
        revision=one.source.revision,
        path=one.path,
        template=recipe.template or one.template,
        license="\n".join(one.licenses),
        system=recipe.system,
        parameters=show_parameters(recipe.parameters),
        messages=[models_pb2.ModelMessage(role=role, content=text) for role, text in recipe.messages],
        modelfile=modelfile_of(one, source) if source else "",
        parent=one.parent,
        adapter_digest=one.adapter.digest if one.adapter else "",
        files=[
            models_pb2.ModelFile(path=file.path, digest=f"sha256:{file.sha256}", size_bytes=file.size_bytes)
            for file in one.files
        ],
    )


def worker(view: WorkerView) -> workers_pb2.Worker:
    message = workers_pb2.Worker(
        name=view.name,
        model=view.model,
        model_digest=view.model_digest,
        state=view.state.value,
        incarnation=view.incarnation,
        pid=view.pid,
        leases=view.leases,
        waiting=view.waiting,
        memory_bytes=view.memory_bytes,
        device_bytes=view.device_bytes,
        device=view.device,
        context_length=view.context_length,
        reserved_bytes=view.reserved_bytes,
        cache_tokens=view.cache_tokens,
        is_pinned=view.is_pinned,
        holder=view.holder,
        cache_usage=view.cache_usage,
        fast_path=view.fast_path,
        start_time=timestamp(view.start_time),
    )
    if view.state is State.STARTING:
        message.load_phase = view.load_phase
        message.load_fraction = view.load_fraction
    if view.cpu_s:
        message.cpu_time.FromNanoseconds(int(view.cpu_s * 1e9))
    if view.load_s:
        message.load_duration.FromNanoseconds(int(view.load_s * 1e9))
    if view.expire_time is not None and not math.isinf(view.expire_time):
        message.expire_time.CopyFrom(timestamp(view.expire_time))
    if view.error is not None:
        message.failure.CopyFrom(failure(view.error))
    return message


def device(view: DeviceView) -> daemon_pb2.Device:
    return daemon_pb2.Device(
        name=view.name,
        product=view.product,
        kind=view.kind,
        key=view.key,
        total_bytes=view.total_bytes,
        free_bytes=view.free_bytes,
        usable_bytes=view.usable_bytes,
        reserved_bytes=view.reserved_bytes,
        holders=view.holders,
        foreign_bytes=view.foreign_bytes,
        giveable_bytes=view.giveable_bytes,
        loading=view.loading,
        temperature_c=view.temperature_c,
        utilisation=view.utilisation,
        problem=view.problem,
    )


def fit(one: Fit, rooms: Sequence[str], footprints: Mapping[int, Footprint]) -> models_pb2.FitModelResponse:
    """``rooms`` are the names of the devices that ``one`` speaks of, by their places."""

    def fittings(some: Sequence[Fitting]) -> list[models_pb2.Fitting]:
        return [
            models_pb2.Fitting(
                devices=[rooms[place] for place in each.devices],
                tokens=each.tokens or 0,
                needed_bytes=each.needed_bytes,
            )
            for each in some
        ]

    return models_pb2.FitModelResponse(
        sentence=one.sentence,
        now=fittings(one.now),
        empty=fittings(one.empty),
        notes=one.notes,
        footprints=[
            models_pb2.Footprint(
                devices=size,
                weights_bytes=each.weights_bytes,
                kv_bytes_per_token=each.kv_bytes_per_token,
                activation_bytes=each.activation_bytes,
                overhead_bytes=each.overhead_bytes,
                host_bytes=each.host_bytes,
                origin=each.origin.value,
            )
            for size, each in sorted(footprints.items())
        ],
    )


def log_line(line: OutputLine, origin: str) -> workers_pb2.LogLine:
    return workers_pb2.LogLine(time=timestamp(line.time), origin=origin, text=line.text)
