"""The import rule: modules import from lower layers alone, and only the layers above the wrappers know EGG."""

import ast
import pathlib

import egg_sparse

ROOT = pathlib.Path(egg_sparse.__file__).parent
LAYERS = {
    "distribution": 0,
    "files": 0,
    "mappings": 1,
    "support": 1,
    "wrappers": 2,
    "senders": 2,
    "language": 2,
    "games": 3,
    "estimators": 3,
    "callbacks": 4,
    "zoo": 5,
    "sweep": 6,
    "report": 6,
}
USERS_OF_HOST = {"games", "estimators", "callbacks", "zoo"}


def parts_of(modules):
    """The parts of egg_sparse, one level below it, that dotted names refer to."""
    names = (module.split(".") for module in modules)
    return {name[1] for name in names if name[0] == "egg_sparse" and len(name) > 1}


def imported_parts(source):
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= parts_of(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= parts_of(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def violations(part, source):
    imported = imported_parts(source) - {part, "version"}
    if part == "standin":
        return imported
    if part == "host":
        return imported - {"standin"}
    allowed = {other for other, layer in LAYERS.items() if layer <= LAYERS[part]}
    if part in USERS_OF_HOST:
        allowed |= {"host"}
    if part == "zoo":
        allowed |= {name for name in imported if name[0].isupper() or name == "marginalize"}  # names of egg_sparse
    return imported - allowed


def test_modules_import_from_lower_layers_alone():
    found = {}
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part not in ("__init__", "version"):
            found[str(path.relative_to(ROOT))] = violations(part, path.read_text(encoding="utf-8"))
    assert len(found) > 50
    assert not {path: names for path, names in found.items() if names}


def test_what_the_rule_refuses():
    assert violations("mappings", "from egg_sparse.wrappers import SparsemaxWrapper") == {"wrappers"}
    assert violations("wrappers", "def f():\n    from egg_sparse import host") == {"host"}
    assert violations("standin", "import egg_sparse.games.base") == {"games"}
    assert violations("games", "from egg_sparse import SparsemaxWrapper") == {"SparsemaxWrapper"}
    assert not violations("games", "from egg_sparse import host\nfrom egg_sparse.games import checks\nimport torch")
