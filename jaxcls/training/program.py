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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcls import augment
from jaxcls.augment import Transform, Views
from jaxcls.config import Config, Plan
from jaxcls.data.loader import padded_rows
from jaxcls.errors import UserError
from jaxcls.models.layers import frozen_collection
from jaxcls.optim.chain import chain, learning_rate
from jaxcls.optim.groups import resolve
from jaxcls.parallel import batch_sharded, platform, replicated
from jaxcls.training import placement
from jaxcls.training.batch_statistics import moments_step
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

    def compile(self, deterministic: bool = False) -> Compiled:
        """Compiles, or reads the result of an earlier run from disk.

        Args:
          deterministic: on GPUs leave out what depends on the order of threads.
        """
        start = time.perf_counter()
        options: Any = {"xla_gpu_deterministic_ops": True} if deterministic else None
        compiled = self.lowered.compile(compiler_options=options)
        return Compiled(compiled, (self.seconds, time.perf_counter() - start))


def trace(function: Any, *shapes: Any) -> Traced:
    """Traces a jitted function for trees of jax.ShapeDtypeStruct."""
    start = time.perf_counter()
    lowered = function.lower(*shapes)
    return Traced(lowered, time.perf_counter() - start)


def batch_shapes(
    mesh: Mesh,
    rows: int,
    image_shape: tuple[int, ...],
    num_labels: int | None = None,
) -> dict[str, Any]:
    """Returns the shapes of a global batch.

    Args:
      mesh: the devices.
      rows: of the batch, over all of them.
      image_shape: (height, width, channels).
      num_labels: classes that an image may have or not; None where it has exactly one.
    """
    sharding = batch_sharded(mesh)
    return {
        "image": jax.ShapeDtypeStruct(
            (rows, *image_shape), jnp.uint8, sharding=sharding
        ),
        "label": placement.label_shape(mesh, rows, num_labels),
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


def layers(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Returns the names of a network's parts from the stem to the head.

    Raises:
      UserError: if the network does not know them.
    """
    if not hasattr(model, "layers"):
        raise UserError(
            f"layer_decay needs to know the order of the layers of {type(model).__name__}: "
            "give it a method layers() as the networks of jaxcls/models have, or set "
            "layer_decay to None."
        )
    return model.layers()


def heads(model: nn.Module) -> tuple[str, ...]:
    """Returns the paths of a network's last layers.

    Raises:
      UserError: if the network does not know them.
    """
    if not hasattr(model, "HEADS"):
        raise UserError(
            f"head_rate needs to know the last layer of {type(model).__name__}: give it an "
            "attribute HEADS as the networks of jaxcls/models have, or use "
            "Group(pattern=..., rate=...) in groups."
        )
    return model.HEADS


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
    if config.has_average:
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
        teacher: nn.Module | None = None,
    ):
        """Binds, without compiling or allocating anything.

        Args:
          config: a config that validate() has passed.
          plan: its durations in steps.
          mesh: the devices.
          num_classes: length of the logits.
          image_shape: of the records, (height, width, channels).
          teacher: a network to learn from; None for none.

        Raises:
          UserError: if the batch does not divide among the devices, or the options of groups
            do not fit the parameters.
        """
        num_devices = mesh.size
        if config.batch_size % num_devices:
            below = config.batch_size // num_devices * num_devices
            choices = [str(size) for size in (below, below + num_devices) if size]
            raise UserError(
                f"batch_size {config.batch_size} does not divide among {num_devices} "
                f"devices: use {' or '.join(choices)}, or set devices."
            )
        if config.batch_size // config.accumulate % num_devices:
            raise UserError(
                f"accumulate {config.accumulate} makes parts of "
                f"{config.batch_size // config.accumulate} images, which do not divide among "
                f"{num_devices} devices: make it smaller, or batch_size larger."
            )
        self.config = config
        self.mesh = mesh
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.model: nn.Module = config.model.create(num_classes, platform(mesh))
        self.treatments = resolve(
            self.param_shapes(),
            layers(self.model) if config.layer_decay is not None else (),
            heads(self.model) if config.head_rate != 1 else (),
            groups=config.groups,
            freeze=config.frozen,
            layer_decay=config.layer_decay,
            head_rate=config.head_rate,
            decays=config.optimizer.decays,
            run=plan.run,
        )
        self.optimizer = chain(
            config.optimizer,
            config.schedule,
            clip=config.clip,
            treatments=self.treatments,
            decay_schedule=config.decay_schedule,
            run=plan.run,
        )
        self.learning_rate = learning_rate(config.optimizer, config.schedule, plan.run)
        self.teacher = teacher
        self._step = functools.partial(
            train_step,
            config=config,
            model=self.model,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            treatments=self.treatments,
            num_classes=num_classes,
            run=plan.run,
            teacher=teacher,
        )
        self._state_shapes: TrainState | None = None
        self._init = jax.jit(self._create_state, out_shardings=replicated(mesh))

    def param_shapes(self) -> Any:
        """Returns the parameters as jax.ShapeDtypeStruct."""
        shape = input_shape(self.config.augment, self.image_shape)
        made = jax.eval_shape(
            lambda: self.model.init(jax.random.key(0), jnp.zeros(shape), train=False)
        )
        return made["params"]

    def _create_state(self) -> TrainState:
        return create_state(
            self.model,
            self.optimizer,
            input_shape(self.config.augment, self.image_shape),
            self.config.seed,
            with_ema=self.config.has_average,
        )

    @property
    def num_labels(self) -> int | None:
        """Classes that an image may have or not; None where it has exactly one."""
        return self.num_classes if self.config.loss.multi_label else None

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
        self, steps: int = 1, constants: dict[str, Any] | None = None
    ) -> Traced:
        """Traces train_step(state, batch, constants); the state is donated.

        Args:
          steps: made in one call, 1 or more. With more than one the arrays of the batch are
            [steps, rows, ...], and the report is that of the last.
          constants: shapes of what stays on the devices: "records", the training images, if
            they lie there: the batch then is {"id": int32 [rows]}; "teacher", the teacher's
            variables.
        """
        constants = constants or {}
        function = self.train_step if steps == 1 else self.train_steps
        jitted = jax.jit(
            function, out_shardings=replicated(self.mesh), donate_argnums=0
        )
        batch = self._call_shapes(steps, "records" in constants)
        return trace(jitted, self.state_shapes(), batch, constants)

    def train_step(
        self, state: TrainState, batch: dict[str, jax.Array], constants: dict[str, Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one step. `batch` is {"id": int32 [rows]} if there are "records"."""
        if "records" in constants:
            records = constants["records"]
            batch = placement.gather(self.mesh, records, batch["id"], self.image_shape)
        return self._step(state, batch, constants.get("teacher"))

    def train_steps(
        self,
        state: TrainState,
        batches: dict[str, jax.Array],
        constants: dict[str, Any],
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one step a row of `batches`, [steps, rows, ...]; the report is of the last."""
        state, reports = jax.lax.scan(
            lambda state, batch: self.train_step(state, batch, constants),
            state,
            batches,
        )
        return state, jax.tree.map(lambda steps: steps[-1], reports)

    def _call_shapes(self, steps: int, on_devices: bool) -> dict[str, Any]:
        """Returns the shapes of the batch that a call of `steps` steps takes: indices if the
        images lie on the devices."""
        rows = self.config.batch_size
        shapes = batch_shapes(self.mesh, rows, self.image_shape, self.num_labels)
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
        rows = batch["id" if on_devices else "mask"]
        shapes = self._call_shapes(1 if rows.ndim == 1 else len(rows), on_devices)
        return {
            name: jax.make_array_from_process_local_data(shape.sharding, batch[name])
            for name, shape in shapes.items()
        }

    def record_shapes(self, num_records: int) -> dict[str, Any]:
        """Returns the shapes of the training images on the devices."""
        return placement.record_shapes(
            self.mesh, num_records, self.image_shape, self.num_labels
        )

    def trace_moments_step(self) -> Traced:
        """Traces moments_step(variables, batch) for batches of training images."""
        always = self.treatments.frozen_modules(self.treatments.frozen(2**31))

        def estimate(variables: dict[str, Any], batch: dict[str, jax.Array]) -> Any:
            # Norms that are frozen to the end keep their statistics here too.
            frozen = frozen_collection(variables["batch_stats"], always.__contains__)
            return moments_step(
                {**variables, "frozen": frozen},
                batch,
                model=self.model,
                transforms=self.config.eval_transform,
                num_classes=self.num_classes,
            )

        step = jax.jit(estimate, out_shardings=replicated(self.mesh))
        shapes = batch_shapes(self.mesh, self.config.batch_size, self.image_shape)
        batch = {name: shapes[name] for name in ("image", "mask")}
        variables = self.state_shapes().variables()
        if not jax.tree.leaves(jax.eval_shape(step, variables, batch)):
            raise UserError(
                f"precise_bn estimates the statistics of batch norms, but {self.config.model.name} "
                "has none of jaxcls.models.layers.BatchNorm: set precise_bn to None."
            )
        return trace(step, variables, batch)

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
            loss=config.loss,
        ),
        out_shardings=replicated(mesh),
    )
    rows = padded_rows(config.evaluation.batch_size, mesh.size)
    num_labels = num_classes if config.loss.multi_label else None
    return trace(step, variables, batch_shapes(mesh, rows, image_shape, num_labels))
