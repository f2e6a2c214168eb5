"""Pictures of tasks: by the environment's own method `draw`, or of its MuJoCo model.

    def draw(self, state, action):
        canvas = Canvas(width=4.0)
        canvas.disc(state.pipeline_state[:2], 0.1, BODY)
        return canvas.picture()

`state` is the environment's `State` with NumPy arrays, `action` that of the step which led to it, or None at the start of
an episode. Pictures are drawn outside of compiled programs, so a drawing may use any library. `Canvas` draws shapes in
the task's own coordinates. `env.dt`, the seconds of a step, sets the speed of a video.
"""

from __future__ import annotations

from jaxmbrl.core.types import Task
from jaxmbrl.envs.drawing.canvas import BACKGROUND, BODY, FORCE, GOAL, INK, ROD, TRACK, Canvas
from jaxmbrl.envs.drawing.interface import Drawer, Drawing, NoPicture, on_host
from jaxmbrl.envs.drawing.own import own_drawing
from jaxmbrl.envs.drawing.rendering import model_drawing


def drawing(task: Task) -> Drawing:
    """How `task` is drawn. The environment's own `draw` comes before its MuJoCo model.

    Raises NoPicture if it has neither, if its states have no positions of the model, or if its `dt` is not a number.
    """
    found = own_drawing(task) or model_drawing(task)
    if found is None:
        raise NoPicture(
            f"no picture of {task.name}: its environment has neither a method draw(state, action) nor a MuJoCo model"
        )
    return found


__all__ = [
    "BACKGROUND",
    "BODY",
    "FORCE",
    "GOAL",
    "INK",
    "ROD",
    "TRACK",
    "Canvas",
    "Drawer",
    "Drawing",
    "NoPicture",
    "drawing",
    "on_host",
]
