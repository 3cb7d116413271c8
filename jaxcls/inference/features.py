"""What a network sees in images before it decides: the input of its last layer."""

import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxcls import parallel
from jaxcls.data.bad_images import BadImages
from jaxcls.data.loader import EvalBatches, start_loader
from jaxcls.data.sources import Source
from jaxcls.errors import UserError
from jaxcls.inference.forward import Forward, apply_deterministic, run_ahead
from jaxcls.models.network import Network
from jaxcls.report.progress import say


def features(
    model: Network, variables: dict[str, Any], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the features of images, and their logits, in evaluation.

    Args:
      model: the network.
      variables: "params" and "batch_stats".
      images: normalised floats [batch, height, width, channels].

    Returns:
      The features float32 [batch, values], with which logits = features @ kernel + bias of the
      last layer, up to its dtype; and those logits float32 [batch, num_classes].
    """
    head = tuple(model.HEADS[0].split("/"))
    inputs: list[jax.Array] = []

    def note(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if context.module.path == head and context.method_name == "__call__":
            inputs.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        logits: Any = model.apply(variables, images, train=False)
    (found,) = inputs
    return found.astype(jnp.float32), logits


def compute_features(
    forward: Forward, variables: dict[str, Any], source: Source
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the last layer of a network is given for each image of a training split.

    Args:
      forward: has the network, the transforms and the devices.
      variables: "params" and "batch_stats", on the devices.
      source: the split. Images that cannot be read are left out.

    Returns:
      Features float32 [n, features] and labels int32 [n].

    Raises:
      UserError: if the data cannot be read, or features are not finite.
    """
    config, mesh = forward.config, forward.mesh
    step = _features_step(forward, variables)
    batches = EvalBatches(
        source, batch_size=config.evaluation.batch_size, rows_multiple=mesh.size
    )
    bad = BadImages(source, "train", say=say)
    parts, labels = [], []
    with start_loader(batches, config.data) as loader:
        shown = tqdm(
            bad.watched(loader),
            total=len(batches),
            desc="features",
            unit="batch",
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        dispatched = (
            (
                step(
                    variables, parallel.put_batch(mesh, {"image": b["image"]})["image"]
                ),
                b,
            )
            for b in shown
        )
        for values, loaded in run_ahead(dispatched):
            parts.append(jax.device_get(values)[loaded["mask"]])
            labels.append(loaded["label"][loaded["mask"]])
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise UserError(
            "the features of some images are not finite: the weights do not fit the images. "
            "Look at model.weights and eval_transform."
        )
    return found, np.concatenate(labels)


def _features_step(forward: Forward, variables: dict[str, Any]) -> Callable[..., Any]:
    """Compiles (variables, images uint8 [rows, height, width, channels]) -> float32 [rows,
    features]."""

    def compute(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        changed = apply_deterministic(forward.config.eval_transform, images)
        found, _ = features(forward.model, variables, changed)  # type: ignore[arg-type]
        return found

    by_rows = parallel.batch_sharded(forward.mesh)
    jitted = jax.jit(compute, out_shardings=by_rows)
    return jitted.lower(variables, forward.eval_batch_shapes()["image"]).compile()
