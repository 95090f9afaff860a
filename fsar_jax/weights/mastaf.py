"""Published names of MASTAF (lxhit/STAF): the meta-learner of the attention kernels, and the
classifier of the training classes."""

from fsar_jax.torch_names import TorchNames

ATTENTION_FUSION = TorchNames(
    backbone='base',
    table={
        'cam.conv1.conv': ('matcher/kernel/squeeze', 'conv2d'),
        'cam.conv1.bn': ('matcher/kernel/bn', 'copy'),
        'cam.conv2': ('matcher/kernel/expand', 'conv2d'),
        'classifier': ('matcher/classifier', 'points'),
    },
    unused=r'(classifier|base\.fc)\.(weight|bias)|cam\..*',
)
