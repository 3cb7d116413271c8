"""The compiled programs of a run, and the shapes they take."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcls import augment
from jaxcls.augment import Transform, Views
from jaxcls.config import Config, Plan
from jaxcls.data.loader import padded_rows
from jaxcls.errors import UserError
from jaxcls.optim.chain import chain, learning_rate
from jaxcls.parallel import batch_sharded, replicated
from jaxcls.training import placement
from jaxcls.training.state import TrainState, create_state
from jaxcls.training.step import eval_step, train_step


@dataclasses.dataclass
class Compiled:
    """A program for fixed shapes: calling it can never compile again.

    Attributes:
      call: the program.
      seconds: spent turning Python into XLA's input, and then in XLA or in reading the result
        of an earlier run from disk.
    """

    call: Any
    seconds: tuple[float, float]


@dataclasses.dataclass
class Traced:
    """A program before it is compiled: its shapes fit together, or tracing had failed.

    Attributes:
      lowered: XLA's input.
      seconds: spent making it out of Python.
    """

    lowered: jax.stages.Lowered
    seconds: float

    def compile(self) -> Compiled:
        """Compiles, or reads the result of an earlier run from disk."""
        start = time.perf_counter()
        compiled = self.lowered.compile()
        return Compiled(compiled, (self.seconds, time.perf_counter() - start))


def trace(function: Any, *shapes: Any) -> Traced:
    """Traces a jitted function for trees of jax.ShapeDtypeStruct."""
    start = time.perf_counter()
    lowered = function.lower(*shapes)
    return Traced(lowered, time.perf_counter() - start)


def batch_shapes(mesh: Mesh, rows: int, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the shapes of a global batch of `rows` images [height, width, channels]."""
    sharding = batch_sharded(mesh)
    return {
        "image": jax.ShapeDtypeStruct(
            (rows, *image_shape), jnp.uint8, sharding=sharding
        ),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=sharding),
        "mask": jax.ShapeDtypeStruct((rows,), jnp.bool_, sharding=sharding),
    }


def stacked(shapes: dict[str, Any], steps: int) -> dict[str, Any]:
    """Returns the shapes of `steps` batches as one: a new first axis, which every device
    holds whole."""
    return {
        name: jax.ShapeDtypeStruct(
            (steps, *shape.shape),
            shape.dtype,
            sharding=NamedSharding(
                shape.sharding.mesh, PartitionSpec(None, *shape.sharding.spec)
            ),
        )
        for name, shape in shapes.items()
    }


def input_shape(
    transforms: Sequence[Transform],
    image_shape: tuple[int, ...],
    views: Views | None = None,
) -> tuple[int, ...]:
    """Returns the shape that transforms, and the first of some views, give a batch of one
    record [height, width, channels]: (1, new height, new width, channels)."""

    def image(rng: jax.Array, images: jax.Array, targets: jax.Array) -> jax.Array:
        images, _ = augment.apply(transforms, rng, images, targets)
        return images if views is None else views(images)[0][0]

    return jax.eval_shape(
        image,
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8),
        jax.ShapeDtypeStruct((1, 1), jnp.float32),
    ).shape


