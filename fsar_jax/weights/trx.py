"""Published names of TRX and the TRM baseline (tobyperrett/trx), and of the ProtoNet in the same
code."""

from fsar_jax.torch_names import TorchNames

# Position codes are computed here, and TRX never calls one of its norms.
UNUSED = r'transformers\.\d+\.(pe\.pe|norm_v\.(weight|bias))'

CROSS_TRANSFORMER = TorchNames(
    backbone='resnet',
    sequence=True,
    table={
        'transformers.{}.k_linear': ('matcher/cardinality_{}/key', 'linear'),
        'transformers.{}.v_linear': ('matcher/cardinality_{}/value', 'linear'),
        'transformers.{}.norm_k': ('matcher/cardinality_{}/key_norm', 'copy'),
    },
    unused=UNUSED,
)
PROTONET = CROSS_TRANSFORMER._replace(table={})
