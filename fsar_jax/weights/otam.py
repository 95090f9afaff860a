"""Published names of OTAM, as HyRSM's code (alibaba-mmai-research/HyRSM) has it: a backbone, and
nothing learned beside it."""

from fsar_jax.torch_names import TorchNames

OTAM = TorchNames(backbone='backbone', sequence=True)
