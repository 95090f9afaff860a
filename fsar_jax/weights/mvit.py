"""torchvision's names of MViTv1-B and MViTv2-S."""

from fsar_jax.torch_names import Table

CLASSIFIER = r'head\.1\.(weight|bias)'

STEM: Table = {
    'conv_proj': ('conv_proj', 'conv3d'),
    'pos_encoding.class_token': ('class_token', 'copy'),
    'pos_encoding.spatial_pos': ('spatial_pos', 'copy'),
    'pos_encoding.temporal_pos': ('temporal_pos', 'copy'),
    'pos_encoding.class_pos': ('class_pos', 'copy'),
    'norm': ('norm', 'copy'),
}
BLOCK: Table = {
    'norm1': ('norm1', 'copy'),
    'norm2': ('norm2', 'copy'),
    'attn.qkv': ('attn_qkv', 'linear'),
    'attn.project.0': ('attn_project', 'linear'),
    'attn.pool_q.pool': ('attn_pool_q/pool', 'conv3d'),
    'attn.pool_q.norm_act.0': ('attn_pool_q/norm', 'copy'),
    'attn.pool_k.pool': ('attn_pool_k/pool', 'conv3d'),
    'attn.pool_k.norm_act.0': ('attn_pool_k/norm', 'copy'),
    'attn.pool_v.pool': ('attn_pool_v/pool', 'conv3d'),
    'attn.pool_v.norm_act.0': ('attn_pool_v/norm', 'copy'),
    'attn.rel_pos_h': ('attn_rel_pos_h', 'copy'),
    'attn.rel_pos_w': ('attn_rel_pos_w', 'copy'),
    'attn.rel_pos_t': ('attn_rel_pos_t', 'copy'),
    'mlp.0': ('mlp_0', 'linear'),
    'mlp.3': ('mlp_3', 'linear'),
    'project': ('project', 'linear'),
}


def table(blocks: int) -> Table:
    """The names of an MViT of so many blocks, of which not every one has every layer."""
    return dict(STEM) | {
        f'blocks.{i}.{theirs}': (f'blocks_{i}/{ours}', transform)
        for i in range(blocks)
        for theirs, (ours, transform) in BLOCK.items()
    }
