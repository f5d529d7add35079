"""report.html as a browser reads it."""

from __future__ import annotations

import io
import os
import platform
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.report.conftest import linear, make_run, marks, texts, tooltips
from vidssl.report import dots
from vidssl.report.plan import write_plan
from vidssl.report.runs import Setting, Trial
from vidssl.tasks.report import show_report

VOID = {"meta", "img", "br"}
_gif = io.BytesIO()
Image.new("P", (1, 1)).save(_gif, "GIF")
GIF = _gif.getvalue()
NASTY = 'say="<b>5 > 4 & 3</b>" [/b]'  # of no meaning in HTML, Markdown or the console


class Reader(HTMLParser):
    """Elements, text, and whether everything that was opened is closed."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two betas and one more that was never begun; one run failed, its label and its error are hard to write down."""
    jobs = [[f"seed={seed}", f"method.beta={beta}"] for seed in (0, 1) for beta in (0.3, 0.5, NASTY)]
    write_plan(tmp_path, jobs, {"seed", "method.beta"})
    losses = [{"task": "pretrain", "step": step, "epoch": 0.0, "loss": 4.0 / step} for step in range(1, 6)]
    for seed, beta in ((0, 0.3), (1, 0.3), (0, 0.5)):
        folder = tmp_path / f"{beta}-{seed}"
        make_run(
            folder, [f"seed={seed}", f"method.beta={beta}"], linear(50.0), seed=seed, lines=losses,
            method={"name": "fame", "beta": beta},
        )  # fmt: skip
    failed = ["seed=1", "method.beta=0.5"]
    make_run(tmp_path / "0.5-1", failed, seed=1, method={"name": "fame", "beta": 0.5}, status="failed", error=NASTY)
    (tmp_path / "0.3-0/pictures").mkdir()
    Image.new("RGB", (600, 20)).save(tmp_path / "0.3-0/pictures/pretrain-clip.png")
    return tmp_path


def test_the_page_is_whole_and_needs_no_other_file(sweep: Path) -> None:
    show_report(sweep)
    text = (sweep / "report.html").read_text()
    page = Reader(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "image"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "data")]
    assert [source[:22] for source in sources if not source.startswith("#")] == ["data:image/png;base64,"]
    assert {source[1:] for source in sources if source.startswith("#")} <= {
        value for name, value in page.attributes if name == "id"
    }, "shapes that are drawn more than once"
    assert not re.search(r"https?:|url\(|@import", text)


def test_labels_and_errors_are_shown_as_they_are(sweep: Path) -> None:
    show_report(sweep)
    text = (sweep / "report.html").read_text()
    assert "<b>5" not in text
    cells = Reader(text).cells
    assert cells.count(NASTY) == 4, "an error; and a label, once beside its runs, twice among the missing"
    assert "1 failed" in cells
    assert cells.count("missing") == 2


def test_the_page_begins_with_how_far_the_runs_are_and_when_it_was_written(sweep: Path) -> None:
    show_report(sweep)
    text = (sweep / "report.html").read_text()
    head = text[text.index("<h1>") : text.index("<table>")]
    assert "3 of 6 runs are done, 1 failed, 2 missing." in head
    assert re.search(r"Written \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", head)
    assert "planned, but there is no folder" in head
    assert "its process is gone" not in head, "the legend explains what is there"


def test_a_report_of_a_sweep_shows_its_curves_its_parameter_and_every_run(sweep: Path) -> None:
    show_report(sweep)
    text = (sweep / "report.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "Not done", "Along method.beta", "Training", "Every run", "What the networks see", "Commands",
    ]  # fmt: skip
    drawings = re.findall(r"<svg.*?</svg>", text.replace("xlink:", ""), re.DOTALL)
    titles = [tooltips(svg)[0] for svg in drawings]
    assert titles == ["linear against method.beta", "pretrain: loss over the steps", "linear"]


def test_the_markdown_says_what_is_not_done_and_does_not_depend_on_the_clock(sweep: Path) -> None:
    show_report(sweep)
    text = (sweep / "report.md").read_text()
    assert "3 of 6 runs are done, 1 failed, 2 missing" in text
    assert "| 0.5 | 1 | failed | 0.5-1 |" in text
    show_report(sweep)
    assert (sweep / "report.md").read_text() == text


