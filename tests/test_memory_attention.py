"""The memory attention: the library's numbers from less arithmetic, bounded keys, pooled memories, compiling."""

import math

import pytest
import torch
import torch._dynamo.testing
from checkpoint import count_calls
from test_mask_trackers import KINDS, clicks, difference, frames, make_tracker, track
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sama import modeling_sama_memory
from sama.modeling_sama_memory import KeyBuffer, MemoryPool, ObjectMemory, average_in_parts, average_memories
from sama.modeling_sama_tracker import SamaMaskTracker
from sama.tracking_sama import SamaMemoryBank


torch.set_num_threads(1)  # the models are tiny
NUM_OBJECTS = 3
DISTANCES = [0, 0, 2, 1]
TOLERANCE = 1e-5  # of the largest value, in float32


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def remembered(tracker: SamaMaskTracker) -> list[torch.Tensor]:
    """Tokens of a memory for each of the distances."""
    length, width = tracker.memory_position().shape
    return [draw(NUM_OBJECTS, length, width, seed=number) for number in range(len(DISTANCES))]


def library_attention(
    tracker: SamaMaskTracker, image: torch.Tensor, memories: list[torch.Tensor], pointers: torch.Tensor
) -> torch.Tensor:
    """What the library's module makes of the same: (O, N, C)."""
    sam, arguments = tracker.sam, {}
    times = sam.memory_temporal_positional_encoding
    positions = [tracker.memory_position()[:, None] + times[distance - 1] for distance in DISTANCES]
    if "spatial_perceiver" in sam._modules:
        arguments["num_spatial_memory_tokens"] = len(memories)
    attended = sam.memory_attention(
        current_vision_features=image.expand(NUM_OBJECTS, -1, -1).transpose(0, 1),
        current_vision_position_embeddings=tracker.frame_position()[:, None].expand(-1, NUM_OBJECTS, -1),
        memory=torch.cat([*memories, pointers], 1).transpose(0, 1),
        memory_posision_embeddings=torch.cat(
            [
                *(position.expand(-1, NUM_OBJECTS, -1) for position in positions),
                torch.ones_like(pointers.transpose(0, 1)),
            ]
        ),
        num_object_pointer_tokens=pointers.shape[1],
        **arguments,
    )
    return attended.squeeze(0)


def our_attention(
    tracker: SamaMaskTracker, image: torch.Tensor, memories: list[torch.Tensor], pointers: torch.Tensor
) -> torch.Tensor:
    attention = tracker.start_track(8).attention
    known = [attention.remember(memory, torch.zeros(1)) for memory in memories]
    return attention(image, list(zip(DISTANCES, known, strict=True)), pointers, torch.ones_like(pointers[0]))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [True, False], ids=["keys kept", "no room for keys"])
def test_numbers_are_those_of_the_library(kind, heads, kept):
    settings = {"memory_attention_num_attention_heads": heads, "memory_attention_num_layers": 2}
    tracker = make_tracker(kind, mask_settings=settings)
    tracker.max_key_bytes = tracker.max_key_bytes if kept else 0
    cells, width = tracker.frame_position().shape
    memories, pointers = remembered(tracker), draw(NUM_OBJECTS, 6, tracker.sam.mem_dim)
    for rows in (1, NUM_OBJECTS):  # one frame for all objects, or one each
        image = draw(rows, cells, width, seed=9)
        wanted = library_attention(tracker, image, memories, pointers)
        with torch.no_grad():
            assert difference(our_attention(tracker, image, memories, pointers), wanted) < TOLERANCE
        assert difference(our_attention(tracker, image, memories, pointers), wanted) < TOLERANCE  # with gradients


def test_gradients_are_those_of_the_library():
    tracker = make_tracker("sam2.1")
    image, pointers = draw(1, *tracker.frame_position().shape), draw(NUM_OBJECTS, 6, tracker.sam.mem_dim)
    found = []
    for attend in (library_attention, our_attention):
        tracker.zero_grad()
        memories = [memory.requires_grad_() for memory in remembered(tracker)]
        attend(tracker, image, memories, pointers).pow(2).sum().backward()
        parameters = dict(tracker.sam.memory_attention.named_parameters())
        parameters["times"] = tracker.sam.memory_temporal_positional_encoding
        found.append([memory.grad for memory in memories] + [parameter.grad for parameter in parameters.values()])
    for theirs, ours in zip(*found, strict=True):
        assert difference(ours, theirs) < 1e-4


