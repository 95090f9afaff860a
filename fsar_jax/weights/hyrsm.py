"""Published names of HyRSM (alibaba-mmai-research/HyRSM): relation within a video, across videos,
their fusion, and the classifier of the training classes."""

from fsar_jax.torch_names import TorchNames

SET_MATCHING = TorchNames(
    backbone='backbone',
    sequence=True,
    table={
        'temporal_atte_before.norm': ('matcher/within/norm', 'copy'),
        'temporal_atte_before.fn.to_qkv': ('matcher/within/qkv', 'linear'),
        'temporal_atte_before.fn.to_out.0': ('matcher/within/out', 'linear'),
        'temporal_atte.fc': ('matcher/across/out', 'linear'),
        'temporal_atte.layer_norm': ('matcher/across/norm', 'copy'),
        'layer2.0': ('matcher/fuse', 'conv1d'),
        'temporal_atte.w_qs': ('matcher/across/query', 'linear'),
        'temporal_atte.w_ks': ('matcher/across/key', 'linear'),
        'temporal_atte.w_vs': ('matcher/across/value', 'linear'),
        'classification_layer': ('matcher/classifier', 'linear'),
    },
    unused=r'pe\.pe|classification_layer\.(weight|bias)',
)