def on_all_devices(mesh: Mesh, shapes: Any) -> Any:
    """Returns a tree of jax.ShapeDtypeStruct with the sharding of whole copies."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
    )


def weight_shapes(
    config: Config, model: nn.Module, image_shape: tuple[int, ...], mesh: Mesh
) -> dict[str, Any]:
    """Returns the shapes of the weights in a checkpoint of a config: "params", "batch_stats",
    and the same below "ema" if it keeps an average.

    Args:
      config: of the checkpoint.
      model: the network that it makes.
      image_shape: of the records, (height, width, channels).
      mesh: the devices onto which the weights will be read.
    """
    shape = input_shape(config.eval_transform, image_shape, config.eval_views)
    made = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False)
    )
    weights = {"params": made["params"], "batch_stats": made.get("batch_stats", {})}
    if config.ema_decay is not None:
        weights["ema"] = dict(weights)
    return on_all_devices(mesh, weights)


class Program:
    """A config bound to a dataset's shapes and a mesh; compiles on request."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        *,
        mesh: Mesh,
        num_classes: int,
        image_shape: tuple[int, ...],
    ):
        """Binds, without compiling or allocating anything.

        Args:
          config: a config that validate() has passed.
          plan: its durations in steps.
          mesh: the devices.
          num_classes: length of the logits.
          image_shape: of the records, (height, width, channels).

        Raises:
          UserError: if the batch does not divide among the devices.
        """
        num_devices = mesh.size
        if config.batch_size % num_devices:
            below = config.batch_size // num_devices * num_devices
            choices = [str(size) for size in (below, below + num_devices) if size]
            raise UserError(
                f"batch_size {config.batch_size} does not divide among {num_devices} "
                f"devices: use {' or '.join(choices)}, or set devices."
            )
        self.config = config
        self.mesh = mesh
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.model: nn.Module = config.model.create(num_classes)
        self.optimizer: optax.GradientTransformation = chain(
            config.optimizer, config.schedule, config.clip_norm, plan.run
        )
        self._step = functools.partial(
            train_step,
            model=self.model,
            transforms=config.augment,
            loss=config.loss,
            optimizer=self.optimizer,
            learning_rate=learning_rate(config.optimizer, config.schedule, plan.run),
            ema_decay=config.ema_decay,
            num_classes=num_classes,
            seed=config.seed,
            max_bad_steps=config.max_bad_steps,
            run=plan.run,
        )
        self._state_shapes: TrainState | None = None
        self._init = jax.jit(self._create_state, out_shardings=replicated(mesh))

    def _create_state(self) -> TrainState:
        return create_state(
            self.model,
            self.optimizer,
            input_shape(self.config.augment, self.image_shape),
            self.config.seed,
            with_ema=self.config.ema_decay is not None,
        )

    def init(self) -> TrainState:
        """Returns the state before the first step, on the devices."""
        return self._init()

    def state_shapes(self) -> TrainState:
        """Returns the state as jax.ShapeDtypeStruct with shardings."""
        if self._state_shapes is None:
            shapes = jax.eval_shape(self._create_state)
            self._state_shapes = on_all_devices(self.mesh, shapes)
        return self._state_shapes

    def trace_train_step(
        self, steps: int = 1, num_records: int | None = None
    ) -> Traced:
        """Traces train_step(state, batch[, records]); the state is donated.

        Args:
          steps: made in one call, 1 or more. With more than one the arrays of the batch are
            [steps, rows, ...], and the report is that of the last.
          num_records: the training images, if they lie on the devices: the batch then is
            {"id": int32 [rows]} and the program takes the records besides.
        """
        function = self.train_step if steps == 1 else self.train_steps
        jitted = jax.jit(
            function, out_shardings=replicated(self.mesh), donate_argnums=0
        )
        on_devices = num_records is not None
        shapes = [self.state_shapes(), self._call_shapes(steps, on_devices)]
        if num_records is not None:
            shapes.append(
                placement.record_shapes(self.mesh, num_records, self.image_shape)
            )
        return trace(jitted, *shapes)

    def train_step(
        self, state: TrainState, batch: dict[str, jax.Array], records: Any = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one step. `batch` is {"id": int32 [rows]} if the images lie in `records`."""
        if records is not None:
            batch = placement.gather(self.mesh, records, batch["id"], self.image_shape)
        return self._step(state, batch)

    def train_steps(
        self, state: TrainState, batches: dict[str, jax.Array], records: Any = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one step a row of `batches`, [steps, rows, ...]; the report is of the last."""
        state, reports = jax.lax.scan(
            lambda state, batch: self.train_step(state, batch, records), state, batches
        )
        return state, jax.tree.map(lambda steps: steps[-1], reports)

    def _call_shapes(self, steps: int, on_devices: bool) -> dict[str, Any]:
        """Returns the shapes of the batch that a call of `steps` steps takes: indices if the
        images lie on the devices."""
        rows = self.config.batch_size
        shapes = batch_shapes(self.mesh, rows, self.image_shape)
        if on_devices:
            whole = replicated(self.mesh)
            shapes = {"id": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=whole)}
        return shapes if steps == 1 else stacked(shapes, steps)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Starts moving a batch, [rows, ...] or [steps, rows, ...], to the devices that need
        it, leaving out what the train step does not take.

        Args:
          batch: "image", "label" and "mask", or "id" alone if the images lie on the devices.
        """
        on_devices = "label" not in batch
        rows = batch["id" if on_devices else "label"]
        shapes = self._call_shapes(1 if rows.ndim == 1 else len(rows), on_devices)
        return {
            name: jax.make_array_from_process_local_data(shape.sharding, batch[name])
            for name, shape in shapes.items()
        }

    def trace_eval_step(self) -> Traced:
        """Traces eval_step(variables, batch), for raw and averaged weights alike."""
        return trace_eval_step(
            self.config,
            self.model,
            self.state_shapes().variables(),
            mesh=self.mesh,
            num_classes=self.num_classes,
            image_shape=self.image_shape,
        )


def trace_eval_step(
    config: Config,
    model: nn.Module,
    variables: Any,
    *,
    mesh: Mesh,
    num_classes: int,
    image_shape: tuple[int, ...],
) -> Traced:
    """Traces eval_step(variables, batch).

    Args:
      config: gives the transforms and the batch size.
      model: the network.
      variables: its variables as jax.ShapeDtypeStruct with shardings.
      mesh: the devices.
      num_classes: length of the logits.
      image_shape: of the records, (height, width, channels).
    """
    step = jax.jit(
        functools.partial(
            eval_step,
            model=model,
            transforms=config.eval_transform,
            views=config.eval_views,
            num_classes=num_classes,
        ),
        out_shardings=replicated(mesh),
    )
    rows = padded_rows(config.evaluation.batch_size, mesh.size)
    return trace(step, variables, batch_shapes(mesh, rows, image_shape))
