"""`python -m jaxmbrl` is the `jaxmbrl` command."""

import sys

from jaxmbrl.cli import main

sys.exit(main())
