"""The compiled programs of a run, and the shapes they take."""

import collections
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcls.config import Config, Plan
from jaxcls.data.loader import TrainBatches
from jaxcls.data.sources import Source
from jaxcls.errors import UserError
from jaxcls.inference.forward import (
    Forward,
    Traced,
    input_shape,
    trace,
    variable_shapes,
)
from jaxcls.inference.trained import Trained
from jaxcls.models.layers import frozen_collection
from jaxcls.optim.chain import chain, learning_rate, weight_decay
from jaxcls.optim.groups import resolve
from jaxcls.optim.optimizers import Optimizer
from jaxcls.optim.treatment import Treatments, path_of
from jaxcls.parallel import put, replicated, with_sharding
from jaxcls.report.tables import Treated
from jaxcls.training import placement
from jaxcls.training.batch_statistics import moments_step
from jaxcls.training.state import TrainState, create_state
from jaxcls.training.step import train_step


def check_names_its_parts(model: nn.Module, config: Config) -> None:
    """Raises UserError if a network does not name the parts that options are about."""
    name = type(model).__name__
    if config.layer_decay is not None and not hasattr(model, "layers"):
        raise UserError(
            f"layer_decay needs to know the order of the layers of {name}: give it a method "
            "layers() as the networks of jaxcls/models have, or set layer_decay to None."
        )
    if config.head_rate != 1 and not hasattr(model, "HEADS"):
        raise UserError(
            f"head_rate needs to know the last layer of {name}: give it an attribute HEADS "
            "as the networks of jaxcls/models have, or use Group(pattern=..., rate=...) in "
            "groups."
        )


