"""What importing the package does to the process."""

import os
import subprocess
import sys


def python(code, **more):
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"} | more
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_who_chose_a_number_of_threads_keeps_it():
    assert python("import jaxmbrl, os; print(os.environ['PJRT_NPROC'])", PJRT_NPROC="3") == "3"


LIGHT = """
import contextlib, io, json, os, sys
before = dict(os.environ)
import jaxmbrl, jaxmbrl.algorithms, jaxmbrl.envs
from jaxmbrl import cli
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert cli.main(["list", "--json"]) == 0 and cli.main(["train", "--help"]) == 0
methods = {f"jaxmbrl.algorithms.{place.partition(':')[0]}" for place in jaxmbrl.algorithms.registry.MODULES.values()}
heavy = {"jax", "numpy", "mujoco", "flax", "optax", "matplotlib", "orbax", "tyro", "rich", "jaxmbrl.training"}
print(sorted((methods | heavy) & set(sys.modules)), "mbpo" in out.getvalue())
"""


def test_importing_the_package_and_listing_import_no_method_and_no_jax():
    assert python(LIGHT) == "[] True"
