"""What `mkdocs build` needs beyond mkdocs.yml: the package under its name, pages that lie outside docs/, the notebook
as a page, and a check that the finished site loads nothing from another host."""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).resolve().parents[2]
# The repository root is the package `sama`, whatever its folder is called: griffe finds it here, through links
PACKAGE = ROOT / "build" / "import" / "sama"

HOME = "README.md"
NOTEBOOK, NOTEBOOK_PAGE = "docs/tutorial.ipynb", "tutorial.md"
SHOWN = (".md", ".png", ".gif", ".webp", ".svg", ".jpg", ".mp4")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
SOURCE = re.compile(r'(?<=src=")(?P<target>[^"#]+)(?=")')
EXTERNAL = re.compile(
    r'<(?:script|img|iframe|video|audio|source)\b[^>]*\bsrc="(?:https?:)?//[^"]*"'
    r'|<link\b(?![^>]*\brel="(?:canonical|edit)")[^>]*\bhref="(?:https?:)?//[^"]*"'
)
EXTERNAL_STYLE = re.compile(r"(?:@import\s+|url\(\s*)[\"']?(?:https?:)?//[^)\"';]*")


def on_startup(command: str, dirty: bool) -> None:
    """Link the modules and packages of the root below `build/import/sama`, before mkdocstrings looks for the path."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for old in PACKAGE.iterdir():
        old.unlink()
    for part in [*ROOT.glob("*.py"), *(file.parent for file in ROOT.glob("*/__init__.py"))]:
        (PACKAGE / part.name).symlink_to(part)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the home page, and every page and picture outside docs/ that a page links to."""
    waiting, seen = [HOME, *(f"docs/{file.src_uri}" for file in files.documentation_pages())], set()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if not source.startswith("docs/"):
            files.append(File.generated(config, source, abs_src_path=str(ROOT / source)))
        if source.endswith(".md"):
            text = (ROOT / source).read_text(encoding="utf-8")
            targets = [found["target"] for pattern in (LINK, SOURCE) for found in pattern.finditer(text)]
            waiting += filter(is_shown, (resolve(source, target) for target in targets))
    text = notebook_markdown(json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8")))
    files.append(File.generated(config, NOTEBOOK_PAGE, content=text))
    return files


def notebook_markdown(notebook: dict) -> str:
    """A notebook as Markdown: its text, its code, and what the code showed."""
    found = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        found.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/jpeg" in data:
                found.append(f"![What the cell shows](data:image/jpeg;base64,{data['image/jpeg']})")
            else:
                found.append("```text\n" + "".join(output.get("text") or data["text/plain"]).rstrip() + "\n```")
    return "\n\n".join(found) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point relative links at where their targets lie in the site; a link to code becomes its text."""
    outside = page.file.generated_by is not None
    source = page.file.src_uri if outside else f"docs/{page.file.src_uri}"

    def replaced(found: re.Match) -> str:
        target = resolve(source, found["target"])
        if target == NOTEBOOK:
            start = posixpath.dirname(page.file.src_uri)
            return f"[{found['text']}]({posixpath.relpath(NOTEBOOK_PAGE, start or '.')})"
        if not target or target.startswith("docs/hooks/"):
            return found[0]
        if not (ROOT / target).exists():
            return found[0]  # mkdocs reports it
        if not is_shown(target):
            return found["text"]
        start = posixpath.dirname(page.file.src_uri)
        moved = posixpath.relpath(target.removeprefix("docs/"), start or ".")
        return f"{found['image']}[{found['text']}]({moved}{found['anchor'] or ''})"

    return LINK.sub(replaced, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name source files as the repository does, not by the links."""
    return html.replace("build/import/sama/", "")


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site whose pages or styles load something from another host."""
    found = []
    for file in sorted(Path(config.site_dir).rglob("*")):
        pattern = {".html": EXTERNAL, ".css": EXTERNAL_STYLE}.get(file.suffix)
        if pattern is not None:
            text = file.read_text(encoding="utf-8")
            found += [f"{file.relative_to(config.site_dir)}: {one[0]}" for one in pattern.finditer(text)]
    if found:
        raise PluginError("The site loads from other hosts:\n" + "\n".join(found))


def resolve(source: str, target: str) -> str:
    """Path below the root that a link in `source` leads to; empty for an address, an anchor or a path outside."""
    if re.match(r"[a-z]+:|/", target):
        return ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return "" if path.startswith("..") else path


def is_shown(path: str) -> bool:
    """Whether the site has a copy of this file of the repository."""
    return path.endswith(SHOWN) and (ROOT / path).is_file()
