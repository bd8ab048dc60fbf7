"""Show the examples of docstrings as code: a line is a line, and can be copied."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:\n((?:(?: {4}.*)?\n?)+)", re.MULTILINE)


class Examples(griffe.Extension):
    """Put the lines below `Example:` into a block of code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change a docstring before it is parsed.

        Args:
            obj: A module, class, function or attribute as it was read.
            **_: What else the loader tells.
        """
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(found: re.Match[str]) -> str:
    code = found[1].rstrip()
    language = "pycon" if code.lstrip().startswith(">>>") else "python"
    return f"Example:\n    ```{language}\n{code}\n    ```\n\n"
