"""Published names of what STRM (Anirudh257/strm) adds to TRX: two enrichments and the query-class
similarity."""

from fsar_jax.torch_names import Table

UNUSED = r'(attn_pat|fr_enrich)\.pe\.pe'  # position codes, which are computed here
UNUSED_PROJECTION = r'new_dist_loss_post_pat\.\d+\.clsW\.(weight|bias)'
# Our modules whose weights are those of variant='code' alone.
CODE_ONLY = ('patch_enrichment', 'frame_enrichment', 'query_similarity')

SELF_ATTENTION: Table = {
    'key_proj': ('key', 'linear'),
    'query_proj': ('query', 'linear'),
    'value_conv': ('value', 'linear'),
    'Bot_MLP.inp_fc': ('mlp_in', 'linear'),
    'Bot_MLP.hid_fc': ('mlp_hidden', 'linear'),
    'Bot_MLP.out_fc': ('mlp_out', 'linear'),
    'gamma': ('gamma', 'copy'),
}
MLP_MIXER: Table = {
    'Tok_MLP.inp_fc': ('token_in', 'linear'),
    'Tok_MLP.out_fc': ('token_out', 'linear'),
    'Bot_MLP.inp_fc': ('channel_in', 'linear'),
    'Bot_MLP.out_fc': ('channel_out', 'linear'),
}
# Either can be at either level; a model has the layers of one.
ENRICHMENTS: tuple[Table, ...] = tuple(
    {f'{theirs}.{name}': (f'{ours}/{layer}', turn) for name, (layer, turn) in table.items()}
    for theirs, ours in (('attn_pat', 'patch_enrichment'), ('fr_enrich', 'frame_enrichment'))
    for table in (SELF_ATTENTION, MLP_MIXER)
)
QUERY_SIMILARITY: Table = {
    'new_dist_loss_post_pat.{}.clsW': ('query_similarity/cardinality_{}/projection', 'linear')
}
