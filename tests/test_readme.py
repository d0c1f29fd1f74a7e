"""The README keeps its promises: its test command is what CI runs, its tree is the tree."""

import re
import subprocess

from conftest import ROOT

from dfdetect.presets import list_presets

README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readme_s_test_command():
    block = README.split("<!-- test command -->")[1].split("```")[1]
    (command,) = [line for line in block.splitlines() if line.startswith("python3")]
    assert "pip install -e '.[test]'" in command and command.endswith("-m pytest")
    script = (ROOT / ".ci" / "run").read_text()
    extraction = re.search(r"command=\$\((.*)\)\n", script)[1]
    found = subprocess.run(["bash", "-c", extraction], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == command


def test_every_module_has_a_line_in_the_tree():
    tree = README.split("dfdetect/\n  __init__.py")[1].split("```")[0]
    for path in (ROOT / "dfdetect").rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"^ +{re.escape(path.name)} ", tree, re.M), path


def test_every_preset_is_named():
    assert [name for name in list_presets() if f"`{name}`" not in README] == []


def test_no_path_of_one_machine_stands_in_the_project():
    tracked = [ROOT / "README.md", ROOT / "pyproject.toml", *(ROOT / "dfdetect").rglob("*.py")]
    tracked += [*(ROOT / "presets").glob("*.yaml"), *(ROOT / "tests").glob("*.py")]
    pattern = re.compile(r"(?<![\w.])/(work|home|root|tmp)/\w")
    assert [str(p) for p in tracked if pattern.search(p.read_text())] == []
