"""The site that `make site` has built: complete, without files of other hosts, with links that lead somewhere."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import hooks
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SITE = REPOSITORY / "target/site"
PAGES = sorted(SITE.rglob("*.html"))

# Attributes by which a browser loads a file on its own.
LOADED = {("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "src"), ("source", "srcset"), ("iframe", "src"),
          ("object", "data"), ("video", "src"), ("audio", "src"), ("embed", "src"), ("use", "href"), ("image", "href")}


class Page(HTMLParser):
    """What a page loads, links and names."""

    def __init__(self, path):
        super().__init__()
        self.loaded, self.links, self.ids, self.classes, self.styles = [], [], set(), set(), []
        self.in_style = False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.in_style = tag == "style"
        self.ids.update(filter(None, (attributes.get("id"), attributes.get("name") if tag == "a" else None)))
        self.classes.update((attributes.get("class") or "").split())
        self.styles.append(attributes.get("style") or "")
        self.loaded += [value for name, value in attributes.items() if (tag, name) in LOADED]
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag == "link" and attributes.get("href") and attributes.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(attributes["href"])

    def handle_data(self, data):
        if self.in_style:
            self.styles.append(data)


@pytest.fixture(scope="session")
def pages():
    assert len(PAGES) > 40, "run `make site`"
    return {path: Page(path) for path in PAGES}


def elsewhere(address):
    return bool(urlsplit(address).netloc)


def test_every_page_of_the_documentation_is_on_the_site():
    for page in (REPOSITORY / "docs").rglob("*.md"):
        name = page.relative_to(REPOSITORY).with_suffix("")
        built = SITE / (name.parent if name.name == "README" else name) / "index.html"
        assert built.is_file(), f"{page.name} is not there"


def test_no_page_loads_a_file_of_another_host(pages):
    loaded = 0
    for path, page in pages.items():
        for address in page.loaded:
            assert not elsewhere(address), f"{path.relative_to(SITE)} loads {address}"
            loaded += 1
        found = [one for style in page.styles for one in re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", style)]
        assert not any(elsewhere("".join(one).strip("'\"")) for one in found), path
        # The theme would load Mermaid from another host for these.
        assert "mermaid" not in page.classes, path
    assert loaded > len(pages)
    for path in SITE.rglob("*.css"):
        for address in re.findall(r"url\(([^)]*)\)", path.read_text()):
            assert not elsewhere(address.strip("'\"")), f"{path.relative_to(SITE)}: {address}"
        assert "@import" not in path.read_text(), path


def test_every_link_and_fragment_leads_somewhere(pages):
    seen = fragments = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            # Paths of the page for errors are absolute, as it is served for any path.
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
                target = target / "index.html" if target.is_dir() else target
            place = f"{path.relative_to(SITE)}: {link}"
            assert target.is_file(), f"{place} leads nowhere"
            # A fragment of the theme's own begins with two underscores.
            if parts.fragment and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].ids, f"{place}: no such heading"
                fragments += 1
            seen += 1
    assert seen > 1000 and fragments > 300, (seen, fragments)


def test_no_page_shows_markdown():
    for path in PAGES:
        article = path.read_text().split("<article", 1)[-1].split("</article>")[0]
        article = re.sub(r"<(pre|code)\b.*?</\1>", "", article, flags=re.DOTALL)
        for paragraph in re.findall(r"<p>(.*?)</p>", article, re.DOTALL):
            text = re.sub(r"<[^>]*>", "", paragraph)
            found = re.search(r"```|\*\*|\]\(|\n *([-*|] |\d+\. )", text)
            assert not found, f"{path.relative_to(SITE)}: {text[found.start():][:60]}"


def test_a_manifest_that_pages_link_is_a_page_with_its_text():
    path = "deploy/examples/inline-volume.yaml"
    page = (SITE / path / "index.html").read_text()
    text = re.sub(r"<[^>]*>", "", page)
    assert "ai-model-cache" in text and "driver: oci-model-csi.dev" in text


def calculated(**changed):
    """The results of docs/assets/cost.js for its own fields, some of them changed."""
    node = shutil.which("node")
    assert node, "Node is missing: install Debian's nodejs"
    script = """
        const { FIELDS, cost } = require(process.argv[1]);
        const input = Object.fromEntries(FIELDS.map((field) => [field.name, field.value]));
        console.log(JSON.stringify(cost(Object.assign(input, JSON.parse(process.argv[2])))));
    """
    path = REPOSITORY / "docs/assets/cost.js"
    done = subprocess.run([node, "-e", script, str(path), json.dumps(changed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_calculator_begins_with_the_example_of_the_page():
    text = (REPOSITORY / "docs/cost.md").read_text()
    example = text.split("## An example")[1].split("```")[1]
    stated = [float(line.split("=")[1].replace("USD", "")) for line in example.splitlines() if "=" in line]
    assert len(stated) == 4
    results = calculated()
    assert [round(results[name], 2) for name in ("storage", "seconds", "gpuHours", "saved")] == stated
    assert "0.0255 USD" in text


def test_the_calculator_follows_the_formula():
    results = calculated(size=10, versions=2, storagePrice=0.01, hits=36, rate=0.5, gpus=1, gpuPrice=3)
    assert results == pytest.approx({"storage": 0.2, "seconds": 20, "gpuHours": 0.2, "saved": 0.6})
    assert calculated(hits=0)["saved"] == 0


@pytest.mark.parametrize("changed", [{"rate": 0}, {"size": -1}, {"gpus": None}])
def test_the_calculator_has_no_result_for_impossible_numbers(changed):
    assert calculated(**changed) is None


LISTS = """Text
- one
  more

  ```sh
  a
    b
  ```
  - nested
    more
