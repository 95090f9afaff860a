"""Names of the published sampler of VIM (R00Kie-Liu/Sampler), but for its scan network: a table of
`Entry`."""

from fsar_jax.weights.entries import Entry, linear

UNUSED = r'evaluator\.0\.pe'  # the position code, which is computed


def sampler_table(dim, hidden, task_dim, adaptive: bool = True) -> dict[str, Entry]:
    """The evaluator of frames, and the generator of its last layer, or that layer where it is
    learned.

    dim: c, width of the scan features; hidden: d of the evaluator; task_dim: of the task feature.
    None for what is not known.
    """
    twice = lambda size: None if size is None else 2 * size
    table = linear('evaluator.1', 'sampler/evaluator', hidden, twice(dim))
    if not adaptive:
        return table | linear('evaluator.3', 'sampler/score', 1, hidden)
    return (
        table
        | linear('generator.encoder', 'sampler/generator/encoder', twice(task_dim), dim)
        | linear('generator.gen', 'sampler/generator/frame_weights', hidden, task_dim)
    )
