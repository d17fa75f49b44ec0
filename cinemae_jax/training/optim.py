"""AdamW with linear warm-up and cosine decay, as MAE pre-training and the head both use it."""

from typing import Any

import jax
import optax


def warmup_cosine(peak: float, num_steps: int, warmup_fraction: float) -> optax.Schedule:
    """Learning rate: linear from 0 to ``peak`` over the first part, then a cosine to 0."""
    warmup = max(1, round(num_steps * warmup_fraction))
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_steps, warmup + 1))


def kernels(params: Any) -> Any:
    """Mask of the values that weight decay applies to: matrices, not biases, norms or tokens."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def without_key_bias(grads: Any) -> Any:
    """Gradients of a transformer, those of its keys' biases zero, as they are without rounding.

    Softmax does not see what is added to all keys alike.  What rounding leaves of that gradient,
    some 1e-9, AdamW divides by its own size: steps of noise, and other noise on other devices.
    """

    def exact(path: Any, grad: jax.Array) -> jax.Array:
        if [part.key for part in path[-2:]] != ["qkv", "bias"]:
            return grad
        width = len(grad) // 3
        return grad.at[width : 2 * width].set(0.0)

    return jax.tree_util.tree_map_with_path(exact, grads)


def adamw(
    schedule: optax.Schedule, *, weight_decay: float, b2: float = 0.999
) -> optax.GradientTransformation:
    """AdamW that decays ``kernels`` only."""
    return optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=kernels)
