"""HTTP as other people's libraries, proxies and browsers speak it, in bytes."""

import http.client
import json
import signal
import socket
import time

import pytest

CHAT = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}).encode()
STREAMED = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True}).encode()


def request(method, path, body=b"", version="HTTP/1.1", **headers):
    fields = {"Host": "x", **({"Content-Length": str(len(body))} if body else {}),
              **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def status_of(answer):
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("option", ["close", "Close", "CLOSE", "keep-alive, close", "foo,  Close"])
def test_connection_options_in_any_case(http, option):
    began = time.monotonic()
    answer = http.raw(request("GET", "/health", Connection=option))
    assert status_of(answer) == 200
    assert time.monotonic() - began < 4, "an idle connection would be closed after five seconds"


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue", "100-CONTINUE"])
def test_expect_in_any_case(http, expect):
    with socket.create_connection(("127.0.0.1", http.port), timeout=30) as connection:
        connection.sendall(request("POST", CHAT, Expect=expect, Content_Length=str(len(BODY)), Connection="close"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert status_of(answer) == 200


@pytest.mark.parametrize("path", ["http://x/health", "HTTP://x:80/health", "http://x:1/v1/models", "https://x/health"])
def test_absolute_targets(http, path):
    assert status_of(http.raw(request("GET", path, Connection="close"))) == 200


@pytest.mark.parametrize("body", [BODY, STREAMED], ids=["plain", "streamed"])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_http_1_0_gets_no_chunks(http, path, body):
    answer = http.raw(request("POST", path, body, version="HTTP/1.0", Host=None))
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert status_of(answer) == 200
    assert b"transfer-encoding" not in head.lower()
    assert rest.startswith(b"{") or rest.startswith(b"data: ") or rest.startswith(b"event: ")


def test_empty_lines_before_a_request(http):
    answer = http.raw(b"\r\n\r\n" + request("GET", "/health") + b"\r\n" + request("GET", "/health", Connection="close"))
    assert answer.count(b"HTTP/1.1 200") == 2


def test_pipelined_requests_are_answered_in_order(http):
    answer = http.raw(request("GET", "/version") + request("POST", CHAT, BODY) + request("GET", "/health", Connection="close"))
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.index(b'"name":"bicached"') < answer.index(b"chat.completion") < answer.index(b'"status":"ok"')


@pytest.mark.parametrize("coding, status", [("identity", 200), ("Identity", 200), ("gzip", 415), ("br", 415), ("x", 415)])
def test_content_codings(http, coding, status):
    assert status_of(http.raw(request("POST", CHAT, BODY, Content_Encoding=coding, Connection="close"))) == status


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "text/plain",
                                  "application/x-www-form-urlencoded", None])
def test_a_body_is_json_whatever_it_is_called(http, kind):
    assert status_of(http.raw(request("POST", CHAT, BODY, Content_Type=kind, Connection="close"))) == 200


@pytest.mark.parametrize("rest", [b"\x00", b"\x00{}", b"x", b"{}", b"]", b"\xff"])
def test_bytes_behind_the_json_are_refused(http, rest):
    assert status_of(http.raw(request("POST", CHAT, BODY + rest, Connection="close"))) == 400


@pytest.mark.parametrize("rest", [b"", b"\r\n", b" \t\n"])
def test_white_space_behind_it_is_not(http, rest):
    assert status_of(http.raw(request("POST", CHAT, BODY + rest, Connection="close"))) == 200


def test_chunked_bodies_with_extensions_and_trailers(http):
    half = len(BODY) // 2
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in (BODY[:half], BODY[half:]))
    answer = http.raw(request("POST", CHAT, Transfer_Encoding="Chunked", Connection="close") + chunks + b"0\r\nA: b\r\n\r\n")
    assert status_of(answer) == 200


@pytest.mark.parametrize("lines", [
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{}",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length : 2\r\n\r\n{}",
    b"GET /health HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
    b"GET /he\x00alth HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n",
])
def test_ambiguous_framing_ends_the_connection(http, lines):
    answer = http.raw(lines)
    assert 400 <= status_of(answer) <= 505
    assert b"connection: close" in answer.lower()


def test_a_half_closed_client_still_reads_its_answer(http):
    with socket.create_connection(("127.0.0.1", http.port), timeout=60) as connection:
        connection.sendall(request("POST", CHAT, BODY))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert status_of(answer) == 200 and b"chat.completion" in answer


def test_keep_alive_is_as_announced(http):
    connection = http_connection(http)
    for _ in range(150):
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        announced = answer.getheader("Keep-Alive") or ""
        assert "max=" not in announced, "requests of a connection are not counted"


