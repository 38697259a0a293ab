"""What a model will need, from its shape and the engine's settings (floor 1). An estimate errs upwards: a model that
was promised room and finds none fails after minutes of loading.

What the engine allocates was read in vLLM 0.32; every number says where it comes from. It knows no files and no flags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllamad.domain.footprint import EngineSettings, Footprint, Window, round_up, share
from vllamad.domain.shape import Layers, Memory, Role, Shape, Weights

MIB = 1 << 20
GIB = 1 << 30

BLOCK_TOKENS: Mapping[str, int] = {"cuda": 16, "cpu": 128}
"""Tokens in a block of cache, by device: vLLM's defaults (CPU: seen in its log, 91 blocks of 128 tokens in 256 MiB)."""

FP8_LATENT = (656, 576)
"""An FP8 cache of latent vectors keeps their rotary part in 16 bits and adds scales (fp8_ds_mla: 656 bytes for 576
elements)."""

STATES_PER_SEQUENCE = 2
"""The state now and the one at the last block, which prefix caching keeps (``mamba_cache_mode`` "align")."""

BATCHES_IN_FLIGHT: Mapping[str, int] = {"cuda": 2, "cpu": 1}
"""With asynchronous scheduling a second batch starts before the first is settled; sliding windows are kept longer by
as many tokens. CPU has none."""

CPU_LOAD_BYTES = 4 * MIB
CPU_LOAD_PART = 50
"""What loading leaves beside the tensors on CPU, so much and one part in fifty: code of the model, tables of
positions, rounding of allocations and of packed matrices. Measured with vLLM 0.32 as private memory before and after,
in MiB beyond the tensors and their packed copies: 3.1 of 43 (MiniLM in bfloat16), 4.5 of 131 (float32), 4.4 of 257 and
6 of 729 (SmolLM2 in bfloat16 and float32)."""

GPU_LOAD_PART = 100
"""The allocator's rounding on a GPU, one part in a hundred: blocks are multiples of 2 MiB, tensors are not. Not
measured here."""

ELEMENTS_PER_SCALE_BYTE = 200
"""Weights that are quantised to 8 bits at load have scales of 32 bits, one for each row at most: half a percent more
for rows of 800 elements, and nearly all are longer."""

CONTEXT_BYTES = 640 * MIB
"""Of each GPU: the driver's context and the kernels' code (300 to 500 MiB on recent cards), and workspaces of cuBLAS
and of attention. Not measured here."""

PEERS_BYTES = 768 * MIB
"""Of each GPU, where there are several: buffers of NCCL and of the custom all-reduce. Not measured here."""

GRAPHS_BYTES = 192 * MIB
GRAPHS_BYTES_PER_LAYER = 24 * MIB
"""CUDA graphs of some fifty batch sizes: vLLM's logs tell of 0.5 to 1 GiB for 32 layers and up to 2 GiB for 80. Not
measured here."""

ROWS_IN_BATCH = 8
"""Activations of a batch as wide as the hidden size that live at once: residual, norm, query, keys, values, output of
attention, a sum and one being made. On CPU, requests of 1,500 tokens made SmolLM2 grow by 49 MiB and MiniLM by 65, of
which the first is well below the estimate and the second what it says."""

BYTES_PER_LOGIT = 16
"""Sampling works in float32, on the logits, a copy that is sorted, its indices, and probabilities."""

TOWER_BYTES = 1 * GIB
"""What an image or audio tower needs for the largest input, which the engine tries while it starts. Not measured."""

CPU_ENGINE_BYTES = 1400 * MIB
"""The engine's processes on CPU without weights and cache: API server and engine core, both with torch. Measured with
vLLM 0.32 as proportional set size when ready: 1,137 MiB (MiniLM), 1,233 and 1,302 (SmolLM2 in bfloat16 and float32)."""

GPU_HOST_BYTES = 3 * GIB
"""The same in the machine's memory where engines run on GPUs, with CUDA's libraries; not measured here."""

