"""bicached where it is installed: under a prefix, and as a wheel in an environment of its own."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import httpx
import pytest
from programs import ROOT, Server

BUILD = ROOT / "build" / "release"
QUESTION = {"messages": [{"role": "user", "content": "Count in steps of 6 from 14, 15 numbers."}]}


def environment(**more):
    own = {k: v for k, v in os.environ.items()
           if not k.startswith("BICACHED_") and k not in ("LD_LIBRARY_PATH", "PYTHONPATH")}
    return {**own, **more}


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, **options)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def check_chat(**options):
    server = Server(**options)
    try:
        answer = httpx.post(server.url + "/v1/chat/completions", json=QUESTION, timeout=300).json()
        assert answer["choices"][0]["message"]["content"].startswith("14, 20, 26")
    finally:
        status = server.stop()
    assert status == 0, "".join(server.lines)


@pytest.fixture(scope="module")
def torch():
    return pathlib.Path(run(sys.executable, "-c", "import importlib.util as u; "
                            "print(u.find_spec('torch').submodule_search_locations[0])").strip()).resolve()


def test_installed_under_a_prefix_it_runs_with_the_source_tree_away(tmp_path, torch):
    """The tree is moved away for the installed program alone, since other tests run in it: an empty file system
    lies over it in a mount namespace."""
    without_tree = ["unshare", "--map-root-user", "--mount", "sh", "-c",
                    'mount -t tmpfs none "$0" && test ! -e "$0/src" && exec "$@"', ROOT]
    if subprocess.run([*without_tree, "true"], capture_output=True).returncode != 0:
        pytest.skip("no mount namespace can be made here (unshare --map-root-user --mount)")
    prefix, elsewhere = tmp_path / "prefix", tmp_path / "torch"
    run("cmake", "--install", BUILD, "--prefix", prefix)
    # The environment with libtorch is in the tree too.
    (elsewhere / "lib").mkdir(parents=True)
    for library in (torch / "lib").glob("lib*.so*"):
        try:
            os.link(library, elsewhere / "lib" / library.name)
        except OSError:  # another file system
            shutil.copy(library, elsewhere / "lib")
    model = shutil.copytree(ROOT / "models" / "demo", tmp_path / "demo")
    program, own = prefix / "bin" / "bicached", environment(BICACHED_TORCH=str(elsewhere))

    missing = subprocess.run([*without_tree, program, "--version"], env=environment(), cwd=tmp_path,
                             capture_output=True, text=True)
    assert "libtorch_cpu.so" in missing.stderr  # the tree is away indeed
    version = run(*without_tree, program, "--version", env=own, cwd=tmp_path)
    assert re.match(r"bicached \d+\.\d+\.\d+\ncommit \S+\ncompiler (gcc|clang) [\d.]+\ntorch \S+\n$", version)
    check_chat(command=[*without_tree, program], model=model, env=own, cwd=tmp_path)


def test_what_is_installed(tmp_path):
    run("cmake", "--install", BUILD, "--prefix", tmp_path)
    for name in ("share/bicached/configs/llada-8b.json", "share/bicached/configs/depth/llada-8b-instruct.json",
                 "share/bicached/deploy/systemd/bicached.service", "share/doc/bicached/README.md",
                 "share/doc/bicached/docs/operations.md"):
        assert (tmp_path / name).is_file(), name
    assert os.access(tmp_path / "share/bicached/deploy/healthcheck", os.X_OK)
    # Of the demonstration model nothing is installed, so neither are its settings.
    assert not list(tmp_path.rglob("demo.json"))


def test_a_torch_that_is_none_is_said(tmp_path):
    run("cmake", "--install", BUILD, "--prefix", tmp_path)
    done = subprocess.run([tmp_path / "bin/bicached", "--version"], capture_output=True, text=True,
                          env=environment(BICACHED_TORCH="/nowhere"), timeout=60)
    assert done.returncode == 2
    assert "BICACHED_TORCH is /nowhere, which has no lib/libtorch_cpu.so" in done.stderr


def test_pip_install_and_serve(tmp_path, torch):
    """In an empty environment. The program is built for the torch of .venv, which is of the version that the
    environment gets: the compiler's cache then has all objects, where pip's own copy has new paths every time."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    # Python names g++, the other builds c++: to the cache two compilers.
    cache = {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1", "CXX": "c++"}
    beside = sorted((ROOT / ".venv").glob("lib/python3*/site-packages/torch"))
    run(tmp_path / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
        f"-Ccmake.define.LIBTORCH_ROOT={beside[0]}", "-Ccmake.define.BICACHED_OFFLINE=ON", ".",
        cwd=ROOT, env=environment(**cache))
    command = tmp_path / "venv/bin/bicached"
    assert run(command, "--version", env=environment()).startswith("bicached ")
    check_chat(command=[command], cwd=tmp_path, env=environment())
