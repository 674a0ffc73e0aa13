"""Gives the small model's language model and vision tower more layers before their last ones, which change nothing
until they are trained.

    python recipes/sama_tiny/deepen.py --model checkpoints/sama-tiny --layers 2 --vision-layers 2 \\
        --to outputs/tiny/deep

What a layer of the language model adds to its input passes through two projections, and what one of the tower adds is
multiplied by two scales; these start at zero.
"""

import argparse
import copy
from pathlib import Path

import torch

from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.train_masks import start_anew


# Where the layers are, and the weights that all of what a layer adds to its input is multiplied by
LAYERS = "model.language_model.layers", ("self_attn.o_proj.weight", "mlp.down_proj.weight")
VISION_LAYERS = "model.vision_tower.encoder.layer", ("lambda_1", "lambda_2")


def deepen(
    model: SamaForConditionalGeneration, layers: int, vision_layers: int, seed: int
) -> SamaForConditionalGeneration:
    """A model with the same outputs whose language model and vision tower have so many more layers."""
    config, state = copy.deepcopy(model.config), model.state_dict()
    more = ((config.text_config, layers, *LAYERS), (config.vision_config, vision_layers, *VISION_LAYERS))
    for sizes, number, name, _ in more:
        last = sizes.num_hidden_layers - 1
        sizes.num_hidden_layers += number
        state = {key.replace(f"{name}.{last}.", f"{name}.{last + number}."): value for key, value in state.items()}
    text = config.text_config
    text.layer_types = text.layer_types + text.layer_types[-1:] * layers
    deep = SamaForConditionalGeneration(config).to(model.dtype)
    with torch.no_grad():
        for sizes, number, name, weights in more:
            last = sizes.num_hidden_layers - 1
            new = deep.get_submodule(name)[last - number : last]
            start_anew(new, seed)
            for layer in new:
                for weight in weights:
                    layer.get_parameter(weight).zero_()
    deep.load_state_dict(deep.state_dict() | state)
    return deep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a small SAMA")
    parser.add_argument("--layers", type=int, default=2, help="how many more the language model gets")
    parser.add_argument("--vision-layers", type=int, default=2, help="how many more the vision tower gets")
    parser.add_argument("--to", type=Path, required=True, help="folder of the result")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    deep = deepen(model, arguments.layers, arguments.vision_layers, arguments.seed)
    deep.save_pretrained(arguments.to)
    SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True).save_pretrained(arguments.to)


if __name__ == "__main__":
    main()
