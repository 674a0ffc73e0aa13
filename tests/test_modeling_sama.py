"""The model as a citizen of transformers: loading, saving, switches, and errors that teach."""

import numpy as np
import pytest
import torch
from checkpoint import CHECKPOINT, Dictated
from processor_fixtures import box_part, tiny_processor, user, video_part
from tiny_model import tiny_config, tiny_model

from sama.configuration_sama import CONTEXT_TOKEN, SamaConfig
from sama.modeling_sama import (
    VISUAL_INPUT_NAMES,
    SamaForConditionalGeneration,
    SamaVisualInputs,
    SegRecorder,
    prompted_masks,
)
from sama.objects_sama import Region
from sama.processing_sama import SamaProcessor


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_model()
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_saved_model_loads_complete_in_every_dtype(saved_model, dtype):
    model, folder = saved_model
    loaded, info = SamaForConditionalGeneration.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info.values())
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    original = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, original[name].to(dtype)), name


def test_buffers_that_are_not_saved_are_rebuilt(saved_model):
    model, folder = saved_model
    loaded = SamaForConditionalGeneration.from_pretrained(folder)
    buffers = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def settings_of(config) -> dict:
    """All settings, down into the parts, without what saving adds."""
    added = ("_name_or_path", "dtype", "architectures", "transformers_version", "auto_map")
    flat = {key: value for key, value in config.to_dict().items() if key not in added}
    return {key: settings_of(getattr(config, key)) if key in config.sub_configs else flat[key] for key in flat}


def test_configuration_survives_saving(saved_model):
    model, folder = saved_model
    assert settings_of(SamaConfig.from_pretrained(folder)) == settings_of(model.config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"preset": "official"}, "preset.*official.*published.*consistent"),
        ({"region_shape": "circle"}, "region_shape.*'circle'"),
        ({"temporal_window": 30}, r"30 tokens.*4 tokens"),
        ({"temporal_qformer_config": {"use_qformer_text_input": False}}, "reads the question"),
        (
            {"temporal_qformer_config": {"use_qformer_text_input": True, "encoder_hidden_size": 48}},
            "width 48.*width 32",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {"preset": "official"},
        {"region_shape": "boxes"},
        {"memory_rules": "transformer"},
        {"prompted_memory": "mask"},
        {"seg_state": "after"},
        {"region_prompts": "cells"},
    ],
)
def test_choices_are_checked_wherever_they_are_given(saved_model, overrides):
    """`from_pretrained` sets them after the configuration was made."""
    ((name, value),) = overrides.items()
    for give in (
        lambda: tiny_config(**overrides),
        lambda: SamaConfig.from_pretrained(saved_model[1], **overrides),
        lambda: setattr(tiny_config(), name, value),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            give()


def text_inputs(length: int = 7) -> dict:
    ids = torch.arange(1, length + 1)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_embeddings_can_be_resized():
    model = tiny_model()
    before = model(**text_inputs()).logits
    model.resize_token_embeddings(310, mean_resizing=False)
    after = model(**text_inputs()).logits
    assert after.shape[-1] == 310 == model.config.text_config.vocab_size
    torch.testing.assert_close(after[..., :300], before)


def test_attention_implementations_agree():
    model = tiny_model()
    sdpa = model(**text_inputs()).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**text_inputs()).logits, sdpa, atol=1e-5, rtol=1e-4)


