"""What importing the package does, and does not do."""

import pkgutil
import subprocess
import sys

import jaxcls


def test_importing_everything_starts_no_backend_and_no_tensorflow() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(jaxcls.__path__, "jaxcls.")
        if "__main__" not in module.name
    ]
    assert len(names) > 30
    script = (
        f"import sys, {', '.join(names)}\n"
        "import jax._src.xla_bridge as bridge\n"
        "assert not bridge.backends_are_initialized(), 'backend'\n"
        "assert 'tensorflow' not in sys.modules, 'tensorflow'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_cache_is_found_without_jax() -> None:
    """The processes that load data look into it."""
    script = (
        "import sys\n"
        "import jaxcls.download, jaxcls.data.formats.archives\n"
        "jaxcls.download.cache_folder()\n"
        "heavy = {'jax', 'flax', 'safetensors', 'torch', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
