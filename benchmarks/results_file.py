"""benchmarks/RESULTS.md: a part for every script, each written by its own script alone."""

from pathlib import Path

PATH = Path(__file__).resolve().parent / "RESULTS.md"


def write_part(title: str, text: str, path: Path = PATH) -> None:
    """Put `# title` and the text in the place of the part of that title, or at the end."""
    parts = path.read_text(encoding="utf-8").split("\n# ") if path.exists() else []
    parts = [p.removeprefix("# ").strip() for p in parts]
    new = f"{title}\n\n{text.strip()}"
    old = next((i for i, p in enumerate(parts) if p.split("\n")[0] == title), None)
    if old is None:
        parts.append(new)
    else:
        parts[old] = new
    path.write_text("\n\n".join(f"# {p}" for p in parts) + "\n", encoding="utf-8")
    print(f"# {new}")