def http_connection(http_):
    return http.client.HTTPConnection("127.0.0.1", http_.port, timeout=60)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("path", [
    "/", "/health", "/v1/health", "/ping", "/ready", "/version", "/metrics", "/props", "/slots", "/model_info",
    "/get_model_info", "/server_info", "/get_server_info", "/models", "/v1/models", "/v1/models/", "//v1//models",
    "/v1/models/demo", "/v1/models?limit=5"])
def test_what_is_asked_of_a_server_is_there(http, method, path):
    answer = http.send(method, path)
    assert answer.status_code == 200
    assert bool(answer.content) == (method == "GET")


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions/", "/v1//chat/completions", "/v1/v1/chat/completions",
                                  "/v1/chat/completions?api-version=1"])
def test_every_spelling_of_a_path(http, path):
    assert http.post(path, json.loads(BODY)).status_code == 200


@pytest.mark.parametrize("path", ["/api/tags", "/v1/embeddings", "/v1", "/openai/deployments/demo/chat/completions"])
def test_what_is_not_there_says_so_in_json(http, path):
    answer = http.post(path, {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_what_is_refused_says_why_in_the_log(start_server, connect):
    running = start_server()
    http = connect(running.url)
    assert status_of(http.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")) == 400  # a TLS handshake begins
    assert http.get("/nowhere").status_code == 404
    running.stop()
    lines = [line.strip().split(" ms, ") for line in running.lines if " ms, " in line]
    assert [reason for _, reason in lines] == [
        "this is no HTTP request; the server speaks HTTP without TLS", "there is no route /nowhere"]
    assert " - - 400 " in lines[0][0] and " GET /nowhere 404 " in lines[1][0]


# --- pages in a browser --------------------------------------------------------------------------

PREFLIGHT = {"origin": "http://localhost:3000", "access_control_request_method": "POST",
             "access_control_request_headers": "authorization,content-type,x-stainless-lang"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("first-key\n")
    return path


@pytest.fixture
def guarded(start_server, connect, keys):
    keys.write_text("first-key\n")
    running = start_server("--api-key-file", str(keys))
    found = connect(running.url)
    found.process = running.process
    return found


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/completions", "/v1/responses", "/v1/messages", "/chat/completions"])
def test_preflights(http, path):
    answer = http.send("OPTIONS", path, **PREFLIGHT)
    assert answer.status_code in (200, 204)
    assert answer.headers["access-control-allow-origin"] == PREFLIGHT["origin"]
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert {"authorization", "content-type", "x-stainless-lang"} <= {name.strip() for name in allowed.split(",")}


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://chat.example.com", "tauri://localhost",
                                    "chrome-extension://abc", "null"])
def test_every_answer_may_be_read(http, origin):
    answers = [http.get("/v1/models", origin=origin), http.post(CHAT, {"temperature": 9}, origin=origin),
               http.post(CHAT, json.loads(STREAMED), origin=origin), http.get("/nowhere", origin=origin)]
    assert [a.status_code for a in answers] == [200, 400, 200, 404]
    assert {a.headers["access-control-allow-origin"] for a in answers} == {origin}


def test_keys_in_every_header_that_clients_use(guarded):
    assert guarded.send("OPTIONS", CHAT, **PREFLIGHT).headers["access-control-allow-origin"]
    for headers in ({"authorization": "Bearer first-key"}, {"authorization": "bearer  first-key"},
                    {"x_api_key": "first-key"}, {"api_key": "first-key"}):
        assert guarded.get("/v1/models", **headers).status_code == 200, headers
    for headers in ({}, {"authorization": "Bearer other"}, {"x_api_key": "other"}, {"authorization": "Basic first-key"}):
        refused = guarded.get("/v1/models", origin="http://localhost:3000", **headers)
        assert refused.status_code == 401, headers
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.headers["access-control-allow-origin"] == "http://localhost:3000"
    twice = request("GET", "/v1/models", Authorization="Bearer first-key\r\nAuthorization: Bearer first-key", Connection="close")
    assert status_of(guarded.raw(twice)) == 200
    other = request("GET", "/v1/models", Authorization="Bearer first-key\r\nAuthorization: Bearer other", Connection="close")
    assert status_of(guarded.raw(other)) == 400


def test_keys_are_read_anew_on_sighup(guarded, keys):
    keys.write_text("second-key\n")
    guarded.process.send_signal(signal.SIGHUP)
    limit = time.monotonic() + 30
    while guarded.get("/v1/models", x_api_key="second-key").status_code != 200:
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert guarded.get("/v1/models", x_api_key="first-key").status_code == 401
