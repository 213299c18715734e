"""Servers and model folders of one test."""

import json

import pytest

from programs import DEMO
from server_process import Process


@pytest.fixture
def serve(tmp_path):
    started = []

    def start(*flags, wait=True, **options):
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Process(folder, *flags, **options))
        return started[-1].wait() if wait else started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture
def variant(tmp_path):
    """A model folder whose files are the demonstration model's but for some: text, bytes, or None for none."""

    def make(**changed):
        folder = tmp_path / "model"
        folder.mkdir()
        for path in DEMO.iterdir():
            if path.is_file():
                (folder / path.name).symlink_to(path)
        for name, value in changed.items():
            path = folder / name.replace("__", ".")
            path.unlink(missing_ok=True)
            if isinstance(value, bytes):
                path.write_bytes(value)
            elif value is not None:
                path.write_text(json.dumps(value))
        return folder

    return make
