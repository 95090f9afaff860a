"""config.model.classifier: the classifier of the training classes that some matchers have."""

import dataclasses

from ml_collections import ConfigDict

from fsar_jax.fields import setting


@dataclasses.dataclass(frozen=True)
class Classifier:
    """config.model.classifier: a classifier of the training classes, in matchers that have one."""

    classes: int | None = setting(
        None,
        at_least=1,
        affects='model',
        counted=True,
        help="number of training classes; None: counted from the split 'train' in training, "
        'elsewhere no classifier',
    )
    weight: float = setting(
        0.0,
        at_least=0,
        affects='model',
        help="weight of the classifier's cross entropy in the loss; published: HyRSM 0.6, MASTAF 1",
    )


def count_classes(model: ConfigDict, found: int, where: str) -> None:
    """Sets the number of training classes of config.model, where a classifier is trained and the
    number is left open.

    Args:
      found: number of classes of the training split.
      where: what the split is called in the error.

    Raises:
      ValueError: the config says another number.
    """
    classifier = model.classifier
    if not classifier.weight or classifier.classes == found:
        return
    if classifier.classes is not None:
        raise ValueError(
            f'config.model.classifier.classes={classifier.classes}, but {where} has {found} '
            'classes: leave it unset to use that number'
        )
    classifier.classes = found


def classes_as_counted(model: ConfigDict, of_run: ConfigDict) -> None:
    """Gives config.model the number of training classes that a run has counted, where it is left
    open."""
    if model.classifier.classes is None:
        model.classifier.classes = of_run.classifier.classes
