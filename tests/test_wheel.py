"""The wheel holds all it should, and works where there is no source tree."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "ksurgeon", "rules", "recipes", "tools")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"CC": "false", "CXX": "false"}  # the wheel has to come about without a compiler too
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A clean environment with the wheel; its dependencies are those of the present one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    (site,) = folder.glob("lib/python*/site-packages")
    paths = sysconfig.get_paths()
    (site / "dependencies.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    return folder


def test_everything_is_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ksurgeon").rglob("*.py")}
    expected |= {f"ksurgeon/_rules/{file.name}" for file in (ROOT / "rules").iterdir()}
    expected |= {f"ksurgeon/_recipes/{file.name}" for file in (ROOT / "recipes").iterdir()}
    expected.add("ksurgeon/py.typed")
    assert expected <= packed
    extra = {name for name in packed - expected if ".dist-info/" not in name}
    assert not extra, "nothing but the package goes into site-packages"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in packed)


def test_the_installed_command_lists_the_rules(environment, tmp_path):
    listed = run(environment / "bin" / "ksurgeon", "rules", cwd=tmp_path)
    for file in (ROOT / "rules").glob("*.toml"):
        assert file.stem in listed


def test_the_installed_rules_are_the_wheels_own(environment, tmp_path):
    code = (
        "from ksurgeon.rules import builtin_rules, load_rule\n"
        "for name, file in builtin_rules().items(): print(load_rule(name).name, file)"
    )
    lines = run(environment / "bin" / "python", "-c", code, cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == sorted(
        file.stem for file in (ROOT / "rules").glob("*.toml")
    )
    assert all(str(environment) in line for line in lines)
