"""What holds for all tests: types and shapes in annotations are checked, and XLA computes on one thread.

On a CPU, XLA's pool of threads now and then never returns from a batched program (seen with jaxlib 0.10.2 on batches of
MJX's steps). Tests run side by side on several workers, so that a thread each is also no slower.
"""

import os

os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen=false {os.environ.get('XLA_FLAGS', '')}".strip()

import jaxtyping

_hook = jaxtyping.install_import_hook("jaxmbrl", "beartype.beartype")