def test_flash_attention_without_its_package_is_a_clear_error():
    if torch.cuda.is_available():
        pytest.skip("there may be a flash-attention here")
    with pytest.raises((ImportError, ValueError), match="(?i)flash"):
        tiny_model().set_attn_implementation("flash_attention_2")


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        inputs = text_inputs()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append(model.model.backbone.language_model.embed_tokens.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_device_map_auto(saved_model):
    model, folder = saved_model
    loaded = SamaForConditionalGeneration.from_pretrained(folder, device_map="auto")
    inputs = {name: tensor.to(loaded.device) for name, tensor in text_inputs().items()}
    torch.testing.assert_close(loaded(**inputs).logits.cpu(), model(**text_inputs()).logits)


def test_an_offloaded_model_says_so(saved_model, tmp_path):
    kept = ("backbone", "region_encoder", "seg_projection")
    parts = {f"model.{name}": "cpu" for name in (*kept, "context_aggregator")}
    parts |= {"lm_head": "cpu", "model.mask_tracker": "disk"}
    loaded = SamaForConditionalGeneration.from_pretrained(saved_model[1], device_map=parts, offload_folder=tmp_path)
    inputs = text_inputs()
    assert loaded(**inputs).logits.isfinite().all()
    with pytest.raises(ValueError, match="mask_tracker.* is offloaded"):
        loaded(**inputs, pixel_values=torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="is offloaded"):
        list(loaded.segment_video(torch.zeros(1, 32), torch.zeros(2, 3, 64, 64), [0]))


def test_a_plain_tuple_on_request():
    model = tiny_model()
    torch.testing.assert_close(model(**text_inputs(), return_dict=False)[0], model(**text_inputs()).logits)


def test_lora_wraps_the_language_model_only():
    from peft import LoraConfig, get_peft_model

    targets = r"model\.backbone\.language_model\..*\.(q_proj|v_proj)"
    wrapped = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=targets))
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert trained and all("language_model" in name and "lora" in name for name in trained)
    inputs = text_inputs()
    wrapped(**inputs, labels=inputs["input_ids"]).loss.backward()
    generated = wrapped.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert generated.shape == (1, 9)


def test_four_bit_loading_works_or_says_what_is_missing(saved_model):
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    settings = BitsAndBytesConfig(load_in_4bit=True)
    if is_bitsandbytes_available():
        loaded = SamaForConditionalGeneration.from_pretrained(saved_model[1], quantization_config=settings)
        assert loaded(**text_inputs()).logits.isfinite().all()
    else:
        with pytest.raises(ImportError, match="bitsandbytes"):
            SamaForConditionalGeneration.from_pretrained(saved_model[1], quantization_config=settings)


def test_the_head_runs_only_where_a_label_is():
    model = tiny_model()
    inputs = text_inputs()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 4:6] = torch.tensor([8, 9])
    output = model(**inputs, labels=labels)
    full = model(**inputs).logits[0, 3:5]
    assert output.logits.shape == (2, 300)
    expected = torch.nn.functional.cross_entropy(full, labels[0, 4:6])
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model(**inputs, labels=labels, num_items_in_batch=8).loss, expected * 2 / 8)


def test_without_labels_to_learn_the_loss_is_zero():
    inputs = text_inputs()
    loss = tiny_model()(**inputs, labels=torch.full_like(inputs["input_ids"], -100)).loss
    assert loss == 0
    loss.backward()


# ---- generation -----------------------------------------------------------------------------------------------------

SEG = 262


def generate(model, tokens: list[int], inputs: dict | None = None, **kwargs):
    inputs = inputs or text_inputs()
    kwargs = {"return_dict_in_generate": True, "logits_processor": [Dictated(tokens)], "do_sample": False} | kwargs
    return model.generate(**inputs, max_new_tokens=len(tokens), **kwargs)


@pytest.mark.parametrize("tokens", [[5, SEG, 6], [SEG, SEG, 9, SEG], [4, 4], [7, SEG]])
def test_seg_states_equal_those_of_one_forward_pass(tokens):
    model = tiny_model()
    output = generate(model, tokens)
    hidden_states = model(input_ids=output.sequences).last_hidden_state[0]
    expected = hidden_states[7:][torch.tensor(tokens) == SEG]
    assert len(output.seg_states) == 1
    torch.testing.assert_close(output.seg_states[0], expected, atol=1e-5, rtol=1e-4)


def test_a_seg_in_the_prompt_is_not_an_answer():
    inputs = text_inputs()
    inputs["input_ids"][0, 3] = SEG
    assert generate(tiny_model(), [4, 5], inputs).seg_states[0].shape == (0, 32)


