"""Links between the documents, and the commands that they name."""

import re
from pathlib import Path

import pytest
import typer.main

import gateway.cli.main
import nbd_client.cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """A page's headings as GitHub links to them, and its explicit anchors."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert [path.name for path in pages if f"({path.name})" not in index] == []
    assert "docs/README.md" in (ROOT / "README.md").read_text()


def commands(app: typer.Typer) -> set[str]:
    """All commands, those of groups with their group."""
    root = typer.main.get_command(app)
    found = set()
    for title, command in root.commands.items():
        below = getattr(command, "commands", None)
        found |= {f"{title} {inner}" for inner in below} if below else {title}
    return found


KNOWN = {
    "blockgate": commands(gateway.cli.main.app),
    "blockgate-nbd": commands(nbd_client.cli.app),
}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_a_page_names_exists(page):
    text = page.read_text()
    code = "\n".join(re.findall(r"^```sh[^\n]*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    code += "\n" + "\n".join(re.findall(r"`([^`\n]+)`", prose(text)))
    named = re.findall(r"(?:^ *|&& |; )(blockgate(?:-nbd)?) ([a-z]+)(?: ([a-z]+))?", code, flags=re.MULTILINE)
    for program, first, second in named:
        known = KNOWN[program]
        group = any(command.startswith(f"{first} ") for command in known)
        # A group may be named alone.
        assert first in known or (group and (not second or f"{first} {second}" in known)), (first, second)
