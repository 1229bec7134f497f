"""`import deqjax` is light, and the core stands on JAX and numpy alone."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

import deqjax

SOURCE = pathlib.Path(deqjax.__file__).parent
HEAVY = {
    *("flax", "optax", "jaxopt", "optimistix", "equinox", "orbax", "datasets"),
    *("matplotlib", "tyro", "rich", "tensorboardX"),
}
CORE = sorted(
    [
        *SOURCE.glob("*.py"),
        *(path for part in ("solvers", "adjoints") for path in SOURCE.glob(f"{part}/*.py")),
        *SOURCE.glob("theory/*.py"),
        # All but the pictures.
        *(
            path
            for path in SOURCE.glob("diagnostics/*.py")
            if path.stem != "_drawing" and not path.stem.endswith("_plot")
        ),
    ],
    key=str,
)


def test_import_in_a_fresh_interpreter_is_light():
    """Few modules, and no backend started: a program must still be able to configure JAX."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import json, deqjax; from jax._src import "
        "xla_bridge; print(json.dumps([xla_bridge.backends_are_initialized(), *sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    started, *modules = json.loads(run.stdout)
    assert not started
    assert "deqjax._fixed_point" in modules
    assert not HEAVY & set(modules)
    outer = {"nn", "training", "data", "implicit"}
    assert not {m for m in modules if m.startswith("deqjax.") and m.split(".")[1] in outer}


def imported(path):
    """Absolute names of all modules that a file imports, wherever in it."""
    package = ["deqjax", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(SOURCE)))
def test_core_modules_import_only_jax_and_numpy(path):
    allowed = {"deqjax", "jax", "numpy", *sys.stdlib_module_names}
    for name in imported(path):
        top, *rest = name.split(".")
        assert top in allowed, f"{path.name} imports {name}"
        assert not (top == "deqjax" and rest[:1] in (["nn"], ["training"], ["data"]))


def test_the_core_was_found():
    assert {"_driver.py", "anderson.py", "implicit.py"} <= {p.name for p in CORE}
