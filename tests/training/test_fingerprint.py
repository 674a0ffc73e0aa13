"""The fingerprint of a run: each decisive setting and each change of data is a difference, other things are not."""

import json

import pytest
import yaml
from processor_fixtures import tiny_processor
from tiny_model import IMAGE_SIZE, tiny_config
from training_fixtures import flags, toy_mixture

from sama import train, train_grpo
from sama.data.mixture import load_mixture
from sama.data.store import open_masks
from sama.training.checkpoints import FINGERPRINT_FILE, TrainingError
from sama.training.fingerprint import compare_runs, fingerprint


CONFIG = tiny_config().to_dict()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(image_size=IMAGE_SIZE)


@pytest.fixture
def identify(tmp_path, processor):
    """A function: flags of a run -> its fingerprint, on toy world and three conversations of text."""
    toy_mixture(tmp_path, samples=4, texts=3)

    def run(config=CONFIG, **options) -> dict:
        words = flags(tmp_path / "model", tmp_path / "mixture.yaml", tmp_path / "out", **options)
        training, data, model = train.parse(words)
        seed = training.seed if training.data_seed is None else training.data_seed
        mixture = load_mixture(data.mixture, processor, seed, data.data_root, data.data_cache, data.on_error)
        return fingerprint(training, mixture, config, model)

    return run


def compare(folder, saved: dict, present: dict) -> tuple[dict[str, str], dict[str, str]]:
    (folder / FINGERPRINT_FILE).write_text(json.dumps(saved))
    return compare_runs(folder, present)


DECISIVE = {
    "learning_rate": 0.0005, "gradient_accumulation_steps": 2, "seed": 7, "per_device_train_batch_size": 3,
    "lr_scheduler_type": "linear", "warmup_steps": 3, "max_steps": 9, "num_train_epochs": 2, "weight_decay": 0.5,
    "adam_beta2": 0.9, "max_grad_norm": 5, "optim": "sgd", "memory_training": True, "train_parts": "seg_head",
    "data_seed": 3, "use_peft": True, "lora_r": 3,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), DECISIVE.items())
def test_a_decisive_setting_is_named_with_both_values(identify, tmp_path, name, value):
    saved, present = identify(), identify(**{name: value})
    decisive, _ = compare(tmp_path, saved, present)
    old, new = (json.dumps(one["decisive"][name]) for one in (saved, present))
    assert old != new and decisive[name] == f"{name} was {old} and is {new}"


def test_what_changes_neither_losses_nor_weights_is_harmless(identify, tmp_path):
    changed = identify(save_steps=7, dataloader_num_workers=1, logging_steps=3, output_dir="elsewhere")
    decisive, harmless = compare(tmp_path, identify(), changed)
    assert decisive == {}
    assert sorted(harmless) == ["dataloader_num_workers", "logging_steps", "save_steps"]
    assert harmless["save_steps"] == "save_steps was 1000 and is 7"
    assert compare(tmp_path, identify(), identify()) == ({}, {})


def change_a_word(folder):
    path = folder / "texts.jsonl"
    path.write_text(path.read_text().replace("It is 2.", "It is 3."))


def change_the_order(folder):
    path = folder / "texts.jsonl"
    path.write_text("".join(line + "\n" for line in reversed(path.read_text().splitlines())))


def change_mixture(change):
    def run(folder):
        content = yaml.safe_load((folder / "mixture.yaml").read_text())
        change(content)
        (folder / "mixture.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    return run


CHANGES = {
    "sources.texts.content.records": change_a_word,
    "sources.texts.content.records ": change_the_order,
    "sources.toy.options.seed": change_mixture(lambda mixture: mixture["sources"]["toy"]["options"].update(seed=5)),
    "sources.toy.weight": change_mixture(lambda mixture: mixture["sources"]["toy"].update(weight=2)),
    "rendering.turns": change_mixture(lambda mixture: mixture.update(rendering={"turns": 1})),
    "order of sources": change_mixture(
        lambda mixture: mixture.update(sources=dict(sorted(mixture["sources"].items(), reverse=True)))
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_data_is_named(identify, tmp_path, name):
    saved = identify()
    CHANGES[name](tmp_path)
    decisive, _ = compare(tmp_path, saved, identify())
    assert any(text.startswith(f"mixture.{name.strip()} was") for text in decisive.values())


def test_the_same_data_elsewhere_is_the_same_data(identify, tmp_path):
    saved = identify()
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "texts.jsonl").rename(moved / "texts.jsonl")
    assert compare(tmp_path, saved, identify(data_root=moved, data_cache=moved / "cache")) == ({}, {})


def test_other_masks_are_other_data(tmp_path):
    digests = []
    for number, counts in enumerate(("04<", "04<", "13<")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "masks.json").write_text(json.dumps({"1": [{"size": [4, 4], "counts": counts}]}))
        store = open_masks(folder / "masks.json", folder / "cache", "source")
        digests.append(store.digest())
        assert store.digest() == digests[-1]  # kept beside the store
    assert digests[0] == digests[1] != digests[2]


def test_another_loss_weight_of_the_model_is_named(identify, tmp_path):
    other = {**CONFIG, "dice_loss_coefficient": 9.0}
    decisive, _ = compare(tmp_path, identify(), identify(config=other))
    words = f"model.dice_loss_coefficient was {CONFIG['dice_loss_coefficient']} and is 9.0"
    assert decisive == {"model.dice_loss_coefficient": words}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"decisive": 5, "harmless": {}}'])
def test_a_fingerprint_that_is_none(identify, tmp_path, content):
    (tmp_path / FINGERPRINT_FILE).write_text(content)
    with pytest.raises(TrainingError, match=FINGERPRINT_FILE):
        compare_runs(tmp_path, identify())


def test_the_reference_of_reinforcement_is_decisive(tmp_path, processor):
    """The divergence is from the model that training starts from."""
    path = toy_mixture(tmp_path, samples=4, tasks={"dialogue": 1})

    def base_of(beta: float) -> tuple[bool, bool]:
        words = flags(tmp_path / "model", path, tmp_path / "out", num_generations=2, beta=beta)
        training, data, model = train_grpo.parse(words)
        found = fingerprint(training, load_mixture(data.mixture, processor, 0), CONFIG, model)
        return "model_name_or_path" in found["decisive"], "model_name_or_path" in found["harmless"]

    assert base_of(0.0) == (False, True) and base_of(0.1) == (True, False)
