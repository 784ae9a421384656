"""Who travels, drawn for the scene that ends and, where another follows, for the one to come."""

from collections.abc import Callable

from torch import Tensor

from longlive_trt.demo.scenes import BALLOON, BIRD, BOAT, CAR, TRAIN
from longlive_trt.demo.world.canvas import Canvas
from longlive_trt.demo.world.flyers import draw_balloon, draw_bird
from longlive_trt.demo.world.light import column
from longlive_trt.demo.world.vehicles import draw_boat, draw_car, draw_train

Draw = Callable[[Canvas, int, Tensor], None]


def roll(c: Canvas) -> None:
    _draw(c, CAR, draw_car)
    _draw(c, TRAIN, draw_train)


def sail(c: Canvas) -> None:
    _draw(c, BOAT, draw_boat)


def fly(c: Canvas) -> None:
    _draw(c, BALLOON, draw_balloon)
    _draw(c, BIRD, draw_bird)


def _draw(c: Canvas, kind: int, draw: Draw) -> None:
    first, second = c.moments.first.traveler, c.moments.second.traveler
    # The second scene's traveler counts where it is another one; otherwise the first's stays.
    shown = (first == kind, (second == kind) & (first != second))
    for which, here in enumerate(shown):
        if kind in c.kinds.travelers[which]:
            draw(c, which, column(here.float()))
