"""The documentation is true as far as a program can tell: links lead somewhere, generated parts are as generated,
sentences can be read, and the examples of README run against a server.

Blocks ```sh and ```python of README run, unless `<!-- not run: WHY -->` stands before them. With
`<!-- prints: TEXT -->` before a block, its output must hold that text.
"""

import functools
import os
import pathlib
import re
import subprocess
import sys

import pytest
from programs import ENVIRONMENT, PROGRAM, ROOT, Server

MAX_README_LINES = 180
MAX_WORDS = 30
LIMIT_S = 120  # of a block: far more than it takes
FENCE = re.compile(r"^```.*?^```[^\n]*$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
IGNORED = {"build", "node_modules"}


def markdown_files():
    """Every page of the project, relative to its root."""
    pages = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in IGNORED]
        pages += [pathlib.Path(folder, name).relative_to(ROOT) for name in files if name.endswith(".md")]
    return sorted(pages)


def prose_pages():
    named = {pathlib.Path(name) for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "src/README.md")}
    return [page for page in markdown_files() if page in named or page.parts[0] == "docs"]


@functools.cache
def without_code(page):
    """The text of a page without blocks of code and comments; as many lines as before."""
    blank = lambda match: "\n" * match.group().count("\n")
    text = COMMENT.sub(blank, FENCE.sub(blank, (ROOT / page).read_text(encoding="utf-8")))
    lines = text.split("\n")
    for i, line in enumerate(lines):
        # Indented code; a line that goes on with an item is indented less.
        if line.startswith("    "):
            lines[i] = ""
    return "\n".join(lines)


# --- Links ---------------------------------------------------------------------------------------


def anchors(page):
    """As GitHub makes them of headings."""
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", without_code(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while (slug if number == 0 else f"{slug}-{number}") in found:
            number += 1
        found.add(slug if number == 0 else f"{slug}-{number}")
    return found


def links(page):
    text = re.sub(r"`[^`\n]*`", "", without_code(page))
    return re.findall(r"\]\(([^)\s]+)\)", text)


def broken_links(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page.parent / target).resolve() if target else ROOT / page
        if not path.exists():
            yield f"{page}: {link}: there is no such file"
        elif anchor and anchor not in anchors(path.relative_to(ROOT)):
            yield f"{page}: {link}: there is no such heading"


@pytest.mark.parametrize("page", markdown_files(), ids=str)
def test_links_lead_somewhere(page):
    assert list(broken_links(page)) == []


def test_broken_links_are_found(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("# A `b`c\n[x](b.md) [y](#a-bc) [z](#no) [u](a.md#a-bc)\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    without_code.cache_clear()
    try:
        found = list(broken_links(pathlib.Path("a.md")))
    finally:
        without_code.cache_clear()
    assert found == ["a.md: b.md: there is no such file", "a.md: #no: there is no such heading"]


# --- Prose ---------------------------------------------------------------------------------------


def paragraphs(page):
    """(line number, text) of paragraphs and items of lists; no headings, no tables."""
    begin, words = 0, []
    for number, line in enumerate(without_code(page).split("\n"), 1):
        is_item = re.match(r"\s*([-*]|\d+\.) ", line)
        is_other = line.startswith(("|", "#", "![")) or not line.strip()
        if (is_item or is_other) and words:
            yield begin, " ".join(words)
            words = []
        if is_other:
            continue
        if not words:
            begin = number
        words.append(re.sub(r"^\s*([-*]|\d+\.) ", "", line).strip())
    if words:
        yield begin, " ".join(words)


def long_sentences(page):
    for number, text in paragraphs(page):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
        text = re.sub(r"`[^`]*`", "`", text)  # a name is no word
        for sentence in re.split(r"(?<=[.!?])[*_)\"]*\s+", text):
            num_words = len(re.findall(r"[^\W_][\w'.,%-]*", sentence))
            if num_words > MAX_WORDS:
                yield f"{page}:{number}: {num_words} words: {sentence}"


@pytest.mark.parametrize("page", prose_pages(), ids=str)
def test_sentences_can_be_read(page):
    assert list(long_sentences(page)) == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


# --- What follows from the code ------------------------------------------------------------------


def test_settings_page_is_generated():
    command = [PROGRAM, "settings", "--markdown"]
    made = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    begin = "<!-- settings: made by `bicached settings --markdown` -->\n"
    assert page.split(begin)[1].split("<!-- end of settings -->")[0] == made


def test_comments_name_sections_of_the_design_page():
    sections = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert sections
    for folder in ("src", "include", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix not in (".h", ".cpp", ".cu"):
                continue
            for number in re.findall(r"DESIGN (\d+)", path.read_text(encoding="utf-8")):
                assert number in sections, f"{path} names section {number} of docs/design.md"


def test_every_route_is_on_the_api_page():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    routes = re.findall(r'^\s*\{"(?:GET|POST|DELETE)", "([^"]+)"', (ROOT / "src/http/api.cpp").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(routes) > 20
    assert [route for route in routes if f"{route}`" not in page] == []


def test_every_error_code_is_on_the_api_page():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    source = (ROOT / "src/http/errors.cpp").read_text(encoding="utf-8")
    codes = set(re.findall(r'return \{\d+, [^,]+, "(\w+)"', source))
    assert len(codes) > 8
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []


# --- README's examples ---------------------------------------------------------------------------


def blocks():
    """(language, code, text that it must print) of those that run."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"(?:<!-- (not run|prints): ([^\n]*?) -->\n)?^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        mark, note, language, code = match.groups()
        if mark != "not run":
            found.append(pytest.param(language, code, note or "", id=f"line {text.count(chr(10), 0, match.start()) + 1}"))
    return found


@pytest.fixture(scope="module")
def url():
    server = Server()
    yield server.url
    assert server.stop() == 0, "".join(server.lines[-50:])


@pytest.mark.parametrize("language, code, prints", blocks())
def test_examples_of_the_readme_run(language, code, prints, url):
    code = code.replace("http://127.0.0.1:8080", url).replace("build/release/bicached", PROGRAM)
    if language == "sh":
        code = 'set -euo pipefail\ncurl() { command curl -sS --fail-with-body "$@"; }\n' + code
    command = ["bash", "-c", code] if language == "sh" else [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT_S)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip()
    assert prints in run.stdout


def test_readme_has_examples_that_run():
    assert len(blocks()) >= 5
