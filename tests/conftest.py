"""What holds for all tests: types and shapes in annotations are checked, and XLA computes on one thread.

On a CPU, XLA's pool of threads now and then never returns from a batched program (seen with jaxlib 0.10.2 on batches of
MJX's steps). Tests run side by side on several workers, so that a thread each is also no slower. Most of their time is
compiling, which goes faster without LLVM's expensive passes.
"""

import os

os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_multi_thread_eigen=false --xla_llvm_disable_expensive_passes=true {os.environ.get('XLA_FLAGS', '')}"
)

import jaxtyping

LONGEST = ("test_resume.py", "test_promises.py", "test_mujoco.py", "test_ensemble.py", "test_runner.py")


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


_hook = jaxtyping.install_import_hook("jaxmbrl", "beartype.beartype")
