"""Every `oci` command of the documents is one that the oci CLI accepts."""

import re
import shlex
import subprocess

import pytest
from conftest import REPOSITORY, TOOLS

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), *sorted((REPOSITORY / "deploy").rglob("*.md"))]


def commands():
    for page in PAGES:
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
            # Commands in a command are not the CLI's.
            text = re.sub(r"\$\((?!oci )[^()]*\)", "substituted", block.replace("\\\n", " "))
            for found in re.findall(r"(?m)(?:^\s*|\$\()(oci (?!-).*?)(?:\)\"?)?$", text):
                words = shlex.split(found)
                yield pytest.param(words, id=f"{page.name}: {' '.join(words[1:5])}")


FOUND = list(commands())


def test_the_pages_have_commands_of_the_oci_cli():
    assert len(FOUND) >= 6, FOUND


# With --help the CLI reads all options, and sends no request.
@pytest.mark.parametrize("words", FOUND)
def test_the_oci_cli_knows_every_option_of_a_documented_command(words):
    done = subprocess.run([TOOLS / "oci", *words[1:], "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr


def test_an_option_that_the_oci_cli_does_not_have_is_found():
    done = subprocess.run([TOOLS / "oci", "os", "ns", "get", "--no-such-option", "--help"], capture_output=True, text=True)
    assert done.returncode != 0