def stacked(shapes: dict[str, Any], steps: int) -> dict[str, Any]:
    """Returns the shapes of `steps` batches as one: a new first axis, which every device
    holds whole."""

    def of(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        one: Any = leaf.sharding
        sharding = NamedSharding(one.mesh, PartitionSpec(None, *one.spec))
        shape = (steps, *leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(of, shapes)


def check_divides(config: Config, num_devices: int) -> None:
    """Raises UserError if the batch, or a part of it, does not divide among the devices."""
    if config.batch_size % num_devices:
        below = config.batch_size // num_devices * num_devices
        choices = [str(size) for size in (below, below + num_devices) if size]
        raise UserError(
            f"batch_size {config.batch_size} does not divide among {num_devices} "
            f"devices: use {' or '.join(choices)}, or set devices."
        )
    part = config.batch_size // config.accumulate
    if part % num_devices:
        raise UserError(
            f"accumulate {config.accumulate} makes parts of {part} images, which do not "
            f"divide among {num_devices} devices: make it smaller, or batch_size larger."
        )


class Program(Forward):
    """A config bound to a dataset's shapes and a mesh; compiles on request.

    Attributes:
      plan: the durations of the config in steps.
      treatments: what each parameter gets of rate and decay, and when it is frozen.
      learning_rate: the rate of each good step.
      constants: what stays on the devices besides the state: "teacher", its variables, and
        "records", the training images, once they are there.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        *,
        mesh: Mesh,
        num_classes: int,
        image_shape: tuple[int, ...],
        num_records: int | None = None,
        teacher: Trained | None = None,
    ):
        """Binds, without compiling or allocating anything but the teacher.

        Args:
          config: a config that validate() has passed.
          plan: its durations in steps.
          mesh: the devices.
          num_classes: length of the logits.
          image_shape: of the records, (height, width, channels).
          num_records: training images that lie on the devices; None where each step is sent
            its batch.
          teacher: a network to learn from, its variables on the host; None for none.

        Raises:
          UserError: if the batch does not divide among the devices, the records do not fit
            into their memory, or the options of groups do not fit the parameters.
        """
        check_divides(config, mesh.size)
        super().__init__(
            config, mesh=mesh, num_classes=num_classes, image_shape=image_shape
        )
        self.plan = plan
        self.num_records = num_records
        if num_records is not None:
            placement.check_memory(mesh, num_records, self.image_shape, self.num_labels)
        self._input_shape = input_shape(config.augment, self.image_shape)
        check_names_its_parts(self.model, config)
        model: Any = self.model
        self.treatments = resolve(
            variable_shapes(model, self._input_shape)["params"],
            model.layers() if config.layer_decay is not None else (),
            model.HEADS if config.head_rate != 1 else (),
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
        self.constants: dict[str, Any] = {}
        if teacher is not None:
            on_devices = jax.device_put(teacher.variables, replicated(mesh))
            self.constants["teacher"] = on_devices
        self._step = functools.partial(
            train_step,
            config=config,
            model=self.model,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            treatments=self.treatments,
            num_classes=num_classes,
            run=plan.run,
            teacher=None if teacher is None else teacher.model,
        )

    def _create_state(self) -> TrainState:
        shape, seed = self._input_shape, self.config.seed
        with_ema = self.config.has_average
        return create_state(self.model, self.optimizer, shape, seed, with_ema)

    def init(self) -> TrainState:
        """Returns the state before the first step, on the devices."""
        return jax.jit(self._create_state, out_shardings=replicated(self.mesh))()

    @functools.cached_property
    def state_shapes(self) -> TrainState:
        """The state as jax.ShapeDtypeStruct with shardings."""
        shapes = jax.eval_shape(self._create_state)
        return with_sharding(replicated(self.mesh), shapes)

    def record_shapes(self) -> dict[str, Any]:
        """Returns the shapes of the training images that lie on the devices."""
        assert self.num_records is not None
        return placement.record_shapes(
            self.mesh, self.num_records, self.image_shape, self.num_labels
        )

    def constant_shapes(self) -> dict[str, Any]:
        """Returns the shapes of all that stays on the devices besides the state."""
        shapes = with_sharding(replicated(self.mesh), self.constants)
        if self.num_records is not None:
            shapes["records"] = self.record_shapes()
        return shapes

    def trace_train_step(self, steps: int = 1) -> Traced:
        """Traces (state, batch, constants) -> (state, report); the state is donated.

        Args:
          steps: made in one call, 1 or more. With more than one the arrays of the batch are
            [steps, rows, ...], and the report is that of the last.
        """
        function = self.train_step if steps == 1 else self.train_steps
        whole = replicated(self.mesh)
        jitted = jax.jit(function, out_shardings=whole, donate_argnums=0)
        batch, constants = self._call_shapes(steps), self.constant_shapes()
        return trace(jitted, self.state_shapes, batch, constants)

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

    def train_batches(
        self, source: Source, num_steps: int | None = None
    ) -> TrainBatches:
        """Returns the batches of the run's steps, or of its first `num_steps`."""
        return TrainBatches(
            source,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            num_steps=self.plan.total_steps if num_steps is None else num_steps,
            sampling=self.config.data.sampling,
        )

    def _call_shapes(self, steps: int) -> dict[str, Any]:
        """Returns the shapes of the batch that a call of `steps` steps takes: indices if the
        images lie on the devices."""
        rows = self.config.batch_size
        shapes = self.batch_shapes(rows)
        if self.num_records is not None:
            whole = replicated(self.mesh)
            shapes = {"id": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=whole)}
        return shapes if steps == 1 else stacked(shapes, steps)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Starts moving a batch, [rows, ...] or [steps, rows, ...], to the devices that need
        it, leaving out what the train step does not take.

        Args:
          batch: "image", "label" and "mask", or "id" alone if the images lie on the devices.
        """
        rows = batch["mask" if self.num_records is None else "id"]
        return put(self._call_shapes(1 if rows.ndim == 1 else len(rows)), batch)

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
            )

        step = jax.jit(estimate, out_shardings=replicated(self.mesh))
        shapes = self.batch_shapes(self.config.batch_size)
        batch = {name: shapes[name] for name in ("image", "mask")}
        variables = self.state_shapes.variables()
        if not jax.tree.leaves(jax.eval_shape(step, variables, batch)):
            raise UserError(
                f"precise_bn estimates the statistics of batch norms, but {self.config.model.name} "
                "has none of jaxcls.models.layers.BatchNorm: set precise_bn to None."
            )
        return trace(step, variables, batch)

    def curves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns the curves of the scheduled rates over the run: name -> (steps, values), at
        512 steps at most."""
        config, plan = self.config, self.plan
        curves = {"learning rate": self.learning_rate}
        if (schedule := config.decay_schedule) is not None:
            curves["weight decay"] = weight_decay(config.optimizer, schedule, plan.run)
        steps = np.unique(np.linspace(0, plan.total_steps - 1, 512).astype(np.int32))
        return {
            name: (steps, np.asarray(jax.vmap(curve)(steps)))
            for name, curve in curves.items()
        }


def trained_alike(
    params: Any,
    treatments: Treatments,
    peak_rate: float,
    weight_decay: float,
    optimizer: Optimizer,
) -> list[Treated]:
    """Returns parameters in sets that are trained alike, sorted: those that thaw first and
    have the highest rate come first, those that never thaw last.

    Args:
      params: the parameters, or their jax.ShapeDtypeStruct.
      treatments: of each.
      peak_rate: learning rate at the peak of the schedule, before multipliers.
      weight_decay: of the optimizer, before multipliers.
      optimizer: what trains them; it may have multipliers of its own.
    """
    members = collections.defaultdict(list)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(keys)
        treatment = treatments.by_path[path]
        by, multiplier = optimizer.trains(path, leaf.shape)
        if math.isinf(treatment.thaws_at):  # its rate and decay say nothing
            order = (math.inf, 0.0, 0.0, "-")
        else:
            rate = treatment.rate * multiplier
            order = (treatment.thaws_at, -rate, -treatment.decay, by)
        members[order].append((path, leaf.size))
    return [
        Treated(by, -rate * peak_rate, -decay * weight_decay, thaw, alike)
        for (thaw, rate, decay, by), alike in sorted(members.items())
    ]
