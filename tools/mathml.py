# pyright: reportMissingImports=false
# (mkdocs and what it needs come with the extra docs)
"""A hook of mkdocs: formulas in dollar signs become MathML, which browsers set without a script.

`pymdownx.arithmatex` (generic) marks them in the page, and latex2mathml translates each.
"""

from __future__ import annotations

import html
import re
from typing import Any

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def in_mathml(page: str) -> str:
    """The page with its formulas as `<math>`.

    Examples:
        >>> "<mi>J</mi>" in in_mathml('<span class="arithmatex">\\\\(u = J^T u\\\\)</span>')
        True
    """
    from latex2mathml.converter import convert

    def formula(display: str):
        return lambda found: convert(html.unescape(found[1]).strip(), display=display)

    return BLOCK.sub(formula("block"), INLINE.sub(formula("inline"), page))


def on_page_content(content: str, **_: Any) -> str:
    return in_mathml(content) if "arithmatex" in content else content
