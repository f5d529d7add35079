"""Who may import whom. The table is the architecture; a new arrow is a decision, not an accident."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import HOME

GROUND = {"registry", "disk", "pool", "clips", "learner", "distributed", "text"}
WINGS = {"data", "augment", "backbones", "methods", "engine", "evaluation"}
MAY_IMPORT = {
    "text": set(),
    "registry": set(),
    "disk": {"registry"},
    "pool": {"registry"},
    "clips": set(),
    "learner": {"clips"},
    "distributed": {"registry"},
    "slurm": set(),
    "ranks": {"registry", "pool", "distributed", "slurm"},
    "records": {"registry", "disk", "text"},
    "cluster": {"registry", "distributed", "records", "slurm"},
    "data": GROUND,
    "augment": {"registry"},
    "backbones": {"registry"},
    "methods": GROUND | {"augment"},
    "evaluation": GROUND,
    "engine": GROUND,
    "build": GROUND | WINGS,
    "scores": {"engine", "evaluation", "build", "text"},
    "check": GROUND | WINGS | {"build", "cluster", "records", "slurm", "tasks"},
    "preflight": GROUND | {"build", "records", "tasks", "data"},
    "plan": GROUND | WINGS | {"build", "check", "cluster", "tasks"},
    "report": {"records", "slurm"},
    "bench": GROUND | WINGS | {"build", "records"},  # and nothing imports its baselines
    "tasks": GROUND | WINGS | {"build", "bench", "scores", "report"},
    "app": GROUND
    | {"ranks", "records", "cluster", "build", "check", "plan", "preflight", "tasks"}
    | {"engine.device", "engine.log", "data.loader", "data.manifest"},
    "words": {"registry"},
    "command": {
        "text",
        "words",
        "registry",
        "disk",
        "records",
        "distributed",
        "slurm",
        "ranks",
        "cluster",
        "app",
        "check",
        "tasks",
    }
    | {"report.plan", "data.video"},
}
OWN_ROOM = {
    "data",
    "augment",
    "backbones",
    "methods",
    "engine",
    "evaluation",
    "report",
    "bench",
    "tasks",
}
FILES = sorted((HOME / "vidssl").rglob("*.py"))
# FAME is MoCo with one more step; tasks share no code with one another
WITHIN = {"methods/fame.py": {"methods.moco", "methods.contrast"}}


def imports(file: Path) -> set[str]:
    """Modules a file imports, lazily or not, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(file: Path) -> str:
    return file.relative_to(HOME / "vidssl").with_suffix("").parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(HOME).as_posix())
def test_imports_follow_the_table(file: Path) -> None:
    here = room(file)
    if here == "__init__":
        return
    allowed = MAY_IMPORT[here]
    known = {path.relative_to(HOME / "vidssl").with_suffix("").parts[0] for path in FILES}
    for module in imports(file):
        parts = module.split(".")
        if parts[0] != "vidssl" or len(parts) < 2 or parts[1] not in known:
            continue
        target = parts[1]
        if target == here and here in OWN_ROOM:
            continue
        assert target in allowed or ".".join(parts[1:3]) in allowed, f"{here} imports {module}"


def test_tasks_and_methods_do_not_import_one_another() -> None:
    for folder in ("tasks", "methods"):
        for file in sorted((HOME / "vidssl" / folder).glob("[a-z]*.py")):
            name = file.relative_to(HOME / "vidssl").as_posix()
            others = {f"vidssl.{folder}.{other.stem}" for other in file.parent.glob("[a-z]*.py") if other != file}
            shared = {"vidssl.methods.contrast"} | {f"vidssl.{module}" for module in WITHIN.get(name, ())}
            assert not (imports(file) & others) - shared, name


@pytest.mark.parametrize("folder", ["methods", "backbones"])
def test_methods_and_backbones_know_no_rank_device_logger_or_config(folder: str) -> None:
    for file in (HOME / "vidssl" / folder).glob("*.py"):
        text = file.read_text()
        for word in ("torch.distributed", "autocast", "SummaryWriter", ".cuda(", "hydra", "omegaconf"):
            assert word not in text, f"{file.name}: {word}"


def test_hydra_stays_at_the_door() -> None:
    for file in FILES:
        if room(file) not in ("command", "words", "app", "tasks"):
            assert not any(module.split(".")[0] == "hydra" for module in imports(file)), file
        if room(file) not in ("command", "words"):
            assert not any(module.split(".")[0] == "hydra" for module in imports(file)), file


def test_nothing_from_disk_is_executed() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert arguments.get("weights_only") == "True", f"{file}: {ast.unparse(node)}"


def test_top_level_is_the_products() -> None:
    fixed = {"conf", "vidssl", "launch.py", "sweeps", "tests", "pyproject.toml", "README.md"}
    more = {"LICENSE", "Makefile", "CHANGELOG.md", "docs", "constraints.txt"}
    made = {"data", "runs", "multirun", "build", "dist"}  # by running it
    found = {path.name for path in HOME.iterdir() if not path.name.startswith(".")}
    assert fixed <= found
    assert not {name for name in found - fixed - more - made if not name.endswith(".egg-info")}