GPU_WORKER_BYTES = 3 * GIB
"""For each device beyond the first: a worker process of its own. Not measured here."""


def estimate(shape: Shape, settings: EngineSettings, devices: int = 1) -> Footprint:
    """What a model will need on each of ``devices``. Errs upwards; ``splits_over`` says if the engine can do it."""
    cache = _cache(shape, settings, devices)
    return Footprint(
        devices=devices,
        weights_bytes=_weights(shape, settings, devices),
        kv_bytes_per_token=cache.token_bytes,
        activation_bytes=_activations(shape, settings, devices),
        overhead_bytes=_overhead(shape, settings, devices),
        host_bytes=0 if settings.device == "cpu" else GPU_HOST_BYTES + (devices - 1) * GPU_WORKER_BYTES,
        windows=cache.windows,
        sequence_bytes=cache.sequence_bytes,
        block_tokens=cache.block_tokens,
        empty_bytes=cache.empty_bytes,
        notes=shape.notes,
    )


def estimates(shape: Shape, settings: EngineSettings, most_devices: int) -> dict[int, Footprint]:
    """Estimates for every number of devices up to ``most_devices`` that the engine can divide the model by, powers of
    two only: others are slow or refused (vocabularies, experts)."""
    sizes = (1 << power for power in range(max(1, most_devices).bit_length()))
    return {size: estimate(shape, settings, size) for size in sizes if shape.splits_over(size)}


def _weights(shape: Shape, settings: EngineSettings, devices: int) -> int:
    total = sum(_weights_of(one, shape, settings, devices) for one in shape.weights)
    if settings.adapters and settings.adapter_rank:
        # A slot for each adapter of a batch and an empty one; of its two matrices only one is divided.
        total += (settings.adapters + 1) * settings.adapter_rank * shape.edge_sum * settings.element_bytes
    if settings.device == "cpu":
        return total + CPU_LOAD_BYTES + share(total, CPU_LOAD_PART)
    return total + share(total, GPU_LOAD_PART)


def _weights_of(one: Weights, shape: Shape, settings: EngineSettings, devices: int) -> int:
    width = settings.element_bytes
    cast = one.elements * width
    match one.role:
        case Role.WHOLE:
            return one.kept_bytes + cast
        case Role.VOCABULARY:
            copies = 2 if settings.packs else 1
            return share(one.kept_bytes + cast, devices) * copies
        case Role.TIED:
            return share(cast, devices) if settings.packs else 0
        case Role.MATRIX | Role.KEYS:
            if settings.quantize:
                cast = one.elements + share(one.elements, ELEMENTS_PER_SCALE_BYTE)
            ways = devices if one.role is Role.MATRIX else _ways(_fewest_heads(shape), devices)
            return share(one.kept_bytes + cast, ways)


def _fewest_heads(shape: Shape) -> int:
    return min((each.heads for each in shape.layers if each.heads), default=1)


