"""Two data sets rendered to real video files on first use: what moves and what stands still are known exactly.

A video is a pure function of a few whole numbers. Foreground and background come from separate random streams, so that
any foreground can be rendered on any background; that is what makes the swapped and counterfactual test splits.
Splits: train, test, test_swap (the foregrounds of test on fresh backgrounds), test_cf (another class's fresh foreground
on the backgrounds of test), test_mask (where the foregrounds of test are: white on black).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from vidssl.data.manifest import Listing, Video
from vidssl.data.sources import SOURCES
from vidssl.engine import disk
from vidssl.engine.pool import each_in_pool
from vidssl.registry import FilePath, PositiveInt, Seed, UnitInterval

SIDE = 64  # pixels
SPLITS = ("train", "test", "test_swap", "test_cf")  # with seeds of their own
EXTRA_SPLITS = ("test_swap", "test_cf", "test_mask")
FOREGROUND, BACKGROUND, CHOICE, NOISE = range(4)  # random streams


class Recipe(NamedTuple):
    """What a video is made from."""

    kind: str  # rings | scenes
    foreground: int  # seeds
    motion: int  # the class
    background: int
    family: int = 0  # scenes: statistics of the background
    is_mask: bool = False  # white where the foreground is, black elsewhere

    @property
    def name(self) -> str:
        if self.is_mask:
            return f"{self.kind}-1/f{self.foreground}_m{self.motion}_mask.mp4"
        family = f"_s{self.family}" if self.kind == "scenes" else ""
        return f"{self.kind}-1/f{self.foreground}_m{self.motion}_b{self.background}{family}.mp4"


@SOURCES.register("synthetic")
def synthetic(
    split: str, *, root: FilePath, train_videos: PositiveInt, test_videos: PositiveInt, data_seed: Seed
) -> Listing:
    """Gray rings that look alike in every video and move in one of eight directions, the class, over a static
    background of each video's own. 64 x 64, 20 frames."""
    if split == "test_mask":
        return _masks(
            synthetic("test", root=root, train_videos=train_videos, test_videos=test_videos, data_seed=data_seed)
        )
    rng = _stream(CHOICE, data_seed, SPLITS.index(split))
    recipes = []
    for i in range(train_videos if split == "train" else test_videos):
        label, foreground, background = i % 8, _seed(data_seed, split, i), _seed(data_seed, split, i)
        if split == "test_swap":
            foreground = _seed(data_seed, "test", i)
        if split == "test_cf":
            label, background = (label + int(rng.integers(1, 8))) % 8, _seed(data_seed, "test", i)
        recipes.append(Recipe("rings", foreground, label, background))
    return _listing(root, recipes, DIRECTIONS)


DIRECTIONS = ("east", "northeast", "north", "northwest", "west", "southwest", "south", "southeast")


@SOURCES.register("synthetic_scenes")
def synthetic_scenes(
    split: str,
    *,
    root: FilePath,
    train_videos: PositiveInt,
    test_videos: PositiveInt,
    scene_bias: UnitInterval,
    data_seed: Seed,
) -> Listing:
    """Colored shapes with one of six motions that survive a mirror, the class, over a static background whose family
    equals the class with probability scene_bias. 64 x 64, 16 frames."""
    if split == "test_mask":
        sizes = {"train_videos": train_videos, "test_videos": test_videos}
        return _masks(synthetic_scenes("test", root=root, **sizes, scene_bias=scene_bias, data_seed=data_seed))
    rng = _stream(CHOICE, data_seed, 10 + SPLITS.index(split))
    bias = _stream(CHOICE, data_seed, 10 + SPLITS.index("test" if split == "test_cf" else split))
    recipes = []
    for i in range(train_videos if split == "train" else test_videos):
        label, foreground, background = i % 6, _seed(data_seed, split, i), _seed(data_seed, split, i)
        family = label if bias.random() < scene_bias else int(bias.integers(6))
        if split == "test_swap":
            foreground = _seed(data_seed, "test", i)
            family = int(rng.integers(6)) if scene_bias == 0 else (label + int(rng.integers(1, 6))) % 6
        if split == "test_cf":
            label, background = (label + int(rng.integers(1, 6))) % 6, _seed(data_seed, "test", i)
        recipes.append(Recipe("scenes", foreground, label, background, family))
    return _listing(root, recipes, MOTIONS)


MOTIONS = ("slide", "rise", "fall", "climb", "dive", "pulse")


def _masks(listing: Listing) -> Listing:
    recipes = [recipe._replace(is_mask=True) for recipe in listing.recipes]
    return _listing(str(listing.root), recipes, listing.classes)


def _listing(root: str, recipes: Sequence[Recipe], classes: Sequence[str]) -> Listing:
    videos = [Video(recipe.name, recipe.motion) for recipe in recipes]
    return Listing(Path(root), videos, classes, recipes=recipes)


