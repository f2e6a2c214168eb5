"""Model-based reinforcement learning in JAX, end to end."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmbrl.core.config import UserError
    from jaxmbrl.exporting.exporter import export
    from jaxmbrl.training.console import RunWarning
    from jaxmbrl.training.runner import distill, evaluate, load, resume, train

__version__ = "0.1.0"
__all__ = ["RunWarning", "UserError", "__version__", "distill", "evaluate", "export", "load", "resume", "train"]


def __getattr__(name: str) -> Any:
    """The run functions are imported on first use, so that importing a part does not import checkpoints and plots."""
    if name in ("distill", "evaluate", "load", "resume", "train"):
        from jaxmbrl.training import runner

        return getattr(runner, name)
    if name == "RunWarning":
        from jaxmbrl.training import console

        return console.RunWarning
    if name == "UserError":
        from jaxmbrl.core import config

        return config.UserError
    if name == "export":
        from jaxmbrl.exporting import exporter

        return exporter.export
    raise AttributeError(f"module 'jaxmbrl' has no attribute '{name}'{_instead(name)}")


def _instead(name: str) -> str:
    """What to write for the name of a command or of a part of this package, which are not imported with it."""
    if name in ("collect", "debug", "doctor", "fit", "list", "report", "status", "sweep"):
        return (
            f": it is a command, 'jaxmbrl {name} ...', in Python cli.main(['{name}', ...]) after 'from jaxmbrl import cli'"
        )
    if not name.startswith("_") and importlib.util.find_spec(f"jaxmbrl.{name}") is not None:
        return f": it is a part of it, 'from jaxmbrl import {name}'"
    return ""


def __dir__() -> list[str]:
    """The public names, those that are imported on first use too."""
    return sorted({*globals(), *__all__})