def test_a_dot_is_at_its_value_in_the_row_of_its_setting(drawn: list[Figure]) -> None:
    runs = [Trial(0, "done", [], Path("a"), {"linear.top1": 50.0}), Trial(1, "failed", []), Trial(2, "missing", [])]
    svg = dots.draw([Setting("none", runs[1:]), Setting("one", runs)], "linear.top1", "linear")
    plot = drawn[0].axes[0]
    assert marks(plot, "seed") == [(50, 1)]
    assert plot.get_xlim() == (0, 100)
    assert {"none", "one", "1 failed, 1 missing"} <= set(texts(svg))
    assert tooltips(svg) == ["linear", "none", "one", "seed 0: 50.0"]


def test_nothing_left_of_the_axis_is_cut_off() -> None:
    states = ["running", "failed", "interrupted", "missing"]
    label = "a label of a setting, as long as it gets"
    setting = Setting(label, [Trial(seed, state, []) for seed, state in enumerate(states)])
    svg = dots.draw([setting], "linear.top1", "x")
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])
    axis = re.search(r"<path d=\"M ([\d.]+) [^>]*stroke: #e2e2e2", svg)[1]
    assert float(axis) > 0.5 * 10 * len("a label of a setting, as long a..."), "letters are about half as wide as high"
    assert width < 520


def test_a_long_label_is_shortened_and_shown_in_full_as_its_tooltip() -> None:
    label = "method.beta=0.3 method.apply_to=both method.mask=grid"
    svg = dots.draw([Setting(label, [Trial(0, "done", [], Path("a"), {"linear.top1": 1.0})])], "linear.top1", "x")
    assert "method.beta=0.3 method.apply_to..." in texts(svg)
    assert label in tooltips(svg)


def test_pictures_of_many_runs_stand_side_by_side_by_their_name_and_are_small(sweep: Path) -> None:
    (sweep / "0.5-0/pictures").mkdir()
    for folder, name, width in (
        ("0.3-0", "visualize-tsne", 1520),
        ("0.5-0", "visualize-tsne", 200),
        ("0.5-0", "pretrain-clip", 9),
    ):
        Image.new("RGB", (width, 20)).save(sweep / folder / f"pictures/{name}.png")
    (sweep / "0.3-0/pictures/visualize-activations.gif").write_bytes(GIF)
    show_report(sweep)
    found = re.findall(r'width="(\d+)" alt="(.*?)"', (sweep / "report.html").read_text())
    assert found == [
        ("340", "0.3: clip"), ("9", "0.5: clip"), ("1", "0.3: activations"), ("540", "0.3: tsne"), ("200", "0.5: tsne"),
    ]  # fmt: skip


def test_a_run_alone_is_shown_large_under_headings_and_films_as_films(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["seed=0"], linear(50.0))
    (run / "pictures").mkdir()
    for name, width in (
        ("visualize-inputs-1", 900),
        ("visualize-kernels", 2240),
        ("visualize-confusion", 8000),
        ("odd", 7),
    ):
        Image.new("RGB", (width, 20)).save(run / f"pictures/{name}.png")
    (run / "pictures/visualize-activations.mp4").write_bytes(b"a film")
    (run / "pictures/notes.txt").write_text("not a picture")
    show_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Reader(text)
    assert page.open == []
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "What the networks see", "Where they look", "What is taken for what", "Temporal kernels", "More", "All metrics",
        "Commands",
    ]  # fmt: skip
    assert re.findall(r'<img src="data:image/png;base64,[^"]*" width="(\d+)"', text) == ["900", "1120", "1120", "7"]
    assert '<video src="data:video/mp4;base64,YSBmaWxt" controls loop muted autoplay playsinline></video>' in text


def test_the_run_that_writes_the_page_counts_as_done(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", ["seed=0"], linear(50.0), status="running", process=os.getpid(), host=platform.node(),
        tasks={"linear": {"cpu_seconds": 3.0}, "report": {"cpu_seconds": 0.0}},
    )  # fmt: skip
    make_run(tmp_path / "reports", [], {"report": {}}, tasks={"report": {}})
    (setting,) = show_report(run, current=run)
    assert [trial.status for trial in setting.runs] == ["done"]
    assert setting.by_seed("cpu_seconds") == {0: 3.0}
    assert "running" not in (run / "report.html").read_text()
    (setting,) = show_report(tmp_path)
    assert [trial.status for trial in setting.runs] == ["running"], "seen from elsewhere; runs of report alone are none"