def _ways(heads: int, devices: int) -> int:
    """In how many different parts the key-value heads come: where there are fewer than devices they are copied."""
    return max(1, heads // share(heads, devices))


def _token_bytes(layers: Layers, settings: EngineSettings, devices: int) -> int:
    """Of one token in one such layer on one device; 0 for states."""
    width = settings.kv_element_bytes
    match layers.memory:
        case Memory.FULL | Memory.SLIDING:
            return share(layers.heads, devices) * (layers.key_size + layers.value_size) * width
        case Memory.LATENT:
            size = layers.key_size * width
            return (share(size * FP8_LATENT[0], FP8_LATENT[1]) if width == 1 else size) + layers.side_bytes
        case Memory.STATE:
            return 0


def _state_bytes(layers: Layers, settings: EngineSettings, devices: int) -> int:
    conv = share(layers.conv_size, devices) * settings.element_bytes
    return conv + share(layers.state_size, devices) * layers.state_element_bytes


@dataclass(frozen=True, slots=True)
class _Cache:
    token_bytes: int
    windows: tuple[Window, ...]
    sequence_bytes: int
    block_tokens: int
    empty_bytes: int


def _cache(shape: Shape, settings: EngineSettings, devices: int) -> _Cache:
    block = BLOCK_TOKENS.get(settings.device, 16)
    widths = [_token_bytes(each, settings, devices) for each in shape.layers]
    counts, group = _grouped(shape.layers, widths)
    in_flight = settings.max_num_batched_tokens * BATCHES_IN_FLIGHT.get(settings.device, 1)
    token_bytes, windows, state_count, largest = 0, list[Window](), 0, 0
    for layers, width, count in zip(shape.layers, widths, counts, strict=True):
        match layers.memory:
            case Memory.FULL | Memory.LATENT:
                token_bytes += width * count
            case Memory.SLIDING:
                # One block more: a window does not begin where a block does.
                kept = round_up(layers.window - 1 + in_flight, block) + block
                windows.append(Window(kept, width * count))
            case Memory.STATE:
                state_count += count
                largest = max(largest, _state_bytes(layers, settings, devices))
    widest = max(widths, default=0)
    page = largest
    if widest:
        # States and keys share one pool of equal pages: a block gets as many tokens as make it as large as a state.
        block = max(block, round_up(share(largest, widest), block))
        page = block * widest
    # vLLM takes one block out of its pool for good, to point at where there is nothing (``null_block``).
    return _Cache(token_bytes, tuple(windows), state_count * page * STATES_PER_SEQUENCE, block, group * page)


def _grouped(layers: Sequence[Layers], widths: Sequence[int]) -> tuple[list[int], int]:
    """How many layers of each kind the cache makes room for, and of how many layers a block is; ``widths`` are their
    bytes per token.

    vLLM gives kinds that differ in what they keep groups of equally many layers, as many as the rarest kind has (or the
    commonest, if that has not half as many again), and fills up the last group
    (``_get_kv_cache_groups_uniform_page_size``). What fills up counts as the widest of its kind.
    """
    counts = [each.count for each in layers]
    kinds: dict[tuple[Memory, int], list[int]] = {}
    for index, each in enumerate(layers):
        kept = Memory.FULL if each.memory is Memory.LATENT else each.memory
        kinds.setdefault((kept, each.window), []).append(index)
    totals = [sum(counts[index] for index in members) for members in kinds.values()]
    if len(totals) < 2:
        return counts, sum(counts)
    group = min(totals) if max(totals) >= 1.5 * min(totals) else max(totals)
    for members, total in zip(kinds.values(), totals, strict=True):
        counts[max(members, key=lambda index: widths[index])] += round_up(total, group) - total
    return counts, group


def _activations(shape: Shape, settings: EngineSettings, devices: int) -> int:
    """What one full batch needs for a moment: layers, then logits and sampling (the second in what the first left, at
    best)."""
    width, tokens = settings.element_bytes, settings.max_num_batched_tokens
    inner = 3 * share(shape.feed_forward_size, devices)
    # Two workspaces of the fused experts: gate and up together, and down.
    expert = share(shape.expert_size, devices)
    experts = shape.experts_per_token * (max(2 * expert, shape.hidden_size) + max(expert, shape.hidden_size))
    layers = tokens * width * (ROWS_IN_BATCH * shape.hidden_size + max(inner, experts))
    sampled = min(settings.max_num_seqs, tokens) if shape.layers else 0
    return layers + sampled * shape.vocabulary_size * BYTES_PER_LOGIT + (TOWER_BYTES if shape.has_tower else 0)


def _overhead(shape: Shape, settings: EngineSettings, devices: int) -> int:
    if settings.device == "cpu":
        return CPU_ENGINE_BYTES
    graphs = 0 if settings.is_eager else GRAPHS_BYTES + GRAPHS_BYTES_PER_LAYER * shape.layer_count
    return CONTEXT_BYTES + graphs + (PEERS_BYTES if devices > 1 else 0)
