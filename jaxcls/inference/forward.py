"""A config bound to its classes, image shape and devices: all that evaluation needs."""

import collections
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxcls import augment
from jaxcls.augment import Transform, Views
from jaxcls.config import Config
from jaxcls.data.loader import EvalBatches, padded_rows
from jaxcls.data.sources import Source
from jaxcls.losses import Loss
from jaxcls.metrics import EvalOutput, eval_output
from jaxcls.parallel import batch_sharded, platform, replicated, with_sharding

Output = TypeVar("Output")


@dataclasses.dataclass
class Traced:
    """A program before XLA compiles it. Its shapes fit together: otherwise tracing fails.

    Attributes:
      lowered: XLA's input.
      trace_seconds: spent making it out of Python.
      compile_seconds: spent in XLA, or reading the result of an earlier run from disk; 0
        before compile().
    """

    lowered: jax.stages.Lowered
    trace_seconds: float
    compile_seconds: float = 0.0

    def compile(self, deterministic: bool = False) -> jax.stages.Compiled:
        """Returns the program for its fixed shapes: calling it can never compile again.

        Args:
          deterministic: on GPUs leave out what depends on the order of threads.
        """
        start = time.perf_counter()
        options: Any = {"xla_gpu_deterministic_ops": True} if deterministic else None
        compiled = self.lowered.compile(compiler_options=options)
        self.compile_seconds = time.perf_counter() - start
        return compiled


def trace(function: Any, *shapes: Any) -> Traced:
    """Traces a jitted function for trees of jax.ShapeDtypeStruct."""
    start = time.perf_counter()
    lowered = function.lower(*shapes)
    return Traced(lowered, time.perf_counter() - start)


def run_ahead(outputs: Iterator[Output]) -> Iterator[Output]:
    """Yields what an iterator dispatches to the devices, two elements late: two batches keep
    the devices busy while the host waits for the oldest; more would only fill memory."""
    waiting: collections.deque[Output] = collections.deque()
    for output in outputs:
        waiting.append(output)
        if len(waiting) > 2:
            yield waiting.popleft()
    yield from waiting


class Forward:
    """A config bound to its classes, image shape and devices. Its subclass Program, in
    training, adds the rest.

    Attributes:
      config: a config that validate() has passed.
      mesh: the devices.
      num_classes: length of the logits.
      image_shape: of the records, (height, width, channels).
      model: the network.
    """

    def __init__(
        self,
        config: Config,
        *,
        mesh: Mesh,
        num_classes: int,
        image_shape: Sequence[int],
    ):
        """Binds, without compiling or allocating anything."""
        self.config = config
        self.mesh = mesh
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)
        self.model: nn.Module = config.model.create(num_classes, platform(mesh))

    @property
    def num_labels(self) -> int | None:
        """Classes that an image may have or not; None where it has exactly one."""
        return self.num_classes if self.config.loss.multi_label else None

    def weight_shapes(self) -> dict[str, Any]:
        """Returns the weights in a checkpoint of the config as jax.ShapeDtypeStruct: "params",
        "batch_stats", and the same below "ema" if it keeps an average."""
        config = self.config
        shape = input_shape(config.eval_transform, self.image_shape, config.eval_views)
        made = variable_shapes(self.model, shape)
        weights = {"params": made["params"], "batch_stats": made.get("batch_stats", {})}
        if config.has_average:
            weights["ema"] = dict(weights)
        return with_sharding(replicated(self.mesh), weights)

    def batch_shapes(self, rows: int) -> dict[str, Any]:
        """Returns the shapes of a batch of `rows` rows over all devices."""
        return row_shapes(self.mesh, rows, self.image_shape, self.num_labels)

    def eval_batches(self, source: Source) -> EvalBatches:
        """Returns the batches of a split, each record once, padded to fill all devices."""
        size = self.config.evaluation.batch_size
        return EvalBatches(source, batch_size=size, rows_multiple=self.mesh.size)

    def eval_batch_shapes(self) -> dict[str, Any]:
        """Returns the shapes of one of eval_batches()."""
        rows = padded_rows(self.config.evaluation.batch_size, self.mesh.size)
        return self.batch_shapes(rows)

    def trace_eval_step(self, variables: Any) -> Traced:
        """Traces eval_step(variables, batch).

        Args:
          variables: "params" and "batch_stats" as jax.ShapeDtypeStruct with shardings.
        """
        step = functools.partial(
            eval_step,
            model=self.model,
            transforms=self.config.eval_transform,
            views=self.config.eval_views,
            loss=self.config.loss,
        )
        jitted = jax.jit(step, out_shardings=replicated(self.mesh))
        return trace(jitted, variables, self.eval_batch_shapes())


