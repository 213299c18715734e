"""The program as a user meets it: help, mistakes, info, generate."""

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest
from programs import DEMO, PRICES, PROGRAM, fails, run, run_server


def test_help_groups_the_settings():
    done = run("serve", "--help")
    assert done.returncode == 0
    for text in ("Model:", "Server:", "Engine:", "Decoding defaults:", "--kv-cache-bytes", "--config"):
        assert text in done.stdout


def test_commands_of_the_lab_are_handed_over():
    done = run("eval", DEMO, "--data", "no/such/file")
    assert done.returncode == 2
    assert done.stderr.startswith("eval is a command of bicached-lab\nbicached-lab: ")
    assert "no/such/file" in done.stderr


def test_version():
    assert run("--version").stdout.startswith("bicached ")


def test_a_working_folder_that_was_deleted(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    for command in ("serve --model", "info", "generate --prompt hi"):
        done = subprocess.run(["sh", "-c", f'cd {gone} && rmdir {gone} && exec {PROGRAM} {command} {DEMO}'],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "the working folder was deleted" in done.stderr
        gone.mkdir()


def test_settings_of_the_environment_take_effect():
    done = run("settings", "--max-queued", "5", env={"BICACHED_PORT": "99"})
    settings = json.loads(done.stdout)
    assert settings["port"] == 99
    assert settings["max_queued"] == 5


@pytest.mark.parametrize("arguments, expected", [
    ([], "subcommand"),
    (["serve", "--prot", "1"], "--port"),
    (["serve", "--port", "99999", "--model", DEMO], "65535"),
    (["serve"], "--model"),
    (["serve", "--model", "no/such/folder"], "no/such/folder"),
    (["serve", "--model", DEMO, "--config", "no/such/file"], "no/such/file"),
    (["serve", "--model", DEMO, "--algorithm", "best"], "low_confidence"),
    (["generate", DEMO], "--prompt"),
    (["generate", DEMO, "--prompt", "a", "--chat", "b"], "one of"),
    (["generate", DEMO, "--tokens", "1,x"], "'x'"),
    (["generate", DEMO, "--tokens", "999999"], "999999"),
    (["generate", DEMO, "--prompt", "a", "--top-p", "2"], "top_p"),
    (["info", DEMO, "--canvases", "0"], "--canvases"),
])
def test_mistakes_end_with_status_2_and_say_what_is_wrong(arguments, expected):
    assert expected in fails(*arguments)


def test_unknown_variable_names_the_nearest():
    assert "BICACHED_PORT" in fails("settings", env={"BICACHED_PROT": "1"})


def test_info_of_the_demo():
    done = run("info", DEMO, "--json")
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)
    assert info["layers"] == 12
    assert info["vocab_size"] == 2048
    assert info["decoder"]["algorithm"] == "threshold"
    assert info["decoder"]["params"] == {"threshold": 0.9}
    assert info["decoder"]["block_length"] == 32
    assert info["memory"]["kv_bytes"] == 16 * 1024 * info["kv_bytes_per_token"]
    assert "12 of width 256" in run("info", DEMO).stdout


def copy_of_demo(folder, without=()):
    for path in DEMO.iterdir():
        if path.is_file() and path.name not in without:
            shutil.copy(path, folder / path.name)
    return folder


def test_a_repository_is_found_in_the_cache_of_hugging_face(tmp_path):
    repository = tmp_path / "hub" / "models--org--demo-8b"
    (repository / "blobs").mkdir(parents=True)
    copy_of_demo(repository / "blobs")
    old, new = (repository / "snapshots" / commit for commit in ("0" * 40, "1" * 40))

    def download(snapshot):
        snapshot.mkdir(parents=True)
        for path in (repository / "blobs").iterdir():
            (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")

    def name_of(model, **variables):
        done = run("info", model, "--json", env={"HF_HUB_CACHE": "", "HF_HOME": "", **variables})
        return json.loads(done.stdout)["name"] if done.returncode == 0 else done.stderr

    home = {"HF_HOME": str(tmp_path)}
    said = name_of("org/demo-8b", **home)
    assert "no such folder" in said and str(tmp_path / "hub") in said and "`hf download org/demo-8b`" in said
    download(old)
    assert name_of("org/demo-8b", **home) == "org/demo-8b"
    assert name_of("org/demo-8b", HF_HUB_CACHE=str(tmp_path / "hub")) == "org/demo-8b"
    download(new)
    assert "no snapshot" in name_of("org/demo-8b", **home), "which of the two?"
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(new.name)
    (old / "config.json").unlink()
    assert name_of("org/demo-8b", **home) == "org/demo-8b"
    assert "no such folder" in name_of("org/other", **home)
    assert "hf download" not in name_of("no/such/folder", **home)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_broken_folders_are_refused(tmp_path, name, damage):
    folder = copy_of_demo(tmp_path, without=[name] if damage == "missing" else [])
    if damage == "empty":
        (folder / name).write_bytes(b"")
    if damage == "cut":
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    assert fails("info", folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = copy_of_demo(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 2048, "content": "<|one_too_many|>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "2048" in fails("info", folder)


def test_generate_answers_a_chat():
    for given, stdin in ((PRICES[1]["content"], ""), ("-", PRICES[1]["content"])):
        done = run("generate", DEMO, "--system", PRICES[0]["content"], "--chat", given, stdin=stdin)
        assert (done.returncode, done.stdout) == (0, "The blue lamp costs 19 coins.\n"), done


def test_generate_samples_as_the_models_file_says(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    for file in DEMO.iterdir():
        if file.is_file() and file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    own = json.loads((DEMO / "generation_config.json").read_text())

    def texts(fields, *flags, seeds=(1, 2, 3)):
        (folder / "generation_config.json").write_text(json.dumps({**own, **fields}))
        asked = ["generate", folder, "--prompt", "Once upon", "--max-tokens", "24", *flags]
        return [run(*asked, "--seed", seed).stdout for seed in seeds]

    greedy = texts({}, "--ignore-eos", seeds=[1])[0]
    hot = {"do_sample": True, "temperature": 2.0}
    drawn = texts(hot, "--ignore-eos")
    assert len({greedy, *drawn}) == 4
    for narrow in ({"top_k": 1}, {"top_p": 0.0001}, {"min_p": 1.0}):
        assert texts({**hot, **narrow}, "--ignore-eos", seeds=[2]) == [greedy], narrow
    assert texts({**hot, "top_k": 1}, "--ignore-eos", "--top-k", "0", seeds=[2]) == [drawn[1]], "a flag goes first"
    assert texts({"repetition_penalty": 5.0}, "--ignore-eos", seeds=[1]) != [greedy]
    assert len(texts({"min_new_tokens": 20}, seeds=[1])[0]) > len(texts({}, seeds=[1])[0])


def test_generate_tells_ids_commits_and_timings():
    done = run("generate", DEMO, "--system", PRICES[0]["content"], "--chat", PRICES[1]["content"], "--json")
    told = json.loads(done.stdout)
    assert told["text"].strip() == "The blue lamp costs 19 coins."
    assert told["completion_tokens"] == len(told["ids"])
    assert 1 <= len(told["commits"]) <= told["forwards"]
    positions = [commit["position"] for forward in told["commits"] for commit in forward]
    assert len(positions) == len(set(positions))
    assert [told["canvas"][i] for i in range(len(told["ids"]))] == told["ids"]
    assert told["timings_ms"]["total"] > 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_serve_prints_a_command_that_works_and_ends_on_sigterm():
    server, (url_line, curl) = run_server("--port", "0")
    try:
        assert "http://127.0.0.1:" in url_line
        done = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=600)
        answer = json.loads(done.stdout)
        assert answer["choices"][0]["message"]["content"] == "The blue lamp costs 19 coins."
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=300) == 0
    finally:
        server.kill()
        server.stdout.close()


def test_two_servers_on_one_port_are_refused():
    port = str(free_port())
    server, _ = run_server("--port", port)
    try:
        assert port in fails("serve", "--model", DEMO, "--port", port)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_sigterm_while_nothing_is_sent_on_an_open_connection():
    port = free_port()
    server, _ = run_server("--port", str(port))
    try:
        with socket.create_connection(("127.0.0.1", port)):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=300).read()
            began = time.monotonic()
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=300) == 0
            assert time.monotonic() - began < 15
    finally:
        server.kill()
        server.stdout.close()
