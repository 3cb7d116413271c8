"""Loads a recipe: a Python file with get_config(dataset) -> Config."""

import dataclasses
import os
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxcls.config.tree import Config
from jaxcls.errors import UserError, did_you_mean
from jaxcls.options import nodes


def load_recipe(path: str, dataset: str) -> Config:
    """Returns what get_config(dataset) of a recipe gives, or get_config() for "", as a copy in
    which no node appears twice.

    A recipe may import another one beside it by the name of their folder, `from configs.effnet_b0
    import ...`, from wherever it is run.

    Raises:
      UserError: if there is no such file, or it fails.
    """
    _check_is_python(path)
    loader = SourceFileLoader(f"recipe_{Path(path).stem}", path)
    module = ModuleType(loader.name)
    module.__file__ = path
    sys.modules[loader.name] = module  # where dataclasses look up their annotations
    parent = str(Path(path).absolute().parent.parent)
    sys.path.insert(0, parent)
    try:
        loader.exec_module(module)
        config = module.get_config(dataset) if dataset else module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the recipe {path} fails{_line_of(path, error)}: {type(error).__name__}: {reason}"
        ) from None
    finally:
        sys.path.remove(parent)
    if not isinstance(config, Config):
        raise UserError(
            f"get_config of {path} must return a jaxcls.config.Config, not "
            f"{type(config).__name__}."
        )
    for name, node in nodes(config):
        if type(node).__module__ == module.__name__:
            raise UserError(
                f"{type(node).__name__} (config.{name}) is defined in the recipe {path}, where "
                "no checkpoint can find it again: move it to a module of your own that can be "
                "imported."
            )
    return unshared(config)


def _check_is_python(path: str) -> None:
    """Raises UserError unless there is a Python file."""
    if not Path(path).is_file():
        known = [str(file) for file in sorted(Path("configs").glob("*.py"))]
        names = f" There are: {', '.join(known)}." if known else ""
        raise UserError(
            f"there is no recipe {path}.{did_you_mean(path, known) or names}"
        )
    if Path(path).suffix != ".py":
        raise UserError(f"the recipe {path} is not a Python file (.py).")


def _line_of(path: str, error: BaseException) -> str:
    """Returns ", line N" for the recipe's own line that failed, "" if it never ran."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = frame.filename
        if os.path.exists(file) and os.path.samefile(file, path):
            return f", line {frame.lineno}"
    return ""


def unshared(node: Any) -> Any:
    """Copies a config so that no node appears in it twice.

    A recipe may put one object in two places. An override must change the place it names alone.
    """
    if isinstance(node, tuple):
        return tuple(unshared(element) for element in node)
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    fields = {f.name: unshared(getattr(node, f.name)) for f in dataclasses.fields(node)}
    return dataclasses.replace(node, **fields)