def _seed(data_seed: int, split: str, i: int) -> int:
    """Different for every video of every split; foregrounds and backgrounds read it in streams of their own."""
    return (data_seed * len(SPLITS) + SPLITS.index(split)) * 1_000_000 + i


def _stream(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def render_missing(
    listing: Listing,
    *,
    processes: int = 1,
    progress: Callable[[Iterator, int], Iterator] = lambda rows, total: rows,
) -> int:
    """Write the listing's videos that do not exist yet; how many."""
    jobs = [(listing.root / recipe.name, recipe) for recipe in listing.recipes]
    jobs = [job for job in jobs if not job[0].exists()]
    for folder in {path.parent for path, _ in jobs}:
        with disk.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    rendered = each_in_pool(_render_one, jobs, processes, fewest=64, chunk=16)
    for _ in progress(rendered, len(jobs)) if jobs else ():
        pass
    return len(jobs)


def _render_one(job: tuple[Path, Recipe]) -> None:
    path, recipe = job
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}.mp4")
    frames = (render(recipe) * 255).round().astype(np.uint8)
    with disk.writing(path):
        try:
            write_video(unfinished, frames, rate=10 if recipe.kind == "rings" else 12)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def write_video(path: str | os.PathLike, frames: np.ndarray, rate: int) -> None:
    """uint8 [T, H, W, 3] -> H.264 in MP4, nearly lossless.

    One thread and no assembler code: with them the same pictures give other bytes from one call to the next.
    """
    try:
        codec = av.Codec("libx264", "w").name
        options = {"crf": "18", "preset": "veryfast", "tune": "fastdecode", "x264-params": "asm=0"}
    except av.codec.codec.UnknownCodecError:
        codec, options = "mpeg4", {"qscale": "2"}
    with av.open(os.fspath(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def render(recipe: Recipe) -> np.ndarray:
    """float [T, 64, 64, 3] in [0, 1]."""
    if recipe.is_mask:  # the share of a pixel that shows what is behind is what differs between white and black behind
        black, white = (_render_before(recipe, np.full((SIDE, SIDE, 3), gray)) for gray in (0.0, 1.0))
        return (1 - (white - black)).clip(0, 1)
    scenes = recipe.kind == "scenes"
    return _render_before(recipe, texture(recipe.background, recipe.family) if scenes else clouds(recipe.background))


def _render_before(recipe: Recipe, background: np.ndarray) -> np.ndarray:
    draw = render_shapes if recipe.kind == "scenes" else render_rings
    return draw(recipe.foreground, recipe.motion, background)


# ---------------------------------------------------------------------------------------------------------------------
# synthetic


def clouds(seed: int) -> np.ndarray:
    """A background: random colors on grids of several sizes, with a tint. [64, 64, 3]."""
    rng = _stream(BACKGROUND, seed)
    image = sum(1.2 / np.sqrt(cells / 4) * _enlarge(rng.random((cells, cells, 3))) for cells in (4, 8, 16, 32))
    image = (image - image.min()) / (image.max() - image.min())
    return 0.6 * image + 0.4 * rng.random(3)


def render_rings(seed: int, direction: int, background: np.ndarray, frames: int = 20) -> np.ndarray:
    """Five rings that move together and wrap around the frame."""
    rng = _stream(FOREGROUND, seed)
    radius, position = rng.uniform(7, 10, 5), rng.uniform(0, SIDE, (5, 2))
    angle = 2 * np.pi * (direction + rng.uniform(-0.4, 0.4)) / 8
    velocity = rng.uniform(1.5, 3.5) * np.array([np.cos(angle), -np.sin(angle)])  # x, y; y of pictures points down
    clip = np.repeat(background[None].astype(np.float32), frames, axis=0)
    reach = np.arange(-12, 13)  # pixels around a ring's center
    for time in range(frames):
        for size, start in zip(radius, position, strict=True):
            x, y = start + time * velocity
            columns, rows = int(x) + reach, int(y) + reach
            distance = np.hypot(columns + 0.5 - x, (rows + 0.5 - y)[:, None])[..., None]
            cover, inner = (np.clip(r - distance + 0.5, 0, 1) for r in (size, size * 2 / 3))
            part = clip[time, (rows % SIDE)[:, None], columns % SIDE]
            clip[time, (rows % SIDE)[:, None], columns % SIDE] = part * (1 - cover) + (0.20 + 0.75 * inner) * cover
    return clip


# ---------------------------------------------------------------------------------------------------------------------
# synthetic_scenes


def texture(seed: int, family: int) -> np.ndarray:
    """A background of one of six families: four kinds of texture, two palettes. [64, 64, 3]."""
    rng = _stream(BACKGROUND, seed)
    kind, palette = family % 4, family // 4
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    angle = rng.uniform(0, 2 * np.pi)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    match kind:
        case 0:
            pattern = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(3, 8) * u + rng.random()))
        case 1:
            f, p, q = rng.uniform(2, 5), *rng.uniform(0, 2 * np.pi, 2)
            pattern = 0.5 + 0.5 * np.tanh(4 * np.sin(2 * np.pi * f * u + p) * np.sin(2 * np.pi * f * v + q))
        case 2:
            pattern = sum(w * _enlarge(rng.random((n, n, 1)))[..., 0] for w, n in ((0.5, 4), (0.3, 9), (0.2, 20)))
            pattern = (pattern - pattern.min()) / (pattern.max() - pattern.min())
        case _:
            sites = rng.random((int(rng.integers(8, 24)), 2))
            nearest = ((x[..., None] - sites[:, 0]) ** 2 + (y[..., None] - sites[:, 1]) ** 2).argmin(-1)
            pattern = rng.random(len(sites))[nearest]
    hue = rng.uniform(0, 0.45) + 0.5 * palette
    dark = _rgb(hue, rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.5))
    bright = _rgb(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.2, 0.8), rng.uniform(0.5, 1))
    image = dark + (bright - dark) * pattern[..., None]
    for cells in (16, 32):
        noise = _enlarge(rng.standard_normal((cells, cells, 1)))
        image = image + 0.05 * noise / noise.std()
    return image.clip(0, 1)