def test_seg_states_of_a_padded_batch_equal_those_of_each_alone():
    model = tiny_model()
    short = {"input_ids": torch.tensor([[3, 4]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    batch = {
        "input_ids": torch.tensor([[0, 0, 0, 0, 0, 3, 4], [1, 2, 3, 4, 5, 6, 7]]),
        "attention_mask": torch.tensor([[0, 0, 0, 0, 0, 1, 1], [1] * 7]),
    }
    together = generate(model, [SEG, 5, SEG], batch).seg_states
    for states, inputs in zip(together, (short, text_inputs()), strict=True):
        torch.testing.assert_close(states, generate(model, [SEG, 5, SEG], inputs).seg_states[0], atol=1e-5, rtol=1e-4)


def test_plain_token_ids_by_default():
    output = generate(tiny_model(), [4, SEG], return_dict_in_generate=None)
    assert torch.equal(output[0, -2:], torch.tensor([4, SEG]))


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
def test_several_sequences_a_prompt_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=2.*one sequence"):
        tiny_model().generate(**text_inputs(), **{name: 2}, do_sample=name != "num_beams")


def test_a_final_seg_without_cache_says_what_to_do():
    with pytest.raises(ValueError, match="use_cache=True"):
        generate(tiny_model(), [4, SEG], use_cache=False)


def test_states_with_a_static_cache_say_what_to_do():
    model, arguments = tiny_model(), {"cache_implementation": "static", "logits_processor": [Dictated([4, SEG])]}
    with pytest.raises(ValueError, match=r"states of \[SEG\] are not kept with a static cache"):
        generate(model, [4, SEG], cache_implementation="static")
    ids = model.generate(**text_inputs(), max_new_tokens=2, do_sample=False, **arguments)
    assert ids[0, -2:].tolist() == [4, SEG]


def test_all_ids_of_a_conversation_are_needed():
    """Columns of a cache are counted from its beginning."""
    inputs = text_inputs()
    with pytest.raises(ValueError, match="`attention_mask` has 7 columns for 3 `input_ids`"):
        generate(tiny_model(), [SEG], inputs | {"input_ids": inputs["input_ids"][:, 4:]})


def test_recorder_gives_the_states_of_new_seg_tokens_alone():
    recorder = SegRecorder(SEG, prompt_length=2)
    recorder.record(torch.arange(3.0).reshape(1, 3, 1), first_position=0)
    recorder.record(torch.tensor([[[3.0]]]), first_position=3)
    assert list(recorder.states) == [2, 3]  # not those of the prompt
    sequences = torch.tensor([[SEG, 1, SEG, 4]])
    assert recorder.collect(sequences, 1)[0].tolist() == [[2.0]]
    assert not recorder.missing(sequences)
    assert recorder.missing(torch.tensor([[SEG, 1, SEG, SEG, SEG]]))


def test_an_empty_grid_mask_gives_numbers_in_half_precision():
    encoder = tiny_model().model.region_encoder.half()
    pooled, _ = encoder(torch.ones(1, 4, 32).half(), torch.zeros(1, 4), torch.ones(1, 16, 16))
    assert pooled.isfinite().all()


def test_context_of_videos_of_several_lengths_is_that_of_each_alone():
    model = SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    processor = SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    generator = np.random.default_rng(0)
    conversations = []
    for frames, questions in ((3, 1), (5, 2), (3, 2)):
        video = generator.integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)
        messages = []
        for number in range(questions):
            region = Region(frame=1, box=(8, 8 + 8 * number, 40, 40))
            content = [{"type": "text", "text": "What is "}, {"type": "region", "region": region}]
            messages.append({"role": "user", "content": content if number or questions == 1 else content[:1]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": "."}]})
        messages[0]["content"] = [{"type": "video", "video": video}, *messages[0]["content"]]
        conversations.append(messages)

    def context(chosen: list) -> torch.Tensor:
        inputs = processor.apply_chat_template(chosen, add_generation_prompt=False)
        visual = SamaVisualInputs(**{name: inputs.get(name) for name in VISUAL_INPUT_NAMES})
        types = inputs["mm_token_type_ids"]
        with torch.no_grad():
            return model.model.embed_inputs(inputs["input_ids"], types, visual)[0][types == CONTEXT_TOKEN]

    alone = torch.cat([context([one]) for one in conversations])
    assert len(alone) == 3 + 2 * 5 + 2 * 3
    torch.testing.assert_close(context(conversations), alone, atol=1e-5, rtol=1e-4)


def test_seventeen_frames_fill_two_windows_of_512_tokens():
    """32 tokens a frame: 16 frames fill a window, the seventeenth is a window of its own, and is read by it alone."""
    settings = SamaConfig().aggregator_config
    assert settings.temporal_window == 512 and settings.num_spatial_queries == 32
    aggregator = tiny_model(num_spatial_queries=32, temporal_window=512).model.context_aggregator
    torch.nn.init.normal_(aggregator.temporal_queries)
    tokens = torch.randn(1, 17, 32, 32, generator=torch.Generator().manual_seed(0))
    ids, mask, videos = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long), torch.tensor([0])

    @torch.no_grad()
    def read(spatial: torch.Tensor) -> torch.Tensor:
        return aggregator.read_questions(spatial, ids, mask, videos)

    both, queries = read(tokens), aggregator.temporal_queries.shape[1]
    assert both.shape[1] == 2 * queries
    torch.testing.assert_close(both[:, :queries], read(tokens[:, :16]))
    torch.testing.assert_close(both[:, queries:], read(tokens[:, 16:]))
    assert not torch.allclose(read(tokens[:, :16]), read(tokens[:, :15]))
    for window in (511, 513):
        aggregator.window = window
        assert not torch.allclose(both[:, :queries], read(tokens)[:, :queries], rtol=1e-6, atol=1e-7)


def test_a_region_is_pooled_from_its_own_frame():
    model = tiny_model().model
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 32, generator=generator)

    @torch.no_grad()
    def pooled(frames: torch.Tensor) -> torch.Tensor:
        visual = SamaVisualInputs(
            frame_features=frames,
            region_frames=torch.tensor([1]),
            region_grid_masks=torch.ones(1, 2, 2),
            region_masks=torch.ones(1, 16, 16),
        )
        return model.encode_regions(visual, model.region_encoder)[0]

    expected = pooled(features)
    for frame, same in ((0, True), (1, False), (2, True)):
        changed = features.clone()
        changed[frame] += 1
        assert torch.equal(pooled(changed), expected) is same


@pytest.mark.parametrize("in_batch", [False, True])
def test_what_a_region_selects_does_not_depend_on_regions_beside_it(in_batch):
    """Prompts of fewer points are padded, and padding that reaches the decoder changes masks."""
    model, processor, video = tiny_model().model, tiny_processor(), video_part(6)
    line = {"type": "region", "frame": 2, "scribble": [(3, 3), (25, 3), (25, 15)]}
    regions = (line, box_part(2), {"type": "region", "frame": 1, "points": [(10, 10)]})

    def masks(*questions: tuple) -> torch.Tensor:
        batch = processor.apply_chat_template([[user(video, *question, "?")] for question in questions])
        visual = SamaVisualInputs(**{name: batch.get(name) for name in VISUAL_INPUT_NAMES})
        return model.complete_regions(visual).region_masks

    alone = torch.cat([masks((region,)) for region in regions])
    assert all(0 < mask.mean() < 1 for mask in alone)
    assert torch.equal(masks(*((region,) for region in regions) if in_batch else (regions,)), alone)


def test_a_box_in_which_nothing_is_found_is_filled_with_the_cells_that_it_touches():
    config = tiny_config()
    cell = config.mask_config.image_size / 16
    corners = torch.tensor([[[2.0, 2.5], [5.0, 4.5]]]) * cell
    masks = prompted_masks(torch.full((1, 1, 16, 16), -1.0), corners, torch.tensor([[2, 3]]), config)
    assert masks[0, 0].nonzero().tolist() == [[row, column] for row in (2, 3, 4) for column in (2, 3, 4)]
