"""Make README's links absolute, for PyPI, which shows it away from the files that it links to.

python .ci/absolute_links.py https://github.com/OWNER/NAME v1.2.3
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
LINK = re.compile(r'(?P<before>\]\(|srcset="|src=")(?P<path>(?!https?://|#)[^)#"\s]+)')


def absolute(text: str, address: str, tag: str) -> str:
    """Rewrite relative links: pictures to the files themselves, others to their pages.

    Args:
        text: Markdown.
        address: The repository's.
        tag: What to link to: a tag, a branch or a commit.

    Returns:
        Markdown without relative links.
    """

    def replaced(link: re.Match[str]) -> str:
        kind = "blob" if link["before"] == "](" else "raw"
        return f"{link['before']}{address}/{kind}/{tag}/{link['path']}"

    return LINK.sub(replaced, text)


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(absolute(text, *sys.argv[1:]), encoding="utf-8")
