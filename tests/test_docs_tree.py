"""README's tree names every file of the package once, and none that does not exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def listed() -> list[str]:
    """Paths below llmshearing/ in README's tree."""
    text = (ROOT / "README.md").read_text()
    block = text[text.index("llmshearing/\n  ") :].split("```")[0]
    room, paths = "", []
    for indent, name in re.findall(r"^( +)(\S+)", block, re.MULTILINE):
        if name.endswith("/"):
            room = name
        else:
            paths.append(name if len(indent) == 2 else room + name)
    return paths


def test_readme_lists_every_file_of_the_package_once() -> None:
    package = ROOT / "llmshearing"
    files = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    found = listed()
    assert sorted(found) == sorted(set(found))
    assert set(found) == files, f"missing: {sorted(files - set(found))}; gone: {sorted(set(found) - files)}"
