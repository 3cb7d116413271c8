"""What sets parameters apart: other rates and decays for some of them, and freezing.

A parameter is named by its path in the tree, "layer1_0/conv1/kernel".
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax

from jaxcls.duration import Duration, RunLength
from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Group:
    """Parameters with a learning rate and a decay of their own.

    Where several groups match a parameter, their multipliers multiply.

    Attributes:
      pattern: a regular expression, searched in each parameter's path
        ("layer1_0/conv1/kernel"): "^fc/" is the layer fc, "bias$" is every bias.
      rate: multiplies their learning rate, above 0.
      decay: multiplies their weight decay, 0 or more; 0 leaves them without. What does not
        decay by the optimizer's own rule still does not.
    """

    pattern: str
    rate: float = 1.0
    decay: float = 1.0

    def validate(self) -> None:
        """Raises UserError for values out of range."""
        _check_pattern("Group", self.pattern)
        if not 0 < self.rate < math.inf:
            raise UserError(
                f"Group.rate of '{self.pattern}' must be a number above 0, not {self.rate}: "
                "use Freeze for parameters that shall not move."
            )
        if not 0 <= self.decay < math.inf:
            raise UserError(
                f"Group.decay of '{self.pattern}' must be a number, 0 or more, not "
                f"{self.decay}."
            )


@dataclasses.dataclass(kw_only=True)
class Freeze:
    """Parameters that stay as they are: no update, no decay, no share in the norm by which
    gradients are clipped, and no momentum gathered.

    Where several match a parameter, it is frozen for the longest time that one of them says.

    Attributes:
      pattern: a regular expression, searched in each parameter's path
        ("layer1_0/conv1/kernel"): "^(?!fc/)" is everything but the layer fc.
      until: when they begin to move, shorter than the run; None freezes them for all of it.
    """

    pattern: str
    until: Duration | None = None

    def validate(self) -> None:
        """Raises UserError for values out of range."""
        _check_pattern("Freeze", self.pattern)
        if self.until is not None and self.until.value == 0:
            raise UserError(
                f"Freeze.until of '{self.pattern}' is {self.until}, which freezes nothing: "
                "leave this Freeze out, or write None for the whole run."
            )


def _check_pattern(kind: str, pattern: str) -> None:
    if not pattern:
        raise UserError(
            f"{kind}.pattern is empty: write a part of the parameters' paths, or '.' for all."
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"{kind}.pattern '{pattern}' is not a regular expression: {error}."
        ) from None


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What the chain does with one parameter.

    Attributes:
      rate: multiplies the learning rate, above 0.
      decay: multiplies the weight decay; 0 where it does not decay.
      thaws_at: the first optimizer step that moves it: 0 if it is never frozen, None if it
        never thaws.
    """

    rate: float = 1.0
    decay: float = 1.0
    thaws_at: int | None = 0

    def is_frozen(self, step: int) -> bool:
        return self.thaws_at is None or step < self.thaws_at


@dataclasses.dataclass(frozen=True)
class Groups:
    """The treatment of each parameter of a network.

    Attributes:
      by_path: "layer1_0/conv1/kernel" -> its treatment.
    """

    by_path: Mapping[str, Treatment]

    def of(self, tree: Any) -> Any:
        """Returns a tree of Treatments like `tree`, which is shaped like the parameters or,
        as within optax.masked, like some of them."""
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: self.by_path[path_of(keys)], tree
        )

    def decays(self, params: Any) -> Any:
        """Returns a tree of bools like `params`: which of them decay."""
        return jax.tree.map(lambda treatment: treatment.decay > 0, self.of(params))

    def frozen(self, step: int) -> frozenset[str]:
        """Returns the paths of the parameters that the optimizer step `step` leaves alone."""
        return frozenset(
            name for name, one in self.by_path.items() if one.is_frozen(step)
        )

    def stages(self) -> list[tuple[int, frozenset[str]]]:
        """Returns the parts of the run between thaws: the first optimizer step of each, 0 for
        the first part, and the paths that are frozen in it."""
        # Something moves from the start (resolve() sees to it): 0 is among them.
        thaws = {one.thaws_at for one in self.by_path.values()}
        firsts = sorted(thaw for thaw in thaws if thaw is not None)
        return [(first, self.frozen(first)) for first in firsts]


