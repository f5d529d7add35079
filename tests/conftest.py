"""What tests share: videos made on the spot, golden files, runs of launch.py in a process of their own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import runpy
import sys
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as launch.py has it: many processes share two processors

import av
import av.stream
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from vidssl.run.app import plain
from vidssl.run.command import register_resolvers

HOME = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden"
torch.set_num_threads(2)
slow = partial(pytest.param, marks=pytest.mark.slow)  # a case of a test


# -- golden numbers


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as file:
        return dict(file)


def fill(key: str, shape: Sequence[int]) -> torch.Tensor:
    """The rule that fills golden networks from the names in the official checkpoints (golden/moco/README.md)."""
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        z = 1 + 0.25 * np.abs(z)
    elif leaf in ("running_mean", "bias"):
        z = 0.1 * z
    elif leaf == "num_batches_tracked":
        return torch.zeros(tuple(shape), dtype=torch.int64)
    elif leaf == "weight" and len(shape) == 1:
        z = 1 + 0.1 * z
    else:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def normal(seed: int, shape: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(int(seed)).standard_normal(tuple(shape)).astype(np.float32))


# -- videos


def moving_picture(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A picture that is unlike its neighbours, smooth enough for any codec."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (9 + c) + number / 3 + c) + np.cos(y / (7 + c) - number / 4) for c in range(3)]
    picture = np.stack(waves, axis=-1) * 50 + 128
    left = (number * 5) % (width - 16)
    picture[height // 3 : height // 3 + 16, left : left + 16] = (number * 37) % 256
    return picture.clip(0, 255).astype(np.uint8)


def make_video(
    path: Path,
    frames: int = 60,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (96, 128),
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    container: str | None = None,
    muxer: dict[str, str] | None = None,
    rate: int = 25,
    rotation: int = 0,
    **options: str,
) -> Path:
    """Encode frames of `moving_picture`; options go to the encoder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container, options=muxer or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.thread_count = 1
        if "g" in options:
            stream.gop_size = int(options["g"])
        if "bf" in options:
            stream.codec_context.max_b_frames = int(options["bf"])
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(moving_picture(i, *size), format="rgb24")
            frame.pts, frame.time_base = i if times is None else times[i], Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def make_streams(
    path: Path, *streams: tuple, marks: Mapping[int, av.stream.Disposition] = MappingProxyType({})
) -> Path:
    """A file with video streams of (codec, (height, width), frames); marks: stream -> disposition."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        encoders = []
        for number, (codec, (height, width), _) in enumerate(streams):
            encoder = out.add_stream(codec, rate=25)
            encoder.width, encoder.height = width, height
            encoder.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            encoder.codec_context.thread_count = 1
            if number in marks:
                encoder.disposition = marks[number]
            encoders.append(encoder)
        for time in range(max(frames for _, _, frames in streams)):
            for encoder, (_, size, frames) in zip(encoders, streams, strict=True):
                if time < frames:
                    frame = av.VideoFrame.from_ndarray(moving_picture(time, *size), format="rgb24")
                    frame.pts, frame.time_base = time, Fraction(1, 25)
                    out.mux(encoder.encode(frame))
        for encoder in encoders:
            out.mux(encoder.encode(None))
    return path


@pytest.fixture(scope="session")
def videos() -> Path:
    """The folder of real and awkward files, which is not part of the repository."""
    folder = os.environ.get("VIDSSL_TEST_VIDEOS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VIDSSL_TEST_VIDEOS names no folder of test videos")
    return Path(folder)


# -- configurations


@contextlib.contextmanager
def in_conf() -> Iterator[None]:
    """While this holds, hydra.compose finds what launch.py finds."""
    register_resolvers()
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(HOME / "conf"), version_base="1.3"):
        patch.setenv("VIDSSL_HOME", str(HOME))
        yield


def composed(*words: str) -> dict:
    """The configuration of a command line, resolved, as plain containers."""
    with in_conf():
        return plain(compose("config", list(words)))


# -- launch.py


@dataclass(frozen=True)
class Launched:
    status: int
    out: str
    err: str
    cpu_seconds: float


_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "vidssl.run.check",
        "vidssl.run.app",
        "vidssl.run.command",
        "vidssl.tasks.report",
        "torch._dynamo",
        "torch.utils.tensorboard",
    ]
)


def start(words: Sequence[str], folder: Path, log: Path) -> multiprocessing.process.BaseProcess:
    """`python launch.py WORDS` in a folder, as a process of its own that has imported torch already."""
    process = _server.Process(target=_launch, args=(list(words), str(folder), str(log), dict(os.environ)))
    process.start()
    return process


def launch(words: Sequence[str], folder: Path, timeout: float = 240) -> Launched:
    """Run launch.py to its end."""
    log = folder / ".launched"
    process = start(words, folder, log)
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"launch.py {' '.join(words)}: {log.with_suffix('.out').read_text()}")
    out, err = (log.with_suffix(kind).read_text() for kind in (".out", ".err"))
    seconds = log.with_suffix(".seconds")  # not there if the process was ended from outside
    return Launched(process.exitcode, out, err, float(seconds.read_text()) if seconds.exists() else float("nan"))


def _launch(words: list[str], folder: str, log: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()  # the server's is that of the first test
    os.environ.update(environment)
    os.environ["COLUMNS"] = "200"
    with (
        open(log + ".out", "w", buffering=1) as out,
        open(log + ".err", "w", buffering=1) as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        sys.argv = [str(HOME / "launch.py"), *words]
        status = 1
        try:
            runpy.run_path(str(HOME / "launch.py"), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
    Path(log + ".seconds").write_text(str(time.process_time()))
    os._exit(status)


def read_json(file: Path) -> dict:
    return json.loads(file.read_text())


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


DATA = (  # the smallest synthetic data set
    "dataset.train_videos=16",
    "dataset.test_videos=12",
    "backbone.width=4",
    "data.workers=0",
    "data.processes=1",
    "trainer.log_every=1",
)
PRETRAIN = ("pretrain.batch_size=8",)
LINEAR = ("linear.epochs=3", "linear.batch_size=8")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The synthetic videos of small runs, rendered once a session."""
    return str(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture
def small(rendered: str) -> list[str]:
    return [*DATA, f"dataset.root={rendered}"]