@torch.no_grad()
def test_a_memory_is_projected_once_and_attention_averages_narrow_memories():
    """Counted in multiplications of one tracked frame, by what the formula of the layers gives."""
    tracker = make_tracker("sam2.0", mask_settings={"memory_attention_num_layers": 2})
    pixels, prompts = frames(tracker, 12), draw(NUM_OBJECTS, tracker.sam.hidden_dim)
    layers = tracker.sam.memory_attention.layers
    keys = [count_calls(layer.cross_attn_image.k_proj) for layer in layers]
    list(tracker.track(prompts, 12, [0, 1], lambda index: tracker.encode_frames(pixels[index, None])))
    # Each frame's memory and pointers once, and for each of seven distances with and without time
    assert [len(calls) for calls in keys] == [12 + 10 + 2 * 7] * len(layers)

    cells, width = tracker.frame_position().shape
    memories, pointers = remembered(tracker), draw(NUM_OBJECTS, 6, tracker.sam.mem_dim)
    attention = tracker.start_track(8).attention
    known = [attention.remember(memory, torch.zeros(1)) for memory in memories]
    places = list(zip(DISTANCES, known, strict=True))
    attention(
        draw(1, cells, width), places, pointers, torch.zeros_like(pointers[0])
    )  # the shares of time are known now
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # counts no other on a CPU
        attention(draw(1, cells, width), places, pointers, torch.zeros_like(pointers[0]))
    num_keys, narrow = len(memories) * cells + 6, tracker.sam.mem_dim
    hidden = tracker.mask_config.memory_attention_feed_forward_hidden_size
    own = 4 * cells * width**2 + 2 * cells**2 * width
    read = 2 * cells * width**2 + cells * num_keys * (width + narrow) + cells * narrow * width + 6 * narrow * width
    each = read + 2 * cells * width * hidden
    total = (1 + NUM_OBJECTS * (len(layers) - 1)) * own + NUM_OBJECTS * len(layers) * each
    query = (NUM_OBJECTS - 1) * cells * width**2  # of the first layer, which all objects share
    assert counter.get_total_flops() == 2 * (total - query)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_kept_keys_have_a_bound(kind):
    tracker, tracks = make_tracker(kind, occlusion_gate=False), []
    pixels = frames(tracker, 10)
    prompts = draw(NUM_OBJECTS, tracker.sam.hidden_dim)
    one = sum(key.nbytes for key in tracker.start_track(8).attention.remember(remembered(tracker)[0], None).keys)
    for room in (10**9, 3 * one, 0):
        tracker.max_key_bytes = room
        state = tracker.start_track(10)
        for index in range(8):
            features = tracker.encode_frames(pixels[index, None])
            masks = tracker.segment_prompts(features, prompts, 0)
            tracker.remember(state, index, features, masks, prompted=index == 0)
            assert state.bank.key_bytes <= room
        assert state.bank.key_bytes == min(8, room // one) * one  # the first, and those that a later frame reads
        tracks.append(track(tracker, pixels, prompts, [0])[0])
    assert difference(tracks[1], tracks[0]) < TOLERANCE and difference(tracks[2], tracks[0]) < TOLERANCE


def test_memories_are_forgotten_before_pointers():
    bank = SamaMemoryBank(num_memories=7, num_pointers=16)
    bank.remember(0, ObjectMemory(torch.zeros(1)), torch.zeros(1), prompted=True)
    for index in range(1, 60):
        bank.remember(index, ObjectMemory(torch.zeros(1)), torch.zeros(1), prompted=False)
    with_memory = [index for index, (memory, _) in bank.tracked.items() if memory is not None]
    assert with_memory == [*range(1, 7), *range(53, 60)]
    assert list(bank.tracked) == [*range(1, 16), *range(44, 60)]


def test_keys_in_their_place_are_not_written_again():
    buffer, time = KeyBuffer(), torch.zeros(2, 4)
    parts = [(draw(3, 2, 4, seed=number), time) for number in range(3)]
    assert torch.equal(buffer.fill(parts, None), torch.cat([keys for keys, _ in parts], 1))
    storage = buffer.keys.data_ptr()
    buffer.keys[:, 0] = 7.0
    other = (draw(3, 2, 4, seed=9), time)
    filled = buffer.fill([parts[0], other], draw(3, 1, 4))
    assert (filled[:, 0] == 7.0).all() and torch.equal(filled[:, 2:4], other[0]) and filled.shape[1] == 5
    assert buffer.keys.data_ptr() == storage
    same_keys = buffer.fill([(parts[0][0], torch.ones(2, 4))], None)  # another time: written again
    assert torch.equal(same_keys, parts[0][0] + 1)


@pytest.mark.parametrize("limit", [2**30, 200, 1])
@torch.no_grad()
def test_attention_in_parts_is_attention(monkeypatch, limit):
    monkeypatch.setattr(modeling_sama_memory, "MAX_WEIGHT_BYTES", limit)
    query, keys, values = draw(3, 7, 8), draw(3, 11, 8, seed=1), draw(3, 11, 4, seed=2)
    bias = draw(11, seed=3)
    wanted = ((query @ keys.mT) * 8**-0.5 + bias).softmax(-1) @ values
    assert difference(average_in_parts(query, keys, values, bias), wanted) < TOLERANCE
    whole = average_memories(query.unsqueeze(1), keys.unsqueeze(1), values, bias)
    with torch.enable_grad():
        other = average_memories(query.unsqueeze(1), keys.unsqueeze(1), values, bias)
    assert difference(whole[:, 0], wanted) < TOLERANCE and difference(other[:, 0], wanted) < TOLERANCE


# ---- pooled memories ------------------------------------------------------------------------------------------------


def test_blocks_near_the_object_keep_their_cells():
    pool = MemoryPool(4, 8)
    logits = torch.full((1, 2, 16, 32), -5.0)
    logits[0, 0, 1, 1] = 5.0  # upper left block
    logits[0, 1, 14, 30] = 5.0  # lower right block
    rows = pool.choose(logits)
    assert rows.shape == (2, 4 * 2 + 6)
    kept = [{int(cell) // 16 * 4 + int(cell) % 8 // 2 for cell in own[:8]} for own in rows]
    assert 0 in kept[0] and 7 in kept[1]
    for own, blocks in zip(rows, kept, strict=True):
        assert sorted(int(row) - 32 for row in own[8:]) == sorted(set(range(8)) - blocks)
    means = pool.take(torch.arange(32.0)[None, :, None] ** 2, rows[:1])[0, 8:, 0]
    corners = [8 * (block // 4 * 2) + block % 4 * 2 for block in (rows[0, 8:] - 32).tolist()]
    assert means.tolist() == [sum((corner + step) ** 2 for step in (0, 1, 8, 9)) / 4 for corner in corners]


@torch.no_grad()
def test_pooling_is_exact_where_cells_of_a_block_are_alike():
    pool = MemoryPool(4, 4)
    block = torch.arange(16).view(4, 4) // 8 * 2 + torch.arange(4) % 4 // 2
    keys, tokens = draw(2, 4, 8)[:, block.flatten()], draw(2, 4, 3, seed=1)[:, block.flatten()]
    rows, query = pool.choose(draw(1, 2, 16, 16)), draw(2, 1, 5, 8)
    bias = torch.tensor(pool.log_counts)
    assert torch.equal(bias, torch.tensor([0.0] * 4 + [math.log(4)] * 3))
    pooled = average_memories(query, pool.take(keys, rows)[:, None], pool.take(tokens, rows), bias)
    assert difference(pooled, average_memories(query, keys[:, None], tokens)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sam2.1", "sam3"])
def test_tracking_with_pooled_memories(kind):
    exact, pooled = (make_tracker(kind, memory_pool=pool, occlusion_gate=False) for pool in (1, 2))
    pixels, prompts = frames(exact, 8), draw(NUM_OBJECTS, exact.sam.hidden_dim)
    wanted, found = (track(tracker, pixels, prompts, [2])[0] for tracker in (exact, pooled))
    assert torch.equal(found[2], wanted[2]) and not torch.equal(found[5], wanted[5])
    memory = pooled.start_track(8).attention.remember(remembered(pooled)[0], wanted[:1])
    assert memory.tokens.shape[1] == memory.keys[0].shape[1] == 4 + 3  # of 16 cells
    pooled.max_key_bytes = 0
    assert difference(track(pooled, pixels, prompts, [2])[0], found) < TOLERANCE


def test_pools_that_cannot_be():
    with pytest.raises(ValueError, match="`memory_pool` is 3; it must be 1 or 2, and divide 4x4 cells"):
        make_tracker("sam2.1", memory_pool=3)
    with pytest.raises(ValueError, match="`memory_pool` is 2, but EdgeTAM compresses its memories by itself"):
        make_tracker("edgetam", memory_pool=2)


# ---- compiling ------------------------------------------------------------------------------------------------------


def compiled_pair(**settings) -> tuple[SamaMaskTracker, SamaMaskTracker, torch._dynamo.testing.CompileCounter]:
    """The same tracker twice, and what counts how often parts of the second one are compiled."""
    eager, tracker = (make_tracker("sam2.1", occlusion_gate=False, **settings) for _ in range(2))
    return eager, tracker, torch._dynamo.testing.CompileCounter()


@torch.no_grad()
def test_layers_compile_once_for_every_number_of_memories_and_up_to_four_objects():
    eager, tracker, counter = compiled_pair()
    pixels, prompts = frames(eager, 14), draw(4, eager.sam.hidden_dim)
    tracker.compile_options = {"backend": counter}
    assert difference(track(tracker, pixels, prompts, [2, 5])[0], track(eager, pixels, prompts, [2, 5])[0]) < TOLERANCE
    assert counter.frame_count == 2  # the first layer has one frame for all objects, the others have one each
    three = track(tracker, pixels[:9], prompts[:3], [1])[0]
    assert three.shape[1] == 3 and difference(three, track(eager, pixels[:9], prompts[:3], [1])[0]) < TOLERANCE
    assert counter.frame_count == 2
    points = clicks(tracker, 1, 1)
    assert difference(*(track(each, pixels[:4], points, [0])[0] for each in (tracker, eager))) < TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_all_parts_compile_once():
    eager, tracker, counter = compiled_pair()
    pixels, prompts = frames(eager, 14), draw(4, eager.sam.hidden_dim)
    tracker.compile_parts(backend=counter)
    assert difference(track(tracker, pixels, prompts, [2, 5])[0], track(eager, pixels, prompts, [2, 5])[0]) < TOLERANCE
    compiled = counter.frame_count
    assert compiled > 4
    track(tracker, pixels[:9], prompts[:3], [1])
    assert counter.frame_count == compiled
