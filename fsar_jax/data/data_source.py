"""`tfds.decode.PartialDecoding` for data sources, which tfds itself only has for tf.data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow_datasets as tfds

from fsar_jax.messages import listed, printable


def partial_sources(
    as_data_source: Callable, features: tfds.features.FeaturesDict, split: Any, decoders: Any
) -> Any:
    """What `as_data_source(split)` gives, with sources that parse and decode only the features that
    `decoders`, a PartialDecoding, names."""
    raw = as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    features = _chosen(features, decoders)

    def partial(source):
        if isinstance(source, dict):
            return {name: partial(part) for name, part in source.items()}
        if isinstance(source, (list, tuple)):
            return [partial(part) for part in source]
        return PartialSource(source, features, decoders.decoders)

    return partial(raw)


def _chosen(features, decoders):
    """The features that a PartialDecoding names; ValueError for one that records do not have. Its
    own `extract_features` needs TensorFlow."""
    specs = decoders._feature_specs
    specs = dict(specs.items()) if hasattr(specs, 'items') else dict.fromkeys(specs, True)
    names = [name for name, spec in specs.items() if spec is not False]
    for name in names:
        spec = specs[name]
        if name not in features:
            raise ValueError(
                f"PartialDecoding names '{printable(name)}': records have {listed(features)}"
            )
        if isinstance(spec, tfds.features.FeatureConnector) and (
            not isinstance(features[name], type(spec)) or features[name].np_dtype != spec.np_dtype
        ):
            raise ValueError(f"PartialDecoding: '{name}' is {features[name]}, not {spec}")
    return tfds.features.FeaturesDict({name: features[name] for name in names})


class PartialSource(Sequence):
    """A data source whose examples have some of the features.

    source: indexable, gives the bytes of an example.
    """

    def __init__(
        self, source: Any, features: tfds.features.FeaturesDict, decoders: dict | None
    ) -> None:
        self.source, self.features, self.decoders = source, features, decoders

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f'PartialSource({self.source}, {sorted(self.features)})'

    def __getitem__(self, index):
        return self._example(self.source[index])

    def __getitems__(self, indices: Iterable[int]) -> list[dict]:
        """Several at once, as PyTorch's DataLoader asks for them."""
        return [self._example(record) for record in self.source.__getitems__(list(indices))]

    def _example(self, record):
        return self.features.deserialize_example_np(record, decoders=self.decoders)
