"""MASTAF (Liu et al.): self- and cross-attention fused with α = 1, global classifier,
nearest-neighbour loss with weight 0.5.

Appendix, Table 1 (3D ResNet-50, 5-way 1-shot): UCF101 90.6, SSv2 of OTAM 50.3.
    python main.py --config=configs/mastaf.py --workdir=runs/mastaf
    python main.py --config=configs/mastaf.py:ssv2 --config.data.dir=DIR
With a number of shots, a preset is the recipe of the released script (row M7):
    python main.py --config=configs/mastaf.py:ssv2-1shot --config.data.dir=DIR
The presets take clips of 16 frames. Ablations of the appendix (Tables 1 to 3):
--config.model.classifier.weight=0, --config.model.matcher.kernel=mean, .residual=False. Its Fig. 1:
self-attention alone is --config.model.matcher.fusion=self, the nearest neighbour .fusion=none, and
cross-attention alone .alpha=0.
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import of_preset, published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without."""
    config = default_config()
    if preset:
        published_recipe(config, preset, loss_reduction='mean')
        config.model.backbone.update(
            name='resnet3d50',
            batch_norm='joint',  # M11
            batch_norm_groups=1,
        )
        config.episode.frames = 16
        config.data.crop = 'centre'  # M8
    config.model.matcher.update(
        name='attention_fusion', alpha=1.0, kernel='meta_learner', residual=True, loss_weight=0.5
    )
    config.model.classifier.weight = 1.0  # M4
    config.train.loss_reduction = 'mean'
    if preset and of_preset(preset)[1]:  # the defaults of the released script
        config.episode.update(query=1, query_classes=1)  # M7
        config.data.test_jitter = True  # M8
        config.model.matcher.kernel_start = 'published'  # M12
        config.train.update(learning_rate=1e-3, num_steps=-(-100_020 // 16))
    return config