def render_shapes(seed: int, motion: int, background: np.ndarray, frames: int = 16) -> np.ndarray:
    """Four equal petal shapes on a staggered grid, moving alike, wrapping around the frame."""
    rng = _stream(FOREGROUND, seed)
    rows, columns = np.divmod(np.arange(4), 2)
    start = np.stack([columns * 32 + rows * 16, rows * 32], axis=1) + rng.uniform(-4, 4, (4, 2)) + rng.uniform(0, 32, 2)
    petals, radius, turn = int(rng.integers(3, 6)), rng.uniform(0.13, 0.17) * SIDE, rng.uniform(0, 2 * np.pi)
    sizes = rng.uniform(0.75, 1.25, 4)
    hue, is_light = int(rng.integers(6)) / 6, rng.random() < 0.5
    color = _rgb(hue, 0.55, 1.0) if is_light else _rgb(hue, 0.9, 0.55)
    side = 1 if rng.random() < 0.5 else -1
    degrees = {"slide": 0, "rise": 90, "fall": -90, "climb": 45, "dive": -45, "pulse": 0}[MOTIONS[motion]]
    angle = np.radians(degrees + rng.uniform(-10, 10))
    velocity = rng.uniform(2.0, 3.6) * np.array([side * np.cos(angle), -np.sin(angle)])
    period, phase = rng.uniform(7, 11), rng.uniform(0, 2 * np.pi)
    clip = np.repeat(background[None], frames, axis=0)
    for time in range(frames):
        for i in range(4):
            if MOTIONS[motion] == "pulse":
                center = start[i]
                scale = 1 + 0.45 * np.sin(2 * np.pi * time / period + phase + i * np.pi / 2)
            else:
                center, scale = start[i] + time * velocity, 1.0
            dx, dy = _offsets(center)
            edge = radius * sizes[i] * scale * (1 + 0.3 * np.cos(petals * (np.arctan2(dy, dx) - turn)))
            cover = np.clip(edge - np.hypot(dx, dy) + 0.5, 0, 1)[..., None]
            clip[time] = clip[time] * (1 - cover) + color * (0.8 if i % 2 else 1.0) * cover
    return (clip + _stream(NOISE, seed).normal(0, 0.01, clip.shape)).clip(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def _offsets(center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dx, dy) from a point to every pixel, the short way around the frame."""
    at = np.arange(SIDE) + 0.5
    dx, dy = ((at - c + SIDE / 2) % SIDE - SIDE / 2 for c in center)
    return np.broadcast_to(dx[None], (SIDE, SIDE)), np.broadcast_to(dy[:, None], (SIDE, SIDE))


def _enlarge(grid: np.ndarray) -> np.ndarray:
    """[n, n, C] -> [64, 64, C], bilinear."""
    n = len(grid)
    at = ((np.arange(SIDE) + 0.5) * n / SIDE - 0.5).clip(0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    share = at - low
    matrix = np.zeros((SIDE, n))
    matrix[np.arange(SIDE), low] = 1 - share
    matrix[np.arange(SIDE), low + 1] += share
    return np.einsum("yi,ijc,xj->yxc", matrix, grid, matrix, optimize=True)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """hue in turns -> [3] in [0, 1]."""
    k = (np.array([5, 3, 1]) + hue * 6) % 6
    return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
