"""Few-shot action recognition in JAX. docs/how_it_works.md tells the flow; `create_learner` is where it starts."""

from fsar_jax import weights
from fsar_jax.config import default_config, published_recipe, validate
from fsar_jax.learner import FewShotLearner, Prediction, create_learner
from fsar_jax.training import losses

__version__ = '0.1.0'
