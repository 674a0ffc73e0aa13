"""Insert layers before the last ones of the language model and the vision tower; the model's outputs stay the same.

    python recipes/sama_tiny/deepen.py --model checkpoints/sama-tiny --layers 2 --vision-layers 2 \\
        --to outputs/tiny/deep

The output projections of a new layer of the language model and the two layer scales of a new layer of the vision tower
are initialised with zero, so that the layer adds nothing to its input until it is trained.
"""

import argparse
import copy
from pathlib import Path

import torch

from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.train_masks import reset_parameters


# Path of the layers, and the weights of a layer that must be zero for it to add nothing to its input
LAYERS = "model.backbone.language_model.layers", ("self_attn.o_proj.weight", "mlp.down_proj.weight")
VISION_LAYERS = "model.backbone.vision_tower.encoder.layer", ("lambda_1", "lambda_2")


def deepen(
    model: SamaForConditionalGeneration, layers: int, vision_layers: int, seed: int
) -> SamaForConditionalGeneration:
    """A model with the same outputs and with additional layers."""
    config, state = copy.deepcopy(model.config), model.state_dict()
    parts = ((config.text_config, layers, *LAYERS), (config.vision_config, vision_layers, *VISION_LAYERS))
    for sizes, number, name, _ in parts:
        last = sizes.num_hidden_layers - 1
        sizes.num_hidden_layers += number
        state = {key.replace(f"{name}.{last}.", f"{name}.{last + number}."): value for key, value in state.items()}
    text = config.text_config
    text.layer_types = text.layer_types + text.layer_types[-1:] * layers
    deep = SamaForConditionalGeneration(config).to(model.dtype)
    with torch.no_grad():
        for sizes, number, name, weights in parts:
            last = sizes.num_hidden_layers - 1
            new = deep.get_submodule(name)[last - number : last]
            reset_parameters(new, seed)
            for layer in new:
                for weight in weights:
                    layer.get_parameter(weight).zero_()
    deep.load_state_dict(deep.state_dict() | state)
    return deep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a sama-tiny")
    parser.add_argument("--layers", type=int, default=2, help="layers to add to the language model")
    parser.add_argument("--vision-layers", type=int, default=2, help="layers to add to the vision tower")
    parser.add_argument("--to", type=Path, required=True, help="output folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    deep = deepen(model, arguments.layers, arguments.vision_layers, arguments.seed)
    deep.save_pretrained(arguments.to)
    SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True).save_pretrained(arguments.to)


if __name__ == "__main__":
    main()
