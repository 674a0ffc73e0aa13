"""A converted checkpoint with a part replaced, `--into`: what is taken from its folder, and what is written anew."""

import shutil
from pathlib import Path

import foreign_checkpoints as foreign
import pytest
import torch
from safetensors.torch import load_file, save_file

from sama.conversion.convert import ConversionRequest, Report, convert
from sama.conversion.files import CheckpointError
from sama.conversion.pieces import ORIGINAL_DECODER
from sama.processing_sama import SamaProcessor


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A folder with `base`, a converted checkpoint, and `sam2.pt`, which replaces its original mask decoder."""
    folder = tmp_path_factory.mktemp("converted")
    foreign.write_release(folder / "sama", "sama")
    sizes = folder / "sama" / "sizes.json"
    convert(ConversionRequest([(folder / "sama", "sama")], folder / "base", sizes=sizes))
    torch.save(foreign.random_weights(foreign.sam2_shapes(), seed=7), folder / "sam2.pt")
    return folder


@pytest.fixture
def base(converted, tmp_path) -> Path:
    """A copy of the converted checkpoint, for a test to change."""
    return shutil.copytree(converted / "base", tmp_path / "base")


def convert_into(base: Path, converted: Path) -> tuple[Path, Report]:
    """Replaces the original mask decoder of `base`; returns the new folder and the report."""
    to = base.parent / "ours"
    return to, convert(ConversionRequest([(converted / "sam2.pt", "sam2")], to, into=base))


def test_the_code_of_the_processor_is_as_new_as_that_of_the_model(converted, base):
    for name in ("processing_sama.py", "rendered_text_sama.py", "modeling_sama.py"):
        (base / name).write_text(f"# of an earlier version\n{(ROOT / name).read_text(encoding='utf-8')}")
    (base / "former_sama.py").write_text("# a file that this version does not have\n")
    ours, _ = convert_into(base, converted)
    code = {path.name: path.read_bytes() for path in ours.glob("*.py")}
    assert code.keys() == {path.name for path in (converted / "base").glob("*.py")}
    assert all(content == (ROOT / name).read_bytes() for name, content in code.items())


def test_a_training_run_leaves_its_checkpoints_and_logs_behind(converted, base):
    left = ["checkpoint-7/model.safetensors", "checkpoint-7/optimizer.pt", "runs/events", "optimizer.pt",
            "trainer_state.json", "training_args.bin", "fingerprint.json", "mixture.json", "log.txt"]  # fmt: skip
    for name in [*left, "LICENSE.txt"]:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("{}")
    ours, _ = convert_into(base, converted)
    names = {path.relative_to(ours).as_posix() for path in ours.rglob("*") if path.is_file()}
    expected = {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()} - set(left)
    assert names == expected and "qformer_tokenizer/tokenizer.json" in names
    for name in ("generation_config.json", "chat_template.jinja", "processor_config.json", "LICENSE.txt"):
        assert (ours / name).read_bytes() == (base / name).read_bytes()
    assert SamaProcessor.from_pretrained(ours, trust_remote_code=True).turn_format == "newline_after"


def test_names_from_before_version_0_3(converted, base):
    weights = load_file(base / "model.safetensors")
    former = {name.replace("model.backbone.", "model."): tensor for name, tensor in weights.items()}
    assert "model.language_model.norm.weight" in former
    save_file(former, base / "model.safetensors", metadata={"format": "pt"})
    ours, report = convert_into(base, converted)
    written = load_file(ours / "model.safetensors")
    changed = {name for name, tensor in weights.items() if not torch.equal(written[name], tensor)}
    assert written.keys() == weights.keys() and report.fresh == []
    assert changed == {name for name in weights if name.startswith(ORIGINAL_DECODER)}


def test_sizes_beside_a_trained_tracker_are_refused(converted, base):
    """The checkpoint has those of its image encoder, and those of the SAM 2 are not used."""
    request = ConversionRequest(
        [(converted / "sam2.pt", "sam2")], base.parent / "ours", into=base, sizes=converted / "sama" / "sizes.json"
    )
    with pytest.raises(CheckpointError, match="--sizes describes a mask tracker .* without a trained one"):
        convert(request)
