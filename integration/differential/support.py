"""Writes what the references were seen to do into the table of docs/spec-support.md.

The columns runc and crun are taken from seen.json; the others are a person's. tests/spec_support.rs fails
where the two differ.
"""

HEAD = "| property | isorun | runc | crun | note | test |"
WORDS = {"yes": "yes", "taken": "taken", "refused": "refused", None: "–"}


def columns(line, seen):
    """A row of the table with the columns of the references as they were seen."""
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if len(cells) == 4:
        cells[2:2] = ["", ""]
    known = seen.get(cells[0].strip("`"), {})
    cells[2:4] = [WORDS[known.get("runc")], WORDS[known.get("crun")]]
    return "| " + " | ".join(cells) + " |\n"


def write(path, seen):
    """Fills the columns in, in a table that has them or has not yet."""
    lines = []
    for line in path.read_text().splitlines(keepends=True):
        if line.startswith("| `"):
            line = columns(line, seen)
        elif line.startswith("| property |"):
            line = HEAD + "\n"
        elif line.startswith("|---|"):
            line = "|---" * 6 + "|\n"
        lines.append(line)
    path.write_text("".join(lines))
