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
