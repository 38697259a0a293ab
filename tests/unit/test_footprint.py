"""Estimates as arithmetic: what grows with what, what is divided, and the sentence that people get."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from vllamad.domain.estimate import estimate, estimates
from vllamad.domain.fit import Room, explain
from vllamad.domain.footprint import EngineSettings, Footprint, Origin, Window, when_alone, with_measured
from vllamad.domain.shape import Layers, Memory, Role, Shape, Weights

GIB = 1 << 30

LLAMA = Shape(
    family="llama",
    hidden_size=4096,
    feed_forward_size=14336,
    vocabulary_size=128256,
    heads=32,
    context_length=131072,
    layer_count=32,
    weights=(
        Weights(Role.MATRIX, 6_710_886_400),
        Weights(Role.KEYS, 268_435_456),
        Weights(Role.VOCABULARY, 1_050_673_152),
        Weights(Role.WHOLE, 266_240),
    ),
    layers=(Layers(Memory.FULL, 32, 8, 128, 128),),
)
"""Llama 3.1 8B."""

sizes = st.integers(1, 8)
layers = st.one_of(
    st.builds(Layers, st.just(Memory.FULL), st.integers(1, 80), st.integers(1, 64), sizes, sizes),
    st.builds(
        Layers, st.just(Memory.SLIDING), st.integers(1, 80), st.integers(1, 64), sizes, sizes, st.integers(1, 9000)
    ),
    st.builds(Layers, st.just(Memory.LATENT), st.integers(1, 80), key_size=st.integers(1, 600)),
    st.builds(
        Layers,
        st.just(Memory.STATE),
        st.integers(1, 80),
        conv_size=st.integers(0, 30_000),
        state_size=st.integers(1, 500_000),
    ),
)
weights = st.builds(Weights, st.sampled_from(Role), st.integers(0, 10**11), st.integers(0, 10**11))
shapes = st.builds(
    Shape,
    hidden_size=st.integers(1, 16384),
    feed_forward_size=st.integers(0, 65536),
    vocabulary_size=st.integers(0, 300_000),
    heads=st.sampled_from([0, 1, 7, 8, 32, 64]),
    layer_count=st.integers(0, 128),
    weights=st.lists(weights, max_size=5).map(tuple),
    layers=st.lists(layers, max_size=3).map(tuple),
)
settings = st.builds(
    EngineSettings,
    device=st.sampled_from(["cuda", "cpu"]),
    dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
    kv_dtype=st.sampled_from(["auto", "fp8"]),
    quantize=st.sampled_from(["", "fp8"]),
    max_num_batched_tokens=st.integers(1, 32768),
    max_num_seqs=st.integers(1, 1024),
    has_bfloat16=st.booleans(),
)
tokens = st.integers(0, 10_000_000)
devices = st.sampled_from([1, 2, 3, 4, 8])


# --- properties ------------------------------------------------------------------------------------------------------


@given(shapes, settings, devices, tokens, tokens)
def test_more_tokens_never_need_less(shape: Shape, chosen: EngineSettings, count: int, some: int, others: int) -> None:
    footprint = estimate(shape, chosen, count)
    few, many = sorted((some, others))
    assert footprint.base_bytes <= footprint.needed_bytes(few) <= footprint.needed_bytes(many)
    assert footprint.needed_bytes(many) <= footprint.needed_bytes(many, 2)


@given(shapes, settings, devices)
def test_more_weights_never_need_less(shape: Shape, chosen: EngineSettings, count: int) -> None:
    heavier = replace(shape, weights=(*shape.weights, Weights(Role.MATRIX, 1000)))
    assert estimate(heavier, chosen, count).weights_bytes > estimate(shape, chosen, count).weights_bytes


@given(st.lists(layers, min_size=1, max_size=3), settings, devices, tokens)
def test_more_layers_never_need_less(found: list[Layers], chosen: EngineSettings, count: int, length: int) -> None:
    def cache(*some: Layers) -> int:
        footprint = estimate(Shape(layers=some), chosen, count)
        return max(0, footprint.cache_bytes(length) - footprint.empty_bytes)

    for one in found:
        assert cache(replace(one, count=one.count + 1)) >= cache(one)
    # Of several kinds the engine makes equal groups, which may waste less when there are more; but never so little
    # that they do not hold what each kind holds by itself.
    assert cache(*found) >= max(cache(one) for one in found)


@given(shapes, settings, devices, st.integers(1, 10_000_000))
def test_tokens_in_undoes_needed_bytes(shape: Shape, chosen: EngineSettings, count: int, length: int) -> None:
    footprint = estimate(shape, chosen, count)
    room = footprint.needed_bytes(length)
    found = footprint.tokens_in(room)
    if found is None:
        return
    assert found >= length
    assert found % footprint.block_tokens == 0
    assert footprint.needed_bytes(found) <= room < footprint.needed_bytes(found + 1)
    assert footprint.tokens_in(footprint.base_bytes) in {0, None}


@given(shapes, settings, devices, tokens)
def test_a_straight_line_lies_above(shape: Shape, chosen: EngineSettings, count: int, length: int) -> None:
    footprint = estimate(shape, chosen, count)
    assert footprint.fixed_bytes + length * footprint.kv_bytes_per_token >= footprint.needed_bytes(length)


@given(shapes, settings, st.sampled_from([2, 3, 4, 8]), tokens)
def test_devices_together_hold_no_less_than_one(shape: Shape, chosen: EngineSettings, count: int, length: int) -> None:
    one, each = estimate(shape, chosen), estimate(shape, chosen, count)
    assert each.weights_bytes * count >= one.weights_bytes
    assert each.kv_bytes_per_token * count >= one.kv_bytes_per_token
    assert each.sequence_bytes * count >= sum(
        item.count * (item.conv_size + item.state_size) for item in shape.layers if item.memory is Memory.STATE
    )
    assert each.weights_bytes <= one.weights_bytes
    assert each.overhead_bytes >= one.overhead_bytes


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_llama_on_one_and_two_gpus() -> None:
    found = estimates(LLAMA, EngineSettings(), 3)
    assert list(found) == [1, 2]
    one, two = found[1], found[2]
    assert one.kv_bytes_per_token == 131_072
    assert two.kv_bytes_per_token == 65_536
    assert 16_060_522_496 <= one.weights_bytes <= 16_060_522_496 * 1.02
    assert 8_030_527_488 <= two.weights_bytes <= 8_030_527_488 * 1.02
    assert one.needed_bytes(1000) - one.base_bytes == (1008 + 16) * 131_072, (
        "blocks of 16, and one that is never filled"
    )


def test_what_the_engine_says_of_small_models() -> None:
    """The longest sequence (``--max-model-len auto``) that vLLM 0.32 found room for on CPU, in 32 MiB of cache and with
    batches of 2048 tokens."""
    chosen = EngineSettings(device="cpu", dtype="bfloat16")

    def longest(*layers: Layers) -> int | None:
        footprint = estimate(Shape(layers=layers), chosen)
        return footprint.tokens_in(footprint.base_bytes + (32 << 20))

    gemma3 = Layers(Memory.SLIDING, 11, 2, 64, 64, 512), Layers(Memory.FULL, 2, 2, 64, 64)
    olmo3 = Layers(Memory.SLIDING, 6, 2, 32, 32, 512), Layers(Memory.FULL, 2, 2, 32, 32)
    assert longest(*gemma3) == 16_512
    assert longest(*olmo3) == 57_344
    lfm2 = Layers(Memory.STATE, 4, conv_size=256), Layers(Memory.FULL, 2, 2, 32, 32)
    assert longest(*lfm2) == 64_896
    # Where states may be kept in 16 bits we count 32, and so have fewer tokens, but not many.
    granite = Layers(Memory.STATE, 5, conv_size=1536, state_size=32_768), Layers(Memory.FULL, 1, 2, 32, 32)
    qwen3_next = Layers(Memory.STATE, 6, conv_size=3072, state_size=32_768), Layers(Memory.FULL, 2, 2, 64, 64)
    assert 0.95 * 124_800 < (longest(*granite) or 0) <= 124_800
    assert 0.95 * 30_976 < (longest(*qwen3_next) or 0) <= 30_976


def test_heads_are_copied_where_they_are_fewer_than_devices() -> None:
    few = replace(LLAMA, layers=(Layers(Memory.FULL, 32, 2, 128, 128),))
    assert [estimate(few, EngineSettings(), count).kv_bytes_per_token for count in (1, 2, 4, 8)] == [
        32768, 16384, 16384, 16384,
    ]  # fmt: skip


def test_only_divisors_of_the_heads_are_tried() -> None:
    assert list(estimates(replace(LLAMA, heads=14), EngineSettings(), 8)) == [1, 2]
    assert list(estimates(replace(LLAMA, heads=0), EngineSettings(), 8)) == [1]


def test_graphs_are_saved_without_them() -> None:
    with_graphs, eager = (estimate(LLAMA, EngineSettings(is_eager=value)).overhead_bytes for value in (False, True))
    assert with_graphs - eager > GIB // 2


def test_adapters_have_room_made_for_them() -> None:
    shape = replace(LLAMA, edge_sum=1_000_000)
    plain = estimate(shape, EngineSettings()).weights_bytes
    adapted = estimate(shape, EngineSettings(adapters=4, adapter_rank=16)).weights_bytes
    assert adapted - plain >= 4 * 16 * 1_000_000 * 2


def test_a_measurement_takes_the_place_of_an_estimate() -> None:
    guess = replace(estimate(LLAMA, EngineSettings()), notes=("who knows",))
    seen = with_measured(guess, weights_bytes=16 * GIB, cache_bytes=4 * GIB, cache_tokens=32_768, held_bytes=22 * GIB)
    assert (seen.weights_bytes, seen.kv_bytes_per_token, seen.overhead_bytes) == (16 * GIB, 131_072, 2 * GIB)
    assert (seen.activation_bytes, seen.origin, seen.notes) == (guess.activation_bytes, Origin.MEASURED, ())
    sliding = replace(guess, windows=(Window(1024, 10),))
    assert with_measured(sliding, cache_bytes=GIB, cache_tokens=1).kv_bytes_per_token == guess.kv_bytes_per_token


# --- sentences -------------------------------------------------------------------------------------------------------


def plain(count: int, base_gib: float, token_bytes: int = 131_072) -> Footprint:
    return Footprint(count, int(base_gib * GIB), token_bytes, 0, 0)


def gpus(*free_gib: float, total_gib: float = 24.0) -> list[Room]:
    return [Room(f"GPU {index}", int(total_gib * GIB), int(free * GIB)) for index, free in enumerate(free_gib)]


def test_it_fits_on_the_one_with_the_most_room() -> None:
    fit = explain({1: plain(1, 17.0), 2: plain(2, 9.0, 65_536)}, gpus(20, 21.2))
    assert fit.sentence == "fits on GPU 1 with 34,000 tokens of cache; or on 2 GPUs with 180,000 tokens of cache"
    assert [each.devices for each in fit.now] == [(1,), (0, 1)]
    assert fit.needed_bytes == int(17.5 * GIB)


def test_it_fits_on_two_only() -> None:
    fit = explain({1: plain(1, 40.5), 2: plain(2, 20.5, 65_536)}, gpus(24, 24))
    assert fit.sentence == "fits on 2 GPUs with 57,000 tokens of cache"


def test_it_fits_nowhere() -> None:
    fit = explain({1: plain(1, 40.5)}, gpus(24, 24))
    assert (fit.now, fit.empty) == ((), ())
    assert fit.sentence == "not: needs 41.0 GiB, the largest GPU has 24.0 GiB"
    assert explain({1: plain(1, 40.5)}, gpus(10)).sentence == "not: needs 41.0 GiB, GPU 0 has 24.0 GiB"
    both = explain({1: plain(1, 80.5), 2: plain(2, 40.75, 65_536)}, gpus(24, 24))
    assert both.sentence == (
        "not: needs 81.0 GiB, the largest GPU has 24.0 GiB; 2 GPUs would still have to give 41.0 GiB each"
    )


def test_it_would_fit_if_others_left() -> None:
    fit = explain({1: plain(1, 17.0)}, gpus(3, 12))
    assert fit.now == () and len(fit.empty) == 1
    assert fit.sentence == "not now: needs 17.5 GiB, GPU 0 has 3.0 GiB free of 24.0 GiB"


def test_there_is_no_device() -> None:
    assert explain({1: plain(1, 1)}, []).sentence == "not: needs 1.5 GiB, and there is no GPU"


def test_a_cache_of_fixed_size_gets_that_and_no_more() -> None:
    rooms = [Room("the CPU", 24 * GIB, 20 * GIB)]
    fit = explain({1: plain(1, 2, 46_080)}, rooms, noun="CPU", cache_bytes=GIB)
    assert fit.sentence == "fits on the CPU with 23,000 tokens of cache"
    assert fit.needed_bytes == 3 * GIB
    assert explain({1: plain(1, 2)}, [Room("the CPU", 24 * GIB, 5 * GIB // 2)], cache_bytes=GIB).now == ()


def test_an_encoder_needs_no_cache() -> None:
    fit = explain({1: plain(1, 1, 0)}, gpus(24), cache_bytes=GIB)
    assert fit.sentence == "fits on GPU 0"
    assert fit.needed_bytes == GIB


def test_too_little_cache_is_no_fit() -> None:
    assert explain({1: plain(1, 20)}, gpus(20.4)).now == ()
    assert explain({1: plain(1, 20)}, gpus(20.4), least_tokens=1000).sentence == (
        "fits on GPU 0 with 3,200 tokens of cache"
    )


def test_what_was_not_known_is_told() -> None:
    assert explain({1: replace(plain(1, 1), notes=("a guess",))}, gpus(24)).notes == ("a guess",)


def test_who_was_measured_beside_others_holds_more_alone() -> None:
    """Seen with real engines: 1,171 MiB beside another, 1,267 alone, and 1,231 were reserved by the first."""
    beside, alone = 1171 << 20, 1267 << 20
    assert alone <= when_alone(beside, 2) <= 1.02 * alone
    assert when_alone(beside, 2) < when_alone(beside, 3)
    assert when_alone(alone, 1) == alone
    assert when_alone(0, 2) == 0, "not measured"