- two

1. first

   second paragraph
"""
WIDENED = """Text

- one
    more

    ```sh
    a
      b
    ```

    - nested
        more
- two

1. first

    second paragraph
"""


def test_lists_get_the_indentation_that_python_markdown_wants():
    assert hooks.widened(LISTS) == WIDENED


def test_lines_of_code_are_no_lists_and_no_links():
    code = "```sh\n- a\n- [x](y.md)\n```\n"
    assert hooks.widened(code) == code
    assert list(hooks.targets("docs/a.md", code + "[b](../c.md#d) [e](https://f)\n")) == ["c.md"]


@pytest.mark.parametrize("heading, anchor", [
    ("Pods' own identities", "pods-own-identities"), ("1. Cluster", "1-cluster"), ("`a_b` – c", "a_b--c")])
def test_anchors_are_those_of_the_repository_host(heading, anchor):
    assert hooks.slug(heading.replace("`", "")) == anchor


BROKEN = {
    "a link to nothing": ("[a](nothing.md)", [], "nothing.md"),
    "a link to a directory": ("[a](../deploy/)", [], "../deploy/"),
    "an anchor that is not there": ("[a](two.md#nothing)", [], "#nothing"),
    "a page outside of the navigation": ("text", ["two.md"], "two.md"),
}


@pytest.mark.parametrize("text, left_out, message", BROKEN.values(), ids=BROKEN)
def test_a_defect_fails_the_build(tmp_path, text, left_out, message):
    configuration = (REPOSITORY / "mkdocs.yml").read_text().split("\nnav:\n")[0]
    names = [name for name in ("one.md", "two.md") if name not in left_out]
    configuration += "\nnav:\n" + "".join(f"- docs/{name}\n" for name in names)
    (tmp_path / "mkdocs.yml").write_text(configuration)
    (tmp_path / "site").mkdir()
    (tmp_path / "docs/assets").mkdir(parents=True)
    (tmp_path / "deploy").mkdir()
    shutil.copy(REPOSITORY / "site/hooks.py", tmp_path / "site")
    (tmp_path / "docs/one.md").write_text(f"# One\n\n{text}\n")
    (tmp_path / "docs/two.md").write_text("# Two\n")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
