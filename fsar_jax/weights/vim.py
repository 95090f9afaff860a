"""Published names of VIM's sampler (R00Kie-Liu/Sampler), but for its scan network, which has
torchvision's under 'backbone.'."""

from fsar_jax.torch_names import Table

# The position code, which is computed here; and the generator, where the sampler does not adapt.
UNUSED = r'evaluator\.0\.pe'
UNUSED_GENERATOR = r'generator\.(encoder|gen)\.(weight|bias)'
UNUSED_CHOICE = r'(evaluator|generator)\..*'  # where a model takes evenly spaced frames

SCAN = '/sampler/scan_network/'  # ours, of torchvision's names
SAMPLER: Table = {
    'evaluator.1': ('sampler/evaluator', 'linear'),
    'evaluator.3': ('sampler/score', 'linear'),
    'generator.encoder': ('sampler/generator/encoder', 'linear'),
    'generator.gen': ('sampler/generator/frame_weights', 'linear'),
}