def row_shapes(
    mesh: Mesh, rows: int, image_shape: tuple[int, ...], num_labels: int | None
) -> dict[str, Any]:
    """Returns the shapes of rows that are spread over devices: "image" uint8 [rows,
    *image_shape], "label" and "mask" bool [rows].

    Args:
      mesh: the devices.
      rows: how many, a multiple of the devices.
      image_shape: of one image.
      num_labels: classes that an image may have or not, so that labels are uint8 [rows,
        num_labels], ones and zeros; None where it has exactly one, int32 [rows].
    """
    label: Any = (rows,), jnp.int32
    if num_labels is not None:
        label = (rows, num_labels), jnp.uint8
    shapes = {
        "image": jax.ShapeDtypeStruct((rows, *image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct(*label),
        "mask": jax.ShapeDtypeStruct((rows,), jnp.bool_),
    }
    return with_sharding(batch_sharded(mesh), shapes)


def variable_shapes(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the variables of a network as jax.ShapeDtypeStruct.

    Args:
      model: the network.
      shape: of its input, (1, height, width, channels).
    """
    return jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False)
    )


def input_shape(
    transforms: Sequence[Transform],
    image_shape: tuple[int, ...],
    views: Views | None = None,
) -> tuple[int, ...]:
    """Returns the shape that transforms, and the first of some views, give a batch of one
    record [height, width, channels]: (1, new height, new width, channels)."""

    def image(rng: jax.Array, images: jax.Array, targets: jax.Array) -> jax.Array:
        images, _ = augment.apply(transforms, rng, images, targets)
        return images if views is None else views(images)[0]

    return jax.eval_shape(
        image,
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8),
        jax.ShapeDtypeStruct((1, 1), jnp.float32),
    ).shape


def apply_deterministic(
    transforms: Sequence[Transform], images: jax.Array
) -> jax.Array:
    """Applies transforms that use neither the random key nor the targets.

    Args:
      transforms: deterministic.
      images: uint8 [batch, height, width, channels], or floats after Normalize.
    """
    targets = jnp.zeros((len(images), 1))
    return augment.apply(transforms, jax.random.key(0), images, targets)[0]


def eval_step(
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    transforms: Sequence[Transform],
    views: Views | None,
    loss: Loss,
) -> EvalOutput:
    """Evaluates one batch.

    Args:
      variables: "params" and "batch_stats" of the network.
      batch: "image" uint8 [batch, height, width, channels], "label" int32 [batch] (or uint8
        [batch, classes] of ones and zeros, if the loss is for any number of labels), "mask"
        bool [batch], False for padding.
      model: the network.
      transforms: deterministic, ending in normalised floats.
      views: of each image, over which the logits are averaged; None for the image alone.
      loss: that of training. It tells the kind of the labels, and nothing else: the metrics
        are the same whatever the loss.

    Returns:
      Sums over the images of the batch, and the logits where mAP needs them.
    """

    def predict(images: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, images, train=False)
        return logits

    if views is None:
        logits = predict(apply_deterministic(transforms, batch["image"]))
    else:
        before, after = augment.around_normalize(transforms)
        logits = augment.averaged_logits(
            lambda view: predict(apply_deterministic(after, view)),
            apply_deterministic(before, batch["image"]),
            views,
        )
    return eval_output(
        logits, batch["label"], batch["mask"], multi_label=loss.multi_label
    )
