"""tests/prose.py finds words of tests/words.yaml in prose, and nothing in code."""

import pytest

from tests import prose

WORD = "for " + "want of"


def check(path: str, text: str) -> list[str]:
    return list(prose.mistakes(path, text, prose.register()))


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        ("docs/a.md", f"# Title\n\nNot tested {WORD} a GPU.\n", 3),
        ("pipeline/a.py", f'"""Title.\n\nNot tested {WORD} a GPU."""\n', 3),
        ("pipeline/a.py", "x = 1\n# Not tested for\n# want of a GPU\n", 2),
        ("pipeline/a.py", f'raise ValueError(f"{{name}} is not tested {WORD} a GPU")\n', 1),
        ("params.yaml", f"seed: 0  # {WORD} a better number\n", 1),
        ("docker/preflight", f'set -eu\necho "ERROR: not tested {WORD} a GPU."\n', 2),
        ("pipeline/a.html", f"<p>\n<b>Not</b> tested {WORD} a GPU</p>\n", 2),
    ],
)
def test_word_of_the_list_is_found_with_its_line(path: str, text: str, line: int) -> None:
    assert [message for message in check(path, text) if "→" in message] == [
        message for message in check(path, text) if message.startswith(f"{path}:{line}: ")
    ]
    assert len(check(path, text)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("docs/a.md", f"Write `{WORD}` so:\n\n```\n{WORD}\n```\n\nsee [this](a {WORD} b)\n"),
        ("pipeline/a.html", f"<script>/* {WORD} */</script><p>one {{{{ {WORD} }}}}</p>\n"),
        ("tests/a.py", f'words = "{WORD} a GPU"\n'),
        ("pipeline/a.py", "# Not tested for\nx = 1  # want of a GPU\n"),
    ],
)
def test_code_is_not_read(path: str, text: str) -> None:
    assert check(path, text) == []


def test_check_of_proselint_is_found() -> None:
    (message,) = check("docs/a.md", "It is very " + "unique.\n")
    assert message.startswith("docs/a.md:1: ")
    assert message.endswith("(uncomparables)")


def test_long_sentence_of_markdown_is_found() -> None:
    words = " ".join(["word"] * (prose.MAX_WORDS + 1))
    assert check("docs/a.md", f"Short.\n\n{words}.\n") == [
        f"docs/a.md:3: a sentence of {prose.MAX_WORDS + 1} words → two sentences"
    ]
    assert check("docs/a.md", f"{words[5:]}. {words[5:]}.\n") == []
