"""The package as a whole: its public names, and what importing it costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import selattn_lib as sa

LIBRARY = Path(sa.__file__).parent
HEAVY = {"torch", "diffusers", "transformers", "xarray", "nbformat", "plotly", "scipy", "sklearn", "papermill"}


def stub_names() -> list[str]:
    """The names that `__init__.pyi` lists."""
    tree = ast.parse((LIBRARY / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [alias.asname or alias.name for node in imports for alias in node.names]


@pytest.mark.parametrize("name", stub_names())
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(sa, name) is not None and name in dir(sa)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nosuch"):
        sa.nosuch  # noqa: B018


def test_importing_is_quick_and_quiet() -> None:
    """What takes seconds to import is imported when it is used."""
    script = (
        "import json, sys\nimport selattn_lib as sa\nfrom selattn_lib import cli\ncli.main(['--help'])\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "sa.load_pipeline('emoji-sd', device='cpu')\n"
        "print(json.dumps([sorted(heavy), type(sa.capture).__name__, sa.studies.__name__]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout.splitlines()[-1]) == [[], "function", "selattn_lib.studies"]
