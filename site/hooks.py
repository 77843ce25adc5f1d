"""Hooks of MkDocs: the site has the repository's paths, so that a relative link works on both.

The pages of docs/ are on the site under docs/. What they link outside of docs/ comes along: Markdown files as pages,
and other files as pages with their text.
"""

import html
import re
from pathlib import Path
from posixpath import dirname, join, normpath

from mkdocs.structure.files import File, InclusionLevel

LANGUAGES = {".rs": "rust", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}
FENCE = re.compile(r"^ *(`{3,})")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")
MARKER = re.compile(r"([-*]|\d+\.) +(?=\S)")
MERMAID = re.compile(r"^```mermaid\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def slug(heading, separator="-"):
    """The anchor of a heading, as GitHub makes it."""
    kept = "".join(one for one in heading.strip().lower() if one.isalnum() or one in " -_")
    return kept.replace(" ", separator)


def prose(markdown):
    """The lines outside of blocks of code."""
    closing = ""
    for line in markdown.splitlines():
        if found := FENCE.match(line):
            closing = "" if closing and found[1].startswith(closing) else closing or found[1]
        elif not closing:
            yield line


def targets(place, markdown):
    """The files of the repository that a page links, by their paths from its root."""
    for line in prose(markdown):
        for link in LINK.findall(line):
            if "://" not in link:
                yield normpath(join(dirname(place), link))


def widened(markdown):
    """The same with lists for Python-Markdown: four columns for each level, and an empty line before a list.

    Items get an empty line between them where one of them has several blocks.
    """
    lines, levels, closing, tight = [], [], "", False
    for line in markdown.splitlines():
        text = line.lstrip(" ")
        indentation = len(line) - len(text)
        if not text:
            tight = False
            lines.append("")
            continue
        inside = bool(levels)
        while levels and not closing and indentation < levels[-1]:
            levels.pop()
        marker = None if closing else MARKER.match(text)
        if marker and lines and lines[-1] and not (inside and tight):
            lines.append("")
        lines.append(" " * max(indentation + 4 * len(levels) - (levels[-1] if levels else 0), 0) + text)
        if marker:
            levels.append(indentation + len(marker[0]))
            tight = True
        if found := FENCE.match(line):
            closing = "" if closing and found[1].startswith(closing) else closing or found[1]
    return "\n".join(lines) + "\n"


def diagram(found):
    """A diagram as its text, which needs no script: below a line that opens it."""
    return ('<details class="diagram"><summary>The diagram, as text for Mermaid</summary>'
            f"<pre><code>{html.escape(found[1])}</code></pre></details>\n")


def source_page(config, place, path):
    """A page with the text of a file that is not Markdown."""
    text = path.read_text()
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    language = LANGUAGES.get(path.suffix, "text")
    content = f"# {path.name}\n\n`{place}`\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"
    return File.generated(config, f"{place}.md", content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def on_config(config):
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files, *, config):
    root = Path(config.config_file_path).parent
    waiting = []
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
            waiting.append(f"docs/{file.src_uri}")
    known = set(waiting)
    while waiting:
        place = waiting.pop()
        path = root / place
        if path.suffix == ".md" or place.startswith("docs/"):
            files.append(File(place, str(root), config.site_dir, config.use_directory_urls))
        else:
            files.append(source_page(config, place, path))
        if path.suffix == ".md":
            # A link to a directory, or to nothing, is left for MkDocs to report.
            new = {one for one in targets(place, path.read_text()) if (root / one).is_file()} - known
            known |= new
            waiting.extend(sorted(new))
    return files


def on_page_markdown(markdown, *, page, config, files):
    if page.file.generated_by:
        return markdown

    def with_page(found):
        target = normpath(join(dirname(page.file.src_uri), found[0]))
        return f"{found[0]}.md" if files.get_file_from_path(f"{target}.md") else found[0]

    return widened(MERMAID.sub(diagram, LINK.sub(with_page, markdown)))
