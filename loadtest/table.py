"""Tables in Markdown."""


def table(lines):
    """The first line is the heads."""
    written = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([written[0], "|" + " --- |" * len(lines[0]), *written[1:]])
