"""The real server with the demo model, as clients of other projects meet it."""

import contextlib
import json
import socket

import httpx
import pytest

SHOP = """You are the assistant of the shop Cedar. Answer briefly. Price list:
- red mug: 5 coins, aisle 2, stock 11
- blue lamp: 19 coins, aisle 4, stock 3"""
QUESTION = "How much is the blue lamp?"
ANSWER = "The blue lamp costs 19 coins."


class Http:
    """One server, in JSON and in raw bytes."""

    def __init__(self, url):
        self.url = url
        self.port = int(url.rsplit(":", 1)[1])
        self._client = httpx.Client(base_url=url, timeout=120)

    def send(self, method, path, body=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._client.request(method, path, json=body, headers=headers)

    def get(self, path, **headers):
        return self.send("GET", path, **headers)

    def post(self, path, body, **headers):
        return self.send("POST", path, body, **headers)

    def events(self, path, body, **headers):
        """A stream's events as (name, JSON); the name is None where the form has none."""
        answer = self.post(path, {**body, "stream": True}, **headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events, name = [], None
        for line in answer.text.splitlines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                events.append((name, value if value == "[DONE]" else json.loads(value)))
                name = None
        return events

    def raw(self, data, timeout=30):
        """All that comes back until the server closes the connection."""
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port))) as connection:
            connection.settimeout(timeout)
            connection.sendall(data)
            received = b""
            while piece := connection.recv(65536):
                received += piece
            return received


@pytest.fixture(scope="session")
def http(server):
    return Http(server.url)


@pytest.fixture
def connect():
    return Http


@pytest.fixture(scope="session")
def shop():
    """A question, and what the demo model answers."""
    return {"system": SHOP, "question": QUESTION, "answer": ANSWER,
            "messages": [{"role": "system", "content": SHOP}, {"role": "user", "content": QUESTION}]}
