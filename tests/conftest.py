"""Types and shapes in annotations are checked in every test."""

import jaxtyping

_hook = jaxtyping.install_import_hook("jaxmbrl", "beartype.beartype")
