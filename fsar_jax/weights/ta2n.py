"""Published names of TA2N (R00Kie-Liu/TA2N): the temporal transform, and action coordination."""

from fsar_jax.torch_names import Table, TorchNames

TEMPORAL_TRANSFORM: Table = {
    'align.firststage.locnet.0': ('temporal_transform/conv1', 'conv3d'),
    'align.firststage.locnet.1': ('temporal_transform/bn1', 'copy'),
    'align.firststage.locnet.4': ('temporal_transform/conv2', 'conv3d'),
    'align.firststage.locnet.5': ('temporal_transform/bn2', 'copy'),
    'align.firststage.locnet.10': ('temporal_transform/linear', 'linear'),
    'align.firststage.locnet.12': ('temporal_transform/window', 'linear'),
}
ACTION_COORDINATION = TorchNames(
    backbone='resnet',
    table={
        # Temporal coordination, of a query and a class and between the shots of a class.
        'align.secondstage.keynet': ('matcher/key', 'conv1d'),
        'align.keynet_multi': ('matcher/key_multi', 'conv1d'),
        'align.secondstage.querynet': ('matcher/query', 'conv1d'),
        'align.querynet_multi': ('matcher/query_multi', 'conv1d'),
        'align.secondstage.valuenet': ('matcher/value', 'conv1d'),
        'align.valuenet_multi': ('matcher/value_multi', 'conv1d'),
        # Spatial coordination: the predictor of offsets.
        'align.secondstage.mvnet.0.weight': ('matcher/offsets/conv1_kernel', 'conv3d'),
        'align.secondstage.mvnet.0.bias': ('matcher/offsets/conv1_bias', 'copy'),
        'align.secondstage.mvnet.1': ('matcher/offsets/bn1', 'copy'),
        'align.secondstage.mvnet.4': ('matcher/offsets/conv2', 'conv3d'),
        'align.secondstage.mvnet.5': ('matcher/offsets/bn2', 'copy'),
        'align.secondstage.mvnet.10': ('matcher/offsets/linear', 'conv1d'),
        'align.secondstage.mvnet.12': ('matcher/offsets/offset', 'conv1d'),
        'protypicalNet.norm_layer': ('matcher/norm', 'copy'),
    },
    unused=r'protypicalNet\.norm_layer\.(weight|bias)'
    r'|align\.secondstage\.(mv|key|query|value)net\..*'
    r'|align\.(key|query|value)net_multi\.weight'
    r'|align\.firststage\..*',
)
