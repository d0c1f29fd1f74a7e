"""Imports point one way, cli -> verbs -> shelves -> nouns; heavy libraries have one home."""

import ast
from pathlib import Path

import dfdetect

PACKAGE = Path(dfdetect.__file__).parent
VERBS = {"prepare", "train", "evaluate", "scanning", "demo", "describe", "sweep", "explain",
         "calibrate", "reproduce", "onnx_export", "forge", "publish", "report"}  # fmt: skip
SHELVES = {"datasets", "degradations", "forgeries", "methods", "reports"}
HOMES = {
    "av": {"video", "prepare"},  # prepare records its version
    "onnxruntime": {"sessions"},
    "facenet_pytorch": set(),  # its weight files only; the package is the tests' oracle
    "timm": {"detector", "networks", "checkpoint"},  # checkpoint records its version
    "accelerate": {"train", "processes"},
    "pebble": {"workers"},
    "distributed": {"workers"},
    "sklearn": {"metrics", "embedding", "grouping"},
    "matplotlib": {"reports"},
    "typer": {"cli"},
    "rich": {"cli", "reports"},
}


def imports():
    """(module, top-level part it belongs to, imported name) of every import statement."""
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, part, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path, part, node.module


def layer(part):
    if part in ("cli", "__main__"):
        return 5
    if part in {"cutting", "optim", "footprint", "forging"}:  # parts of prepare and of train
        return 3
    if part in VERBS:
        return 4
    return 2 if part in SHELVES else 0 if part == "errors" else 1


def test_imports_point_one_way():
    wrong = []
    for path, part, name in imports():
        if name.startswith("dfdetect.") and part != "__init__":
            other = name.split(".")[1]
            if layer(other) > layer(part) or (part in VERBS and other in VERBS - {part}):
                wrong.append(f"{path.name} imports {name}")
    assert wrong == []


def test_a_shelf_s_items_import_no_sibling_but_base():
    wrong = []
    for path, part, name in imports():
        if part in SHELVES and path.name != "__init__.py" and name.startswith("dfdetect."):
            other = name.split(".")[1]
            if other in SHELVES - {part}:
                wrong.append(f"{path.name} imports {name}")
    assert wrong == []


def test_each_heavy_library_has_its_home():
    wrong = [
        f"{path.name} imports {name}"
        for path, part, name in imports()
        if name.split(".")[0] in HOMES and part not in HOMES[name.split(".")[0]]
    ]
    assert wrong == []


def test_inference_needs_no_training_method():
    parts = {part: set() for _, part, _ in imports()}
    for _, part, name in imports():
        if name.startswith("dfdetect."):
            parts[part].add(name.split(".")[1])
    reached, todo = set(), ["scanning", "evaluate"]
    while todo:
        part = todo.pop()
        reached.add(part)
        todo += [p for p in parts.get(part, ()) if p not in reached]
    assert not reached & {"methods", "train", "datasets"}
