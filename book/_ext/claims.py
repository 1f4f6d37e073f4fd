"""Sphinx extension of this book: claims that are checked when the book is built.

    ```{claim} The 30 heads most relevant to *Animals* draw worse maps than all heads.
    :number: 12_ceiling; less all heads; top 30
    :what: IoU at 0.4, less all heads, on `emoji-sd`
    :expected: below
    ```

is a claim with a number as the role {measured} finds it, how sure it is by the number's interval, the chapter and the
command that measures it again. The build fails when the interval says otherwise: `below` and `above` leave out 0, or
what `:against:` says; `unclear` holds it.
"""

import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from measured import look_up
from sphinx.util.docutils import SphinxDirective

SURE = {
    "above": "**Clear**: the whole interval is above {}.",
    "below": "**Clear**: the whole interval is below {}.",
    "unclear": "**No clear difference**: the interval contains {}.",
}


def verdict(notebooks: Path, number: str, against: str = "0") -> tuple[str, str, str]:
    """(number, value that it is compared with, where its interval lies: above, below or unclear), each looked up.

    LookupError where one is not there, ValueError where the number has no interval.
    """
    found = look_up(notebooks, number)
    limit = look_up(notebooks, against).split()[0] if ";" in against else against
    interval = re.search(r"\[([-+\d.]+)%?, ([-+\d.]+)%?\]", found)
    if not interval:
        raise ValueError(f"{found!r} has no interval")
    low, high = map(float, interval.groups())
    return found, limit, "above" if low > float(limit) else "below" if high < float(limit) else "unclear"


class Claim(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    option_spec = dict.fromkeys(("number", "what", "expected", "against"), directives.unchanged_required)

    def run(self) -> list[nodes.Node]:
        notebooks, asked = Path(self.env.srcdir, self.config.measured_from), self.options["number"]
        try:
            number, limit, found = verdict(notebooks, asked, self.options.get("against", "0"))
            if found != self.options["expected"]:
                raise ValueError(f"expected {self.options['expected']}, but {number} is {found} of {limit}")
        except (LookupError, OSError, ValueError) as error:
            raise self.error(f"{self.arguments[0]}: {error}") from error
        chapter = asked.split(";")[0].strip()
        text = f"""**{self.arguments[0]}**

{number}: {self.options["what"]}. {SURE[found].format(limit)}

Chapter: [](../notebooks/{chapter}.ipynb)

`selattn run notebooks/{chapter}.ipynb --out runs/again`
"""
        sure = "unclear" if found == "unclear" else "clear"
        return [nodes.container("", *self.parse_text_to_nodes(text), classes=["claim", f"claim-{sure}"])]


def setup(app):
    app.add_directive("claim", Claim)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
