"""Real servers for all tests of the programs. Being here also lets tests import what stands in this folder."""

import pytest
from programs import Server


@pytest.fixture(scope="session")
def server():
    running = Server()
    yield running
    assert running.stop() == 0, "".join(running.lines[-50:])


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture
def start_server():
    started = []

    def start(*flags):
        started.append(Server(*flags))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.kill()
