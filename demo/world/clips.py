"""Clips of scenes, which may turn into other scenes while the camera follows the traveler.

A frame is a pure function of what :class:`Moments` says, so clips are flat batches of frames.
Nothing is faded over: light, weather and paint turn gradually, the border of a new place passes
through the picture, a traveler that leaves drives ahead out of it and the next one catches up.
"""

from dataclasses import replace

import torch
from torch import Tensor

from longlive_trt.demo.scenes import WEATHERS, Scenes
from longlive_trt.demo.world.canvas import Canvas, Moments
from longlive_trt.demo.world.places import PAINTERS
from longlive_trt.demo.world.shapes import hashed, smooth
from longlive_trt.demo.world.sky import paint_sky
from longlive_trt.demo.world.weather import paint_weather

FPS = 16
SIZE = (96, 160)
CHANGE_FRAMES = 16
"""How long a change takes."""
SPEEDS = (0.20, 0.50, 1.05)
"""Heights of the picture a second, by pace."""
NEVER = 1_000_000
_AWAY = 9.0
_EXIT = 1.3
"""Widths of the picture that a traveler moves until it is surely out of it."""
_LEFT, _COMES = 0.6, 0.35
"""Shares of a change after which one traveler has left and the next one comes."""
_GROUP = 768
"""Frames painted at once."""


def velocities(scenes: Scenes) -> Tensor:
    table = torch.tensor(SPEEDS, device=scenes.pace.device)
    return table[scenes.pace] * (scenes.direction * 2.0 - 1)


def render_clips(
    first: Scenes, second: Scenes, change_at: Tensor, frames: int,
    size: tuple[int, int] = SIZE, start: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """[B, frames, H, W, 3] uint8: ``first``, which turns into ``second`` from frame ``change_at``.

    ``start`` is the seconds after which each clip begins; by default the land's seed says it.
    """
    moments = clip_moments(first, second, change_at, frames, size, start)
    clips = torch.empty(len(moments.turn), *size, 3, dtype=torch.uint8, device=first.place.device)
    for index in alike(moments):
        image = render(moments.take(index), size)
        clips[index] = (image.permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8)
    split: Tensor = clips.unflatten(0, (-1, frames))
    return split


def clip_moments(
    first: Scenes, second: Scenes, change_at: Tensor, frames: int,
    size: tuple[int, int] = SIZE, start: Tensor | None = None,
) -> Moments:  # fmt: skip
    """What each frame of the clips shows, clip by clip."""
    device, clips = first.place.device, len(first)
    if start is None:
        start = 20 + 40 * hashed(first.seed, 77.0)
    frame = torch.arange(frames, device=device)[None].expand(clips, -1)
    gone = ((frame - change_at[:, None]) / CHANGE_FRAMES).clamp(0, 1)
    turn = gone * gone * (3 - 2 * gone)
    speed = torch.lerp(velocities(first)[:, None], velocities(second)[:, None], turn)
    travelled = (speed.cumsum(1) - speed[:, :1]) / FPS
    ways = [(s.direction * 2.0 - 1)[:, None] for s in (first, second)]
    span = size[1] / size[0]
    camera = ways[0] * (5 + start[:, None] * 0.3) + travelled
    # The next traveler is well in the picture before a block's 12 frames are over.
    changes = (first.traveler != second.traveler).float()[:, None] * _EXIT * span
    leaving = (gone / _LEFT).square() * changes
    arriving = -((1 - gone) / (1 - _COMES)).clamp_max(1).square() * changes
    index = torch.arange(clips, device=device).repeat_interleave(frames)
    settled = ((gone <= 0) | (gone >= 1)).flatten()
    before, after = first.take(index), second.take(index)
    return Moments(
        # A frame between no two scenes is one of its only scene.
        first=before.replaced(after, (gone >= 1).flatten()),
        second=after.replaced(before, (gone <= 0).flatten()),
        turn=turn.flatten() * ~settled,
        clock=(start[:, None] + frame / FPS).flatten(),
        camera=camera.flatten(),
        speed=speed.flatten(),
        facing=torch.lerp(ways[0], ways[1], turn).flatten(),
        ahead=torch.stack([leaving, arriving], -1).flatten(0, 1) * ~settled[:, None],
    )


def alike(moments: Moments) -> list[Tensor]:
    """Indices of frames in groups that show the same places and travelers."""
    first, second = moments.first, moments.second
    # Between two scenes any weather is painted; elsewhere what there is.
    key = torch.where(moments.turn > 0, len(WEATHERS), first.weather)
    for attribute in (first.place, second.place, first.traveler, second.traveler):
        key = key * 8 + attribute
    order = key.argsort(stable=True)
    counts: list[int] = key[order].unique_consecutive(return_counts=True)[1].tolist()
    return [part for same in order.split(counts) for part in same.split(_GROUP)]


def render(moments: Moments, size: tuple[int, int] = SIZE) -> Tensor:
    """Frames [n, 3, H, W] in [0, 1] of moments that are ``alike``."""
    places = [int(s.place[0]) for s in (moments.first, moments.second)]
    if places[0] == places[1]:
        return _paint(moments, places[0], size)
    # A traveler that changes with the place stays in its own.
    changes = (moments.first.traveler != moments.second.traveler).float()
    away = torch.stack([0 * changes, changes], 1) * _AWAY
    old = _paint(replace(moments, ahead=moments.ahead - away), places[0], size)
    new = _paint(replace(moments, ahead=moments.ahead - away.flip(1)), places[1], size)
    return torch.lerp(old, new, _border(moments, size))


def _paint(moments: Moments, place: int, size: tuple[int, int]) -> Tensor:
    canvas = Canvas(moments, size)
    paint_sky(canvas)
    PAINTERS[place](canvas)
    paint_weather(canvas)
    return canvas.image.clamp_(0, 1)


def _border(moments: Moments, size: tuple[int, int]) -> Tensor:
    """Where the new place is already seen: its border comes from ahead, near layers first."""
    height, width = size
    device, span = moments.turn.device, width / height
    y = ((torch.arange(height, device=device) + 0.5) / height).reshape(1, 1, -1, 1)
    x = ((torch.arange(width, device=device) + 0.5) / height).reshape(1, 1, 1, -1)
    way = (moments.second.direction * 2.0 - 1).reshape(-1, 1, 1, 1)
    from_ahead = torch.where(way > 0, span - x, x)
    soft, lag = 0.22, 0.5
    reach = moments.turn.reshape(-1, 1, 1, 1) * (span + soft + lag) - (1 - y) * lag
    ragged = 0.05 * ((y * 23 + moments.first.seed.reshape(-1, 1, 1, 1)).sin())
    return smooth(-soft, 0.0, reach + ragged - from_ahead - soft * 0.5)