def path_of(keys: Sequence[Any]) -> str:
    """Returns "layer1_0/conv1/kernel" for the keys by which jax reaches a leaf."""
    return "/".join(str(key.key) for key in keys)


def frozen_modules(frozen: frozenset[str], paths: Iterable[str]) -> frozenset[str]:
    """Returns the modules ("layer1_0", "layer1_0/bn1") all of whose parameters are frozen.

    A batch norm among them belongs into eval mode: with statistics of the batch, and running
    averages that move, its layer would change though its parameters do not.

    Args:
      frozen: of a part of the run, as Groups.stages() gives it.
      paths: of all parameters, Groups.by_path.
    """
    moving = {module for name in paths if name not in frozen for module in _above(name)}
    return frozenset(
        module for name in frozen for module in _above(name) if module not in moving
    )


def _above(name: str) -> list[str]:
    """Returns ["a", "a/b"] for "a/b/kernel"."""
    parts = name.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def stop_gradients(params: Any, frozen: frozenset[str]) -> Any:
    """Returns the parameters, those at the paths `frozen` as constants to differentiation: the
    backward pass then ends above the lowest one that moves, instead of going on for gradients
    that the chain would throw away."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: (
            jax.lax.stop_gradient(leaf) if path_of(keys) in frozen else leaf
        ),
        params,
    )


def resolve(
    params: Any,
    layers: tuple[tuple[str, ...], ...],
    heads: tuple[str, ...],
    *,
    groups: tuple[Group, ...],
    freeze: tuple[Freeze, ...],
    layer_decay: float | None,
    head_rate: float,
    decays: Literal["kernels", "all"],
    run: RunLength,
) -> Groups:
    """Returns the treatment of each parameter.

    Its rate's multiplier is that of its layer, times that of the heads if it belongs to one,
    times those of the groups that match it. Layer i of L has layer_decay^(L - 1 - i): the last
    has 1 (Clark et al. 2020, section 3.1, https://arxiv.org/abs/2003.10555; for images Bao et
    al. 2021, https://arxiv.org/abs/2106.08254).

    Args:
      params: the parameters, or their jax.ShapeDtypeStruct.
      layers: names of modules from the input to the head; only read for layer_decay.
      heads: modules whose size is the number of classes ("fc", "aux/fc").
      groups: multipliers of rate and decay.
      freeze: what is frozen.
      layer_decay: rate of each layer, as a part of the next one's; None: the same for all.
      head_rate: multiplies the rate of the heads.
      decays: "kernels", which have two dimensions or more: neither biases nor norms (Goyal et
        al. 2017, section 5.3, https://arxiv.org/abs/1706.02677, leave out batch norm), or "all".
      run: its length.

    Raises:
      UserError: for a pattern without any parameter, a parameter that is not in one of the
        layers, a Freeze that outlasts the run, and where nothing is trained.
    """
    dimensions = {
        path_of(keys): len(leaf.shape)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    _check_options((*groups, *freeze), list(dimensions))
    thaws = [(one.pattern, _thaw(one, run)) for one in freeze]
    depth_rates = _depth_rates(list(dimensions), layers, layer_decay)
    by_path = {}
    for name, ndim in dimensions.items():
        matching = [group for group in groups if re.search(group.pattern, name)]
        rates = [depth_rates[name], *(group.rate for group in matching)]
        if any(_is_in(name, head) for head in heads):
            rates.append(head_rate)
        own_decay = 1.0 if decays == "all" or ndim > 1 else 0.0
        frozen_until = [
            0,
            *(thaw for pattern, thaw in thaws if re.search(pattern, name)),
        ]
        by_path[name] = Treatment(
            rate=math.prod(rates),
            decay=math.prod((own_decay, *(group.decay for group in matching))),
            thaws_at=functools.reduce(_later, frozen_until),
        )
    _check_trains(by_path)
    return Groups(by_path)


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}/")


def _later(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else max(one, other)


def _depth_rates(
    names: list[str],
    layers: tuple[tuple[str, ...], ...],
    layer_decay: float | None,
) -> dict[str, float]:
    """Returns layer_decay^(L - 1 - i) for each parameter of layer i of L; 1 without it."""
    if layer_decay is None:
        return dict.fromkeys(names, 1.0)
    rates = {}
    for name in names:
        depths = [
            depth
            for depth, modules in enumerate(layers)
            if any(_is_in(name, module) for module in modules)
        ]
        if len(depths) != 1:
            raise UserError(
                f"layer_decay: the parameter {name} belongs to {len(depths)} of the "
                f"{len(layers)} layers that the network's layers() gives, but it must belong to "
                "one: name its module in exactly one of them, or set layer_decay to None."
            )
        rates[name] = layer_decay ** (len(layers) - 1 - depths[0])
    return rates


def _thaw(freeze: Freeze, run: RunLength) -> int | None:
    """Returns the first step that moves what was frozen; None if there is none."""
    if freeze.until is None:
        return None
    assert run.total_steps is not None
    step = freeze.until.to_steps(run)
    if not 0 < step < run.total_steps:
        in_steps = "" if freeze.until.unit == "steps" else f", or {step} steps,"
        raise UserError(
            f"Freeze.until of '{freeze.pattern}' is {freeze.until}{in_steps} in a run of "
            f"{run.total_steps} steps: it must be at least one step and end before the run; "
            "write None to freeze for all of it."
        )
    return step


def _check_options(options: tuple[Group | Freeze, ...], names: list[str]) -> None:
    """Raises UserError for values out of range, and for a pattern found in no name."""
    for option in options:
        option.validate()
        check_found(f"{type(option).__name__}.pattern", option.pattern, names)


def check_found(option: str, pattern: str, names: Sequence[str]) -> None:
    """Raises UserError if a pattern is found in no name.

    Args:
      option: that the pattern is of, "Group.pattern".
      pattern: a regular expression.
      names: paths of the parameters that the option is for, one at least.
    """
    if any(re.search(pattern, name) for name in names):
        return
    raise UserError(
        f"{option} '{pattern}' is found in none of the network's {len(names)} parameters."
        f"{_closest_parts(pattern, names)} They are called '{names[0]}', "
        f"'{names[len(names) // 2]}', '{names[-1]}' and so on."
    )


def _closest_parts(pattern: str, names: Sequence[str]) -> str:
    """Returns " Did you mean 'fc' or 'fc/kernel'?" for the parts of paths like a pattern."""
    parts = [name.split("/") for name in names]
    pieces = {
        "/".join(part[start:end])
        for part in parts
        for start in range(len(part))
        for end in range(start + 1, len(part) + 1)
    }
    plain = re.sub(r"[^\w/]", "", pattern)  # without what makes it an expression
    close = difflib.get_close_matches(plain, sorted(pieces), n=3)
    *others, last = [f"'{name}'" for name in close] or [""]
    return (
        f" Did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
        if last
        else ""
    )


def _check_trains(by_path: Mapping[str, Treatment]) -> None:
    """Raises UserError if no parameter moves at the first step."""
    thaws = [one.thaws_at for one in by_path.values()]
    if 0 in thaws:
        return
    known = [step for step in thaws if step is not None]
    when = f"before step {min(known)}" if known else "in this run"
    raise UserError(
        f"Freeze leaves nothing that is trained {when}: all {len(by_path)} parameters are "
        "frozen. Let a pattern leave some out, as '^(?!fc/)' does the layer fc."
    )
