"""The scripts of docs/, which are in no package."""

import importlib.util
import pathlib
import sys

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def script(name):
    """The module of a script, such as "tables" or "website/pages"."""
    spec = importlib.util.spec_from_file_location(f"docs_{name.replace('/', '_')}", DOCS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
