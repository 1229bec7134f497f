"""A hook of mkdocs: a flag such as `--max-gain 10` is not broken at its hyphens."""

from __future__ import annotations

import re
from typing import Any

FLAG = re.compile(r"<code>(--[\w-]+(?: [\w.]+)?)</code>")


def on_page_content(content: str, **_: Any) -> str:
    return FLAG.sub(r'<code class="flag">\1</code>', content)
