"""The options that set parameters apart, and the treatment that follows for each of them."""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from jaxcls.duration import Duration, RunLength
from jaxcls.errors import UserError
from jaxcls.optim.treatment import Treatment, Treatments, shapes_of
from jaxcls.options import AboveZero, Pattern, ZeroOrMore


@dataclasses.dataclass(kw_only=True)
class Group:
    """Parameters with a learning rate and a decay of their own.

    Where several groups match a parameter, their multipliers multiply.

    Attributes:
      pattern: a regular expression, searched in each parameter's path
        ("layer1_0/conv1/kernel"): "^fc/" is the layer fc, "bias$" is every bias.
      rate: multiplies their learning rate, above 0; use Freeze for those that must not move.
      decay: multiplies their weight decay, 0 or more; 0 leaves them without. What does not
        decay by the optimizer's own rule still does not.
    """

    pattern: Pattern
    rate: AboveZero = 1.0
    decay: ZeroOrMore = 1.0


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

    pattern: Pattern
    until: Duration | None = None


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
) -> Treatments:
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
    shapes = shapes_of(params)
    paths = list(shapes)
    options: tuple[Group | Freeze, ...] = (*groups, *freeze)
    for option in options:
        check_found(f"{type(option).__name__}.pattern", option.pattern, paths)
    thaws = [(one.pattern, _thaw(one, run)) for one in freeze]
    by_path = {}
    for path, shape in shapes.items():
        rate = _depth_rate(path, layers, layer_decay)
        decay = float(decays == "all" or len(shape) > 1)
        for group in groups:
            if re.search(group.pattern, path):
                rate, decay = rate * group.rate, decay * group.decay
        if _is_in(path, heads):
            rate *= head_rate
        thaws_at = [thaw for pattern, thaw in thaws if re.search(pattern, path)]
        by_path[path] = Treatment(rate, decay, max(thaws_at, default=0))
    _check_trains(by_path)
    return Treatments(by_path)


def _is_in(path: str, modules: Iterable[str]) -> bool:
    """Whether a parameter belongs to one of some modules."""
    return f"{path}/".startswith(tuple(f"{module}/" for module in modules))


def _depth_rate(
    path: str, layers: tuple[tuple[str, ...], ...], layer_decay: float | None
) -> float:
    """Returns layer_decay^(L - 1 - i) for a parameter of layer i of L; 1 without it."""
    if layer_decay is None:
        return 1.0
    depths = [i for i, modules in enumerate(layers) if _is_in(path, modules)]
    if len(depths) != 1:
        raise UserError(
            f"layer_decay: the parameter {path} belongs to {len(depths)} of the "
            f"{len(layers)} layers that the network's layers() gives, but it must belong to "
            "one: name its module in exactly one of them, or set layer_decay to None."
        )
    return layer_decay ** (len(layers) - 1 - depths[0])


def _thaw(freeze: Freeze, run: RunLength) -> float:
    """Returns the first step that moves what was frozen; infinity if there is none."""
    if freeze.until is None:
        return math.inf
    step = freeze.until.to_steps(run)
    if not 0 < step < run.total_steps:
        in_steps = "" if freeze.until.unit == "steps" else f", or {step} steps,"
        raise UserError(
            f"Freeze.until of '{freeze.pattern}' is {freeze.until}{in_steps} in a run of "
            f"{run.total_steps} steps: it must be at least one step and end before the run; "
            "write None to freeze for all of it."
        )
    return step


def check_found(option: str, pattern: str, paths: Sequence[str]) -> None:
    """Raises UserError if a pattern is found in no path.

    Args:
      option: that the pattern is of, "Group.pattern".
      pattern: a regular expression.
      paths: of the parameters that the option is for, one at least.
    """
    if any(re.search(pattern, path) for path in paths):
        return
    raise UserError(
        f"{option} '{pattern}' is found in none of the network's {len(paths)} parameters."
        f"{_closest_parts(pattern, paths)} They are called '{paths[0]}', "
        f"'{paths[len(paths) // 2]}', '{paths[-1]}' and so on."
    )


def _closest_parts(pattern: str, paths: Sequence[str]) -> str:
    """Returns " Did you mean 'fc' or 'fc/kernel'?" for the parts of paths like a pattern."""
    pieces = {
        "/".join(parts[start:end])
        for parts in (path.split("/") for path in paths)
        for start, end in itertools.combinations(range(len(parts) + 1), 2)
    }
    plain = re.sub(r"[^\w/]", "", pattern)  # without what makes it an expression
    close = difflib.get_close_matches(plain, sorted(pieces), n=3)
    quoted = [f"'{piece}'" for piece in close]
    return f" Did you mean {' or '.join(quoted)}?" if quoted else ""


def _check_trains(by_path: Mapping[str, Treatment]) -> None:
    """Raises UserError if no parameter moves at the first step."""
    first = min(one.thaws_at for one in by_path.values())
    if first == 0:
        return
    when = "in this run" if math.isinf(first) else f"before step {first}"
    raise UserError(
        f"Freeze leaves nothing that is trained {when}: all {len(by_path)} parameters are "
        "frozen. Let a pattern leave some out, as '^(?!fc/)' does the layer fc."
    )
