"""task=visualize and the page that task=report makes of it, from the files that they leave."""

from __future__ import annotations

import ast
import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import DATA, HOME, LINEAR, PRETRAIN, launch, make_video, read_json
from tests.engine.test_official import entries, wrapped
from vidssl.tasks import visualize
from vidssl.tasks.visualize import Visualize, spread

CHAIN = ("task=[pretrain,linear,retrieve,bias,visualize,report]", "pretrain.epochs=2")
NAMES = {
    "activations", "confusion", "curves", "inputs-1", "inputs-2", "kernels", "neighbors", "tsne",
}  # fmt: skip


class Page(HTMLParser):
    """What report.html shows: headings, and pictures as (kind of file, bytes, width)."""

    def __init__(self, file: Path):
        super().__init__()
        self.pictures: list[tuple[str, bytes, int]] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        if tag in ("img", "video"):
            kind, content = re.fullmatch(r"data:(\w+/\w+);base64,(.*)", given["src"]).groups()
            self.pictures.append((kind, base64.b64decode(content, validate=True), int(given.get("width") or 0)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def chain(rendered: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    words = [*DATA, f"dataset.root={rendered}", *PRETRAIN, *LINEAR, *CHAIN, "visualize.videos=2", "output=run"]
    done = launch(words, folder)
    assert done.status == 0, done.err
    (folder / "said").write_text(done.out)
    return folder / "run"


def pictures(run: Path) -> set[str]:
    return {file.stem.removeprefix("visualize-") for file in (run / "pictures").glob("visualize-*.png")}


def test_a_chain_leaves_every_kind_of_picture_and_none_is_blank(chain: Path) -> None:
    assert pictures(chain) == NAMES
    assert read_json(chain / "result.json")["visualize"] == {"pictures": len(NAMES)}
    for file in (chain / "pictures").iterdir():
        with Image.open(file) as picture:
            assert np.asarray(picture.convert("RGB")).std() > 5, file.name
    with Image.open(chain / "pictures/visualize-activations.gif") as picture:
        assert picture.n_frames == 8


def test_pictures_are_in_tensorboard_as_they_are_on_disk(chain: Path) -> None:
    board = EventAccumulator(str(chain / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = {tag for tag in board.Tags()["images"] if tag.startswith("visualize/")}
    assert tags == {f"visualize/{name}" for name in NAMES}
    (event,) = board.Images("visualize/kernels")
    with (
        Image.open(io.BytesIO(event.encoded_image_string)) as shown,
        Image.open(chain / "pictures/visualize-kernels.png") as kept,
    ):
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(kept))


def test_the_report_of_a_chain_is_one_file_that_shows_every_picture(chain: Path) -> None:
    page = Page(chain / "report.html")
    assert not {"script", "link", "iframe"} & page.tags
    files = list((chain / "pictures").iterdir())
    assert sorted(content for _, content, _ in page.pictures) == sorted(file.read_bytes() for file in files)
    for kind, content, width in page.pictures:
        assert kind in ("image/png", "image/gif")
        Image.open(io.BytesIO(content)).verify()
        assert 200 <= width <= 1120
    for title in ("What the networks see", "Where they look", "t-SNE", "Temporal kernels", "Neighbors", "Training"):
        assert title in page.text


def test_the_report_of_a_chain_counts_its_own_run_as_done_and_has_all_its_figures(chain: Path) -> None:
    text = Page(chain / "report.html").text
    assert "running" not in text
    assert "not done" not in text.lower()
    result = read_json(chain / "result.json")
    assert result["report"] == {"settings": 1, "runs": 1, "done": 1}
    for task in ("pretrain", "linear", "retrieve", "visualize"):
        assert task in text
    assert f"top1 {result['linear']['top1']:.4g}" in text
    assert (chain / "report.csv").read_text().splitlines()[1].split(",")[2] == "done"


def test_the_confusion_matrix_agrees_with_the_linear_probe(
    chain: Path, rendered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omegaconf import OmegaConf

    from vidssl.engine.records import read_json as record
    from vidssl.run.app import run_tasks
    from vidssl.run.check import check

    seen = {}
    monkeypatch.setattr(
        visualize.heat_map,
        "confusion",
        lambda shares, names, worst: seen.update(shares=shares) or np.zeros((8, 8, 3), np.uint8),
    )
    config = OmegaConf.to_container(OmegaConf.load(chain / "config.yaml"))
    config = {key: value for key, value in config.items() if key not in ("pretrain", "linear", "retrieve", "report")}
    config["visualize"]["kinds"] = ["confusion"]
    config["visualize"]["clips"] = 2
    config["checkpoint"] = str(chain / "linear.last.pt")
    assert check(config) == []
    folder = chain.parent / "again"
    folder.mkdir()
    (folder / "run.json").write_text('{"tasks": {}}')
    run_tasks(config, folder)
    assert record(folder / "result.json")["visualize"] == {"pictures": 1}
    weights = np.array([2, 2, 2, 2, 1, 1, 1, 1]) / 12  # videos of each class
    assert 100 * (np.diag(seen["shares"]) * weights).sum() == pytest.approx(
        record(chain / "result.json")["linear"]["top1"]
    )


@pytest.mark.slow
def test_a_released_checkpoint_is_drawn_and_what_it_lacks_is_told(rendered: str, tmp_path: Path) -> None:
    """DCLR's file, which has no classifier; any video; a second network beside it."""
    torch.save(wrapped("dclr/r2plus1d_18", entries("dclr/r2plus1d_18")), tmp_path / "released.pth.tar")
    make_video(tmp_path / "my video.mp4", frames=30)
    words = [
        *(word for word in DATA if not word.startswith("backbone")), f"dataset.root={rendered}", "output=run",
        "task=[visualize,report]", "checkpoint=released.pth.tar", "clip_frames=8", "crop_size=32", "method=dclr",
        "visualize.video='my video.mp4'", "visualize.against=none", "visualize.animation=mp4",
        "visualize.kinds=[inputs,activations,confusion,kernels,curves]",
    ]  # fmt: skip
    done = launch(words, tmp_path)
    assert done.status == 0, done.err
    assert pictures(tmp_path / "run") == {"inputs-1", "activations", "kernels"}
    assert "visualize: no confusion: the checkpoint has no classifier; linear and finetune leave one" in done.out
    assert "visualize: no curves: no task of this run has trained" in done.out
    with av.open(str(tmp_path / "run/pictures/visualize-activations.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert sum(1 for _ in video.decode(stream)) == 8
    page = Page(tmp_path / "run/report.html")
    assert "video/mp4" in [kind for kind, _, _ in page.pictures]


def test_what_cannot_be_drawn_alone_is_refused_before_any_work(small: list[str], tmp_path: Path) -> None:
    def told(*words: str) -> str:
        done = launch([*small, "task=visualize", *words], tmp_path)
        assert done.status == 2, done.out
        assert not (tmp_path / "runs").exists()
        return done.err

    assert "task=visualize starts from one" in told()
    assert "visualize.kinds=[curves]: needs a training task before it" in told("visualize.kinds=[curves]")
    wrong = told(
        "checkpoint=none", "visualize.kinds=[confusion]", "visualize.video=gone.mp4", "visualize.against=gone.pt"
    )
    assert "task=visualize needs a classifier" in wrong
    assert "visualize.video=gone.mp4: cannot be opened (no such file)" in wrong
    assert "visualize.against=gone.pt: no such file" in wrong
    assert "no such value. Did you mean inputs?" in told("checkpoint=none", "visualize.kinds=[input]")


def test_a_report_alone_needs_a_folder(small: list[str], tmp_path: Path) -> None:
    done = launch([*small, "task=report"], tmp_path)
    assert done.status == 2
    assert "report.runs=null: means the run's own folder" in done.err


def test_a_second_network_of_another_kind_is_refused(small: list[str], tmp_path: Path, chain: Path) -> None:
    words = [*small, "task=visualize", "checkpoint=none", f"visualize.against={chain}", "backbone.width=8"]
    done = launch(words, tmp_path)
    assert done.status == 2
    assert (
        f"visualize.against={chain}: holds backbone tiny 4; give a file of the run's own backbone, tiny 8" in done.err
    )


def options(**changed: object) -> Visualize:
    given = dict.fromkeys(("clip_frames", "frame_stride", "crop_size", "clips", "augmentation", "batch_size"))
    given |= dict.fromkeys(("videos", "tsne_classes", "perplexity", "queries", "neighbors", "fps"), 1)
    given |= {"kinds": ("tsne",), "split": "test", "video": None, "against": None, "animation": "none"}
    return Visualize(**{**given, **changed})


def test_t_sne_alone_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options().problems() == []
    monkeypatch.setattr(visualize, "find_spec", lambda name: None)
    (problem,) = options().problems()
    assert problem == "visualize.kinds: tsne needs scikit-learn; pip install 'vidssl[pictures]' or leave it out"
    assert options(kinds=("confusion", "kernels")).problems() == []


def test_each_kind_reads_what_it_draws_alone() -> None:
    assert options().splits == ("test",)
    assert options(kinds=("neighbors",)).splits == ("test", "train")
    assert options(kinds=("kernels",)).splits == ()
    assert options(kinds=("activations",)).splits == ("test",)
    assert options(kinds=("activations",), video="a.mp4", split="test").splits == ()
    assert options(kinds=("inputs", "curves")).starts_from == "nothing"
    assert options(kinds=("confusion",)).starts_from == "classifier"
    assert options(kinds=("confusion", "tsne")).starts_from == "backbone"


def test_videos_are_spread_over_the_classes() -> None:
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert spread(labels, 2) == [0, 8]
    assert spread(labels, 4) == [0, 3, 6, 8]
    assert spread(labels, 6) == [0, 3, 6, 8, 1, 4]
    assert sorted(spread(labels, 20)) == list(range(9))
    assert spread([-1] * 9, 3) == [0, 4, 8]


def test_a_run_that_draws_nothing_does_not_import_what_draws() -> None:
    """No module imports matplotlib or scikit-learn when it is imported itself."""
    for file in (HOME / "vidssl").rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"matplotlib", "sklearn"}, file


@pytest.mark.slow
def test_two_ranks_draw_what_one_draws(small: list[str], tmp_path: Path) -> None:
    words = [
        *small,
        "task=visualize",
        "checkpoint=none",
        "visualize.kinds=[tsne,neighbors,activations]",
        "accelerator=cpu",
    ]
    for devices in (1, 2):
        done = launch([*words, f"devices={devices}", f"output=run{devices}"], tmp_path)
        assert done.status == 0, done.err
    assert pictures(tmp_path / "run2") == {"tsne", "neighbors", "activations"}
    for name in ("neighbors", "activations"):  # t-SNE makes much of the last digits
        one, two = ((tmp_path / f"run{devices}/pictures/visualize-{name}.png").read_bytes() for devices in (1, 2))
        assert one == two, name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moco", "be", "be_triplet", "be_pretext", "dclr", "fima"])
def test_inputs_of_every_method_are_drawn(method: str, small: list[str], tmp_path: Path) -> None:
    words = [*small, "task=visualize", "visualize.kinds=[inputs]", f"method={method}", "frame_stride=2", "output=run"]
    done = launch(words, tmp_path)
    assert done.status == 0, done.err
    assert pictures(tmp_path / "run") == {f"inputs-{number}" for number in range(1, 5)}


@pytest.mark.slow
def test_videos_without_classes_have_pictures_too(tmp_path: Path) -> None:
    for number in range(12):
        make_video(tmp_path / f"videos/{number}.mp4", frames=20 + number)
    words = [
        "dataset=folder", "dataset.root=videos", "dataset.test_share=0.6", "recipe=demo", "task=visualize",
        "checkpoint=none", "backbone.width=4", "data.workers=0", "output=run", "frame_stride=1",
    ]  # fmt: skip
    done = launch(words, tmp_path)
    assert done.status == 0, done.err
    assert "visualize: no confusion: the videos have no classes" in done.out
    assert {"neighbors", "tsne", "activations", "inputs-1"} <= pictures(tmp_path / "run")


@pytest.mark.slow
def test_a_browser_shows_every_picture_within_the_page(chain: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    probe = (  # the page itself has no script; this copy has one that tells what was loaded
        "<script>addEventListener('load', () => { const all = [...document.images].map(i => [i.complete && "
        "i.naturalWidth > 0, i.getBoundingClientRect().right]); document.title = JSON.stringify({pictures: all, wide: "
        "document.documentElement.scrollWidth}) })</script></body>"
    )
    copy = tmp_path / "copy.html"
    copy.write_text((chain / "report.html").read_text().replace("</body>", probe))
    base = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,5000"]
    base.append(f"--user-data-dir={tmp_path / 'profile'}")
    found = subprocess.run([*base, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120)
    told = re.search(r'<title>\{"pictures":\[(.*)\],"wide":(\d+)\}</title>', found.stdout)
    loaded = re.findall(r"\[(true|false),([\d.]+)\]", told[1])
    assert len(loaded) == len(Page(chain / "report.html").pictures)
    assert all(done == "true" and float(right) <= 1280 for done, right in loaded)
    assert int(told[2]) <= 1280
    shot = tmp_path / "page.png"
    page = (chain / "report.html").as_uri()
    subprocess.run([*base, f"--screenshot={shot}", page], capture_output=True, timeout=120, check=True)
    with Image.open(shot) as picture:
        assert picture.width == 1280
        assert np.asarray(picture.convert("L")).std() > 20
