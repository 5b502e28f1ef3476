"""MODULE:APP: what is wrong is said in one line, with exit code 2."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Project


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("shop", "not of the form MODULE:APP"),
        (":app", "not of the form MODULE:APP"),
        ("shop:", "not of the form MODULE:APP"),
        ("nowhere:app", "there is no module 'nowhere'"),
        ("nowhere.at.all:app", "there is no module 'nowhere.at.all'"),
        ("{module}:nope", "has no attribute 'nope'; it has {module}:app"),
        ("{module}:app.nope", "has no attribute 'app.nope'"),
        ("{module}:checkout", "is of type Workflow, not an App; it has {module}:app"),
        ("broken:app", "importing 'broken' failed: ZeroDivisionError: division by zero"),
        ("needy:app", "importing 'needy' failed: ModuleNotFoundError: No module named 'not_installed'"),
    ],
)
def test_what_is_no_app(project: Project, target: str, said: str) -> None:
    (project.folder / "broken.py").write_text("x = 1\n1 / 0\n")
    (project.folder / "needy.py").write_text("import not_installed\n")
    answer = project.run("get", target.format(module=project.module), "x", ok=False)
    assert answer.code == 2
    assert said.format(module=project.module) in answer.err
    assert "Traceback" not in answer.err


def test_the_place_of_a_mistake_is_named(project: Project) -> None:
    (project.folder / "broken2.py").write_text("x = 1\n1 / 0\n")
    assert "broken2.py:2)" in project.run("get", "broken2:app", "x", ok=False).err
    assert "Traceback" in project.run("--debug", "get", "broken2:app", "x", ok=False).err


def test_an_app_inside_something(project: Project) -> None:
    (project.folder / "holder_of_apps.py").write_text(
        f"from {project.module} import app\nclass made:\n    inside = app\n"
    )
    assert project.run("migrate", "holder_of_apps:made.inside").code == 0


def test_help_and_version_need_no_app(project: Project) -> None:
    assert "worker" in project.run("--help").out
    assert project.run("--version").out.strip()
    assert project.run("get", "--help").code == 0
    assert project.run("get", ok=False).code == 2
